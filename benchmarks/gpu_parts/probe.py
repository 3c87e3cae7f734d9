"""The part `probe`: what the machine is, and what it takes for what all else consists of."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from gpu_parts.timing import (
    attention_with,
    host_microseconds,
    microseconds,
    middle,
    read_rates,
    settle,
)
from gpu_parts.unit import Options, Result, Row, Unit
from trimtab.environment import describe_environment
from trimtab.vattention.driver import CudaDriver, Driver
from trimtab.vattention.pages import Access
from trimtab_kernels.decode_attention import append_kv, decode_attention
from trimtab_kernels.sparse_linear import keep_topk, sparse_linear

BINDINGS = "cuda-bindings", "nvidia-ml-py"
CLOCKS = (
    "name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "power.limit", "temperature.gpu", "persistence_mode", "mig.mode.current",
)  # fmt: skip
PATIENCE = 20  # seconds that nvidia-smi may take
PAGES = 64
EIGH_SAMPLES = 3
FIRST_LENGTH = 0.4  # of the tokens there are, before which no length is tried


def probe(options: Options) -> Iterator[Unit]:
    """Yield the units of this part."""
    sizes = options.sizes
    yield Unit("probe: versions", partial(versions, options), _versions_rows)
    yield Unit("probe: bandwidth", partial(bandwidth, options), _bandwidth_rows)
    yield Unit("probe: launches", partial(launches, options), _launch_rows)
    yield Unit("probe: driver", partial(driver, options), _driver_rows)
    for cudnn in (True, False):
        name = f"probe: attention {'with' if cudnn else 'without'} cuDNN"
        yield Unit(name, partial(attention, options, cudnn), partial(_attention_rows, cudnn))
    for width in sizes.symmetric:
        shape = 1, width
        yield Unit(f"probe: eigh {width}", partial(eigh, options, shape), partial(_eigh_row, shape))
    count, width = sizes.blocks
    name = f"probe: eigh {count}x{width}"
    yield Unit(name, partial(eigh, options, sizes.blocks), partial(_eigh_row, sizes.blocks))


def versions(options: Options) -> Result:
    """Say what there is: software, the card, its driver and its clocks."""
    found: Result = {"environment": describe_environment(options.seed), "packages": {}}
    for name in BINDINGS:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            found["packages"][name] = None
    if options.device == "cuda":
        card = torch.cuda.get_device_properties()
        found["card"] = {
            "name": card.name,
            "capability": [card.major, card.minor],
            "multiprocessors": card.multi_processor_count,
            "memory_bytes": card.total_memory,
            "l2_bytes": card.L2_cache_size,
        }
        found["clocks"] = _clocks()
    return found


def _clocks() -> dict[str, str]:
    """Return what nvidia-smi says, by the names of its fields."""
    query = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"absent": f"{type(error).__name__}: {error}"}
    first = done.stdout.partition("\n")[0].split(", ")
    return dict(zip(CLOCKS, first, strict=True))


def _versions_rows(result: Result) -> list[Row]:
    environment = result["environment"]
    packages = environment["packages"]
    software = ", ".join(f"{name} {packages[name]}" for name in ("torch", "triton"))
    rows = [Row("software", f"{software}, transformers {packages['transformers']}")]
    machine = environment["gpu"] or environment["cpu"]
    rows.append(Row("machine", f"{machine}, driver {environment['driver'] or '–'}"))
    if "clocks" in result:
        shown = (f"{name} {value}" for name, value in result["clocks"].items() if "clock" in name)
        rows.append(Row("clocks", ", ".join(shown) or result["clocks"].get("absent", "–")))
    return rows


def bandwidth(options: Options) -> Result:
    """Time a sum of numbers, and a copy of them, which reads and writes."""
    return {"read_bytes_per_s": read_rates(options), "copy_bytes_per_s": _copy_rates(options)}


def _copy_rates(options: Options) -> list[int]:
    count = options.sizes.read_bytes // 8
    source = torch.ones(count, dtype=torch.float32, device=options.device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    copy()
    times = [microseconds(copy, options.device) for _ in range(options.sizes.samples)]
    return [round(2 * source.nbytes / taken * 1e6) for taken in times]


def _bandwidth_rows(result: Result) -> list[Row]:
    names = {"read_bytes_per_s": "reading memory", "copy_bytes_per_s": "copying, both ways"}
    return [Row(what, f"{middle(result[name]) / 1e9:.4g} GB/s") for name, what in names.items()]


def launches(options: Options) -> Result:
    """Time what calls of small operators cost the host."""
    device, width = options.device, 64
    x, row = (torch.randn(shape, device=device) for shape in ((1, width), (1, 4, width)))
    x, row = x.to(torch.bfloat16), row.to(torch.bfloat16)
    weight = torch.randn(width, width, device=device).to(torch.bfloat16)
    keys, values = torch.zeros(2, 1, 512, 4, width, device=device).to(torch.bfloat16)
    lengths = torch.tensor([300], dtype=torch.int32, device=device)
    calls: dict[str, Callable[[], Any]] = {
        "add_": lambda: x.add_(1),
        "linear": lambda: linear(x, weight),
        "sparse_linear": lambda: sparse_linear(x, weight),
        "keep_topk": lambda: keep_topk(x, width // 2),
        "append_kv": lambda: append_kv(keys, values, row, row, lengths),
        "decode_attention": lambda: decode_attention(row, keys, values, lengths, 0.1),
    }
    with torch.inference_mode():
        return {
            name: host_microseconds(call, options.sizes.calls, device)
            for name, call in calls.items()
        }


def _launch_rows(result: Result) -> list[Row]:
    shown = ", ".join(f"{name} {middle(samples):.3g}" for name, samples in result.items())
    return [Row("the host's time for a call, µs", shown)]


def driver(options: Options) -> Result:
    """Time the driver's calls, where there is a driver."""
    if options.device != "cuda":
        return {"skipped": "there is no driver of a GPU"}
    opened = CudaDriver(torch.device(options.device))
    return {"granularity": opened.granularity, "calls_us": driver_calls(opened, PAGES)}


def driver_calls(driver: Driver, pages: int) -> dict[str, list[float]]:
    """Return the microseconds of the calls in the life of some pages that nobody writes to.

    `set access` and `unmap` are called for all pages at once too; the last one is what unmaps them.
    """
    page, times = driver.granularity, dict[str, list[float]]()

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.perf_counter_ns()
        made = call()
        times.setdefault(name, []).append((time.perf_counter_ns() - begun) / 1e3)
        return made

    start = timed("reserve", lambda: driver.reserve(pages * page))
    places = range(start, start + pages * page, page)
    handles = [timed("create", lambda: driver.create(page)) for _ in places]
    for place, handle in zip(places, handles, strict=True):
        timed("map", partial(driver.map, place, page, handle))
    for place in places:
        timed("set access", partial(driver.set_access, place, page, Access.write))
    timed("set access of all", lambda: driver.set_access(start, pages * page, Access.read))
    for place in places:
        timed("unmap", partial(driver.unmap, place, page))
    for place, handle in zip(places, handles, strict=True):
        driver.map(place, page, handle)
    timed("unmap of all", lambda: driver.unmap(start, pages * page))
    for handle in handles:
        timed("release", partial(driver.release, handle))
    timed("free", lambda: driver.free(start, pages * page))
    return times


def _driver_rows(result: Result) -> list[Row]:
    shown = ", ".join(f"{name} {middle(times):.3g}" for name, times in result["calls_us"].items())
    return [Row("calls of the driver, µs, medians", shown)]


def attention(options: Options, cudnn: bool) -> Result:
    """Time the library's attention at lengths that it has not seen, and then at the same ones.

    cuDNN, where the library may choose it, makes a plan for every length.
    """
    heads, tokens, width = options.sizes.attention
    device = options.device
    query, keys = torch.randn(2, 1, heads, tokens, width, device=device).to(torch.bfloat16)
    mask = torch.ones(1, 1, 5, tokens, dtype=torch.bool, device=device)
    attend = scaled_dot_product_attention
    kinds: dict[str, Callable[[int], Any]] = {
        "one token": lambda n: attend(query[:, :, :1], keys[:, :, :n], keys[:, :, :n]),
        "draft": lambda n: attend(query[:, :, :5], keys[:, :, :n], keys[:, :, :n], mask[..., :n]),
        "prompt": lambda n: attend(query[:, :, :n], keys[:, :, :n], keys[:, :, :n], is_causal=True),
    }
    first = int(FIRST_LENGTH * tokens)
    found: Result = {}
    with attention_with(cudnn):
        for kind, call in kinds.items():
            call(first)  # what loads at a first call does so here
            for seen in ("fresh", "seen"):
                lengths = range(first + 1, first + 1 + options.sizes.lengths)
                found[f"{kind}, {seen}"] = [_wall(partial(call, n), device) for n in lengths]
    return found


def _wall(call: Callable[[], Any], device: str) -> float:
    """Return the microseconds of a call, the host's time for it included."""
    settle(device)
    begun = time.perf_counter_ns()
    call()
    settle(device)
    return round((time.perf_counter_ns() - begun) / 1e3, 3)


def _attention_rows(cudnn: bool, result: Result) -> list[Row]:
    shown = ", ".join(f"{kind} {middle(times):.3g}" for kind, times in result.items())
    return [Row(f"SDPA {'with' if cudnn else 'without'} cuDNN, µs by length, medians", shown)]


def eigh(options: Options, shape: tuple[int, int]) -> Result:
    """Time the eigenvectors of one symmetric float64 matrix, or of several at once."""
    count, width = shape
    matrix = torch.randn(count, width, width, dtype=torch.float64, device=options.device)
    matrix = (matrix @ matrix.mT).squeeze(0)
    torch.linalg.eigh(matrix)
    call = partial(torch.linalg.eigh, matrix)
    return {"seconds": [_wall(call, options.device) / 1e6 for _ in range(EIGH_SAMPLES)]}


def _eigh_row(shape: tuple[int, int], result: Result) -> list[Row]:
    count, width = shape
    what = f"{count} x {width}" if count > 1 else f"{width}"
    return [Row(f"eigh float64, {what}", f"{middle(result['seconds']):.3g} s")]
