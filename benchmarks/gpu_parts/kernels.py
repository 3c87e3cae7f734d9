"""The part `kernels`: products and selections, each as a share of what memory could deliver."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gpu_parts.kernel_rows import (
    AGAIN,
    AIMED,
    LIBRARY,
    OURS,
    TEAL,
    at,
    fastest_peer,
    product_rows,
    selection_rows,
    setting_rows,
    transform_rows,
)
from gpu_parts.products import Product, model_widths, products, widths
from gpu_parts.timing import Clock, in_graph, in_turn, middle, prepared, read_rates
from gpu_parts.unit import Options, Result, Row, Unit
from trimtab.errors import TrimtabError
from trimtab.evaluation.intervals import ratio

CACHES = 4  # how many times the last cache's bytes the weights of a product have, at least
SELECTIONS = 20  # in one graph, at most
CLOSE = 0.01  # the most that a product may be off from float64, over its norm
DTYPE = torch.bfloat16
NEEDS_GPU = "the Triton kernels need a GPU, or TRITON_INTERPRET=1"


def kernels(options: Options) -> Iterator[Unit]:
    """Yield the units of this part: what decides most comes first."""
    shapes = products(options.model)

    def unit(name: str, measure: Callable[[], Result], rows: Callable[[Result], list[Row]]) -> Unit:
        return Unit(f"kernels: {name}", partial(_on_gpu, options, measure), rows)

    for shape in shapes:
        rows = partial(product_rows, options, shape.name, shape.of)
        yield unit(shape.name, partial(compared, options, shape), rows)
    for width in model_widths(options.model):
        rows = partial(transform_rows, width)
        yield unit(f"int8 transform {width}", partial(transforms, options, width), rows)
    for width in widths(options.model):
        rows = partial(selection_rows, width)
        yield unit(f"selection {width}", partial(selections, options, width), rows)
    for shape in shapes:
        rows = partial(setting_rows, shape.name)
        yield unit(f"settings {shape.name}", partial(settings, options, shape), rows)


def _on_gpu(options: Options, measure: Callable[[], Result]) -> Result:
    if options.device != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        return {"skipped": NEEDS_GPU}
    with torch.inference_mode():
        return measure()


@dataclass(frozen=True)
class Case:
    """An input of which a share is to be dropped, and so many weights that no cache holds them.

    Parameters
    ----------
    weights : list of Tensor
        Of shape [d, n].
    """

    weights: list[Tensor]

    def input(self, sparsity: float) -> tuple[Tensor, float, int]:
        """Return an input [1, d], a threshold, and how many entries are not below it."""
        width, device = len(self.weights[0]), self.weights[0].device
        keep = round((1 - sparsity) * width)
        sizes = torch.rand(width, device=device)
        kept = torch.randperm(width, device=device)[:keep]
        sizes = sizes / 2 + 0.125
        sizes[kept] += 1
        signs = 1 - 2 * torch.randint(2, (width,), device=device)
        threshold = 0.0 if keep == width else 0.875
        return (signs * sizes).to(DTYPE)[None], threshold, keep


def _case(options: Options, shape: tuple[int, int]) -> Case:
    least = options.sizes.cold_bytes
    if options.device == "cuda":
        least = max(least, CACHES * torch.cuda.get_device_properties().L2_cache_size)
    count = -(-least // (shape[0] * shape[1] * DTYPE.itemsize)) + 1
    return Case([torch.randn(shape, device=options.device).to(DTYPE) for _ in range(count)])


def _checked(
    options: Options, call: Callable[[Tensor], Tensor], case: Case, x: Tensor, threshold: float
) -> Clock:
    """Return the clock of a product on all weights, once one result is found right.

    Raises
    ------
    TrimtabError
        If it is not.
    """
    kept = torch.where(x.float().abs() < threshold, 0.0, x)
    wanted = kept.double() @ case.weights[0].double()
    error = float((call(case.weights[0]).double() - wanted).norm() / wanted.norm())
    if not error < CLOSE:
        raise TrimtabError(f"the product is {error:.2g} off; expected less than {CLOSE}")
    return in_graph([partial(call, weight) for weight in case.weights], options.device)


def _measured(
    options: Options,
    makers: Mapping[str, Callable[[], Clock]],
    nbytes: Mapping[str, int],
    reference: str,
    samples: int,
) -> Result:
    """Time products in turn, and return the share of memory's rate that each of them reads at.

    Parameters
    ----------
    makers : mapping of str to callable
        By name: what makes a product ready to be timed.
    nbytes : mapping of str to int
        What it has to read.
    reference : str
        What the others are compared with.
    samples : int
    """
    before = read_rates(options)
    clocks, failed = prepared(makers)
    times = in_turn(clocks, samples)
    rates = before + read_rates(options)
    rate = middle(rates)
    rows = {
        name: {
            "us": middle(own),
            "bytes": nbytes[name],
            "of_read_share": nbytes[name] / middle(own) * 1e6 / rate,
            "speedup": ratio(times[reference], own, paired=True, seed=options.seed)
            if reference in times
            else None,
            "samples_us": own,
        }
        for name, own in times.items()
    }
    return {"read_bytes_per_s": rates, "compared_with": reference, "rows": rows, "failed": failed}


def compared(options: Options, shape: Product) -> Result:
    """Compare the library's product, ours and TEAL's design, at several sparsities.

    In ours the threshold is within the product too.
    """
    from gpu_parts.teal import TILES, teal_product
    from trimtab_kernels.sparse_linear.gpu import gather_gemv

    case = _case(options, shape[:2])
    output_major = Case([weight.t().contiguous() for weight in case.weights])
    makers: dict[str, Callable[[], Clock]] = {}
    nbytes: dict[str, int] = {}

    def add(name: str, maker: Callable[[], Clock], kept: int) -> None:
        makers[name] = maker
        nbytes[name] = (kept * shape.outputs + shape.inputs + shape.outputs) * DTYPE.itemsize

    x, _, _ = case.input(0.0)
    calls = [partial(linear, x, weight) for weight in output_major.weights]
    add(LIBRARY, partial(in_graph, calls, options.device), shape.inputs)
    add(AGAIN, partial(in_graph, calls, options.device), shape.inputs)
    for sparsity in options.sizes.sparsities:
        x, threshold, keep = case.input(sparsity)
        ours = partial(_ours, gather_gemv, x, threshold)
        add(at(OURS, sparsity), partial(_checked, options, ours, case, x, threshold), keep)
        for tile in TILES if options.device == "cuda" else TILES[:1]:
            theirs = partial(_theirs, teal_product, x, threshold, tile)
            name = f"{at(TEAL, sparsity)}, {tile[0]}x{tile[1]}"
            add(name, partial(_checked, options, theirs, case, x, threshold), keep)
    found = _measured(options, makers, nbytes, LIBRARY, options.sizes.samples)
    rows = found["rows"]
    for sparsity in options.sizes.sparsities:
        own = rows.get(at(OURS, sparsity))
        others = {
            "over_own_dense": rows.get(at(OURS, 0.0)), "over_peer": fastest_peer(rows, sparsity),
        }  # fmt: skip
        for key, other in others.items() if own else ():
            own[key] = other and ratio(
                other["samples_us"], own["samples_us"], paired=True, seed=options.seed
            )
    return found


def _ours(product: Any, x: Tensor, threshold: float, weight: Tensor) -> Tensor:
    return product(x, weight, None, threshold)


def _theirs(
    product: Any, x: Tensor, threshold: float, tile: tuple[int, int, int], weight: Tensor
) -> Tensor:
    return product(x, weight, threshold, tile)


def transforms(options: Options, width: int) -> Result:
    """Compare a transform in int8 with the library's product in bfloat16."""
    from trimtab_kernels.sparse_linear.gpu import gather_gemv

    wide = _case(options, (width, width))
    x, _, _ = wide.input(0.0)
    # Of half the bytes each: twice as many.
    numbers = [(40 * weight).round().clamp(-127, 127).to(torch.int8) for weight in wide.weights]
    case = Case(numbers + [one.flip(0).contiguous() for one in numbers])
    scale = torch.ones(width, device=options.device)
    library = partial(in_graph, [partial(torch.mm, x, one) for one in wide.weights], options.device)
    ours = partial(_int8, gather_gemv, x, scale)
    makers = {
        LIBRARY: library, AGAIN: library, OURS: partial(_checked, options, ours, case, x, 0.0),
    }  # fmt: skip
    ends = 2 * width * DTYPE.itemsize
    nbytes = dict.fromkeys((LIBRARY, AGAIN), width * width * DTYPE.itemsize + ends)
    nbytes[OURS] = width * width + ends
    return _measured(options, makers, nbytes, LIBRARY, options.sizes.samples)


def _int8(product: Any, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return product(x, weight, None, 0.0, scale)


def selections(options: Options, width: int) -> Result:
    """Time the selection of half of the activations, by their number and by a threshold."""
    from trimtab_kernels.sparse_linear.gpu import select

    x = torch.randn(1, width, device=options.device).to(DTYPE)
    count = min(SELECTIONS, options.sizes.calls)
    keep, threshold = width // 2, float(x.float().abs().median())
    kinds = {"Top-K": (keep, 0.0), "threshold": (width, threshold)}
    makers = {
        kind: partial(in_graph, [partial(select, x, *how)] * count, options.device)
        for kind, how in kinds.items()
    }
    clocks, failed = prepared(makers)
    return {"us": in_turn(clocks, options.sizes.samples), "failed": failed}


def settings(options: Options, shape: Product) -> Result:
    """Compare settings of the launches of our product with those that the library has."""
    from gpu_parts.launches import LAUNCHES, gather
    from trimtab_kernels.sparse_linear.gpu import gather_gemv

    case = _case(options, shape[:2])
    x, threshold, keep = case.input(AIMED)
    nbytes = (keep * shape.outputs + shape.inputs + shape.outputs) * DTYPE.itemsize
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: partial(_ours, gather_gemv, x, threshold),
        f"{OURS}, again": partial(_ours, gather_gemv, x, threshold),
    }
    for launch in LAUNCHES if options.device == "cuda" else LAUNCHES[:2]:
        calls[str(launch)] = partial(_launched, gather, x, threshold, launch)
    makers = {
        name: partial(_checked, options, call, case, x, threshold) for name, call in calls.items()
    }
    samples = max(2, options.sizes.samples // 2)
    return _measured(options, makers, dict.fromkeys(calls, nbytes), OURS, samples)


def _launched(gather: Any, x: Tensor, threshold: float, launch: Any, weight: Tensor) -> Tensor:
    return gather(x, weight, threshold, launch)
