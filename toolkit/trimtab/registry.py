"""From the names in ``conf/`` to classes, and from composed nodes to checked objects.

A model, a corpus or a method is an option of its group: a YAML file with the class as ``_target_``.
What can be set, and to what, is the class's own, see `trimtab.settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from textwrap import fill, indent
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from trimtab import config
from trimtab.classes import class_named
from trimtab.errors import ConfigError, TrimtabError
from trimtab.settings import defaults, describe, told
from trimtab.wandb_variables import tracking_default

T = TypeVar("T")
TARGETED = "model", "corpus", "method"
COMMANDS: dict[str, type] = {"calibrate": config.CalibrateConfig, "evaluate": config.EvaluateConfig}
SECTIONS: dict[str, type] = {
    "generation": config.GenerationConfig,
    "quality": config.QualityConfig,
    "search": config.SearchConfig,
    "speed": config.SpeedConfig,
    "serving": config.ServingConfig,
    "energy": config.EnergyConfig,
    "tracking": config.TrackingConfig,
}


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


def default_options() -> dict[str, str]:
    """Return the option of each group that the commands take where none is asked for."""
    found: dict[str, str] = {}
    for command in COMMANDS:
        for entry in _read(config_folder() / f"{command}.yaml").defaults:
            if not isinstance(entry, str):
                found |= {str(group): str(option) for group, option in entry.items() if option}
    return found


def stack_members(stack: str) -> set[str]:
    """Return the methods of a stack: an option of the group ``methods``, or a list of them."""
    if stack.startswith("["):
        return {
            name for part in stack.strip("[]").split(",") for name in stack_members(part.strip())
        }
    if stack in method_names():
        return {stack}
    path = config_folder() / "methods" / f"{stack}.yaml"
    if not path.exists():  # from a folder of the user's: it may hold any
        return set(method_names())
    return {str(name) for entry in _read(path).get("defaults", ()) for name in entry.values()}


def targets(group: str) -> dict[str, type]:
    """Return the class of every option of a group whose options name one.

    Raises
    ------
    ConfigError
        If a file names no class that can be imported.
    """
    found = {}
    for path in sorted((config_folder() / group).glob("*.yaml")):
        found[path.stem] = class_named(f"{path}: _target_", _read(path).get("_target_"))
    return found


def register() -> None:
    """Put the schemas in Hydra's ConfigStore, and a stack of one for each method.

    In a help text of a YAML file ``${options:GROUP}`` lists the options of a group, the default
    marked and stacks of several methods with their members, and
    ``${settings:NAME}`` explains those of a command, a section or a group.
    """
    resolvers: dict[str, Callable[..., Any]] = {
        "options": _options, "settings": _settings, "tracking_default": tracking_default
    }  # fmt: skip
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    store = ConfigStore.instance()
    for name, kind in (COMMANDS | SECTIONS).items():
        store.store(group="schema", name=name, node=kind)
    for group in TARGETED:
        for option, kind in targets(group).items():
            store.store(group=f"schema/{group}", name=option, node=defaults(kind))
    for name in method_names():
        store.store(group="methods", name=name, node={"defaults": [{f"/method@{name}": name}]})


def build(node: Mapping[str, Any], kind: type[T]) -> T:
    """Return the object that a configuration node describes, its types and ranges checked.

    Parameters
    ----------
    node : mapping
        Its settings, and its class as ``_target_``.
    kind : type
        What the class derives from.

    Raises
    ------
    TrimtabError
        For a value out of range, or a required one that is missing.
    omegaconf.errors.OmegaConfBaseException
        For an unknown setting or a value of the wrong type.
    """
    settings = dict(node)
    if (name := settings.pop("_target_", None)) is None:
        raise TrimtabError(
            f"a {kind.__name__} without _target_: the option's file names neither a class nor, in "
            "its defaults, another option"
        )
    target = class_named(f"{kind.__name__}: _target_", name)
    if not issubclass(target, kind):
        raise ConfigError("_target_", target.__name__, f"expected a {kind.__name__}")
    place = target.place
    typed = OmegaConf.merge({place: OmegaConf.structured(target)}, {place: settings})
    for key in sorted(OmegaConf.missing_keys(typed)):
        meaning, _ = told(target, key.rpartition(".")[2])
        raise TrimtabError(f"{key} is required: write {key}=VALUE ({meaning})")
    built = OmegaConf.to_object(typed)
    assert isinstance(built, dict)
    made = built[place]
    assert isinstance(made, kind)
    return made


@cache
def _read(path: Path) -> Any:
    return OmegaConf.load(path)


def _options(group: str) -> str:
    return ", ".join(_option(group, name) for name in group_options(group))


def _option(group: str, name: str) -> str:
    notes = ["the default"] if default_options().get(group) == name else []
    if group == "methods" and len(members := stack_members(name)) > 1:
        notes.append(" + ".join(sorted(members)))
    return f"{name} ({'; '.join(notes)})" if notes else name


def _settings(name: str) -> str:
    """Explain the settings of a command, a section or every option of a group."""
    if name in TARGETED:
        prefix = "" if name == "method" else f"{name}."
        return "\n".join(
            f"{name}={option}: {_summary(kind)}\n{_explained(kind, prefix)}"
            for option, kind in targets(name).items()
        )
    if name in SECTIONS:
        return f"{name}: {_summary(SECTIONS[name])}\n{_explained(SECTIONS[name], f'{name}.')}"
    return _explained(COMMANDS[name])


def _summary(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _explained(kind: Any, prefix: str = "") -> str:
    lines: list[str] = []
    for name, meaning in describe(kind):
        lines += [f"  {prefix}{name}", indent(fill(meaning, 90), " " * 6)]
    return "\n".join(lines)
