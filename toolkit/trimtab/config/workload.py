"""What is generated, scored and served: the text that a stack is measured on."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from trimtab.settings import Settings, setting, settings

PEERS = ("static", "continuous")


@settings
class GenerationConfig(Settings):
    """The generation that is timed and compared: held-out prompts, batch 1, greedy decoding."""

    place: ClassVar[str] = "generation"

    prompts: int = setting(
        default=4, meaning="prompts, spread evenly over the held-out documents", at_least=2
    )
    prompt_bytes: int = setting(default=256, meaning="text in a prompt", at_least=4, unit="bytes")
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
            installed, "tasks", "the package lm-eval to be there: pip install 'trimtab[lm-eval]'"
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
    peers: list[str] = setting(
        default=list(PEERS),
        meaning="how else transformers serves the unmodified model, beside a padded batch: on a "
        "static cache, by continuous batching; [] leaves both out",
    )
    repeats: int = setting(default=3, meaning="timed rounds of all servers", at_least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_bytes", "new_tokens"):
            bounds = getattr(self, name)
            in_order = len(bounds) == 2 and bounds[0] <= bounds[1]
            self.require(in_order, name, "the least and the most: [least,most]")
        known = {*self.peers} <= {*PEERS} and len({*self.peers}) == len(self.peers)
        self.require(known, "peers", f"some of {', '.join(PEERS)}, each once: [{','.join(PEERS)}]")
