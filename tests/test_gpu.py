"""The same on an NVIDIA GPU: ``pytest -m gpu``."""

import json

import pytest
import torch

from tests.conftest import SMALL, TINY, random_inputs, tiny
from tests.models.contract import stepwise
from trimtab.adaptivocab import AdaptiVocab
from trimtab.adaptivocab.settings import Rows
from trimtab.larosa import Count, LaRoSA, RotationScope, Selection, Transforms
from trimtab.larosa.export import load_exported
from trimtab.models.loading import LoadedModel, load_model
from trimtab.models.sources import DType, RandomModel

pytestmark = pytest.mark.gpu

TEXT = {"tokens": 512, "window": 64, "probe_tokens": 128}


def on_gpu(dtype: DType) -> LoadedModel:
    return load_model(RandomModel(device="cuda", dtype=dtype, config="tiny-llama", seed=0))


@pytest.mark.parametrize("residual", [RotationScope.none, RotationScope.group])
@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_sparsity_0_is_the_original(corpus, dtype, residual):
    loaded = on_gpu(dtype)
    method = LaRoSA(
        sparsity=0.0, count=Count.nominal, transforms=Transforms.all, residual=residual, group=2,
        **TEXT,
    )  # fmt: skip
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    ids = random_inputs(2, 24).cuda()
    expected = loaded.model(ids).logits.float()
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        found = loaded.model(ids).logits.float(), stepwise(loaded.model, ids, 9).float()
    bound = {DType.float32: 1e-4, DType.bfloat16: 6e-2}[dtype] * expected.abs().max()
    for logits in found:
        assert (logits - expected).abs().max() < bound


def test_gpu_and_cpu_make_the_same_plan(corpus):
    """But for tokens drawn from predictions that differ in their last bits."""
    method = LaRoSA(sparsity=0.5, **TEXT)
    cpu, gpu = tiny(dtype=DType.float64), on_gpu(DType.float64)
    gpu.model.load_state_dict(cpu.model.state_dict())
    expected, found = (
        method.calibrate(loaded.model, loaded.tokenizer, corpus).parameters["plan"]
        for loaded in (cpu, gpu)
    )
    for name, row in expected["sites"].items():
        for part, other in zip(row, found["sites"][name], strict=True):
            assert other["basis"] == part["basis"]
            assert other["sparsity"] == pytest.approx(part["sparsity"], abs=0.03)
            assert other["threshold"] == pytest.approx(part["threshold"], rel=0.1, abs=0.05)


VOCABULARY = AdaptiVocab(
    size=8, rows=Rows.distilled, max_bpb_increase=10, mining_tokens=4096, tokens=512,
    validation_tokens=192, window=64,
)  # fmt: skip


@pytest.mark.parametrize(
    "method",
    [LaRoSA(sparsity=0.5, transforms=Transforms.all, **TEXT), VOCABULARY],
    ids=["larosa", "adaptivocab"],
)
def test_a_calibration_on_a_gpu_is_the_same_to_the_bit_every_time(corpus, method):
    found = []
    for _ in range(3):
        loaded = on_gpu(DType.bfloat16)
        found.append(method.calibrate(loaded.model, loaded.tokenizer, corpus))
    for other in found[1:]:
        assert other.statistics == found[0].statistics
        assert other.parameters == found[0].parameters
        for name, tensor in found[0].tensors.items():
            assert torch.equal(other.tensors[name], tensor)


@pytest.mark.parametrize("selection", list(Selection))
def test_sparse_decode_runs_the_triton_kernel_and_is_what_the_reference_computes(
    corpus, selection, monkeypatch
):
    from trimtab.larosa import modules
    from trimtab.larosa import selection as selecting
    from trimtab_kernels import reference

    loaded = on_gpu(DType.bfloat16)
    method = LaRoSA(sparsity=0.5, selection=selection, transforms=Transforms.all, **TEXT)
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    ids = random_inputs(1, 16).cuda()
    with method.apply(loaded.model, loaded.tokenizer, artifact) as applied:
        assert applied.kernel is not None
        assert applied.kernel.startswith("Triton")
        found = stepwise(loaded.model, ids, 4).float()
        assert torch.equal(stepwise(loaded.model, ids, 4).float(), found)
        for name in ("sparse_linear", "int8_linear"):
            monkeypatch.setattr(modules, name, getattr(reference, name))
        for name in ("keep_topk", "keep_above"):
            monkeypatch.setattr(selecting, name, getattr(reference, name))
        expected = stepwise(loaded.model, ids, 4).float()
    # Sums of another order may move an entry over a threshold, one in many.
    difference = (found - expected).abs()
    assert difference.median() < 1e-2 * expected.abs().max()
    assert difference.max() < 2e-1 * expected.abs().max()


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_an_exported_model_is_loaded_onto_the_gpu_and_computes_the_same_bits(
    corpus, dtype, tmp_path
):
    loaded = on_gpu(dtype)
    method = LaRoSA(
        sparsity=0.5, residual=RotationScope.group, group=2, dense_prefix=2, **TEXT,
    )  # fmt: skip
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    method.export(loaded.model, loaded.tokenizer, artifact, tmp_path / "model")
    ids = random_inputs(1, 16).cuda()
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        expected = stepwise(loaded.model, ids, 4)
    found = load_exported(tmp_path / "model", "cuda")
    assert torch.equal(stepwise(found, ids, 4), expected)
    moved = load_exported(tmp_path / "model").cuda()
    assert torch.equal(stepwise(moved, ids, 4), expected)


def test_the_commands_run_and_name_the_gpu_and_its_kernel(command, tmp_path):
    assert command("calibrate.py", *TINY, *SMALL, "model.device=cuda").returncode == 0
    done = command(
        "evaluate.py", *TINY, "model.device=cuda", "methods=larosa", "methods.larosa.tokens=512",
        "methods.larosa.window=64", "speed.repeats=2", "speed.seconds=0", "serving.requests=[2]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("outputs/*-*-*/*/result.json")
    result = json.loads(path.read_text())
    assert result["environment"]["gpu"] == torch.cuda.get_device_name()
    assert result["memory"]["peak_device_bytes"] > 0
    assert result["model"]["dtype"] == "bfloat16"
    assert result["kernel"].startswith("Triton")
    sparsity = result["sparsity"]
    assert sparsity["bytes_read_fraction"] == sparsity["bytes_fraction"]
