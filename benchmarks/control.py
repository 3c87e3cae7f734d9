"""Whether intervals of speedups hold: a model against its own copy, idle and beside a busy process.

    python benchmarks/control.py [--runs 40] [--model tiny-llama] [--seconds 4] [--out FILE]

Every run copies the model anew, and times it against its copy as `evaluate.py` does: in rounds, in
drawn order, beside the control. Nothing is to be found, so an interval holds if 1 is in it; 95 of
100 are to. First the runs on a machine that has nothing else to do, which is up to you; then as
many beside a process that this one starts: it computes and copies memory, by turns of random length
with none. The file keeps every run, and the runs that it has are not done again. Prints a table,
and draws a plot beside the file; control_report.py makes both again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from arguments import above_zero, one_line, positive
from control_report import write_report
from decode_parts.machine import data_file, environment
from kv_parts.generating import model_config
from resuming import begun
from texts import python_docs

import trimtab
from trimtab.backing import Backing, pack, use_pages
from trimtab.config import METRICS
from trimtab.corpus import Split
from trimtab.environment import prepare
from trimtab.evaluation.memory import copied
from trimtab.evaluation.run import Subject
from trimtab.files import write_json
from trimtab.models.loading import LoadedModel, load_model
from trimtab.models.sources import DType
from trimtab.progress import track

SEED = 0
SHARED = ("model", "seconds", "prompts", "new_tokens", "threads")
STATES = ("idle", "busy")
KEPT = ("speedup", "control", "verdict", "rounds", "outliers")
DISTURBING = """
import random, time
import numpy as np
matrix, memory, draw = np.ones((400, 400)), np.ones(2**23), random.Random(0)
while True:
    end = time.perf_counter() + draw.uniform(0.02, 1)
    while time.perf_counter() < end:
        matrix @ matrix
        memory[:] = memory + 1
    time.sleep(draw.uniform(0.02, 1))
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="tiny-llama", help="or smollm2-135m, a name, a folder")
    add("--runs", type=positive, default=40, help="idle, and as many busy; default: %(default)s")
    add(
        "--seconds", type=above_zero, default=4, help="speed.seconds of a run; default: %(default)s"
    )
    add("--prompts", type=positive, default=4, help="default: %(default)s")
    add("--new-tokens", type=positive, default=16, help="default: %(default)s")
    add("--threads", type=positive, default=torch.get_num_threads(), help="default: all")
    add("--out", type=Path, help="a JSON file; default: benchmarks/data/control-MACHINE.json")
    options = parser.parse_args()
    options.device = "cpu"
    return options


def measured(
    loaded: LoadedModel, texts: list[str], options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Return what a model is found to be against its own copy."""
    config = trimtab.MeasureConfig(
        seed=seed,
        generation=trimtab.GenerationConfig(prompts=options.prompts, new_tokens=options.new_tokens),
        speed=trimtab.SpeedConfig(seconds=options.seconds),
        metrics={name: METRICS[name] for name in ("greedy", "latency")},
    )
    model = copied(loaded.model)
    known = loaded.fingerprint
    subject = Subject(loaded.name, known, not loaded.random_weights)
    with trimtab.apply(model, loaded.tokenizer, [], fingerprint=known) as optimized:
        pack(model)
        result = trimtab.measure(optimized, texts, config, baseline=loaded.model, subject=subject)
    load = {"load": result["environment"]["load"]}
    return {name: result["speed"][name] for name in KEPT} | load


@contextmanager
def disturbed(state: str) -> Iterator[None]:
    """Have a process compute beside this one within the block, where the state is `busy`."""
    if state != "busy":
        yield
        return
    with subprocess.Popen([sys.executable, "-c", DISTURBING]) as process:
        try:
            yield
        finally:
            process.kill()


def run(options: argparse.Namespace) -> None:
    use_pages(Backing.huge)
    prepare(SEED, options.threads)
    out = options.out or data_file("control")
    settings = {name: getattr(options, name) for name in SHARED}
    content = begun(out, settings, SEED, {"runs": {state: [] for state in STATES}})
    loaded = load_model(model_config(argparse.Namespace(**vars(options), seed=SEED), DType.float32))
    pack(loaded.model)
    texts = [document.text for document in python_docs().documents(Split.test)]
    for state in STATES:
        done = content["runs"][state]
        left = range(len(done), options.runs)
        for seed in track(left, f"A/A runs, {state}", len(left)):
            with disturbed(state):
                found = measured(loaded, texts, options, seed)
            done.append({**found, "commit": environment(SEED)["commit"]})
            write_json(out, content)
    print(write_report(out))


if __name__ == "__main__":
    one_line(lambda: run(parse()))
