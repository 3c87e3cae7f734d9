"""The state a model has to be in to be measured or changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.models.architectures import ADAPTERS
from trimtab.models.changes import undone_in_order

Made = TypeVar("Made")

COMPILED = "_torchdynamo_orig_callable"  # what the compiler notes on functions that it compiles
_STANCE = threading.RLock()  # the compiler's is that of the whole process


@undone_in_order
def inferring(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode and without gradients for the time of the ``with``.

    Every module gets its own mode back afterwards, and every parameter its own flag.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, needed in flags:
            parameter.requires_grad_(needed)


def require_evaluation(model: nn.Module) -> None:
    """Raise `MisfitError` where the model, or a module of it, is in training mode."""
    for name, module in model.named_modules():
        if module.training:
            part = "the model" if module is model else f"the model's {name}"
            raise MisfitError(f"{part} is in training mode: call model.eval() first")


def require_in_memory(module: nn.Module) -> None:
    """Raise `MisfitError` where a parameter of a model, or of a part of it, is on no device."""
    if any(parameter.is_meta for parameter in module.parameters()):
        raise MisfitError(
            "part of the model is not in memory: offloaded by model.device_map, or built on the "
            "meta device; load it whole, or in a dtype in which it fits"
        )


def mend_not_finite(model: PreTrainedModel) -> str:
    """Say what to do where what a model computes is not finite."""
    wide = model.dtype in (torch.float32, torch.float64)
    for name, tensor in model.state_dict().items():
        if tensor.isnan().any() or (wide and tensor.isinf().any()):
            return (
                f"{name} holds NaN or infinite values, so the checkpoint is damaged: download it "
                "or save it again"
            )
    if zeros := zero_matrices(model):
        return (
            f"{zeros[0]} holds nothing but zeros, so the checkpoint is damaged: download it or "
            "save it again"
        )
    if wide:
        return f"it overflows even in {str(model.dtype).removeprefix('torch.')}: use another model"
    return "load the model in another dtype (model.dtype=float32)"


def zero_matrices(model: PreTrainedModel) -> list[str]:
    """Return the matrices of a model that hold nothing but zeros, by name.

    Those that write into the residual stream may: a layer added to a model begins with them.
    """
    writers = tuple(f".{name}.weight" for one in ADAPTERS.values() for name in one.writers)
    return [
        name
        for name, weight in model.named_parameters()
        if weight.dim() == 2
        and not weight.is_meta
        and not name.endswith(writers)
        and not weight[:1].any()  # which spares most matrices being read whole
        and not weight.any()
    ]


def is_compiled(model: nn.Module) -> bool:
    """Return whether `torch.compile` has been applied to the model, or to a module of it."""
    return any(
        module._compiled_call_impl is not None or hasattr(module.forward, COMPILED)
        for module in model.modules()
    )


@contextmanager
def uncompiled() -> Iterator[None]:
    """Have compiled modules of all models run as they are: compiled code leaves out new hooks."""
    with _STANCE, torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def own_precision() -> Iterator[None]:
    """Have models compute in their own dtype within the block, whatever the caller has set.

    That is without autocast; new tensors are on the CPU. The default dtype stays as it is, since
    it is one for all threads: nothing here may depend on it.
    """
    with ExitStack() as undo:
        for kind in ("cpu", "cuda"):
            undo.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            undo.enter_context(torch.device("cpu"))
        yield


def without_cudnn_attention() -> AbstractContextManager[None]:
    """Have PyTorch's attention choose among its other kernels for the time of the ``with``.

    On GPUs from the H100 on cuDNN's is its first choice, and plans anew for every length of a text
    that it has not met: longer than the attention takes. In all threads, as PyTorch's flag is; on a
    CPU nothing changes.
    """
    return _without_cudnn(torch.backends.cuda)


@undone_in_order
def _without_cudnn(flags: ModuleType) -> Iterator[None]:
    enabled = flags.cudnn_sdp_enabled()
    flags.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        flags.enable_cudnn_sdp(enabled)


@contextmanager
def own_modes() -> Iterator[None]:
    """Have the same computed within the block whatever modes of PyTorch the caller has set."""
    with own_precision(), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def in_own_modes(change: AbstractContextManager[Made]) -> Iterator[Made]:
    """Enter and leave `change` as `own_modes` has it; the block is in the caller's modes."""
    with own_modes():
        made = change.__enter__()
    try:
        yield made
    except BaseException as error:
        with own_modes():
            if not change.__exit__(type(error), error, error.__traceback__):
                raise
    else:
        with own_modes():
            change.__exit__(None, None, None)
