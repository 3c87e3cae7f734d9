"""A GPU that can be had for half an hour: what it is, and what our kernels, steps and caches do.

    python benchmarks/gpu.py --out FILE.json [--parts probe kernels steps kv] [--model llama2-7b …]
                             [--limit SECONDS] [--samples 30] [--device cpu]

`probe` asks the machine: its software and clocks, the rates of reading and copying memory, the
host's time for a call, each call of the driver's virtual memory, the library's attention at lengths
that it has not seen, eigenvectors. `kernels` times products at the shapes of the models: the
library's dense one, ours at several sparsities, the design of TEAL's kernel (arXiv 2408.14690),
transforms in int8, selections, and other settings of our launches. Each is replayed from a CUDA
graph on so many weights that they come from memory, and shown as a share of the rate at which a sum
reads memory. `steps` times decode steps of whole models with random weights, ours with LaRoSA and
those of transformers' caches: each in turn with our dense one, which runs twice, so that the noise
shows. LaRoSA is made up there, with rotations and thresholds of no calibration. `kv` times pages,
growth and steps that begin a page, and counts memory and prefixes with the driver.

Every measurement is in the file as soon as it is done, and is not made again if the command is
given again with the same file, code, settings and machine: a run that was killed goes on. What
fails is noted with its error, and the rest goes on; the exit code is 1 then, and the next command
tries it again. With --limit nothing is begun after so many seconds.

On a CPU sizes are small, and mean nothing: that is for tests. The Triton kernels run there where
TRITON_INTERPRET=1 is set. Prints a table; the file keeps every sample.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from arguments import above_zero, one_line, positive
from gpu_parts.caches import kv
from gpu_parts.kernels import kernels
from gpu_parts.models import Models
from gpu_parts.probe import probe
from gpu_parts.record import Record
from gpu_parts.running import run_units, started
from gpu_parts.sizes import SIZES
from gpu_parts.steps import steps
from gpu_parts.summary import has_failures, summary
from gpu_parts.unit import Options, Unit

from trimtab.environment import prepare
from trimtab.models.loading import resolve_device
from trimtab.models.shapes import shapes

PARTS: dict[str, Callable[[Options], Iterator[Unit]]] = {
    "probe": probe, "kernels": kernels, "steps": steps, "kv": kv,
}  # fmt: skip
MODELS = [name for name, shape in shapes().items() if "intermediate_size" in shape]
SEED = 0


def parse() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="default: all")
    add("--model", nargs="+", choices=MODELS, help="shapes; default: those of 1, 7 and 8 billions")
    add("--device", choices=SIZES, default="cuda", help="default: %(default)s")
    add("--samples", type=positive, help="of what is timed in turn; default: 30")
    add("--limit", type=above_zero, help="seconds after which nothing more is begun")
    add("--out", type=Path, help="a JSON file, which a later run goes on from")
    options = parser.parse_args()
    options.seed, sizes = SEED, SIZES[options.device]
    if options.samples is not None:
        if options.samples < 2:
            parser.error(f"--samples {options.samples}: expected at least 2, for an interval")
        sizes = replace(sizes, samples=options.samples)
    options.sizes, options.model = sizes, options.model or [*sizes.models]
    return options


def run(options: Options) -> None:
    began = started()
    resolve_device(options.device)
    prepare(options.seed, None)
    settings = {"device": options.device, **asdict(options.sizes)}
    options.models = Models(options)
    record = Record(options.out, settings, options.seed)
    units = [unit for part in options.parts for unit in PARTS[part](options)]
    left = run_units(units, record, began, options.limit)
    print(summary(units, record, left))
    if has_failures(units, record):
        sys.exit(1)


if __name__ == "__main__":
    one_line(lambda: run(parse()))
