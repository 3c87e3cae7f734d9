"""The same on an NVIDIA GPU: ``pytest -m gpu``."""

import json

import pytest
import torch

from tests.conftest import SMALL, TINY, random_inputs, tiny
from toolkit.config import DType, RandomModel
from toolkit.larosa import LaRoSA
from toolkit.models import load_model

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_sparsity_0_is_the_original(corpus, dtype):
    config = RandomModel(device="cuda", dtype=dtype, config="tiny-llama", seed=0)
    loaded = load_model(config)
    method = LaRoSA(sparsity=0.0, tokens=512, window=64)
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    ids = random_inputs(loaded.model, 2, 24).cuda()
    expected = loaded.model(ids).logits.float()
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        found = loaded.model(ids).logits.float()
    bound = {DType.float32: 1e-4, DType.bfloat16: 6e-2}[dtype]
    assert (found - expected).abs().max() < bound * expected.abs().max()


def test_gpu_and_cpu_calibrate_the_same_variances(corpus):
    method = LaRoSA(tokens=512, window=64)
    on_cpu = tiny(dtype=DType.float64)
    expected = method.calibrate(on_cpu.model, on_cpu.tokenizer, corpus).tensors
    on_gpu = tiny(dtype=DType.float64)
    on_gpu.model.cuda()
    found = method.calibrate(on_gpu.model, on_gpu.tokenizer, corpus).tensors
    for name in expected:
        if name.endswith("variance"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-9)


def test_the_commands_run_and_name_the_gpu(command, tmp_path):
    assert command("calibrate.py", *TINY, *SMALL, "model.device=cuda").returncode == 0
    done = command(
        "evaluate.py", *TINY, "model.device=cuda", "methods=larosa", "methods.larosa.tokens=512",
        "methods.larosa.window=64", "speed.repeats=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("outputs/*-*-*/*/result.json")
    result = json.loads(path.read_text())
    assert result["environment"]["gpu"] == torch.cuda.get_device_name()
    assert result["memory"]["peak_device_bytes"] > 0
    assert result["model"]["dtype"] == "bfloat16"
