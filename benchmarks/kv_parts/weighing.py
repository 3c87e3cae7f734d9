"""What a virtual cache holds, as the system counts it, and whether arithmetic says the same."""

from __future__ import annotations

import time

from trimtab.errors import TrimtabError
from trimtab.vattention.virtual_kv import VirtualKV

STILL = 0.1  # seconds
HOST_REMEDY = (
    "Huge pages of shared memory are counted whole: have "
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled say never or advise"
)
GPU_REMEDY = "The driver counts for all: end what else runs on the GPU"


def weigh(kv: VirtualKV) -> tuple[int, int]:
    """Return what the system counts of a cache without pages that nothing is in, and with them."""
    peak = -1
    while peak != (now := kv.stats().measured):
        # Pages are prepared in the background: they are all there when no more come.
        peak = now
        time.sleep(STILL)
    kv.trim()
    return kv.stats().measured, peak


def check_agreement(cache: str, exact: int, held: int, peak: int, ahead: int, device: str) -> None:
    """Raise `TrimtabError` if the system counts other bytes than arithmetic.

    On the host `held` must be `exact`, and `peak` at most `ahead` more: a page row a slot, which is
    a page in every plane. On a GPU the driver counts for all, and both may be `ahead` off.
    """
    on_host = device == "cpu"
    off = 0 if on_host else ahead
    if abs(held - exact) > off or not exact - off <= peak <= exact + ahead:
        raise TrimtabError(
            f"{cache}: the system counts {held} bytes held and {peak} at the peak; expected "
            f"{exact} as by arithmetic, {off} off at most, and at the peak up to {ahead} more. "
            + (HOST_REMEDY if on_host else GPU_REMEDY)
        )
