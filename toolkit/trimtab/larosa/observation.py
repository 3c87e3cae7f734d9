"""Observe the activations of a layer's sites while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from trimtab.models.adapter import Adapter
from trimtab.models.norms import normalised

Observer = Callable[[Tensor], None]


@contextmanager
def observing(
    adapter: Adapter, layer: nn.Module, observers: Mapping[str, Observer]
) -> Iterator[None]:
    """Show each observer the activations of its site.

    Where the site comes after a norm, it is shown what the norm makes before its weight and bias.

    Parameters
    ----------
    observers : mapping of str to callable
        By the site's name.
    """
    handles = []
    for site in adapter.sites:
        if site.name not in observers:
            continue
        observer = observers[site.name]
        if site.norm is None:
            (reader,) = adapter.readers(layer, site)
            handles.append(reader.register_forward_pre_hook(_showing(observer)))
        else:
            norm = layer.get_submodule(site.norm)
            handles.append(norm.register_forward_pre_hook(_showing(observer, norm)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def after_prefix(prefix: int, observer: Observer) -> Observer:
    """Return an observer of one text that is not shown its first `prefix` tokens."""

    def observe(x: Tensor) -> None:
        observer(x.flatten(0, -2)[prefix:])

    return observe


def _showing(
    observer: Observer, norm: nn.Module | None = None
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        observer(inputs[0] if norm is None else normalised(norm, inputs[0]))

    return hook


@contextmanager
def capturing(adapter: Adapter, layer: nn.Module, captured: dict[str, Tensor]) -> Iterator[None]:
    """Keep in `captured`, by the site's name, the very tensors that the linear layers read."""
    handles = []
    for site in adapter.sites:
        # All readers of a site read the same tensor: the first one's will do.
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], name: str = site.name) -> None:
            captured[name] = inputs[0]

        handles.append(adapter.readers(layer, site)[0].register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
