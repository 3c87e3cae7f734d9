"""Everything that a stack is measured by, for the command and for Python alike."""

from __future__ import annotations

from dataclasses import field

from trimtab.config.timing import LEAST_TIMED, EnergyConfig, SpeedConfig
from trimtab.config.workload import GenerationConfig, QualityConfig, ServingConfig
from trimtab.settings import Settings, setting, settings

METRICS = {
    name: f"trimtab.evaluation.metrics.{path}"
    for name, path in {
        "likelihood": "likelihood.Likelihood",
        "out_of_domain": "out_of_domain.OutOfDomain",
        "compression": "compression.Compression",
        "tokenizations": "tokenizations.Tokenizations",
        "greedy": "greedy.Greedy",
        "latency": "latency.Latency",
        "serving": "serving.Serving",
        "tokens": "tokens.Tokens",
        "kv": "kv.KV",
        "energy": "energy.Energy",
        "tasks": "tasks.Tasks",
        "memory": "memory.Memory",
    }.items()
}
"""What is measured, in this order: the classes of the metrics, by a name for each."""


@settings
class SeedConfig(Settings):
    """What everything drawn at random starts from."""

    seed: int = setting(
        default=0, meaning="seed of everything drawn at random", at_least=0, below=2**32
    )


@settings
class MeasureConfig(SeedConfig):
    """What is generated, read and timed to measure a stack."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    metrics: dict[str, str] = field(default_factory=METRICS.copy)
    paired: bool = setting(
        default=True,
        meaning="time both models in turn; false keeps one copy in memory and times them one "
        "after the other",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (
            ("generation", GenerationConfig), ("quality", QualityConfig), ("speed", SpeedConfig),
            ("serving", ServingConfig),
            ("energy", EnergyConfig),
        ):  # fmt: skip
            self.require(isinstance(getattr(self, name), kind), name, f"a {kind.__name__}")
        paths = self.metrics if isinstance(self.metrics, dict) else {None: None}
        texts = all(isinstance(one, str) for pair in paths.items() for one in pair)
        self.require(texts, "metrics", "paths of classes by name")
        timed = self.speed.repeats * self.generation.prompts
        expected = (
            f"speed.repeats x generation.prompts to be at least {LEAST_TIMED} timed generations: "
            f"an interval over {timed} means nothing"
        )
        self.speed.require(timed >= LEAST_TIMED, "repeats", expected)
