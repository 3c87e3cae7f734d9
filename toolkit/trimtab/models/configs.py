"""The configs that a model's modules read, and the attention functions that these select."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trimtab.errors import MisfitError
from trimtab.models.code import code_beside

STOCK = "torch.", "transformers.", "trimtab."
SETTING = "attn_implementation"


def configs_beside(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Return the configs, other than the model's own, that its modules read.

    A layer that was copied, or comes from another model, has one.
    """
    found = {id(model.config): model.config}
    for module in model.modules():
        if isinstance(config := vars(module).get("config"), PreTrainedConfig):
            found[id(config)] = config
    return list(found.values())[1:]


def with_parts(configs: list[PreTrainedConfig]) -> list[PreTrainedConfig]:
    """Return configs and those within them, each once."""
    found: dict[int, PreTrainedConfig] = {}
    while configs:
        found |= {id(config): config for config in configs}
        parts = [getattr(config, name, None) for config in configs for name in config.sub_configs]
        configs = [
            part for part in parts if isinstance(part, PreTrainedConfig) and id(part) not in found
        ]
    return list(found.values())


def foreign_attention(model: PreTrainedModel) -> dict[str, str]:
    """Return which functions that a caller wrote are selected for attention or its mask.

    Returns
    -------
    dict of str to str
        Their qualified names, by the names of the settings that select them: the model's own, and
        those of modules with another config.
    """
    found = {}
    for place, module in model.named_modules():
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and (module is model or config is not model.config):
            names = [one._attn_implementation for one in with_parts([config])]
            if functions := [function for name in names for function in _foreign(name)]:
                found[f"{place}.{SETTING}".lstrip(".")] = ", ".join(functions)
    return found


def _foreign(name: str | None) -> list[str]:
    """Return the names of code that an attention of this name runs and a caller wrote."""
    if name != "paged|eager":
        name = (name or "").removeprefix("paged|")
    functions = ALL_ATTENTION_FUNCTIONS.get(name), ALL_MASK_ATTENTION_FUNCTIONS.get(name)
    return [found for one in functions if (found := code_beside(one, STOCK))]


def require_stock_attention(model: PreTrainedModel) -> None:
    """Raise `MisfitError` if Trimtab's attention would replace one that a caller wrote."""
    for name, function in foreign_attention(model).items():
        raise MisfitError(
            f"{name} selects {function}: Trimtab's attention would replace it and computes what "
            "transformers' own does; run the model with transformers' generate, or select an "
            "attention of transformers' own"
        )
