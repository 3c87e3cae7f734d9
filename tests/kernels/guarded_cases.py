"""The CPU versions on memory that faults elsewhere; run as a module, as a fault kills it."""

from __future__ import annotations

import torch

from tests.kernels.attention_cases import assert_close_to_float64, draw, guard
from trimtab_kernels import reference
from trimtab_kernels.decode_attention import append_kv, decode_attention

FORMS = (
    (decode_attention, append_kv),
    (reference.decode_attention, reference.append_kv),
)
# For every dtype and width below, this many tokens fill whole pages.
TOKENS = 64

if __name__ == "__main__":
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for width in (64, 80):
            for window in (None, TOKENS, 5 * TOKENS):
                lengths = [tokens * TOKENS for tokens in (3, 0, 1, 8, 0)]
                case = draw(lengths, dtype, width=width, max_len=9 * TOKENS, window=window)
                for attend, append in FORMS:
                    guarded = guard(case)
                    found = attend(*guarded.arguments)
                    assert_close_to_float64(found, case)
                    key, value = torch.randn(2, len(lengths), 2, width).to(dtype)
                    append(guarded.keys, guarded.values, key, value, guarded.lengths)
                    for slot in (0, 2, 3):
                        last = lengths[slot] - 1
                        assert torch.equal(guarded.keys[slot, last], key[slot])
                        assert torch.equal(guarded.values[slot, last], value[slot])
