"""Time to the first token: prompts of several lengths, alone and together.

    python benchmarks/prefill.py [--model smollm2-135m] [--prompts 64 256 1024 32+73+167+384]
                                 [--dtype float32] [--repeats 12] [--out FILE]

Prompts are stretches of held-out documents of Python's documentation. In drawn order, every
contender reads the same ones, which arrive together, and gives one token after each: transformers'
`generate` on one batch padded on the left, twice, so that the noise shows, and with LaRoSA on the
model; the engine on the unmodified model (`vattention`), and with LaRoSA. LaRoSA's time is also
compared with that of the same way without it. Where the engine's time goes is measured by PyTorch's
profiler, in a few turns after all others. Methods are calibrated first where --artifacts has no
artifact of them. Prints the tables, and draws a plot beside the file; prefill_report.py makes both
again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from arguments import one_line, positive
from decode_parts.contenders import Setting, calibrated, endless
from decode_parts.machine import data_file, pages
from kv_parts.generating import EMBEDDED, model_config
from prefill_report import write_report
from serving_parts.content import beginning
from serving_parts.rounds import answers
from serving_parts.servers import Contender, engine
from serving_parts.work import work_ms
from serving_parts.workload import held_out

from trimtab.backing import Backing, pack, use_pages
from trimtab.environment import prepare
from trimtab.errors import TrimtabError
from trimtab.evaluation.generators.engine_server import EngineServer
from trimtab.evaluation.generators.padded import PaddedServer
from trimtab.evaluation.generators.server import Answer, Request
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.memory import twin
from trimtab.files import write_json
from trimtab.models.facts import longest_text
from trimtab.models.loading import load_model
from trimtab.models.sources import DType

SEED = 0
PROFILED = 3  # turns


def prompts(text: str) -> list[int]:
    """Return the tokens of prompts that arrive together, from a text that joins them by a plus."""
    return [positive(one) for one in text.split("+")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=EMBEDDED, help="or a shape (random weights), a name, a folder")
    add("--dtype", type=DType, default=DType.float32, help="float32 or bfloat16")
    add(
        "--prompts",
        nargs="+",
        type=prompts,
        default=[[64], [256], [1024], [32, 73, 167, 384]],
        metavar="TOKENS",
        help="of a prompt, or of several together as in 32+384",
    )
    add("--repeats", type=positive, default=12, help="rounds; default: %(default)s")
    add("--sparsity", type=float, default=0.4, help="LaRoSA's; default: %(default)s")
    add("--threads", type=positive, help="default: all")
    add("--memory", type=Backing, choices=[*Backing], default=Backing.huge, help="of weights")
    add("--artifacts", default="artifacts", help="the folder of calibrations")
    add("--out", type=Path, help="a JSON file; default: benchmarks/data/prefill-MACHINE.json")
    options = parser.parse_args()
    options.device, options.seed = "cpu", SEED
    if options.repeats < 2:
        parser.error(f"--repeats {options.repeats}: expected at least 2, for an interval")
    return options


def contenders(setting: Setting, given: Sequence[Request]) -> Iterator[tuple[Contender, str]]:
    """Yield what reads prompts, each with the one that it is compared with."""
    model, tokenizer = setting.loaded.model, setting.loaded.tokenizer
    sparse, stock = f"larosa {setting.options.sparsity:g}", "transformers"
    for name in (stock, f"{stock}, again"):
        yield Contender(name, PaddedServer(twin(model), tokenizer)), stock
    applied = setting.apply("larosa", cache=False).model
    yield Contender(f"{stock}, {sparse}", PaddedServer(applied, tokenizer)), stock
    yield engine(setting, dense := "vattention", given), stock
    yield engine(setting, f"{sparse}, vattention", given, "larosa"), dense


def measure(setting: Setting, given: Sequence[Request], rounds: int) -> list[dict[str, Any]]:
    """Return a row a contender."""
    pairs = list(contenders(setting, given))
    together = "+".join(str(len(one.prompt)) for one in given)
    found = answers([one for one, _ in pairs], given, rounds, f"{together} tokens")
    first = found[pairs[0][0].name]
    rows = [_row(one, found[one.name], first, other, found[other]) for one, other in pairs]
    for row, (one, _) in zip(rows, pairs, strict=True):
        if isinstance(one.server, EngineServer):
            row["work_ms"] = work_ms(one, given, PROFILED)
    return rows


def _row(
    one: Contender, own: list[Answer], first: list[Answer], other: str, theirs: list[Answer]
) -> dict[str, Any]:
    def over(numerator: Sequence[float]) -> dict[str, float]:
        seconds = [answer.seconds for answer in own]
        return ratio(numerator, seconds, paired=True, seed=SEED)

    def speedup(of: list[Answer]) -> dict[str, float]:
        return over([answer.seconds for answer in of])

    tokens = [
        (ours, stock)
        for a, b in zip(own, first, strict=True)
        for ours, stock in zip(a.tokens, b.tokens, strict=True)
    ]
    milliseconds = [1e3 * answer.seconds for answer in own]
    return {
        "contender": one.name,
        "note": one.note,
        "ms": ratio(milliseconds, [1.0] * len(own), paired=True, seed=SEED),
        "speedup": speedup(first),
        "compared_with": other,
        "speedup_over_it": speedup(theirs),
        "same_tokens": sum(ours == stock for ours, stock in tokens) / len(tokens),
        "samples_ms": [round(each, 3) for each in milliseconds],
    }


def run(options: argparse.Namespace) -> None:
    use_pages(options.memory)
    prepare(options.seed, options.threads or torch.get_num_threads())
    loaded = load_model(model_config(options, options.dtype))
    if options.memory is Backing.huge:
        pack(loaded.model)
    longest = max(map(max, options.prompts)) + 1
    if longest > (room := longest_text(loaded.model.config)):
        raise TrimtabError(
            f"--prompts {longest - 1}: expected at most {room - 1} tokens, what {loaded.name} has "
            "positions for beside the one that follows"
        )
    batches = [
        held_out(loaded.tokenizer, sizes, [1] * len(sizes), "--prompts")
        for sizes in options.prompts
    ]
    made = calibrated(loaded, options)
    loaded.model.generation_config.eos_token_id = None
    content = beginning(options, loaded, made)
    out = options.out or data_file("prefill")
    for given in batches:
        with ExitStack() as undo, endless(loaded.tokenizer):
            setting = Setting(loaded, options, given[0].prompt, made, undo)
            rows = measure(setting, given, options.repeats)
        sizes = [len(one.prompt) for one in given]
        content["runs"].append({"prompts": sizes, "pages": pages(), "rows": rows})
        write_json(out, content)
    print(write_report(out))


if __name__ == "__main__":
    one_line(lambda: run(parse()))
