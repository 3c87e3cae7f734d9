"""Put a transform and a selection between a site and the linear layers that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from kernels.reference import keep_above, keep_topk
from toolkit.larosa.rotation import absorb_inverse
from toolkit.method import Applied
from toolkit.models.adapter import Site, input_major, set_input_major

Keep = Callable[[Tensor], Tensor]


def topk(sparsity: float, width: int) -> Keep:
    """Return the selection that keeps an exact count: all but ``round(sparsity * width)``."""
    keep = width - round(sparsity * width)
    return lambda x: keep_topk(x, keep)


def above(threshold: float) -> Keep:
    """Return the selection that keeps the entries of at least this magnitude."""
    return lambda x: keep_above(x, threshold)


@dataclass
class SiteSparsifier:
    """What happens to the activations of one site of one layer.

    Attributes
    ----------
    site : str
    readers : list of Module
        The linear layers that read the site.
    keep : callable
        Zeroes what is dropped.
    transform : Tensor or None
        T of shape [d, d] in the activations' dtype, applied before the selection.
    applied : Applied
        Says whether to count.
    kept, seen : int
        Entries that were not zero, and all entries, while recording.
    """

    site: str
    readers: list[nn.Module]
    keep: Keep
    transform: Tensor | None
    applied: Applied
    kept: int = 0
    seen: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Transform and select activations of shape [..., d]."""
        selected = self.keep(x if self.transform is None else x @ self.transform)
        if self.applied.recording:
            self.kept += int(selected.count_nonzero())
            self.seen += selected.numel()
        return selected

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that read the site."""
        return sum(input_major(reader).nbytes for reader in self.readers)

    @property
    def transform_bytes(self) -> int:
        return 0 if self.transform is None else self.transform.nbytes


@contextmanager
def sparsified(layer: nn.Module, site: Site, sparsifier: SiteSparsifier) -> Iterator[None]:
    """Let the readers of a site read the sparsifier's output for the time of the ``with``.

    A transform is undone in the readers' weights, which are replaced and put back: the
    original parameters are neither copied nor written to. Module names do not change.
    """
    originals = [reader.weight for reader in sparsifier.readers]
    if sparsifier.transform is not None:
        for reader in sparsifier.readers:
            set_input_major(reader, absorb_inverse(input_major(reader), sparsifier.transform))
    if site.norm is not None:
        norm = layer.get_submodule(site.norm)
        handle = norm.register_forward_hook(lambda module, inputs, output: sparsifier(output))
    else:
        (reader,) = sparsifier.readers
        handle = reader.register_forward_pre_hook(lambda module, inputs: sparsifier(inputs[0]))
    try:
        yield
    finally:
        handle.remove()
        for reader, weight in zip(sparsifier.readers, originals, strict=True):
            reader.weight = weight


@contextmanager
def observed(reader: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Show `see` the activations that a linear layer reads."""
    handle = reader.register_forward_pre_hook(lambda module, inputs: see(inputs[0]))
    try:
        yield
    finally:
        handle.remove()


def sparsity_section(sparsifiers: Sequence[SiteSparsifier], requested: float) -> dict[str, object]:
    """Return result.json's `sparsity`, from what was counted while recording.

    ``bytes_fraction`` counts the weight rows behind the entries that were kept and every
    transform; ``bytes_read_fraction`` what the masked dense product that runs has to read,
    which is every weight and every transform. Both are shares of the dense block weights.
    """
    dense = sum(part.weight_bytes for part in sparsifiers)
    transforms = sum(part.transform_bytes for part in sparsifiers)
    kept_bytes = sum(part.weight_bytes * part.kept / part.seen for part in sparsifiers)
    sites: dict[str, float] = {}
    for name in dict.fromkeys(part.site for part in sparsifiers):
        members = [part for part in sparsifiers if part.site == name]
        sites[name] = 1 - sum(part.kept for part in members) / sum(part.seen for part in members)
    return {
        "requested": requested,
        "achieved": 1 - kept_bytes / dense,
        "bytes_fraction": (kept_bytes + transforms) / dense,
        "bytes_read_fraction": 1 + transforms / dense,
        "sites": sites,
    }
