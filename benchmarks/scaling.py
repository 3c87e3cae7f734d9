"""How a decode step scales: with the context, with the rows of a batch, and with threads.

    python benchmarks/scaling.py [--models smollm2-135m:float32 llama-1b:float32]
                                 [--parts context,rows,threads] [--out FILE]

At every point three steps run in turn, each up to the logits: transformers' forward pass on its
dynamic cache, the engine's on the unmodified model, and the engine's with LaRoSA, all after the
same context and with weights in huge pages where the system has them. Its keys
and values are those of a text, repeated where it is longer than 512 tokens. Before each turn a
large sum reads memory; the floor of a step is the bytes that it must read (weights, with LaRoSA
those that one row needs, and the keys and values of all rows) over the rate of that sum.

Every part is in the file as soon as it is done, and is not measured again if the command is given
again with the same file. A shape such as llama-1b has random weights, on which LaRoSA keeps the
same count of activations everywhere and has a transform at every site after a norm. In bfloat16 a
deep random model rounds so differently in the executor that the engine refuses it with LaRoSA, and
its modules run: the tables say what ran. Methods are calibrated first where --artifacts has no
artifact of them. Prints tables, and draws a plot beside the file; scaling_report.py makes both
again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from arguments import one_line, positive
from decode_parts.contenders import calibrated
from decode_parts.machine import data_file, environment
from decode_parts.scales import PREFIX, Point, Steps
from kv_parts.generating import model_config
from resuming import begun
from scaling_report import write_report
from texts import python_docs

import trimtab
from trimtab.backing import Backing, pack, use_pages
from trimtab.corpus import Split, encode
from trimtab.environment import prepare
from trimtab.evaluation.memory import copied
from trimtab.files import write_json
from trimtab.models.loading import load_model
from trimtab.models.sources import DType
from trimtab.progress import say

MODELS = ("smollm2-135m:float32", "llama-1b:float32")
PARTS = ("context", "rows", "threads")
SHARED = ("contexts", "rows", "at_context", "samples", "sparsity", "threads")
SEED = 0


def parts(text: str) -> list[str]:
    """Return parts, from a text that joins them by commas."""
    if not set(found := text.split(",")) <= {*PARTS}:
        raise argparse.ArgumentTypeError(f"{text}: expected some of {','.join(PARTS)}")
    return list(dict.fromkeys(found))


def model(text: str) -> tuple[str, DType]:
    """Return a model and the type of its weights, from a text that joins them by a colon."""
    name, _, dtype = text.rpartition(":")
    if not name or dtype not in ("float32", "bfloat16"):
        raise argparse.ArgumentTypeError(
            f"{text}: expected a model and float32 or bfloat16, as in {MODELS[0]}"
        )
    return name, DType(dtype)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", type=model, default=[*map(model, MODELS)], metavar="MODEL:DTYPE")
    add("--parts", type=parts, default=list(PARTS))
    add(
        "--contexts",
        nargs="+",
        type=positive,
        default=[128, 512, 2048, 8192],
        help="tokens; default: %(default)s",
    )
    add(
        "--rows",
        nargs="+",
        type=positive,
        default=[1, 2, 4, 8, 16],
        help="of a step; default: %(default)s",
    )
    add(
        "--at-context",
        type=positive,
        default=256,
        help="tokens, for rows and threads; default: %(default)s",
    )
    add("--threads", type=positive, default=torch.get_num_threads(), help="default: all")
    add(
        "--samples",
        type=positive,
        default=10,
        help="steps of each kind at a point; default: %(default)s",
    )
    add("--sparsity", type=float, default=0.4, help="LaRoSA's; default: %(default)s")
    add("--artifacts", default="artifacts", help="the folder of calibrations")
    add("--out", type=Path, help="a JSON file; default: benchmarks/data/scaling-MACHINE.json")
    options = parser.parse_args()
    options.device, options.seed = "cpu", SEED
    if options.samples < 2:
        parser.error(f"--samples {options.samples}: expected at least 2, for an interval")
    return options


def points(part: str, options: argparse.Namespace) -> list[Point]:
    every, context = options.threads, options.at_context
    if part == "context":
        return [Point(length, 1, every) for length in options.contexts]
    if part == "rows":
        return [Point(context, rows, every) for rows in options.rows]
    return [Point(context, 1, threads) for threads in sorted({1, every})]


@contextmanager
def prepared(name: str, dtype: DType, options: argparse.Namespace) -> Iterator[Steps]:
    """Have a model, and a copy of it with LaRoSA."""
    source = argparse.Namespace(**{**vars(options), "model": name})
    loaded = load_model(model_config(source, dtype))
    artifacts = calibrated(loaded, options)
    documents = python_docs().documents(Split.test)
    texts = (encode(loaded.tokenizer, document.text) for document in documents)
    prompt = next(ids for ids in texts if len(ids) > PREFIX)
    optimized = trimtab.apply(
        copied(loaded.model),
        loaded.tokenizer,
        [*artifacts.values(), trimtab.VAttention()],
        fingerprint=loaded.fingerprint,
    )
    with optimized:
        pack(loaded.model)
        pack(optimized.model)
        yield Steps(loaded.model, optimized, prompt, options)


def run(options: argparse.Namespace) -> None:
    use_pages(Backing.huge)
    prepare(options.seed, options.threads)
    out = options.out or data_file("scaling")
    settings = {name: getattr(options, name) for name in SHARED}
    content = begun(out, settings, options.seed, {"models": {}})
    for name, dtype in options.models:
        done = content["models"].setdefault(f"{name}, {dtype}", {})
        if left := [part for part in options.parts if part not in done]:
            with prepared(name, dtype, options) as steps:
                for part in left:
                    rows = [row for point in points(part, options) for row in steps.at(point)]
                    done[part] = {
                        "commit": environment(options.seed)["commit"],
                        "pages": steps.pages,
                        "rows": rows,
                    }
                    write_json(out, content)
        else:
            say(f"{name}, {dtype}: {', '.join(options.parts)} are in {out} already")
    print(write_report(out))


if __name__ == "__main__":
    one_line(lambda: run(parse()))
