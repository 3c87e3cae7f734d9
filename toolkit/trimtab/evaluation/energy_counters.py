"""Counters of energy: RAPL's of the processor and its memory, and NVML's of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class NoCounterError(Exception):
    """No energy is counted for a device; the message says why."""


class EnergyCounter:
    """Counters read together; each begins again at 0 after the last value it can hold.

    Parameters
    ----------
    source : str
        ``RAPL`` or ``NVML``.
    read : callable
        Returns what the counters show.
    joules : float
        What one unit of a counter is.
    last_values : sequence of int
        The last value of each counter before it begins again.
    """

    def __init__(
        self, source: str, read: Callable[[], list[int]], joules: float, last_values: Sequence[int]
    ) -> None:
        self.source = source
        self._read, self._joules, self._last_values = read, joules, last_values
        self._before = read()

    def spent(self) -> float:
        """Return the joules since the last call, or since the counters were first read."""
        before, self._before = self._before, self._read()
        counts = zip(before, self._before, self._last_values, strict=True)
        return self._joules * sum((now - then) % (last + 1) for then, now, last in counts)


def counter_for(devices: Iterable[torch.device], root: Path = POWERCAP) -> EnergyCounter:
    """Return the counters of the GPUs among the devices, or of the host where there are none.

    Raises
    ------
    NoCounterError
    """
    gpus = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    return nvml(gpus) if gpus else rapl(root)


def rapl(root: Path = POWERCAP) -> EnergyCounter:
    """Return the counters of all packages, and of the memory where it has its own.

    Parameters
    ----------
    root : Path
        Where the system lists its power zones. Those within a package are in its count, but for
        ``dram``; ``psys`` holds packages again, as do zones that another driver lists.

    Raises
    ------
    NoCounterError
        If there is none, or it may not be read.
    """
    try:
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _counts(zone)]
        if not zones:
            raise NoCounterError(
                f"no RAPL: {root} lists no package; a virtual machine seldom shows its host's"
            )
        files = [zone / "energy_uj" for zone in zones]
        last = [int((zone / "max_energy_range_uj").read_text("utf-8")) for zone in zones]
        return EnergyCounter(
            "RAPL", lambda: [int(file.read_text("utf-8")) for file in files], 1e-6, last
        )
    except PermissionError as error:
        raise NoCounterError(
            f"no permission to read {error.filename}: sudo chmod a+r {root}/intel-rapl:*/energy_uj "
            "gives it until the machine restarts"
        ) from error
    except OSError as error:
        raise NoCounterError(f"RAPL: {error.filename}: {error.strerror}") from error


def _counts(zone: Path) -> bool:
    """Return whether a power zone is a package, or memory with a counter of its own."""
    name = (zone / "name").read_text("utf-8").strip()
    return name == "dram" or name.startswith("package")


def nvml(gpus: Sequence[int]) -> EnergyCounter:
    """Return the counters of GPUs, by the numbers that PyTorch gives them.

    Raises
    ------
    NoCounterError
        If the package or the driver's library is missing, or the GPU has no counter.
    """
    try:
        import pynvml
    except ImportError as error:
        raise NoCounterError("no nvidia-ml-py: pip install 'trimtab[cuda]'") from error
    try:
        pynvml.nvmlInit()
        handles = [
            # NVML counts all GPUs of the machine, PyTorch those that the process may use.
            pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(gpu).uuid}")
            for gpu in gpus
        ]
        return EnergyCounter(
            "NVML",
            lambda: [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles],
            1e-3,
            [2**64 - 1] * len(handles),
        )
    except pynvml.NVMLError as error:
        raise NoCounterError(f"NVML counts no energy: {error}") from error
