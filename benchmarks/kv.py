"""The KV cache on virtual memory: what it holds, what growth costs, and how fast it decodes.

    python benchmarks/kv.py [--parts memory …] [--trace FILE.json] [--layers 32 …] [--out FILE.json]

Three parts count: `memory` (bytes held and wasted for a trace of requests), `budget` (how many of
its sequences fit at once) and `prefix` (requests that share their first tokens). Four parts time,
and need a quiet machine: `pages` (every call in the life of a page), `growth` (appending a token,
by length), `reading` (attention by the size of pages) and `throughput` (decode steps: first
attention with append, then a whole model; finally whole generations).

The operating system counts the bytes of virtual caches (blocks of their memory file); on a GPU the
driver does. On the host, the bytes held must equal the computed ones exactly. At the peak there may
be one page row per slot more: a page in every plane, prepared ahead. A driver counts everything on
its GPU, so there both figures may be off by that much. Figures that are only computed say so. A
paged cache with blocks of 16 tokens needs a little less than ours with its default pages: in this
shape, 64 KB hold 32 tokens of the keys of one layer. Timed steps run in turn in one process, and
their ratios have 95 % intervals. KB, MB and GiB are 2^10, 2^20 and 2^30 bytes. The file keeps every
sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arguments import above_zero, command, one_line, positive
from kv_parts.counting import budget, memory
from kv_parts.decoding import attention
from kv_parts.generating import EMBEDDED, generation
from kv_parts.growing import growth, pages
from kv_parts.reading import reading
from kv_parts.setting import Options, Record
from kv_parts.sharing import prefix
from kv_parts.stepping import steps
from kv_parts.trace import Trace

from trimtab.environment import describe_environment, prepare
from trimtab.files import write_json
from trimtab.models.loading import resolve_device
from trimtab.models.state import without_cudnn_attention
from trimtab.vattention.cuda import CudaPool
from trimtab.vattention.host import HostPool
from trimtab.vattention.layout import DTYPES
from trimtab.vattention.settings import Layout
from trimtab.vattention.storage import HOST_PAGE
from trimtab_kernels.decode_attention import kernel_name

SHIPPED = Path(__file__).parent / "data" / "kv-trace.json"
PARTS: dict[str, tuple[Callable[[Options], Iterator[Record]], ...]] = {
    "memory": (memory,),
    "budget": (budget,),
    "prefix": (prefix,),
    "pages": (pages,),
    "growth": (growth,),
    "reading": (reading,),
    "throughput": (attention, steps, generation),
}
HOST_PAGES, GPU_PAGE = (4096, HOST_PAGE, 2**21), 2**21
SEED = 0


def table(records: Iterator[Record]) -> Iterator[Record]:
    """Print records as they arrive, with a new header whenever the columns change."""
    header: list[str] = []
    for record in records:
        cells = {name: cell(name, value) for name, value in record.items()}
        shown = {name: text for name, text in cells.items() if text is not None}
        if [*shown] != header and "skipped" not in record:
            header = [*shown]
            print(f"\n| {' | '.join(map(column, header))} |\n{'|---' * len(header)}|")
        print(f"| {' | '.join(shown.values())} |", flush=True)
        yield record


def column(name: str) -> str:
    for ending, unit in (("_bytes", " GiB"), ("_gib", " GiB"), ("_us", " µs"), ("_share", "")):
        name = name.replace(ending, unit) if name.endswith(ending) else name
    return name.replace("_", " ")


def cell(name: str, value: Any) -> str | None:
    """Return a value as text, or None if it is not for a table."""
    if value is None:
        return "–"
    if isinstance(value, dict) and "estimate" in value:
        return f"{value['estimate']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
    if isinstance(value, dict | list):
        return None
    if name.endswith("_bytes"):
        return f"{value / 2**30:.4g}"
    if name.endswith("_share"):
        return f"{value:.2%}"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
    return str(value)


def parse() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    kinds = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    add("--trace", type=Path, default=SHIPPED, help="requests, in the format of the shipped file")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--layers", type=positive, default=32)
    add("--kv-heads", type=positive, default=8)
    add("--heads", type=positive, default=32, help="query heads, for throughput")
    add("--head-dim", type=positive, default=128)
    add("--dtype", choices=kinds, default="bfloat16")
    add("--max-len", type=positive, default=8192, help="the most tokens of a slot")
    own = "default of timed parts: the device's"
    add("--layout", nargs="+", type=Layout, choices=[*Layout], help=own)
    add("--page-group", nargs="+", type=positive, help=f"bytes; {own}")
    add("--budgets", nargs="+", type=above_zero, default=[1, 2, 4], metavar="GIB")
    add("--lengths", nargs="+", type=positive, default=[512, 2000, 8000, 32000], help="for growth")
    add("--calls", type=positive, default=300, help="of each kind, for pages")
    add("--samples", type=positive, default=32, help="for growth and the steps of throughput")
    add("--batch", type=positive, default=8, help="for reading and the steps of throughput")
    add("--context", type=positive, default=2000, help="for reading and the steps of throughput")
    add(
        "--decode-layers", type=positive, default=4,
        help="for reading and the attention of throughput",
    )  # fmt: skip
    add("--model", default=EMBEDDED, help="or a shape (random weights), a name, a folder")
    add("--model-batch", type=positive, default=4, help="for the generations of throughput")
    add("--model-context", type=positive, default=256, help="for the generations of throughput")
    add("--new-tokens", type=positive, default=24)
    add("--repeats", type=positive, default=5, help="generations of each kind")
    add("--out", type=Path, help="a JSON file for all measurements")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    given = options.layout, options.page_group
    options.layout = given[0] or [*Layout]
    options.page_group = given[1] or ([GPU_PAGE] if on_gpu else [*HOST_PAGES])
    pool, page = (CudaPool, GPU_PAGE) if on_gpu else (HostPool, HOST_PAGE)
    layouts, groups = given[0] or [pool.default_layout], given[1] or [page]
    options.timed = [(layout, page) for layout in layouts for page in groups]
    options.dtype, options.seed = kinds[options.dtype], SEED
    if options.heads % options.kv_heads:
        parser.error(f"--heads {options.heads}: expected a multiple of {options.kv_heads}")
    if min(options.samples, options.repeats) < 2:
        parser.error("--samples, --repeats: expected at least 2, for an interval")
    least, largest = min(options.budgets), max(options.page_group)
    if "budget" in options.parts and least * 2**30 < largest:
        parser.error(f"--budgets {least}: expected at least a page, {largest / 2**30:.3g}")
    return options


def run(options: Options) -> None:
    resolve_device(options.device)
    options.trace = Trace.load(options.trace, options.max_len)
    prepare(options.seed, None)
    kernel = kernel_name(options.device, options.dtype)
    found: dict[str, Any] = {
        "command": command(),
        "environment": describe_environment(options.seed),
        "kernel": kernel,
        "trace": {"prompts": options.trace.prompts, "outputs": options.trace.outputs},
    }
    print(
        f"{len(options.trace.prompts)} sequences of {min(options.trace.lengths)} to "
        f"{max(options.trace.lengths)} tokens, at most {options.max_len}; {options.layers} layers, "
        f"{options.kv_heads} KV heads x {options.head_dim}, {options.dtype}; {kernel}"
    )
    for part in options.parts:
        found[part] = []
        print(f"\n{part}")
        for measure in PARTS[part]:
            for record in table(measure(options)):
                found[part].append(record)
                if options.out:
                    write_json(options.out, found)


if __name__ == "__main__":
    with without_cudnn_attention():  # as in a measurement: see docs/results.md
        one_line(lambda: run(parse()))
