"""Which modules can be put aside for a while: those that do no more than their class says."""

from __future__ import annotations

from collections.abc import Iterable

from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trimtab.errors import MisfitError
from trimtab.models.adapter import Adapter
from trimtab.models.architectures import UNWRAP
from trimtab.models.edits import code_after, code_before, code_of_all_modules, code_of_class

HOOKS = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"


def require_unshared(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse decoder layers that share weights: each gets other ones.

    Parameters
    ----------
    layers : iterable of (str, Module)
        By their dotted names.

    Raises
    ------
    MisfitError
    """
    first: dict[int, str] = {}
    for place, layer in layers:
        for name, weight in layer.named_parameters(f"{place}", remove_duplicate=False):
            if (other := first.setdefault(id(weight), name)) != name:
                raise MisfitError(
                    f"{name} and {other} are one weight, which LaRoSA would rewrite in two ways: "
                    "give each layer a copy of its own"
                )


def require_no_global_hooks() -> None:
    """Refuse somebody else's hooks on all modules: LaRoSA's are others, and see other activations.

    Raises
    ------
    MisfitError
    """
    if found := code_of_all_modules():
        raise MisfitError(
            f"{found[0]} is a hook on every module (torch.nn.modules.module), and would see what "
            "LaRoSA has transformed and replaced: remove it first, or put it on decoder layers"
        )


def require_replaceable(adapter: Adapter, layer: nn.Module, place: str, *, rotated: bool) -> None:
    """Refuse a decoder layer with modules that do more than is known of them.

    Parameters
    ----------
    place : str
        Dotted name of the layer in the model.
    rotated : bool
        Whether the residual stream is to be rotated, so that what layers read and return is.

    Raises
    ------
    MisfitError
        If a linear layer is of another class (an adapter, a quantized product), if hooks or a
        forward of its own are on one of the modules, or somebody else's code sees what LaRoSA
        transforms, or if one is wrapped.
    """
    within: dict[str, nn.Module] = {}
    for site in adapter.sites:
        for name in site.readers:
            linear = _part(layer, name, place, within)
            _require_linear(linear, f"{place}.{name}")
            _require_bare(linear, f"{place}.{name}")
        if site.norm is not None:
            _require_bare(_part(layer, site.norm, place, within), f"{place}.{site.norm}")
    for name, module in within.items():
        if rotated or name != place:
            _require_unseen(module, name)


def _part(layer: nn.Module, name: str, place: str, within: dict[str, nn.Module]) -> nn.Module:
    """Return a module of a layer, and note in `within` those that it is in, by dotted name."""
    part = layer
    for attribute in name.split("."):
        part = getattr(part, "_orig_mod", part)  # of what torch.compile makes
        within[place] = part
        found = part._modules.get(attribute)
        if found is None:
            kind = type(part).__name__
            raise MisfitError(f"{place} is a {kind}, which has no {attribute}: {UNWRAP}")
        part, place = found, f"{place}.{attribute}"
    return part


def _require_unseen(module: nn.Module, name: str) -> None:
    if found := code_of_class(module) + code_before(module) + code_after(module):
        raise MisfitError(
            f"{name} runs {found[0]}, which would see what LaRoSA has transformed: take it off "
            "first, or put it on the whole decoder layer and leave larosa.residual=none"
        )


def _require_linear(module: nn.Module, name: str) -> None:
    if type(module) not in (nn.Linear, Conv1D):
        raise MisfitError(
            f"{name} is a {type(module).__name__}, and LaRoSA would drop what that does beyond "
            "nn.Linear: merge adapters into the weights, and load the model without quantization"
        )
    weight = module.weight
    assert isinstance(weight, Tensor)
    if type(weight.data) is not Tensor or not weight.is_floating_point():
        raise MisfitError(
            f"{name} has a weight of {type(weight.data).__name__} in {weight.dtype}, and LaRoSA "
            "rewrites floating-point weights: load the model without quantization"
        )


def _require_bare(module: nn.Module, name: str) -> None:
    if any(True for _ in module.children()):
        raise MisfitError(
            f"{name} is a {type(module).__name__} that wraps other modules, which LaRoSA would "
            "drop: unwrap it first"
        )
    aligns = isinstance(getattr(module, "_hf_hook", None), AlignDevicesHook)
    if any(getattr(module, hooks, None) for hooks in HOOKS) or (
        "forward" in vars(module) and not aligns
    ):
        raise MisfitError(
            f"{name} has hooks or a forward of its own, which do not run while LaRoSA has replaced "
            "it: remove them first, or put them on the decoder layer"
        )
