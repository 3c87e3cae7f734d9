"""What the two commands are configured with, apart from models, corpora and methods.

This module is imported before anything heavy, so that `--help`, `--cfg job` and a mistyped key
answer at once.
"""

from __future__ import annotations

import os
from dataclasses import field
from enum import StrEnum
from importlib.util import find_spec
from typing import Any, ClassVar

from omegaconf import MISSING

from trimtab.backing import Backing
from trimtab.settings import Settings, setting, settings

LEAST_TIMED = 6  # of fewer pairs, no interval from signed ranks holds the truth 95 times in 100

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


class OnMissing(StrEnum):
    """What `evaluate.py` does where the artifact of a method does not exist yet."""

    calibrate = "calibrate"
    error = "error"


class TrackingMode(StrEnum):
    """Where W&B runs go."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@settings
class GenerationConfig(Settings):
    """The generation that is timed and compared: held-out prompts, batch 1, greedy decoding."""

    place: ClassVar[str] = "generation"

    prompts: int = setting(
        default=4, meaning="prompts, spread evenly over the held-out documents", at_least=1
    )
    prompt_bytes: int = setting(default=256, meaning="text in a prompt", at_least=1, unit="bytes")
    new_tokens: int = setting(
        default=32, meaning="tokens generated per prompt", at_least=2, unit="tokens"
    )


@settings
class QualityConfig(Settings):
    """Windows of held-out text that the quality figures are measured on."""

    place: ClassVar[str] = "quality"

    windows: int = setting(default=24, meaning="windows of held-out text", at_least=2)
    window_bytes: int = setting(
        default=2048,
        meaning="text in a window, cut at the same bytes for every tokenizer",
        at_least=64,
        unit="bytes",
    )
    context_bytes: int = setting(
        default=256,
        meaning="how much of a window is read first and not scored; less than window_bytes",
        at_least=0,
        unit="bytes",
    )
    compression_windows: int = setting(
        default=24,
        meaning="prompts compressed, where the tokenizers differ; 0 measures none, else at least 2",
    )
    compression_context_bytes: int = setting(
        default=768, meaning="text in such a prompt", at_least=32, unit="bytes"
    )
    compression_bytes: int = setting(
        default=192, meaning="text after it that is scored", at_least=32, unit="bytes"
    )
    out_of_domain_windows: int = setting(
        default=4,
        meaning="windows of Python's own source, a text of another domain; 0 measures none, else "
        "at least 2",
    )
    marginal_likelihood_windows: int = setting(
        default=8,
        meaning="compressed prompts whose continuations are also scored over all their "
        "tokenizations, where output tokens are new; 0 measures none, else at least 2",
    )
    marginal_likelihood_samples: int = setting(
        default=16, meaning="tokenizations drawn for each", at_least=1
    )
    tasks: list[str] = setting(
        default=[],
        meaning="tasks of lm-eval that both models solve: [hellaswag,arc_easy]",
    )
    task_limit: int | None = setting(
        default=None, meaning="documents of each task; null takes all", at_least=2
    )
    task_folder: str | None = setting(
        default=None, meaning="folder of YAML files that declare tasks beside lm-eval's own"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.context_bytes < self.window_bytes,
            "context_bytes",
            "at least 0 and less than quality.window_bytes",
        )
        for name in ("compression_windows", "out_of_domain_windows", "marginal_likelihood_windows"):
            value = getattr(self, name)
            self.require(value == 0 or value >= 2, name, "0 or at least 2")
        installed = not self.tasks or find_spec("lm_eval") is not None
        self.require(
            installed, "tasks", "the package lm-eval to be there: pip install '.[lm-eval]'"
        )


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
class SearchConfig(Settings):
    """What `experiment=search` looks for: the largest speedup within a quality budget."""

    place: ClassVar[str] = "search"

    max_bpb_increase: float | None = setting(
        default=0.02,
        meaning="the quality budget: most that bits per byte of held-out text may rise, its whole "
        "interval, relative to the unmodified model (0.02 is 2 %); null is any",
        at_least=0,
    )


@settings
class ServingConfig(Settings):
    """Many requests that arrive together; their prompts and texts differ in length."""

    place: ClassVar[str] = "serving"

    requests: list[int] = setting(
        default=[8, 16],
        meaning="how many requests arrive together, one number after another; [] measures none",
        at_least=1,
    )
    prompt_bytes: list[int] = setting(
        default=[32, 512],
        meaning="the shortest and the longest prompt; lengths are spread evenly over its logarithm",
        at_least=4,
        unit="bytes",
    )
    new_tokens: list[int] = setting(
        default=[8, 16],
        meaning="the shortest and the longest text that follows, in the unmodified model's tokens; "
        "spread likewise",
        at_least=2,
        unit="tokens",
    )
    trace: str | None = setting(
        default=None,
        meaning="a file with lengths of your own, .jsonl or .csv: prompt_tokens and new_tokens of "
        "a request a line, in order of arrival; null: as above",
    )
    budget: int | None = setting(
        default=None,
        meaning="the most that keys and values may take, of any server; null: what the largest "
        "number of requests needs",
        at_least=1,
        unit="bytes",
    )
    repeats: int = setting(default=3, meaning="timed rounds of all servers", at_least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_bytes", "new_tokens"):
            bounds = getattr(self, name)
            in_order = len(bounds) == 2 and bounds[0] <= bounds[1]
            self.require(in_order, name, "the least and the most: [least,most]")


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


@settings
class CommandConfig(SeedConfig):
    """What both commands read."""

    model: Any = MISSING
    corpus: Any = MISSING
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    artifacts: str = setting(default="artifacts", meaning="folder that artifacts are kept under")
    threads: int | None = setting(
        default=None, meaning="CPU threads; null leaves PyTorch's choice", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        cores = len(os.sched_getaffinity(0))
        expected = f"null or at least 1 and at most {cores}, the cores this process may use"
        self.require(self.threads is None or self.threads <= cores, "threads", expected)


@settings
class CalibrateConfig(CommandConfig):
    """Everything `calibrate.py` reads: one method or a stack."""

    method: Any = None
    methods: dict[str, Any] | None = None
    force: bool = setting(default=False, meaning="calibrate again even if the artifact exists")


@settings
class EvaluateConfig(CommandConfig, MeasureConfig):
    """Everything `evaluate.py` reads."""

    methods: dict[str, Any] = MISSING
    search: SearchConfig = field(default_factory=SearchConfig)
    on_missing: OnMissing = setting(
        default=OnMissing.calibrate, meaning="what to do where an artifact does not exist"
    )
    memory: Backing = setting(
        default=Backing.huge,
        meaning="what backs the weights of both models: huge pages, or the ordinary ones that "
        "loading and methods leave them in (as_loaded)",
    )
