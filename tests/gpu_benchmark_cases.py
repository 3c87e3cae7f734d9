"""Checks of the kernels that `benchmarks/gpu.py` times; as a module, on Triton's interpreter."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from dataclasses import replace

import torch

from tests.conftest import ROOT
from tests.kernels.interpreting import prepare_interpreter

sys.path.insert(0, str(ROOT / "benchmarks"))
SHAPE = 70, 270
SPARSITIES = (0.0, 0.4)


def check_products() -> None:
    """Compare TEAL's design, and our kernel by other launches, with float64 products.

    Rows of dropped activations are NaN where they may not be read.
    """
    from gpu_parts.kernels import Case
    from gpu_parts.launches import BLOCKS, LAUNCHES, Launch, gather
    from gpu_parts.teal import TILES, teal_product

    assert {(one.block_rows, one.block_columns) for one in LAUNCHES} == {*BLOCKS}
    launches = [Launch(*block, 2 * block[0], 4, None) for block in BLOCKS]
    case = Case([torch.randn(SHAPE).to(torch.bfloat16)])
    (weight,) = case.weights
    for sparsity in SPARSITIES:
        x, threshold, keep = case.input(sparsity)
        dropped = x[0].float().abs() < threshold
        assert SHAPE[0] - int(dropped.sum()) == keep == round((1 - sparsity) * SHAPE[0])
        expected = x[:, ~dropped].double() @ weight[~dropped].double()
        poisoned = weight.masked_fill(dropped[:, None], torch.nan)
        for tile in TILES:
            found = teal_product(x, poisoned, threshold, tile)
            assert found.dtype == torch.float32
            assert (found - expected).norm() < 1e-5 * expected.norm()
        for launch in launches:
            found = gather(x, poisoned, threshold, launch)
            assert found.dtype == torch.bfloat16
            assert (found - expected).norm() < 5e-3 * expected.norm()


def check_units() -> None:
    """Have each kind of unit measure a small shape, and a wrong product be refused."""
    from gpu_parts import kernels
    from gpu_parts.launches import LAUNCHES
    from gpu_parts.products import Product
    from gpu_parts.sizes import SIZES
    from gpu_parts.teal import TILES

    sizes = replace(SIZES["cpu"], calls=1)
    options = Namespace(device="cpu", seed=0, sizes=sizes, model=["tiny-llama"])
    shape = Product(64, 32, "one")
    compared = kernels.compared(options, shape)
    ours, tile = ("ours, 0 dropped", "ours, 0.4 dropped"), f"{TILES[0][0]}x{TILES[0][1]}"
    teal = [f"TEAL's design, {one:g} dropped, {tile}" for one in SPARSITIES]
    rows = compared["rows"]
    assert set(rows) == {"library", "library, again", *ours, *teal}, rows
    ends = 2 * (64 + 32)
    assert [rows[name]["bytes"] for name in ours] == [2 * 64 * 32 + ends, 2 * 38 * 32 + ends]
    rate = torch.tensor(compared["read_bytes_per_s"]).double().median()
    for row in rows.values():
        assert len(row["samples_us"]) == sizes.samples
        share = row["bytes"] / (sum(row["samples_us"]) / 2) * 1e6 / row["of_read_share"]
        assert min(compared["read_bytes_per_s"]) <= share <= max(compared["read_bytes_per_s"]), rate
    for name, peer in zip(ours, teal, strict=True):
        own, other = (sum(rows[one]["samples_us"]) for one in (name, peer))
        assert abs(rows[name]["over_peer"]["estimate"] - other / own) < 1e-9
        dense = sum(rows[ours[0]]["samples_us"])
        assert abs(rows[name]["over_own_dense"]["estimate"] - dense / own) < 1e-9

    settings = kernels.settings(options, shape)
    names = {"ours", "ours, again", *map(str, LAUNCHES[:2])}
    assert (set(settings["rows"]), settings["failed"]) == (names, {})
    transforms = kernels.transforms(options, 64)
    assert transforms["rows"]["ours"]["bytes"] == 64 * 64 + 4 * 64
    assert (set(transforms["rows"]), transforms["failed"]) == (
        {"library", "library, again", "ours"}, {},
    )  # fmt: skip
    selections = kernels.selections(options, 64)
    assert {len(times) for times in selections["us"].values()} == {sizes.samples}

    case = kernels.Case([torch.ones(4, 4, dtype=torch.bfloat16)])
    makers = {"wrong": lambda: kernels._checked(options, lambda w: x @ w + 1, case, x, 0.0)}
    x, _, _ = case.input(0.0)
    found = kernels._measured(options, makers, {"wrong": 1}, "wrong", 2)
    assert found["rows"] == {}
    assert found["failed"]["wrong"].startswith("TrimtabError: the product is ")


if __name__ == "__main__":
    if not os.environ.get("TRITON_INTERPRET"):
        sys.exit("set TRITON_INTERPRET=1")
    torch.manual_seed(0)
    prepare_interpreter()
    check_products()
    check_units()
