import pytest
import torch

from tests.conftest import random_inputs, tiny
from tests.models.contract import draw
from trimtab.models.adapter import adapter_for
from trimtab.models.layerwise import LayerwiseForward
from trimtab.models.sources import DType


@pytest.mark.parametrize("name", ["tiny-gemma2", "tiny-gemma3"])
def test_only_layers_of_full_attention_look_further_back_than_the_window(name):
    model = tiny(name).model
    length = 2 * model.config.sliding_window
    forward = LayerwiseForward(model, adapter_for(model), random_inputs(1, length))
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    for index, kind in enumerate(model.config.layer_types):
        before = forward.outputs(index)
        forward.hidden[:, 0] += 1
        last_token_sees_the_first = not torch.equal(forward.outputs(index)[:, -1], before[:, -1])
        assert last_token_sees_the_first == (kind == "full_attention")


def test_longrope_beyond_the_original_length_is_the_whole_models_forward():
    model = draw("tiny-phi3", DType.float64, tied=False).model
    windows = random_inputs(2, 20)

    def first_layer() -> torch.Tensor:
        return model(windows, output_hidden_states=True, use_cache=False).hidden_states[1]

    within = first_layer()
    model.config.original_max_position_embeddings = 16
    model.config.standardize_rope_params()
    beyond = first_layer()
    forward = LayerwiseForward(model, adapter_for(model), windows)
    torch.testing.assert_close(forward.outputs(0), beyond)
    assert not torch.allclose(beyond, within)
