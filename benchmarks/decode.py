"""Decoding at batch 1: transformers, llama.cpp, our engine, and the memory floor.

    python benchmarks/decode.py [--model smollm2-135m] [--dtypes float32,bfloat16]
                                [--repeats 12] [--out FILE]

In one process and in drawn order, every contender continues the same prompts greedily: stock
transformers, twice, so that the noise shows; transformers with a static cache and torch.compile;
llama.cpp (pip install xllamacpp) on as many threads, with the weights of the embedded model in
float32, or float16 and bfloat16; the engine on the unmodified model (`vattention`), with LaRoSA,
and with LaRoSA and AdaptiVocab's drafts (`all`). transformers and `vattention` run once more with
their weights in pages of 4 KB, so that it shows what pages alone do. No text ends early. The time
is from the first new token to the last. Methods are calibrated first where --artifacts has no
artifact of them.

The floor of a step is the bytes that it must read, over the rate at which a large sum reads memory
in huge pages, measured before every round. The bytes: the weights (with LaRoSA those that its
kernel read, as counted on the same prompts; of a draft those of one token; of the head the int8
copy where the engine chooses by it), and the keys and values of the context. A share of the floor
over 1 says that the floor is wrong: that less is read than counted, that weights stay in the
processor's caches, or that the sum does not read as fast as the machine can.

With --memory huge, the default, all other weights lie in huge pages where the system has them. The
file says what there was, and keeps every sample. Prints the table, and draws a plot beside the
file; decode_report.py makes both again.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from arguments import command, one_line, positive
from decode_parts import llama_cpp
from decode_parts.contenders import BUILDERS, Setting, artifacts, contenders, endless
from decode_parts.machine import data_file, environment
from decode_parts.rounds import measure
from decode_report import write_report
from kv_parts.generating import EMBEDDED, model_config
from texts import python_docs

from trimtab.backing import Backing, pack, use_pages
from trimtab.corpus import Split, encode
from trimtab.environment import prepare
from trimtab.errors import TrimtabError
from trimtab.files import write_json
from trimtab.models.facts import longest_text
from trimtab.models.loading import LoadedModel, load_model
from trimtab.models.sources import DType
from trimtab.progress import say
from trimtab.windows import evenly

DTYPES = (DType.float32, DType.bfloat16)
SEED = 0


def dtypes(text: str) -> list[DType]:
    """Return types of weights, from a text that joins them by commas."""
    if not set(found := text.split(",")) <= {*DTYPES}:
        raise argparse.ArgumentTypeError(f"{text}: expected some of {','.join(DTYPES)}")
    return [DType(one) for one in dict.fromkeys(found)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=EMBEDDED, help="or a shape (random weights), a name, a folder")
    add(
        "--dtypes",
        type=dtypes,
        default=list(DTYPES),
        help="one run of rounds for each; default: both",
    )
    add("--contenders", nargs="+", choices=BUILDERS, default=[*BUILDERS], help="default: all")
    add("--repeats", type=positive, default=12, help="rounds; default: %(default)s")
    add(
        "--prompts",
        type=positive,
        default=4,
        help="which the rounds take in turn; default: %(default)s",
    )
    add("--context", type=positive, default=250, help="tokens of a prompt; default: %(default)s")
    add("--new-tokens", type=positive, default=48, help="default: %(default)s")
    add("--sparsity", type=float, default=0.4, help="LaRoSA's; default: %(default)s")
    add("--threads", type=positive, help="default: all")
    add("--memory", type=Backing, choices=[*Backing], default=Backing.huge, help="of weights")
    add("--artifacts", default="artifacts", help="the folder of calibrations")
    add("--out", type=Path, help="a JSON file; default: benchmarks/data/decode-MACHINE.json")
    options = parser.parse_args()
    options.device, options.seed = "cpu", SEED
    options.contenders = [key for key in BUILDERS if key in {"eager", *options.contenders}]
    for name in ("repeats", "new_tokens"):
        if getattr(options, name) < 2:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} {getattr(options, name)}: expected at least 2, for an interval")
    return options


def prompts(loaded: LoadedModel, options: argparse.Namespace) -> list[list[int]]:
    """Return beginnings of held-out documents, all of as many tokens.

    Raises
    ------
    TrimtabError
        If too few documents are long enough, or the model has no positions for such a text.
    """
    if options.context + options.new_tokens > (room := longest_text(loaded.model.config)):
        raise TrimtabError(
            f"--context {options.context} --new-tokens {options.new_tokens}: expected at most "
            f"{room} tokens in all, what {loaded.name} has positions for"
        )
    texts = [encode(loaded.tokenizer, one.text) for one in python_docs().documents(Split.test)]
    found = [ids[: options.context] for ids in texts if len(ids) >= options.context]
    if len(found) < options.prompts:
        raise TrimtabError(
            f"--context {options.context} --prompts {options.prompts}: only {len(found)} held-out "
            "documents are that long; lower either"
        )
    return evenly(found, options.prompts)


def run_dtype(dtype: DType, options: argparse.Namespace) -> dict[str, Any]:
    """Return what all contenders made of one type of weights."""
    loaded = load_model(model_config(options, dtype))
    if options.memory is Backing.huge:
        pack(loaded.model)
    given = prompts(loaded, options)
    made = artifacts(loaded, options) if {"larosa", "all"} & {*options.contenders} else {}
    loaded.model.generation_config.eos_token_id = None
    with ExitStack() as undo:
        setting = Setting(loaded, options, given[0], made, undo)
        found, missing = contenders(setting, options.contenders)
        for key, reason in missing.items():
            say(f"{key}, {dtype}: absent: {reason}")
        with endless(loaded.tokenizer):
            measured = measure(found, given, options.repeats, options.seed)
        return {
            "dtype": dtype.value, "model": loaded.name, "fingerprint": loaded.fingerprint,
            "artifacts": {name: artifact.key.digest for name, artifact in made.items()},
            "missing": missing, **measured,
        }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    use_pages(options.memory)
    prepare(options.seed, options.threads or torch.get_num_threads())
    out = options.out or data_file("decode")
    names = ("model", "context", "new_tokens", "prompts", "repeats", "sparsity", "memory")
    content: dict[str, Any] = {
        "command": command(),
        "settings": {name: getattr(options, name) for name in names},
        "environment": environment(options.seed),
        "llama.cpp": llama_cpp.described(),
        "runs": [],
    }
    for dtype in options.dtypes:
        content["runs"].append(run_dtype(dtype, options))
        write_json(out, content)
    print(write_report(out))


if __name__ == "__main__":
    one_line(lambda: run(parse()))
