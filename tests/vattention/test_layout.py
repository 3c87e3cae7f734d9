"""Where tokens lie, and the bytes that they take."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.vattention.layout import Geometry, committed_bytes
from trimtab.vattention.settings import Layout

MB, KB = 1 << 20, 1 << 10


def geometry(**more) -> Geometry:
    shape = {"layers": 2, "slots": 3, "max_len": 5, "kv_heads": 2, "head_dim": 3}
    return Geometry(**{**shape, "dtype": torch.float16, "layout": Layout.slot, **more})


shapes = st.builds(
    geometry,
    layers=st.integers(1, 3),
    slots=st.integers(1, 3),
    max_len=st.integers(1, 40),
    kv_heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    layout=st.sampled_from(list(Layout)),
)
pages = st.sampled_from([4, 16, 64])


@given(shapes, pages)
def test_every_number_has_bytes_of_its_own_and_no_slot_touches_anothers_pages(shape, page):
    """Checked by listing the bytes of every element of every tensor."""
    taken: dict[int, tuple[int, bool, int]] = {}
    owners: dict[int, int] = {}
    for layer in range(shape.layers):
        for values in (False, True):
            offset, strides = shape.place(layer, values, page)
            for slot in range(shape.slots):
                for token in range(shape.max_len):
                    for element in range(shape.kv_heads * shape.head_dim):
                        head, dim = divmod(element, shape.head_dim)
                        at = slot, token, head, dim
                        start = offset + shape.dtype.itemsize * sum(
                            index * stride for index, stride in zip(at, strides, strict=True)
                        )
                        for byte in range(start, start + shape.dtype.itemsize):
                            assert byte not in taken
                            taken[byte] = layer, values, slot
                            assert owners.setdefault(byte // page, slot) == slot
    assert max(taken) < shape.reserved_bytes(page)
    assert len(taken) == shape.static_bytes
    # A guard page lies between the pages of any two slots.
    for at, slot in owners.items():
        assert owners.get(at + 1, slot) == slot


@given(shapes, pages, st.data())
def test_committed_bytes_are_the_pages_that_the_tokens_touch(shape, page, data):
    lengths = [data.draw(st.integers(0, shape.max_len)) for _ in range(shape.slots)]
    touched = set()
    for layer in range(shape.layers):
        for values in (False, True):
            offset, (by_slot, by_token, *_) = shape.place(layer, values, page)
            for slot, length in enumerate(lengths):
                for token in range(length):
                    start = offset + (slot * by_slot + token * by_token) * shape.dtype.itemsize
                    row = shape.kv_heads * shape.head_dim * shape.dtype.itemsize
                    touched |= set(range(start // page, (start + row - 1) // page + 1))
    assert committed_bytes(lengths, shape, page) == len(touched) * page


@given(shapes, pages)
def test_planes_and_slots_begin_at_page_bounds(shape, page):
    offsets = [
        shape.offset(plane, slot, page)
        for plane in range(shape.planes)
        for slot in range(shape.slots)
    ]
    assert offsets == list(range(0, shape.reserved_bytes(page), shape.slot_bytes(page)))
    assert shape.slot_bytes(page) % page == 0
    assert shape.row_bytes * shape.planes == shape.token_bytes


@pytest.mark.parametrize("layout", list(Layout))
def test_a_page_row_is_counted_from_the_first_byte_beyond_a_page(layout):
    shape = geometry(kv_heads=1, head_dim=4, max_len=100, layout=layout)
    tokens = 64 // shape.row_bytes
    lengths = [0, 1, tokens - 1, tokens, tokens + 1, 2 * tokens]
    assert [shape.page_rows(length, 64) for length in lengths] == [0, 1, 1, 1, 2, 2]


def test_a_token_larger_than_a_page_takes_several():
    shape = geometry(kv_heads=4, head_dim=20)
    assert shape.row_bytes == 160
    assert [shape.page_rows(length, 64) for length in (0, 1, 2, 3)] == [0, 3, 5, 8]


def trace() -> tuple[list[int], Geometry]:
    """Return the lengths of 16 sequences, 200 to 4 000 tokens, and a cache of an 8B model."""
    draw = random.Random(0)
    lengths = [draw.randint(200, 4000) for _ in range(16)]
    return lengths, Geometry(32, 16, 8192, 8, 128, torch.bfloat16)


def test_a_large_model_needs_under_half_of_a_static_cache_and_hardly_more_than_is_live():
    lengths, shape = trace()
    live = sum(lengths) * shape.token_bytes
    on_gpu = committed_bytes(lengths, shape, 2 * MB)
    assert shape.static_bytes == 16 * 8192 * 2 * 32 * 8 * 128 * 2
    assert on_gpu <= 0.4 * shape.static_bytes
    assert live < committed_bytes(lengths, shape, 64 * KB) < 1.01 * live
    # Half of the last page on average, in every plane of every slot.
    assert on_gpu - live == pytest.approx(16 * 64 * MB, rel=0.25)


def test_mega_leaves_a_layers_share_of_the_waste():
    lengths, shape = trace()
    mega = Geometry(32, 16, 8192, 8, 128, torch.bfloat16, Layout.mega)
    assert mega.token_bytes == shape.token_bytes
    live = sum(lengths) * shape.token_bytes
    assert committed_bytes(lengths, mega, 2 * MB) - live < 0.01 * live


@pytest.mark.parametrize(
    "wrong", [{"layers": 0}, {"slots": -1}, {"max_len": 2.0}, {"kv_heads": 0}, {"head_dim": None}]
)
def test_sizes_are_positive_integers(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}; expected a positive integer"):
        geometry(**wrong)


def test_dtypes_and_layouts_are_listed_where_another_is_asked_for():
    with pytest.raises(ValueError, match="float64; expected one of torch.float32, torch.float16"):
        geometry(dtype=torch.float64)
    with pytest.raises(ValueError, match="layout='paged'; expected slot or mega"):
        Layout("paged")
