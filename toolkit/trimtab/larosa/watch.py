"""Look at the activations of a layer's sites while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from trimtab.models.adapter import Adapter
from trimtab.models.norms import normalised


@contextmanager
def seeing(
    adapter: Adapter, layer: nn.Module, watchers: Mapping[str, Callable[[Tensor], None]]
) -> Iterator[None]:
    """Show each watcher its site's activations: behind a norm, before the gain and the shift."""
    handles = []
    for site in adapter.sites:
        if site.name not in watchers:
            continue
        watcher = watchers[site.name]
        if site.norm is None:
            (reader,) = adapter.readers(layer, site)
            hook = _shown(watcher)
            handles.append(reader.register_forward_pre_hook(hook))
        else:
            norm = layer.get_submodule(site.norm)
            handles.append(norm.register_forward_pre_hook(_shown(watcher, norm)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shown(
    watcher: Callable[[Tensor], None], norm: nn.Module | None = None
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        watcher(inputs[0] if norm is None else normalised(norm, inputs[0]))

    return hook


@contextmanager
def noting(adapter: Adapter, layer: nn.Module, seen: dict[str, Tensor]) -> Iterator[None]:
    """Note in `seen` the very tensors that the readers of every site read."""
    handles = []
    for site in adapter.sites:
        # All readers of a site are given the same tensor: the first one's will do.
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], name: str = site.name) -> None:
            seen[name] = inputs[0]

        handles.append(adapter.readers(layer, site)[0].register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
