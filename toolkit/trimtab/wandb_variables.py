"""What W&B's own variables and settings files say of `tracking`, where no setting does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from configparser import ConfigParser, InterpolationError
from configparser import Error as NotRead
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from trimtab.config import TrackingConfig, TrackingMode
from trimtab.errors import ConfigError, TrimtabError
from trimtab.settings import defaults, path_of

TRUE = "1", "true", "yes", "on"
OLD_MODES = {"dryrun": "offline", "run": "online"}
SECTION = "default"  # of the settings files
DEFAULTS = "config-defaults.yaml"  # what runs' configurations begin with, in the current folder
IN_FILES = {"WANDB_DIR": "root_dir"}  # named otherwise than the variable


def tracking_default(variable: str, key: str) -> Any:
    """Return a variable of W&B, or what its settings files say; else the setting's default.

    Under ``wandb agent``, which waits for the figures of its runs, the mode is online by default.

    Raises
    ------
    ConfigError
        If what is given for the mode is none.
    """
    source, given = _given(variable)
    found = given or defaults(TrackingConfig)[key]
    if key == "mode":
        if disabled_by():
            return TrackingMode.disabled.value
        if os.environ.get("WANDB_SWEEP_ID") and not given:
            return TrackingMode.online.value
        known = [*TrackingMode, *OLD_MODES]
        if found not in known:
            raise ConfigError(source, found, f"expected {', '.join(known[:-1])} or {known[-1]}")
        return OLD_MODES.get(found, found)
    return str(path_of(found)) if key == "folder" else found


def disabled_by() -> str | None:
    """Return the variable or the file, with its value, that disables tracking, if one does."""
    disabled = os.environ.get("WANDB_DISABLED", "")
    if disabled.lower() in TRUE:
        return f"WANDB_DISABLED={disabled}"
    source, mode = _given("WANDB_MODE")
    return f"{source}={mode}" if mode == TrackingMode.disabled else None


def folder_setting(folder: str) -> str:
    """Return what names the folder of the runs: W&B's variable, its settings file, or ours."""
    source, given = _given("WANDB_DIR")
    return source if given and str(path_of(given)) == folder else "tracking.folder"


def _given(variable: str) -> tuple[str, str]:
    """Return what W&B takes for a variable, where none is empty, and where that is from."""
    if given := os.environ.get(variable):
        return variable, given
    key = IN_FILES.get(variable, variable.removeprefix("WANDB_").lower())
    for path in settings_files():
        try:
            given = _read(path).get(SECTION, key, fallback="")
        except InterpolationError:  # which is refused where a run is kept
            continue
        if given:
            return f"{path}: {key}", given
    return variable, ""


def require_readable() -> None:
    """Refuse files that W&B reads by itself, and would fail to.

    Raises
    ------
    TrimtabError
    """
    for path in settings_files():
        try:
            dict(_read(path)[SECTION])
        except KeyError:
            continue
        except InterpolationError as error:
            reason = f"{error.option}: {error.message}; write %% for %"
            raise TrimtabError(f"{path}: {reason}") from error
    if (path := Path(DEFAULTS)).exists():
        _require_configuration(path)


def _require_configuration(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    else:
        if content is None or (isinstance(content, dict) and all(map(_is_value, content.items()))):
            return
        reason = "expected lines such as `seed: {value: 3}`, and wandb_version: 1 if it is there"
    raise TrimtabError(
        f"{path}, which W&B reads by itself: {reason}; correct or move it, or write "
        "tracking.mode=disabled"
    )


def _is_value(item: tuple[Any, Any]) -> bool:
    name, content = item
    if name == "wandb_version":
        return bool(content == 1)
    return isinstance(name, str) and isinstance(content, dict) and "value" in content


def _read(path: Path) -> ConfigParser:
    """Return what W&B reads in a settings file: nothing where it warns, and goes on without it."""
    parser = ConfigParser()
    try:
        parser.read(path)
    except (OSError, NotRead, UnicodeDecodeError):
        return ConfigParser()
    return parser


def settings_files() -> Iterator[Path]:
    """Yield W&B's settings files: of the folder that a command is started in, then the user's."""
    yield Path(".wandb" if Path(".wandb").exists() else "wandb", "settings")
    yield path_of(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb") / "settings"
