"""Models with weights of several dtypes: those that run are taken, the others refused by name."""

import pytest
import torch

import trimtab
from tests.conftest import tiny
from trimtab.models.sources import DType


def in_float32(name: str, part: str):
    """Return a bfloat16 model with the modules of which the name has `part` in float32."""
    loaded = tiny(name, DType.bfloat16)
    for path, module in loaded.model.named_modules():
        if part in path:
            module.float()
    return loaded


@pytest.mark.parametrize(("name", "part"), [("tiny-gemma2", "norm"), ("tiny-gpt2", "ln_")])
def test_norms_that_are_kept_in_float32_work_where_the_model_itself_does(name, part):
    loaded = in_float32(name, part)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16, torch.float32}
    method = trimtab.VAttention()
    with trimtab.apply(loaded.model, loaded.tokenizer, [method]) as optimized:
        (completion,) = optimized.generate(["def f():"], max_new_tokens=4)
    assert completion.tokens


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj.weight in float32, all"),
        ("layers.0.mlp", "model.layers.0.mlp.down_proj.weight in float32, all else in bfloat16"),
        ("norm", "norm.weight and 4 more in float32"),
    ],
)
def test_what_does_not_work_together_is_refused_by_name(corpus, part, named):
    loaded = in_float32("tiny-llama", part)
    parts = loaded.model, loaded.tokenizer
    for made in (
        lambda: trimtab.apply(*parts, [trimtab.VAttention()]).__enter__(),
        lambda: trimtab.calibrate(*parts, trimtab.LaRoSA(tokens=512, window=64), corpus),
    ):
        with pytest.raises(trimtab.MisfitError, match="dtypes that do not work together") as error:
            made()
        assert named in str(error.value)
        assert "convert it, as model.to(torch.bfloat16) does" in str(error.value)
