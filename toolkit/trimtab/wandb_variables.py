"""What W&B's own variables say of `tracking`, where no setting does."""

from __future__ import annotations

import os
from typing import Any

from trimtab.config import TrackingConfig, TrackingMode
from trimtab.errors import ConfigError
from trimtab.settings import defaults, path_of

TRUE = "1", "true", "yes", "on"
OLD_MODES = {"dryrun": "offline", "run": "online"}


def tracking_default(variable: str, key: str) -> Any:
    """Return a variable of W&B; the setting's default where it is not set or empty.

    Under ``wandb agent``, which waits for the figures of its runs, the mode is online by default.

    Raises
    ------
    ConfigError
        If the variable holds no mode.
    """
    given = os.environ.get(variable)
    found = given or defaults(TrackingConfig)[key]
    if key == "mode":
        if disabled_by():
            return TrackingMode.disabled.value
        if os.environ.get("WANDB_SWEEP_ID") and not given:
            return TrackingMode.online.value
        known = [*TrackingMode, *OLD_MODES]
        if found not in known:
            raise ConfigError(variable, found, f"expected {', '.join(known[:-1])} or {known[-1]}")
        return OLD_MODES.get(found, found)
    return str(path_of(found)) if key == "folder" else found


def disabled_by() -> str | None:
    """Return the variable, with its value, that disables tracking; None where none does."""
    disabled, mode = (os.environ.get(f"WANDB_{name}", "") for name in ("DISABLED", "MODE"))
    if disabled.lower() in TRUE:
        return f"WANDB_DISABLED={disabled}"
    return f"WANDB_MODE={mode}" if mode == TrackingMode.disabled else None
