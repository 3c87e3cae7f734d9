"""A model that generates by other settings, while whoever holds the model itself sees no change."""

from __future__ import annotations

from transformers import GenerationConfig, PreTrainedModel

from trimtab.models.changes import undone_together

OF_CALLS = ("generate", "_previous_max_cache_length")  # bound to the model, or of an earlier call


def generating_by(model: PreTrainedModel, config: GenerationConfig | None) -> PreTrainedModel:
    """Return a model of the same modules and weights that generates by a config, or by none.

    What is changed on either for a time is undone in one order.
    """
    view = object.__new__(type(model))
    vars(view).update(vars(model))  # copy.copy leaves out what model.compile() made
    for name in OF_CALLS:
        vars(view).pop(name, None)
    view.generation_config = config  # type: ignore[assignment]
    undone_together(view, model)
    return view
