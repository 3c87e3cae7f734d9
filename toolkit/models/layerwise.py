"""Run a model one decoder layer at a time, so that statistics need one layer's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from toolkit.models.adapter import Adapter, module_device


class LayerwiseForward:
    """The hidden states of fixed windows of text, advanced layer by layer.

    Parameters
    ----------
    model : PreTrainedModel
    adapter : Adapter
    windows : Tensor
        Token ids, int64 of shape [windows, length], without padding: every window then runs
        under the same attention mask and positions.

    Attributes
    ----------
    hidden : Tensor
        What the next layer reads, of shape [windows, length, width] in the model's dtype, on
        the host.
    layers : list of Module
        The decoder layers.
    """

    def __init__(self, model: PreTrainedModel, adapter: Adapter, windows: Tensor) -> None:
        self.layers = adapter.decoder_layers(model)
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {})] * len(
            self.layers
        )
        device = module_device(model.get_input_embeddings())
        with self._recording() as entered, torch.inference_mode():
            for window in windows:
                model.base_model(input_ids=window[None].to(device), use_cache=False)
        self.hidden = torch.cat(entered)

    @contextmanager
    def _recording(self) -> Iterator[list[Tensor]]:
        """Make every layer note its arguments and pass its input on unchanged."""
        entered: list[Tensor] = []

        def recorder(index: int) -> Callable[..., Tensor]:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                self._arguments[index] = args, kwargs
                if index == 0:
                    entered.append(hidden_states.cpu())
                return hidden_states

            return forward

        originals: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        try:
            for index, layer in enumerate(self.layers):
                originals.append((layer, layer.__dict__.get("forward")))
                layer.forward = recorder(index)
            yield entered
        finally:
            for layer, original in originals:
                if original is None:
                    del layer.forward
                else:
                    layer.forward = original

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0] * self.hidden.shape[1]

    @torch.inference_mode()
    def outputs(self, index: int) -> Tensor:
        """Return what layer `index` makes of `hidden`, of the same shape, on the host."""
        layer, (args, kwargs) = self.layers[index], self._arguments[index]
        device = module_device(layer)
        return torch.cat(
            [layer(window[None].to(device), *args, **kwargs).cpu() for window in self.hidden]
        )
