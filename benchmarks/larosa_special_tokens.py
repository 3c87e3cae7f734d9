"""What it would gain to leave special tokens dense in LaRoSA, as the first token of a text is.

    python benchmarks/larosa_special_tokens.py [--model smollm2-135m] [--windows 6]
                                               [--sparsity 0.4] [--tokens 16384] [--out FILE.json]

Held-out windows of Python's documentation and of its source code become conversations by the
model's chat template: their lines are said in turn, four at a time, by the two sides. All tokens
that are not special are scored by the unmodified model; with LaRoSA, calibrated on the
documentation, whose first token is dense; and with every special token dense too, which is the
most that thresholds of their own could do. Prints a table; the file has every conversation's
likelihood, and the share of their activations that special and all other tokens keep.
"""

from __future__ import annotations

import argparse
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
from transformers import PreTrainedTokenizerBase

from trimtab.artifact import Artifact
from trimtab.config import QualityConfig
from trimtab.corpus import Split
from trimtab.environment import describe_environment, prepare
from trimtab.errors import TrimtabError
from trimtab.evaluation.intervals import rate_difference
from trimtab.evaluation.workload import quality_windows
from trimtab.files import write_json
from trimtab.larosa import LaRoSA
from trimtab.larosa.apply import sparsified
from trimtab.larosa.plan import Plan
from trimtab.larosa.selection import Selector, Selectors
from trimtab.models.loading import LoadedModel, load_model

TURN = 4  # lines
SIDES = "user", "assistant"
COLUMNS = (
    "text", "special, of all tokens", "nats a token that LaRoSA adds", "with special tokens dense",
    "activations kept by special tokens", "by others",
)  # fmt: skip


class Tokens:
    """Which tokens of the text that is read are special, and whether those are left dense."""

    def __init__(self) -> None:
        self.special = torch.zeros(0, dtype=torch.bool)
        self.dense = False


class Leaving:
    """A selector that can leave special tokens dense, and counts what it keeps of them.

    Attributes
    ----------
    kept, size : dict of bool to int
        Entries that it keeps, and all, of special tokens (true) and others; without the first one.
    """

    def __init__(self, selector: Selector, tokens: Tokens) -> None:
        self._selector, self._tokens = selector, tokens
        self.kept, self.size = {True: 0, False: 0}, {True: 0, False: 0}

    def __call__(self, z: Tensor) -> Tensor:
        selected, special = self._selector(z), self._tokens.special
        if self._tokens.dense:
            return z.where(special.reshape(*z.shape[:-1], 1), selected)
        rows = selected.reshape(-1, z.shape[-1])[1:]
        for which in self.kept:
            own = rows[special[1:] == which]
            self.kept[which] += int(own.count_nonzero())
            self.size[which] += own.numel()
        return selected


def conversation(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Return the tokens of a text whose lines are said in turn."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = ["\n".join(lines[at : at + TURN]) for at in range(0, len(lines), TURN)]
    turns = [{"role": SIDES[at % 2], "content": one} for at, one in enumerate(said)]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    return torch.tensor(ids)


@contextmanager
def applied(
    loaded: LoadedModel, method: LaRoSA, artifact: Artifact, tokens: Tokens
) -> Iterator[list[Leaving]]:
    """Have LaRoSA at work; its selectors know of the special tokens."""
    plan, made = Plan.from_json(artifact.parameters["plan"]), list[Leaving]()
    selectors = Selectors(plan, method)

    def leaving(site: str, layer: int) -> Leaving:
        made.append(Leaving(selectors.selector(site, layer), tokens))
        return made[-1]

    model = loaded.model
    with sparsified(model, plan, artifact.tensors, leaving), selectors.following(model):
        yield made


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the conversations' likelihoods, and what they come to, by text."""
    loaded, texts = load_model(model_config(options)), python_texts()
    tokenizer, read = loaded.tokenizer, loaded.model
    if not tokenizer.chat_template:
        raise TrimtabError(f"--model {options.model}: has no chat template; expected one that has")
    method = LaRoSA(sparsity=options.sparsity, tokens=options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        artifact = method.calibrate(read, tokenizer, texts["docs"], Path(folder))
    config = QualityConfig(windows=options.windows, window_bytes=2048, context_bytes=256)
    found = {}
    for corpus in texts.values():
        windows = quality_windows(corpus.documents(Split.test), config)
        read_in = [conversation(tokenizer, window.context + window.text) for window in windows]
        found[corpus.name] = compared(loaded, method, artifact, read_in)
    return found


def compared(
    loaded: LoadedModel, method: LaRoSA, artifact: Artifact, texts: Sequence[Tensor]
) -> dict[str, Any]:
    """Return what conversations lose, with special tokens sparse and dense."""
    known, tokens = loaded.tokenizer.added_tokens_decoder, Tokens()
    special = torch.tensor([number for number, token in known.items() if token.special])
    read: Any = loaded.model

    @torch.inference_mode()
    def nats(ids: Tensor) -> float:
        tokens.special = torch.isin(ids, special)
        told = read(ids[None]).logits[0, :-1].double().log_softmax(-1)
        return -float(told.gather(1, ids[1:, None])[~tokens.special[1:]].sum())

    values = {"dense": [nats(one) for one in texts]}
    with applied(loaded, method, artifact, tokens) as selectors:
        values["larosa"] = [nats(one) for one in texts]
        tokens.dense = True
        values["special dense"] = [nats(one) for one in texts]
    marks = [int(torch.isin(one, special).sum()) for one in texts]
    counts = [float(len(one) - number) for one, number in zip(texts, marks, strict=True)]
    kept = [
        sum(one.kept[which] for one in selectors) / sum(one.size[which] for one in selectors)
        for which in (True, False)
    ]
    return {
        "special_share": sum(marks) / sum(map(len, texts)),
        **{
            name: dict(rate_difference(values["dense"], values[of], counts, seed=0))
            for name, of in (("larosa", "larosa"), ("special_dense", "special dense"))
        },
        "difference": dict(
            rate_difference(values["larosa"], values["special dense"], counts, seed=0)
        ),
        "kept": {"special": kept[0], "others": kept[1]},
        "tokens": counts,
        "nats": values,
    }


def markdown(texts: dict[str, Any]) -> str:
    rows: list[Sequence[str]] = [
        [
            name, f"{one['special_share']:.3f}",
            *(with_interval(one[which], 4) for which in ("larosa", "special_dense")),
            *(f"{one['kept'][which]:.3f}" for which in ("special", "others")),
        ]
        for name, one in texts.items()
    ]  # fmt: skip
    return table(COLUMNS, rows)


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=EMBEDDED, help="or a name, a folder; it has a chat template")
    add("--windows", type=positive, default=6, help="of each text; default: %(default)s")
    add("--sparsity", type=float, default=0.4, help="of the bytes; default: %(default)s")
    add("--tokens", type=positive, default=16384, help="of calibration; default: %(default)s")
    add("--out", type=Path, default=Path("larosa-special-tokens.json"))
    options = parser.parse_args()
    options.device, options.seed = "auto", 0
    prepare(0, None)
    begun = {"command": command(), "environment": describe_environment(0), "model": options.model}
    texts = measure(options)
    write_json(options.out, {**begun, "texts": texts})
    print(markdown(texts))


if __name__ == "__main__":
    one_line(run)
