"""Models whose weights are of several dtypes: some work, as with norms that are kept in float32."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from trimtab.errors import MisfitError

NAMED = 3  # tensors in a message


def require_dtypes_that_work(model: PreTrainedModel) -> None:
    """Refuse a model that cannot run, since its weights are of several dtypes.

    Raises
    ------
    MisfitError
        Naming the weights that are not of the dtype that most are of.
    """
    names: dict[torch.dtype, list[str]] = {}
    for name, weight in model.named_parameters():
        if weight.is_floating_point():
            names.setdefault(weight.dtype, []).append(name)
    if len(names) < 2:
        return
    device = next(model.get_input_embeddings().parameters()).device
    try:
        with torch.no_grad():
            model(torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    except RuntimeError as error:
        most = max(names, key=lambda dtype: len(names[dtype]))
        others = (_named(dtype, of) for dtype, of in names.items() if dtype is not most)
        reason = " ".join(str(error).split())
        raise MisfitError(
            f"the weights of {type(model).__name__} are in dtypes that do not work together: "
            f"{' and '.join(others)}, all else in {_short(most)} ({reason}): convert it, as "
            f"model.to({most}) does"
        ) from error


def _named(dtype: torch.dtype, names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more} in {_short(dtype)}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
