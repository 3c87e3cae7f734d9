import pytest
import torch

from tests.conftest import random_inputs, tiny
from toolkit.models import adapter_for
from toolkit.models.layerwise import LayerwiseForward


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3", "tiny-gpt2"])
def test_layer_by_layer_is_the_whole_models_forward(name):
    model = tiny(name).model
    windows = random_inputs(model, 3, 20)
    stream = LayerwiseForward(model, adapter_for(model), windows)
    whole = model(windows, output_hidden_states=True, use_cache=False).hidden_states
    for index in range(len(stream.layers)):
        torch.testing.assert_close(stream.hidden, whole[index], atol=1e-6, rtol=1e-5)
        stream.hidden = stream.outputs(index)
    final = model.get_submodule(adapter_for(model).final_norm)(stream.hidden)
    torch.testing.assert_close(final, whole[-1], atol=1e-5, rtol=1e-5)
    assert stream.tokens == 60
