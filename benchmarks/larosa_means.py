"""What it gains to add back the mean of what LaRoSA drops.

    python benchmarks/larosa_means.py [--model smollm2-135m] [--windows 6] [--sparsity 0.4]
                                      [--tokens 16384] [--out FILE.json]

The mean of every activation where it is dropped, and zero elsewhere, is taken over the text that
LaRoSA was calibrated on, Python's documentation, site by site. A weight times these means could be
a bias, at no cost; here they are added to the activations, which is the same sum. Held-out windows
of that text and of Python's source code are scored by the unmodified model, with LaRoSA and with
the means too; tokens that stay dense get none. Prints a table; the file has every window's
likelihood.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from arguments import command, one_line, positive
from kv_parts.generating import EMBEDDED, model_config
from result_tables import table, with_interval
from texts import python_texts
from torch import Tensor

from trimtab.artifact import Artifact
from trimtab.config import QualityConfig
from trimtab.corpus import Split
from trimtab.environment import describe_environment, prepare
from trimtab.evaluation.generators import TransformersGenerator
from trimtab.evaluation.intervals import rate_difference
from trimtab.evaluation.scoring import score
from trimtab.evaluation.workload import Window, quality_windows
from trimtab.files import write_json
from trimtab.larosa import LaRoSA
from trimtab.larosa.apply import sparsified
from trimtab.larosa.plan import Plan
from trimtab.larosa.selection import Selector, Selectors
from trimtab.models.loading import LoadedModel, load_model
from trimtab.windows import token_windows

WINDOW = 512  # tokens
COLUMNS = (
    "text", "LaRoSA, perplexity over dense", "with the means", "nats a token that the means add",
)  # fmt: skip


class Filling:
    """A selector that takes the mean of what it drops, and can add it back."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector
        self._sum: Tensor | float = 0.0
        self._rows = 0
        self.learning = True

    def __call__(self, z: Tensor) -> Tensor:
        selected = self._selector(z)
        if self.learning:
            dropped = (z - selected).reshape(-1, z.shape[-1])
            self._sum = self._sum + dropped.double().sum(0)
            self._rows += len(dropped)
            return selected
        sparse = selected.ne(z).any(-1, keepdim=True)
        return torch.where(sparse, selected + (self._sum / self._rows).to(z.dtype), selected)


@contextmanager
def filled(loaded: LoadedModel, method: LaRoSA, artifact: Artifact, text: Tensor) -> Iterator[None]:
    """Have LaRoSA at work, and the means over windows of `text` added back."""
    plan, model = Plan.from_json(artifact.parameters["plan"]), loaded.model
    selectors, made = Selectors(plan, method), list[Filling]()

    def filling(site: str, layer: int) -> Filling:
        made.append(Filling(selectors.selector(site, layer)))
        return made[-1]

    read: Any = model
    with sparsified(model, plan, artifact.tensors, filling), selectors.following(model):
        with torch.inference_mode():
            for window in text:
                read(window[None], logits_to_keep=1)
        for one in made:
            one.learning = False
        yield


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the windows' likelihoods, and what they come to, by text."""
    loaded, texts = load_model(model_config(options)), python_texts()
    model, tokenizer = loaded.model, loaded.tokenizer
    corpus = texts["docs"]
    method = LaRoSA(sparsity=options.sparsity, tokens=options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        artifact = method.calibrate(model, tokenizer, corpus, Path(folder))
    config = QualityConfig(windows=options.windows, window_bytes=2048, context_bytes=256)
    windows = {
        one.name: quality_windows(one.documents(Split.test), config) for one in texts.values()
    }
    logits = TransformersGenerator(model, tokenizer).logits

    def scored() -> dict[str, list[tuple[float, float]]]:
        """Return the likelihood and the tokens of every window, by text."""
        return {name: [one(window) for window in own] for name, own in windows.items()}

    def one(window: Window) -> tuple[float, float]:
        found = score(logits, tokenizer, window)
        return found.nats, float(found.tokens)

    found = {"dense": scored()}
    with method.apply(model, tokenizer, artifact):
        found["larosa"] = scored()
    documents = corpus.documents(Split.calibration)
    count = options.tokens // WINDOW
    text = token_windows(documents, tokenizer, count, WINDOW, fewer=True)
    with filled(loaded, method, artifact, text):
        found["with means"] = scored()
    return {name: compared({key: own[name] for key, own in found.items()}) for name in windows}


def compared(found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Return the differences in nats a token that windows of one text have."""
    tokens = [count for _, count in found["dense"]]
    values = {name: [one for one, _ in own] for name, own in found.items()}

    def excess(base: str, of: str) -> dict[str, float]:
        return dict(rate_difference(values[base], values[of], tokens, seed=0))

    return {
        "larosa": excess("dense", "larosa"),
        "with_means": excess("dense", "with means"),
        "difference": excess("larosa", "with means"),
        "tokens": tokens,
        "nats": values,
    }


def markdown(texts: dict[str, Any]) -> str:
    rows: list[Sequence[str]] = []
    for name, one in texts.items():
        ratios = [
            {key: math.exp(value) for key, value in one[which].items()}
            for which in ("larosa", "with_means")
        ]
        cells = [with_interval(ratio, 3) for ratio in ratios]
        rows.append([name, *cells, with_interval(one["difference"], 4)])
    return table(COLUMNS, rows)


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=EMBEDDED, help="or gemma3-270m, a name, a folder")
    add("--windows", type=positive, default=6, help="of each text; default: %(default)s")
    add("--sparsity", type=float, default=0.4, help="of the bytes; default: %(default)s")
    add("--tokens", type=positive, default=16384, help="of calibration; default: %(default)s")
    add("--out", type=Path, default=Path("larosa-means.json"))
    options = parser.parse_args()
    options.device, options.seed = "auto", 0
    if options.tokens < WINDOW:
        parser.error(f"--tokens {options.tokens}: expected at least {WINDOW}, one window")
    prepare(0, None)
    texts = measure(options)
    content = {
        "command": command(),
        "environment": describe_environment(0),
        "model": options.model,
        "texts": texts,
    }
    write_json(options.out, content)
    print(markdown(texts))


if __name__ == "__main__":
    one_line(run)
