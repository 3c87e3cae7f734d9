"""Run a model one decoder layer at a time, so that statistics need one layer's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.models.adapter import Adapter, module_device, positions_of


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
        self.model = model
        self._windows = windows
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {})] * len(
            self.layers
        )
        entered: list[Tensor] = []

        def enter(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            entered.append(arguments[0].cpu())

        def note(index: int, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self._arguments[index] = args, kwargs
            return hidden_states

        # Before any other hook of the layer: `run` goes through those again.
        handle = self.layers[0].register_forward_pre_hook(enter, prepend=True)
        try:
            with self._replaced(note), torch.no_grad():
                for window in windows:
                    model.base_model(**self._arguments_of(window))
        finally:
            handle.remove()
        self.hidden = torch.cat(entered)

    @contextmanager
    def _replaced(self, stand_in: Callable[..., Tensor]) -> Iterator[None]:
        """Have `stand_in`, given a layer's index and arguments, run in place of every layer."""
        originals: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        try:
            for index, layer in enumerate(self.layers):
                originals.append((layer, layer.__dict__.get("forward")))
                layer.forward = partial(stand_in, index)
            yield
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
        return torch.cat([self.run(index, window[None]).cpu() for window in self.hidden])

    def run(self, index: int, hidden: Tensor) -> Tensor:
        """Return what layer `index` makes of hidden states of shape [windows, length, width]."""
        layer, (args, kwargs) = self.layers[index], self._arguments[index]
        output = layer(hidden.to(module_device(layer)), *args, **kwargs)
        assert isinstance(output, Tensor)
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """Return what the model predicts from hidden states [1, length, width] after all layers.

        Returns
        -------
        Tensor
            Of shape [1, length, vocabulary], in the model's dtype.
        """
        last = len(self.layers) - 1

        def inject(index: int, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return hidden.to(hidden_states.device) if index == last else hidden_states

        with self._replaced(inject):
            logits = self.model(**self._arguments_of(self._windows[0])).logits
        assert isinstance(logits, Tensor)
        return logits

    def _arguments_of(self, window: Tensor) -> dict[str, Any]:
        ids = window[None].to(module_device(self.model.get_input_embeddings()))
        return {"input_ids": ids, "use_cache": False, **positions_of(self.model, ids)}
