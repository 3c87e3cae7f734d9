"""Where W&B runs go."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from trimtab.settings import Settings, setting, settings


class TrackingMode(StrEnum):
    """Where W&B runs go."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@settings
class TrackingConfig(Settings):
    """Weights & Biases: one run a job, kept on disk unless mode=online."""

    place: ClassVar[str] = "tracking"

    mode: TrackingMode = setting(
        default=TrackingMode.offline,
        meaning="where runs go; WANDB_MODE is the default where it is set",
    )
    project: str = setting(default="trimtab", meaning="W&B project; or WANDB_PROJECT")
    entity: str | None = setting(
        default=None, meaning="W&B user or team; null is your own; or WANDB_ENTITY"
    )
    folder: str = setting(
        default="outputs",
        meaning="offline runs are kept in wandb/ under this folder; or WANDB_DIR",
    )
