"""What Hydra is told before it composes: the schemas, and a stack of one for each method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from trimtab import config


def config_folder() -> Path:
    """Return the folder of the YAML groups: in an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent.parent / "conf"


def method_names() -> list[str]:
    """Return the names of the methods, one per file of ``conf/method``."""
    return group_options("method")


def group_options(group: str) -> list[str]:
    """Return the options of a configuration group; every method is a stack of one."""
    files = {path.stem for path in (config_folder() / group).glob("*.yaml")}
    return sorted(files | set(method_names() if group == "methods" else ()))


def _schemas() -> Iterator[tuple[str, str, type]]:
    yield "schema", "calibrate", config.CalibrateConfig
    yield "schema", "evaluate", config.EvaluateConfig
    yield "schema/model", "smollm2-135m", config.EmbeddedModel
    yield "schema/model", "hub", config.HubModel
    yield "schema/model", "random", config.RandomModel
    yield "schema/corpus", "python-docs", config.PythonDocs
    yield "schema/corpus", "files", config.FilesCorpus
    yield "schema/corpus", "hub", config.HubCorpus
    yield "schema", "generation", config.GenerationConfig
    yield "schema", "tracking", config.TrackingConfig


def register() -> None:
    """Put the schemas in Hydra's ConfigStore, and a stack of one for each method.

    ``${options:GROUP}`` in a YAML file, a help text for one, lists the options of a group.
    """
    OmegaConf.register_new_resolver(
        "options", lambda group: ", ".join(group_options(group)), replace=True
    )
    store = ConfigStore.instance()
    for group, name, node in _schemas():
        store.store(group=group, name=name, node=node)
    for name in method_names():
        store.store(group="methods", name=name, node={"defaults": [{f"/method@{name}": name}]})
