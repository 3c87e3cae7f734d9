"""What is kept of a text's first token, site by site, where that token is sparse like the others.

    python benchmarks/larosa_first_token.py [--model gemma3-270m] [--windows 6]
                                            [--sparsity 0.4] [--tokens 4096] [--out FOLDER]

LaRoSA is calibrated on Python's documentation with no token dense, and the model reads held-out
windows of it. Writes first-token.json with the share of the activations that every site of every
layer keeps, of the first token and of all others, and their size before any is dropped, and the
plot of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from arguments import command, positive
from kv_parts.generating import EMBEDDED, model_config
from matplotlib.figure import Figure
from texts import python_docs
from torch import Tensor

from trimtab.config import QualityConfig
from trimtab.corpus import Split, encode, with_start
from trimtab.environment import describe_environment, prepare
from trimtab.evaluation.workload import quality_windows
from trimtab.files import write_json
from trimtab.larosa import LaRoSA
from trimtab.larosa.apply import sparsified
from trimtab.larosa.plan import Plan
from trimtab.larosa.selection import Selector, Selectors
from trimtab.models.loading import load_model

SITES = {
    "h1": "attention input",
    "h2": "attention output",
    "h3": "MLP input",
    "h4": "MLP activation",
}
FIRST, OTHERS = "#c23b22", "#1f5f8b"


class Counting:
    """A selector that counts what it keeps of the first token of a text, and of the others.

    Attributes
    ----------
    kept, size : dict of str to list of float
        For ``first`` and ``others``, a text each: share of the entries that were kept, and root
        mean square of all entries before.
    """

    def __init__(self, selector: Selector, site: str, layer: int) -> None:
        self._selector, self.site, self.layer = selector, site, layer
        self.kept: dict[str, list[float]] = {"first": [], "others": []}
        self.size: dict[str, list[float]] = {"first": [], "others": []}

    def __call__(self, z: Tensor) -> Tensor:
        selected = self._selector(z)
        for name, part in (("first", slice(1)), ("others", slice(1, None))):
            before, after = (one.reshape(-1, z.shape[-1])[part] for one in (z, selected))
            self.kept[name].append(float(after.ne(0).double().mean()))
            self.size[name].append(float(before.double().square().mean().sqrt()))
        return selected


def measure(options: argparse.Namespace) -> list[Counting]:
    """Return what every site of every layer kept while windows were read, one text at a time."""
    loaded, corpus = load_model(model_config(options)), python_docs()
    model, tokenizer = loaded.model, loaded.tokenizer
    config = QualityConfig(windows=options.windows, window_bytes=2048, context_bytes=256)
    method = LaRoSA(sparsity=options.sparsity, dense_prefix=0, tokens=options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        artifact = method.calibrate(model, tokenizer, corpus, Path(folder))
    plan = Plan.from_json(artifact.parameters["plan"])
    selectors, found = Selectors(plan, method), []

    def counting(site: str, layer: int) -> Counting:
        found.append(Counting(selectors.selector(site, layer), site, layer))
        return found[-1]

    read: Any = model
    with sparsified(model, plan, artifact.tensors, counting), torch.inference_mode():
        for window in quality_windows(corpus.documents(Split.test), config):
            ids = with_start(tokenizer, encode(tokenizer, window.context + window.text))
            read(torch.tensor([ids]), logits_to_keep=1)  # in one pass: its first row is the token
    return found


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the share that is kept, layer by layer, a panel a site; bars span the windows."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (site, name) in zip(figure.subplots(1, 4, sharey=True), SITES.items(), strict=True):
        rows = [row for row in content["sites"] if row["site"] == site]
        layers = [row["layer"] for row in rows]
        for key, colour, marker in (("first", FIRST, "o"), ("others", OTHERS, "s")):
            kept = [row["kept"][key] for row in rows]
            middle = [sum(one) / len(one) for one in kept]
            axes.vlines(layers, list(map(min, kept)), list(map(max, kept)), color=colour, alpha=0.4)
            label = "first token" if key == "first" else "all other tokens"
            axes.plot(layers, middle, color=colour, marker=marker, markersize=3, label=label)
        axes.set_title(f"{site}, {name}", fontsize=10)
        axes.set_xlabel("layer")
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.3)
    left, *_ = figure.axes
    left.set_ylabel("share of activations kept")
    left.legend(fontsize=8)
    figure.suptitle(f"{content['model']}: {finding(content['sites'])}", fontsize=11)
    figure.savefig(path, dpi=130)


def finding(rows: Iterable[dict[str, Any]]) -> str:
    """Return the plot's title: where the first token keeps less than half of what others do."""
    poor = {"first": 0, "of": 0}
    for row in rows:
        first, others = (sum(row["kept"][key]) for key in ("first", "others"))
        poor["first"] += first < others / 2
        poor["of"] += 1
    return (
        f"the first token keeps less than half as much as others at {poor['first']} of "
        f"{poor['of']} sites"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED, help="or gemma3-270m, a name, a folder")
    parser.add_argument("--windows", type=positive, default=6)
    parser.add_argument("--sparsity", type=float, default=0.4)
    parser.add_argument("--tokens", type=positive, default=4096, help="of calibration")
    parser.add_argument("--out", type=Path, default=Path("larosa-first-token"))
    options = parser.parse_args()
    options.device, options.seed = "auto", 0
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(0, None)
    content = {
        "command": command(),
        "environment": describe_environment(0),
        "model": options.model,
        "sites": [
            {"site": one.site, "layer": one.layer, "kept": one.kept, "root_mean_square": one.size}
            for one in measure(options)
        ],
    }
    file = options.out / "first-token.json"
    write_json(file, content)
    draw(json.loads(file.read_text("utf-8")), file.with_suffix(".png"))
    print(file.with_suffix(".png"))


if __name__ == "__main__":
    main()
