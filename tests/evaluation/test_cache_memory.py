"""Bytes of transformers' caches: by their tensors, and by the pages that are in memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from trimtab.evaluation import cache_memory as module
from trimtab.evaluation.cache_memory import (
    CacheKind,
    cache_bytes,
    cache_memory,
    resident_bytes,
)
from trimtab.evaluation.generators.transformers import (
    TransformersGenerator,
    transformers_cache,
)
from trimtab.evaluation.workload import Prompt

PROMPT = Prompt("d", "a prompt of text", " and what follows")
TENSORS = 3 * 2  # layers, keys and values
TOKEN_BYTES = TENSORS * 2 * 16 * 4  # heads, width, float32
PAGE = mmap.PAGESIZE
HOST = torch.device("cpu")


def mapped(pages: int) -> tuple[mmap.mmap, torch.Tensor]:
    """Return memory of its own pages, none of which exists yet, and a tensor over it."""
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Or the first page written to may bring 2 MB of them.
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory, torch.frombuffer(memory, dtype=torch.uint8)


def resident_by_smaps(address: int) -> int:
    """Return what the system says of the mapping at an address, in its other table."""
    lines = iter(Path("/proc/self/smaps").read_text("utf-8").splitlines())
    for line in lines:
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(part, 16) for part in head.split("-"))
            inside = start <= address < end
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no mapping at the address")


@given(written=st.sets(st.integers(0, 63)))
def test_the_pages_that_were_written_to_are_counted(written):
    memory, tensor = mapped(64)
    for page in written:
        tensor[page * PAGE] = 1
    assert resident_bytes([tensor.untyped_storage()]) == len(written) * PAGE
    assert resident_bytes([tensor.untyped_storage()]) == resident_by_smaps(tensor.data_ptr())
    del tensor, memory


def test_a_page_that_two_share_counts_once():
    memory, tensor = mapped(4)
    tensor.fill_(1)
    halves = [
        torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=offset).untyped_storage()
        for offset, size in ((0, PAGE // 2), (PAGE // 2, PAGE), (3 * PAGE, 1))
    ]
    assert resident_bytes(halves) == 3 * PAGE
    assert resident_bytes([]) == 0
    del halves, tensor, memory


def test_a_system_that_does_not_tell_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "PAGEMAP", tmp_path / "none")
    assert resident_bytes([torch.zeros(4).untyped_storage()]) is None


def test_a_cache_that_holds_more_than_it_shows_is_found_out(tiny_llama):
    cache = DynamicCache(config=tiny_llama.model.config)
    for layer in range(3):
        room = torch.zeros(2, 1, 2, 100, 16)
        cache.update(room[0, :, :, :10], room[1, :, :, :10], layer)
        cache.layers[layer].keys = room[0, :, :, :10]
        cache.layers[layer].values = room[1, :, :, :10]
    assert cache_bytes(cache) == (10 * TOKEN_BYTES, 100 * TOKEN_BYTES)
    found = cache_memory(lambda: cache, HOST)
    assert (found.live, found.committed) == (10 * TOKEN_BYTES, 100 * TOKEN_BYTES)
    assert 100 * TOKEN_BYTES <= found.measured <= 100 * TOKEN_BYTES + 3 * 2 * PAGE


@pytest.mark.parametrize("kind", [*CacheKind])
def test_what_the_system_counts_agrees_with_arithmetic_within_the_pages_at_the_ends(
    tiny_llama, kind
):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    for new_tokens in (50, 10):  # the shorter one after a longer one on the same model
        found = transformers_cache(model, tokenizer, PROMPT, new_tokens, kind)
        assert found.committed == (16 + new_tokens - 1) * TOKEN_BYTES
        assert found.live == found.committed
        assert found.committed <= found.measured <= found.committed + TENSORS * 2 * PAGE


def test_a_timed_generation_measures_the_tensors(tiny_llama):
    generator = TransformersGenerator(tiny_llama.model, tiny_llama.tokenizer)
    timing = generator.teacher_forced(PROMPT)
    assert timing.live_bytes == (16 + 17 - 1) * TOKEN_BYTES
    assert timing.committed_bytes >= timing.live_bytes
    assert timing.measured_bytes is None


@pytest.mark.gpu
def test_on_a_gpu_the_driver_has_it_back():
    """In pages of 2 MB, of which whoever else uses the GPU may take one or give one back."""
    room, page = 64 * 2**20, 2**21

    def make() -> DynamicCache:
        cache = DynamicCache()
        cache.update(*(torch.zeros(1, 1, room // 4, 1, device="cuda") for _ in "kv"), 0)
        return cache

    found = cache_memory(make, torch.device("cuda"))
    assert (found.live, found.committed) == (2 * room, 2 * room)
    assert abs(found.measured - 2 * room) <= 2 * page
