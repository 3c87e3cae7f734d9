"""A batch of requests: transformers' `generate` and continuous batching, and our engine, in turn.

    python benchmarks/serving.py [--requests 8 16] [--dtype float32] [--repeats 6] [--out FILE]

Requests of ragged prompts (32 to 384 tokens of held-out passages) and ragged texts (16 to 96 new
tokens) arrive together, and in drawn order every contender answers all of them greedily:
transformers' `generate` on one batch padded on the left, twice, so that the noise shows; its
continuous batching on a paged cache with room for all; the engine on the unmodified model
(`vattention`), with LaRoSA, and with LaRoSA and AdaptiVocab's drafts (`all`). No text ends early.
All caches have room for all requests, and none of them keeps a prompt for the next round. Methods
are calibrated first where --artifacts has no artifact of them.

Tokens are those asked for: what `generate` makes beyond them, because it ends with the longest
text, counts as time alone. Prints what is gained and where the engine's time goes, and draws a plot
beside the file; serving_report.py makes both again.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from arguments import one_line, positive
from decode_parts.contenders import Setting, artifacts, endless
from decode_parts.machine import data_file, pages
from kv_parts.generating import EMBEDDED, model_config
from serving_parts.content import beginning
from serving_parts.rounds import answers
from serving_parts.servers import Contender, contenders
from serving_parts.workload import NEW, PROMPT, new_tokens, requests
from serving_report import write_report

from trimtab.backing import Backing, pack, use_pages
from trimtab.environment import prepare
from trimtab.errors import TrimtabError
from trimtab.evaluation.generators.server import Answer, Request
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.work import milliseconds
from trimtab.files import write_json
from trimtab.models.facts import longest_text
from trimtab.models.loading import load_model
from trimtab.models.sources import DType

SEED = 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=EMBEDDED, help="or a shape (random weights), a name, a folder")
    add("--dtype", type=DType, default=DType.float32, help="float32 or bfloat16")
    add("--requests", nargs="+", type=positive, default=[8, 16], help="default: 8 and 16")
    add("--repeats", type=positive, default=6, help="rounds; default: %(default)s")
    add("--sparsity", type=float, default=0.4, help="LaRoSA's; default: %(default)s")
    add("--threads", type=positive, help="default: all")
    add("--memory", type=Backing, choices=[*Backing], default=Backing.huge, help="of weights")
    add("--artifacts", default="artifacts", help="the folder of calibrations")
    add("--out", type=Path, help="a JSON file; default: benchmarks/data/serving-MACHINE.json")
    options = parser.parse_args()
    options.device, options.seed = "cpu", SEED
    if options.repeats < 2:
        parser.error(f"--repeats {options.repeats}: expected at least 2, for an interval")
    return options


def measure(compared: list[Contender], given: list[Request], rounds: int) -> list[dict[str, Any]]:
    """Return a row a contender; the first is what the others are compared with."""
    found = answers(compared, given, rounds, f"{len(given)} requests")
    reference, tokens = found[compared[0].name], new_tokens(given)
    return [_row(one, found[one.name], reference, tokens) for one in compared]


def _row(one: Contender, own: list[Answer], reference: list[Answer], tokens: int) -> dict[str, Any]:
    def paired(numerator: list[float], denominator: list[float]) -> dict[str, float]:
        return ratio(numerator, denominator, paired=True, seed=SEED)

    seconds = [answer.seconds for answer in own]
    first = torch.tensor([answer.first for answer in own])
    pairs = [
        (ours, theirs)
        for a, b in zip(own, reference, strict=True)
        for ours, theirs in zip(a.tokens, b.tokens, strict=True)
    ]
    return {
        "contender": one.name,
        "note": one.note,
        "tokens_per_s": paired([float(tokens)] * len(own), seconds),
        "speedup": paired([answer.seconds for answer in reference], seconds),
        "first_token_s": {
            "p50": float(first.median()), "p99": float(first.flatten().quantile(0.99)),
        },
        "same_texts": sum(ours == theirs for ours, theirs in pairs) / len(pairs),
        "work_ms": milliseconds([answer.step_seconds for answer in own], sum(seconds), len(own)),
        "samples": [
            {
                "seconds": round(answer.seconds, 5),
                "first_token_s": [round(each, 5) for each in answer.first],
            }
            for answer in own
        ],
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    use_pages(options.memory)
    prepare(options.seed, options.threads or torch.get_num_threads())
    loaded = load_model(model_config(options, options.dtype))
    if options.memory is Backing.huge:
        pack(loaded.model)
    longest = PROMPT[1] + NEW[1]
    if longest > (room := longest_text(loaded.model.config)):
        raise TrimtabError(
            f"{loaded.name} has positions for {room} tokens: expected at least {longest}"
        )
    batches = [requests(loaded.tokenizer, count, options.seed) for count in options.requests]
    made = artifacts(loaded, options)
    loaded.model.generation_config.eos_token_id = None
    content = beginning(options, loaded, made)
    out = options.out or data_file("serving")
    for given in batches:
        with ExitStack() as undo:
            setting = Setting(loaded, options, given[0].prompt, made, undo)
            compared = list(contenders(setting, given))
            with endless(loaded.tokenizer):
                rows = measure(compared, given, options.repeats)
        lengths = [{"prompt": len(one.prompt), "new": one.new} for one in given]
        content["runs"].append({"requests": lengths, "pages": pages(), "rows": rows})
        write_json(out, content)
    print(write_report(out))


if __name__ == "__main__":
    one_line(lambda: run(parse()))
