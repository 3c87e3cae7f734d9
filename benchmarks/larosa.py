"""Likelihood against sparsity: ours, LaRoSA's, TEAL's and WINA's choices on the same model.

    python benchmarks/larosa.py [--model smollm2-135m] [--windows 8] [--budgets 0.55 …]
                                [--nominal 0.4 …] [--out FOLDER]

Every method runs in this toolkit's sparse model, at every site and on every token but the first of
a text, and is scored on the same windows of two texts, Python's documentation and its standard
library's source code: held-out documents of the one it was calibrated on (--calibrate), and of the
other, which it never saw. Two axes: at equal bytes of block weights read per token (transforms and
adapters counted, as measured while scoring), and at equal nominal sparsity, the papers' convention,
where transforms are not counted. Writes larosa.json with every window's likelihood, larosa.md and
the plots. It takes hours on two cores: the same command goes on from what larosa.json has, and one
with other methods or budgets adds to it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arguments import one_line
from kv_parts.generating import EMBEDDED, model_config
from larosa_report import write_report
from resuming import begun
from texts import python_texts

from trimtab.artifact import Artifact
from trimtab.config import QualityConfig
from trimtab.corpus import Corpus, Split
from trimtab.environment import prepare
from trimtab.evaluation.generators import TransformersGenerator
from trimtab.evaluation.intervals import rate_difference
from trimtab.evaluation.scoring import score
from trimtab.evaluation.workload import Window, quality_windows
from trimtab.files import write_json
from trimtab.larosa import (
    Allocation,
    Basis,
    Count,
    LaRoSA,
    Precision,
    Prefill,
    RotationScope,
    Selection,
    Transforms,
)
from trimtab.models.loading import LoadedModel, load_model
from trimtab.progress import say

SHARED = ("moments", "entering", "fisher")  # what the same tokens give, whatever is dropped
PLAIN = {
    "basis": Basis.none,
    "transforms": Transforms.none,
    "fold_values": False,
    "allocation": Allocation.uniform,
    "selection": Selection.topk,
}
ROTATED = {**PLAIN, "basis": Basis.pca, "precision": Precision.model}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "ours, every token sparse": {"dense_prefix": 0},
    "ours, context dense": {"prefill": Prefill.dense},
}
METHODS: dict[str, dict[str, Any]] = {
    "magnitude Top-K": PLAIN,
    "TEAL thresholds": {**PLAIN, "selection": Selection.threshold},
    "TEAL thresholds, greedy": {
        **PLAIN, "selection": Selection.threshold, "allocation": Allocation.steepest,
    },
    "WINA scores": {**PLAIN, "fold_norms": True},
    "LaRoSA as released": {**ROTATED, "transforms": Transforms.all},
    "LaRoSA, paper": {**ROTATED, "residual": RotationScope.layer, "allocation": Allocation.alpha},
    "ours": {},
    "ours, exact counts": {"selection": Selection.topk},
    "ours, uniform": {"transforms": Transforms.all, "allocation": Allocation.uniform},
    **PROTOCOLS,
}  # fmt: skip
RELEASED = "LaRoSA as released"
EQUAL_BYTES = tuple(name for name in METHODS if name != "ours, context dense")
NOMINAL = ("magnitude Top-K", RELEASED, "LaRoSA, paper", "ours", *PROTOCOLS)


@dataclass
class Bench:
    """One model, the text it is calibrated on and the windows it is scored on."""

    loaded: LoadedModel
    corpus: Corpus
    windows: dict[str, list[Window]]
    folder: Path

    def calibrated(self, name: str, count: Count, sparsity: float) -> tuple[LaRoSA, Artifact]:
        """Return a method and its artifact; what the methods share is measured once."""
        method = LaRoSA(count=count, sparsity=sparsity, **METHODS[name])
        checkpoint = self.folder / name.replace(" ", "-")
        checkpoint.mkdir(exist_ok=True)
        shared = self.folder / f"first {method.dense_prefix} tokens dense"
        for part in SHARED:
            (shared / part).mkdir(exist_ok=True, parents=True)
            if not (checkpoint / part).exists():
                (checkpoint / part).symlink_to(shared / part, target_is_directory=True)
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        artifact = method.calibrate(model, tokenizer, self.corpus, checkpoint)
        return method, as_released(artifact) if name == RELEASED else artifact

    def nats(self, text: str) -> list[float]:
        """Return every window's negative log-likelihood."""
        tokenizer = self.loaded.tokenizer
        logits = TransformersGenerator(self.loaded.model, tokenizer).logits
        return [score(logits, tokenizer, window).nats for window in self.windows[text]]

    def scored(
        self, method: LaRoSA, artifact: Artifact
    ) -> dict[str, tuple[list[float], dict[str, Any]]]:
        """Return every text's likelihoods, and what was dropped while they were taken."""
        found = {}
        for text in self.windows:
            with method.apply(self.loaded.model, self.loaded.tokenizer, artifact) as applied:
                with applied.recording():
                    nats = self.nats(text)
                found[text] = nats, applied.measured()["sparsity"]
        return found


def as_released(artifact: Artifact) -> Artifact:
    """Return what LaRoSA's released code makes of a PCA of every site.

    The MLP takes the attention's axes, and of the asked for sparsity h1 and h3 get 0.8, h2 and h4
    1.2 of it, whatever that is by weights.
    """
    tensors = dict(artifact.tensors)
    for name in artifact.tensors:
        if name.endswith("h3.transform"):
            tensors[name] = artifact.tensors[name.replace("h3", "h1")]
    plan = json.loads(json.dumps(artifact.parameters["plan"]))
    for site, row in plan["sites"].items():
        for part in row:
            part["sparsity"] = min(0.99, part["sparsity"] * (0.8 if site in ("h1", "h3") else 1.2))
    return replace(artifact, tensors=tensors, parameters={"plan": plan})


def measure(
    bench: Bench, name: str, count: Count, sparsity: float, dense: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Return one row a text."""
    method, artifact = bench.calibrated(name, count, sparsity)
    rows = []
    for text, (nats, sparsity_section) in bench.scored(method, artifact).items():
        windows = bench.windows[text]
        bits = [[value / math.log(2) for value in part] for part in (dense[text], nats)]
        sizes = [float(window.scored_bytes) for window in windows]
        tokens = [float(len(bench.loaded.tokenizer(w.text)["input_ids"])) for w in windows]
        excess = rate_difference(dense[text], nats, tokens, seed=0)
        rows.append(
            {
                "method": name,
                "text": text,
                "axis": count.value,
                "asked": sparsity,
                **{k: sparsity_section[k] for k in ("achieved", "bytes_fraction", "sites")},
                "bits_per_byte": sum(bits[1]) / sum(sizes),
                "bits_per_byte_difference": rate_difference(*bits, sizes, seed=0),
                "perplexity_ratio": {key: math.exp(value) for key, value in excess.items()},
                "nats": nats,
            }
        )
        ratio = rows[-1]["perplexity_ratio"]
        say(
            f"{name}, {count.value} {sparsity:.2f}, {text}: {ratio['estimate']:.4f} "
            f"[{ratio['low']:.4f}, {ratio['high']:.4f}] x dense, "
            f"{rows[-1]['bytes_fraction']:.3f} of the bytes"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED, help="or gemma3-270m, a name, a folder")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.55, 0.65, 0.75, 0.85])
    parser.add_argument("--nominal", type=float, nargs="*", default=[0.25, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--calibrate", choices=("docs", "source"), default="docs")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
        help="; ".join(METHODS),
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("larosa-benchmark"))
    options = parser.parse_args()
    options.device, options.seed = "auto", 0
    jobs = [(Count.bytes, 1 - share, name) for share in options.budgets for name in EQUAL_BYTES]
    jobs += [(Count.nominal, share, name) for share in options.nominal for name in NOMINAL]
    jobs = [job for job in jobs if job[-1] in options.methods]
    if not jobs:
        parser.error(
            f"--budgets {options.budgets} --nominal {options.nominal} --methods {options.methods}: "
            f"nothing to measure; expected a budget for {'; '.join(EQUAL_BYTES)}, or a nominal "
            f"sparsity for {'; '.join(NOMINAL)}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(0, None)
    texts = python_texts()
    config = QualityConfig(windows=options.windows, window_bytes=2048, context_bytes=256)
    windows = {
        text.name: quality_windows(text.documents(Split.test), config) for text in texts.values()
    }
    asked = {name: getattr(options, name) for name in ("model", "windows", "calibrate")}
    out = options.out / "larosa.json"
    content = begun(out, asked, options.seed, {"dense": {}, "rows": []})
    rows = content["rows"]
    done = {(row["axis"], row["asked"], row["method"]) for row in rows}
    loaded = load_model(model_config(options))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(loaded, texts[options.calibrate], windows, Path(folder))
        dense = content["dense"] or {text: bench.nats(text) for text in windows}
        content["dense"] = dense
        for count, sparsity, name in jobs:
            if (count.value, sparsity, name) not in done:
                rows += measure(bench, name, count, sparsity, dense)
                write_json(out, content)
    report = write_report(options.out)
    print(report)


if __name__ == "__main__":
    one_line(main)
