"""Whether what was composed can be run, as far as that is known before anything is loaded."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from trimtab.commands.messages import meant
from trimtab.config import METRICS, CalibrateConfig, CommandConfig, EvaluateConfig
from trimtab.corpora import CorpusSource
from trimtab.errors import TrimtabError
from trimtab.method import NOT_CALIBRATED, Method
from trimtab.models.sources import ModelSource
from trimtab.registry import SECTIONS, TARGETED, build

Config = TypeVar("Config", bound=CommandConfig)


def checked(config: DictConfig, kind: type[Config]) -> Config:
    """Return what a job is configured with.

    Parameters
    ----------
    config : DictConfig
        As composed, see `trimtab.commands.sweep.without_foreign`.

    Raises
    ------
    TrimtabError
        For what can never be run.
    omegaconf.errors.OmegaConfBaseException
        For a setting that a method does not have, or a value of the wrong type.
    """
    settings = typed(config, kind)
    methods = methods_of(settings)
    if kind is CalibrateConfig and not any(method.calibrated for method in methods):
        names = " and ".join(method.name for method in methods) or "baseline"
        raise TrimtabError(NOT_CALIBRATED.format(name=names))
    if isinstance(settings, EvaluateConfig) and [*settings.metrics.items()] != [*METRICS.items()]:
        from trimtab.evaluation.metrics import metrics_of  # heavy, and ours are sound

        metrics_of(settings.metrics)
    return settings


def methods_of(settings: CommandConfig) -> list[Method]:
    """Return the methods that are named, their settings checked."""
    assert isinstance(settings, CalibrateConfig | EvaluateConfig)
    one = isinstance(settings, CalibrateConfig) and settings.method
    nodes = [one] if one else settings.methods.values()
    return [build(node, Method) for node in nodes]


def typed(config: DictConfig, kind: type[Config]) -> Config:
    """Return the composed configuration as its dataclass, every value present and in range.

    The model and the corpus are their sources then; methods are nodes still, see `build`.

    Raises
    ------
    TrimtabError
        For a value that is required and missing, or out of range.
    """
    for key in sorted(OmegaConf.missing_keys(config)):
        if key == "methods":  # has a default: only an empty choice leaves none
            raise TrimtabError("methods is empty: write methods=baseline for no method")
        if (group := key.partition(".")[0]) in TARGETED and group != key:
            node: Any = OmegaConf.to_container(config[group])
            build(node, object)  # says what it means
        raise TrimtabError(f"{key} is required: write {key}=VALUE")
    _require_known(config, kind)
    value = OmegaConf.to_object(config)
    if not isinstance(value, kind):
        raise TypeError(f"the composed configuration is a {type(value)}, not a {kind}")
    value.model = build(value.model, ModelSource)
    value.corpus = build(value.corpus, CorpusSource)
    return value


def _require_known(config: DictConfig, kind: type[CommandConfig]) -> None:
    """Refuse what was added to the configuration and no setting reads."""
    sections = ((name, config.get(name), section) for name, section in SECTIONS.items())
    for name, node, known in [("", config, kind), *sections]:
        names = [one.name for one in fields(known)]
        for key in node or ():
            if key not in names:
                place = f"{name}." if name else ""
                raise TrimtabError(
                    f"unknown setting {place}{key}{meant(str(key), names, name)}; "
                    f"{name or 'the top level'} has: {', '.join(names)}"
                )
