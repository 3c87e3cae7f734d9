"""What drafts gain on people's text: the engine with and without them, in turn.

    python benchmarks/drafting.py [--stacks vattention larosa] [--text NAME=GLOB ...] [--out FILE]

Every contender writes the same text after the same prompt, token by token given, and drafts are
accepted where they are that text: held-out documents of what AdaptiVocab counted (Python's
documentation), source files, random bytes, and files that --text names. In drawn order, on one
model: the stack without drafts, the same once more, so that the noise shows, and with them. The
time is from the first new token to the last. Methods are calibrated first where --artifacts has
none of them. Prints tables: what is gained, and where a token's time goes; the file keeps every
sample.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from arguments import command, one_line, positive
from decode_parts.contenders import Setting, artifacts, endless
from decode_parts.machine import data_file, environment
from kv_parts.generating import model_config
from result_tables import commit, step_work, table, with_interval
from texts import python_docs, python_source

from trimtab.backing import Backing, pack, use_pages
from trimtab.capabilities import Drafter
from trimtab.corpora import FilesCorpus
from trimtab.corpus import Split, encode, load_corpus
from trimtab.environment import prepare
from trimtab.errors import TrimtabError
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.work import Work, milliseconds, spent
from trimtab.files import write_json
from trimtab.generation import Engine
from trimtab.models.loading import load_model
from trimtab.models.sources import DType
from trimtab.progress import track

STACKS = {"vattention": (), "larosa": ("larosa",)}
CONTENDERS = ("without", "without, again", "with drafts")
COLUMNS = (
    "stack",
    "text",
    "tokens a step",
    "ms a token, without",
    "with",
    "gain",
    "without, again",
)
SEED = 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="default: %(default)s")
    add("--dtype", type=DType, default=DType.float32, choices=list(DType))
    add("--stacks", nargs="+", choices=STACKS, default=list(STACKS), help="default: all")
    add("--text", nargs="*", default=[], metavar="NAME=GLOB", help="files of other texts")
    add("--passages", type=positive, default=8, help="of each text; default: %(default)s")
    add("--repeats", type=positive, default=3, help="of every passage; default: %(default)s")
    add("--prompt", type=positive, default=100, help="tokens; default: %(default)s")
    add("--new-tokens", type=positive, default=64, help="default: %(default)s")
    add("--threads", type=positive, default=torch.get_num_threads(), help="default: all")
    add("--sparsity", type=float, default=0.4, help="LaRoSA's; default: %(default)s")
    add("--artifacts", default="artifacts", help="the folder of calibrations")
    add("--out", type=Path, help="a JSON file; default: benchmarks/data/drafting-MACHINE.json")
    options = parser.parse_args()
    options.device, options.seed, options.memory = "cpu", SEED, Backing.huge
    return options


def texts(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return documents by the name of their text."""
    draw = random.Random(SEED)
    found = {
        "python docs": [one.text for one in python_docs().documents(Split.test)],
        "python source": [one.text for one in python_source().documents(Split.test)],
        "random bytes": [draw.randbytes(2000).decode("latin-1") for _ in range(options.passages)],
    }
    for given in options.text:
        name, _, pattern = given.partition("=")
        corpus = load_corpus(FilesCorpus(glob=pattern))
        found[name] = [one.text for one in corpus.documents(Split.test)]
    return found


def passages(documents: list[str], tokenizer: Any, options: argparse.Namespace) -> list[list[int]]:
    size = options.prompt + options.new_tokens
    tokens = (encode(tokenizer, text) for text in documents)
    found = [ids[start : start + size] for ids in tokens for start in range(0, len(ids), size)]
    whole = [ids for ids in found if len(ids) == size]
    if not whole:
        raise TrimtabError(f"no text of {size} tokens: lower --prompt or --new-tokens")
    return random.Random(SEED).sample(whole, min(options.passages, len(whole)))


def timed(engine: Engine, ids: list[int], options: argparse.Namespace) -> tuple[float, int, Work]:
    """Return how long a passage takes after its prompt, in how many steps, and by kind of work."""
    before = engine.step_seconds
    (completion,) = engine.generate(
        [ids[: options.prompt]],
        max_new_tokens=options.new_tokens,
        given=[ids[options.prompt :]],
    )
    moments = completion.times
    work = spent(before, engine.step_seconds)
    return moments[-1] - moments[0], len(set(moments)) - 1, work


def measured(name: str, setting: Setting, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row a text, of one stack."""
    tokenizer = setting.loaded.tokenizer
    # One model for all: a copy may lie in memory that is slower to read.
    optimized = setting.apply(*STACKS[name], "adaptivocab")
    every = texts(options)
    with ExitStack() as running:

        def engine(drafter: Drafter | None) -> Engine:
            cache = optimized.applied.cache
            made = Engine(
                optimized.model, tokenizer, slots=1, max_len=512, cache=cache, drafter=drafter
            )
            return running.enter_context(made)

        without, again, drafts = map(engine, (None, None, optimized.applied.drafter))
        engines = dict(zip(CONTENDERS, (without, again, drafts), strict=True))
        for text, documents in every.items():
            chosen = passages(documents, tokenizer, options)
            before = drafts.stats.proposed, drafts.stats.accepted
            turns = [chosen[0], *chosen * options.repeats]  # the first one is the warm-up
            found: dict[str, list[tuple[float, int, Work]]] = {one: [] for one in engines}
            order = random.Random(SEED)
            for number, ids in enumerate(track(turns, f"{name}, {text}", len(turns))):
                for one in order.sample(CONTENDERS, len(CONTENDERS)):
                    sample = timed(engines[one], ids, options)
                    if number:
                        found[one].append(sample)
            times = {one: [sample[0] for sample in own] for one, own in found.items()}
            tokens = (options.new_tokens - 1) * len(turns[1:])

            def gain(one: str, times: dict[str, list[float]] = times) -> dict[str, float]:
                return dict(ratio(times[CONTENDERS[0]], times[one], paired=True, seed=SEED))

            yield {
                "stack": name,
                "text": text,
                "passages": len(chosen),
                "tokens_per_step": tokens / sum(steps for _, steps, _ in found["with drafts"]),
                "ms_per_token": {one: 1e3 * sum(own) / tokens for one, own in times.items()},
                "work_ms_per_token": {
                    one: milliseconds([work for *_, work in own], sum(times[one]), tokens)
                    for one, own in found.items()
                },
                "gain": gain("with drafts"),
                "again": gain("without, again"),
                "step_costs": drafts.stats.step_costs,
                "proposed": drafts.stats.proposed - before[0],
                "accepted": drafts.stats.accepted - before[1],
                "samples": {
                    one: [(seconds, steps) for seconds, steps, _ in own]
                    for one, own in found.items()
                },
            }


def markdown(content: dict[str, Any]) -> str:
    machine = content["environment"]
    rows = [
        [
            row["stack"],
            row["text"],
            f"{row['tokens_per_step']:.2f}",
            f"{row['ms_per_token']['without']:.2f}",
            f"{row['ms_per_token']['with drafts']:.2f}",
            with_interval(row["gain"], 2),
            with_interval(row["again"], 2),
        ]
        for row in content["rows"]
    ]
    known = [
        ((row["stack"], row["text"], one), work)
        for row in content["rows"]
        for one, work in row["work_ms_per_token"].items()
    ]
    parts = [
        f"{machine['cpu']}, {machine['threads']} threads; commit {commit(machine)}; "
        "95 % intervals.",
        table(COLUMNS, rows),
        *step_work("token", ("stack", "text", "contender"), known),
    ]
    return "\n\n".join(parts) + "\n"


def run(options: argparse.Namespace) -> None:
    use_pages(Backing.huge)
    prepare(options.seed, options.threads)
    out = options.out or data_file("drafting")
    loaded = load_model(model_config(options, options.dtype))
    content: dict[str, Any] = {
        "command": command(), "environment": environment(options.seed), "rows": []
    }  # fmt: skip
    with ExitStack() as undo, endless(loaded.tokenizer):
        prompt = encode(loaded.tokenizer, python_docs().documents(Split.test)[0].text)
        setting = Setting(loaded, options, prompt, artifacts(loaded, options), undo)
        pack(loaded.model)
        for name in options.stacks:
            for row in measured(name, setting, options):
                content["rows"].append(row)
                write_json(out, content)
    print(markdown(json.loads(out.read_text("utf-8"))))


if __name__ == "__main__":
    one_line(lambda: run(parse()))
