"""How often what is timed is repeated."""

from __future__ import annotations

from typing import ClassVar

from trimtab.settings import Settings, setting, settings

LEAST_TIMED = 6  # of fewer pairs, no interval from signed ranks holds the truth 95 times in 100


@settings
class SpeedConfig(Settings):
    """How often the timed generation is repeated, per prompt and per model.

    Rounds are added until the speedup's interval is narrow enough, time is up, or they are as many
    as may be added.
    """

    place: ClassVar[str] = "speed"

    repeats: int = setting(
        default=5,
        meaning="timed generations per prompt and per model, at least; repeats x prompts at least "
        "6",
        at_least=2,
    )
    more_repeats: int = setting(
        default=25, meaning="the most that are added while time is left; none with paired=false",
        at_least=0,
    )  # fmt: skip
    precision: float = setting(
        default=0.03,
        meaning="half the width of the speedup's interval under which none are added (0.03 is 3 %)",
        above=0,
    )
    seconds: float = setting(
        default=90, meaning="timing takes no longer, once there are repeats", at_least=0,
        unit="seconds",
    )  # fmt: skip
    warmup: int = setting(default=1, meaning="untimed generations before them", at_least=0)


@settings
class EnergyConfig(Settings):
    """How often the energy of generation is measured, where the machine has a counter of it."""

    place: ClassVar[str] = "energy"

    blocks: int = setting(
        default=LEAST_TIMED,
        meaning="blocks of at least a second, each model in turn; 0 measures none, else at least "
        f"{LEAST_TIMED}",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"0 or at least {LEAST_TIMED}: an interval over fewer means nothing"
        self.require(self.blocks == 0 or self.blocks >= LEAST_TIMED, "blocks", expected)
