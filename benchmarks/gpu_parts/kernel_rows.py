"""The summary's lines of the part `kernels`."""

from __future__ import annotations

from typing import Any

from result_tables import with_interval

from gpu_parts.timing import middle
from gpu_parts.unit import NO_AIM, Options, Result, Row

LIBRARY, AGAIN, OURS, TEAL = "library", "library, again", "ours", "TEAL's design"
AIMED, OVER_ITSELF = 0.4, 1.5  # sparsity, and the speedup over our own product with nothing dropped
MODEL_AIMED = "llama2-7b"


def at(name: str, sparsity: float) -> str:
    """Return what a product is called where a share of the activations is dropped."""
    return f"{name}, {sparsity:g} dropped"


def fastest_peer(rows: dict[str, Any], sparsity: float) -> dict[str, Any] | None:
    """Return the row of TEAL's design with the tiles that are fastest at a sparsity."""
    peers = [row for name, row in rows.items() if name.startswith(f"{at(TEAL, sparsity)}, ")]
    return min(peers, key=lambda row: row["us"], default=None)


def product_rows(options: Options, what: str, of: str, result: Result) -> list[Row]:
    """Return a line for the library's product, and one for every sparsity."""
    found = result["rows"]
    aimed = options.device == "cuda" and MODEL_AIMED in of
    rows = []
    if LIBRARY in found and AGAIN in found:
        again = with_interval(found[AGAIN]["speedup"], 2)
        rows.append(Row(f"{what}, {LIBRARY}", f"{_told(found[LIBRARY])}; again {again}"))
    for sparsity in options.sizes.sparsities:
        own, peer = found.get(at(OURS, sparsity)), fastest_peer(found, sparsity)
        told = [f"{TEAL} {_told(peer)}"] if peer else []
        if own:
            told = [_told(own), *told]
            told += [f"{with_interval(own[key], 2)} x {name}" for key, name in _OTHERS if own[key]]
        aim = f"at least {OVER_ITSELF:.2f} x itself dense, more than 1 x {TEAL}"
        aim = aim if aimed and sparsity == AIMED else NO_AIM
        rows.append(Row(f"{what}, {at(OURS, sparsity)}", "; ".join(told) or "–", aim))
    return rows


_OTHERS = (("speedup", LIBRARY), ("over_own_dense", "itself dense"), ("over_peer", TEAL))


def transform_rows(width: int, result: Result) -> list[Row]:
    """Return a line for the library's product, and one for ours in int8."""
    what = f"int8 transform {width}"
    return [
        Row(f"{what}, {name}", f"{_told(row)}; {with_interval(row['speedup'], 2)} x {LIBRARY}")
        for name, row in result["rows"].items()
        if row["speedup"]
    ]


def selection_rows(width: int, result: Result) -> list[Row]:
    """Return a line for both kinds."""
    shown = ", ".join(f"{kind} {middle(times):.3g} µs" for kind, times in result["us"].items())
    return [Row(f"selection of {width}", shown)] if shown else []


def setting_rows(what: str, result: Result) -> list[Row]:
    """Return the fastest settings, against those of the library."""
    found = result["rows"]
    if not found:
        return []
    name = min(found, key=lambda one: found[one]["us"])
    told = f"fastest: {name}: {_told(found[name])}"
    if found[name]["speedup"]:
        told += f"; {with_interval(found[name]['speedup'], 2)} x the library's settings"
    return [Row(f"{what}, settings of a launch, {AIMED:g} dropped", told)]


def _told(row: dict[str, Any]) -> str:
    return f"{row['us']:.1f} µs, {row['of_read_share']:.0%} of the rate of reading"
