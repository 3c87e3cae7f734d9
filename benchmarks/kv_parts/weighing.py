"""What a virtual cache holds, as counted by the system, compared with the computed figure."""

from __future__ import annotations

import time

from trimtab.errors import TrimtabError
from trimtab.vattention.virtual_kv import VirtualKV

STILL = 0.1  # seconds
HOST_REMEDY = (
    "Huge pages of shared memory count as a whole: set "
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled to never or advise"
)
GPU_REMEDY = "The driver counts all processes: end the others on the GPU"


def weigh(kv: VirtualKV) -> tuple[int, int]:
    """Return the bytes of a cache as counted by the system: without unused pages, and with them."""
    peak = -1
    while peak != (now := kv.stats().measured):
        # Pages are prepared in the background: wait until the count stays the same.
        peak = now
        time.sleep(STILL)
    kv.trim()
    return kv.stats().measured, peak


def check_agreement(cache: str, exact: int, held: int, peak: int, ahead: int, device: str) -> None:
    """Raise `TrimtabError` if the count of the system differs from the computed bytes.

    On the host, `held` must equal `exact`, and `peak` may be up to `ahead` more: one page row per
    slot. On a GPU the driver counts the memory of all processes, so both may be off by `ahead`.
    """
    on_host = device == "cpu"
    off = 0 if on_host else ahead
    if abs(held - exact) > off or not exact - off <= peak <= exact + ahead:
        raise TrimtabError(
            f"{cache}: the system counts {held} bytes held and {peak} at the peak; expected the "
            f"computed {exact}, at most {off} off, and up to {ahead} more at the peak. "
            + (HOST_REMEDY if on_host else GPU_REMEDY)
        )
