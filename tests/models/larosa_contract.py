"""What LaRoSA must fulfil on every supported architecture; a new one inherits it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.conftest import random_inputs
from tests.models.contract import assert_equal, draw, stepwise
from trimtab.artifact import Artifact
from trimtab.corpus import Corpus
from trimtab.errors import MisfitError
from trimtab.larosa import (
    Allocation,
    Basis,
    Count,
    LaRoSA,
    Precision,
    RotationScope,
    Selection,
    Transforms,
)
from trimtab.larosa.export import load_exported
from trimtab.larosa.plan import Plan
from trimtab.models.adapter import adapter_for
from trimtab.models.fingerprint import fingerprint
from trimtab.models.loading import LoadedModel
from trimtab.models.sources import DType

# Each of them on every architecture.
SMALL = {"tokens": 256, "window": 64, "probe_tokens": 128}
DENSE = {"sparsity": 0.0, "count": Count.nominal, **SMALL}
SETTINGS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "transforms": {"transforms": Transforms.all},
    "unrounded transforms": {"transforms": Transforms.all, "precision": Precision.model},
    "output basis": {"transforms": Transforms.all, "basis": Basis.output_pca},
    "folded norms": {"fold_norms": True},
    "folded norms, no basis": {"fold_norms": True, "basis": Basis.none},
    "uniform": {"allocation": Allocation.uniform, "transforms": Transforms.all},
    "plain": {"basis": Basis.none, "allocation": Allocation.uniform, "transforms": Transforms.none},
    "one rotation": {"residual": RotationScope.model},
    "a rotation per group": {"residual": RotationScope.group, "group": 2, "fold_norms": True},
    "a rotation per layer": {"residual": RotationScope.layer, "transforms": Transforms.all},
    "a rotation per site": {"residual": RotationScope.site},
}


def without_dropping(artifact: Artifact) -> Artifact:
    """Return an artifact with its bases, and nothing dropped in them."""
    plan = Plan.from_json(artifact.parameters["plan"])
    sites = {
        name: [replace(part, sparsity=0.0, threshold=0.0) for part in row]
        for name, row in plan.sites.items()
    }
    return replace(artifact, parameters={"plan": replace(plan, sites=sites).to_json()})


ARTIFACTS: dict[str, Artifact] = {}


def calibrated(loaded: LoadedModel, method: LaRoSA, corpus: Corpus) -> Artifact:
    """Return the artifact, of an earlier test where one has calibrated the same."""
    digest = method.key(fingerprint(loaded.model), loaded.tokenizer, corpus).digest
    if digest not in ARTIFACTS:
        ARTIFACTS[digest] = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    return ARTIFACTS[digest]


class LaRoSAContract:
    """LaRoSA at sparsity 0 is the model itself, and leaves it as it was, on each architecture."""

    shape: ClassVar[str]

    @pytest.fixture(
        params=[(DType.float64, True), (DType.float32, False), (DType.bfloat16, False)],
        ids=["float64-tied", "float32-untied", "bfloat16-untied"],
    )
    def loaded(self, request: pytest.FixtureRequest) -> LoadedModel:
        dtype, tied = request.param
        return draw(self.shape, dtype, tied)

    def assert_exact(self, loaded: LoadedModel, method: LaRoSA, artifact: Artifact) -> None:
        ids = random_inputs(2, 12)
        expected = loaded.model(ids).logits
        with method.apply(loaded.model, loaded.tokenizer, artifact):
            whole, steps = loaded.model(ids).logits, stepwise(loaded.model, ids, 5)
        assert_equal(whole, expected)
        assert_equal(steps, expected)

    @pytest.mark.parametrize("name", SETTINGS)
    def test_forward_and_cached_decode_at_sparsity_0(self, corpus, name):
        loaded = draw(self.shape, DType.float64, tied=True)
        method = LaRoSA(**DENSE, **SETTINGS[name])
        if adapter_for(loaded.model).post_norms and method.residual is not RotationScope.none:
            with pytest.raises(MisfitError, match=r"cannot be absorbed: use larosa\.residual=none"):
                method.calibrate(loaded.model, loaded.tokenizer, corpus)
            return
        artifact = calibrated(loaded, method, corpus)
        self.assert_exact(loaded, method, artifact)

    @pytest.mark.parametrize("name", ["transforms", "a rotation per group"])
    def test_at_sparsity_0_in_every_dtype_also_after_saving_and_loading(
        self, loaded, corpus, name, tmp_path
    ):
        settings = SETTINGS[name]
        if adapter_for(loaded.model).post_norms:
            settings = {
                "transforms": Transforms.all,
                "residual": RotationScope.none,
                "fold_norms": True,
            }
        method = LaRoSA(**DENSE, **settings)
        artifact = calibrated(loaded, method, corpus)
        self.assert_exact(loaded, method, artifact)
        artifact.save(tmp_path / "artifact")
        ids = random_inputs(1, 12)

        def logits(source: Artifact) -> Tensor:
            with method.apply(loaded.model, loaded.tokenizer, source):
                return loaded.model(ids).logits

        assert torch.equal(logits(Artifact.load(tmp_path / "artifact")), logits(artifact))

    @pytest.mark.parametrize("residual", [RotationScope.none, RotationScope.group])
    def test_bases_that_the_allocation_chose_are_exact_where_nothing_is_dropped(
        self, corpus, residual
    ):
        loaded = draw(self.shape, DType.float64, tied=False)
        if adapter_for(loaded.model).post_norms:
            residual = RotationScope.none
        method = LaRoSA(sparsity=0.5, count=Count.nominal, residual=residual, group=2, **SMALL)
        artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
        bases = {part["basis"] for row in artifact.parameters["plan"]["sites"].values()
                 for part in row}  # fmt: skip
        assert "transform" in bases
        self.assert_exact(loaded, method, without_dropping(artifact))

    @pytest.mark.parametrize("selection", [Selection.threshold, Selection.capped])
    def test_teacher_forcing_equals_decoding_step_by_step_when_sparse(self, corpus, selection):
        loaded = draw(self.shape, DType.float64, tied=True)
        method = LaRoSA(sparsity=0.5, transforms=Transforms.all, selection=selection, **SMALL)
        artifact = calibrated(loaded, method, corpus)
        ids = random_inputs(2, 12)
        dense = loaded.model(ids).logits
        with method.apply(loaded.model, loaded.tokenizer, artifact):
            expected = loaded.model(ids).logits
            assert_equal(stepwise(loaded.model, ids, 5), expected)
        assert not torch.allclose(expected, dense, rtol=1e-2)

    def test_exported_and_loaded_it_computes_the_same_bits(self, loaded, corpus, tmp_path):
        residual = RotationScope.group
        if adapter_for(loaded.model).post_norms:
            residual = RotationScope.none
        method = LaRoSA(
            sparsity=0.5, residual=residual, group=2, transforms=Transforms.all, fold_norms=True,
            dense_prefix=3, **SMALL,
        )  # fmt: skip
        artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
        method.export(loaded.model, loaded.tokenizer, artifact, tmp_path / "model")
        ids = random_inputs(2, 12)
        with method.apply(loaded.model, loaded.tokenizer, artifact):
            whole, steps = loaded.model(ids).logits, stepwise(loaded.model, ids, 5)
        found = load_exported(tmp_path / "model")
        assert found.dtype == loaded.model.dtype
        assert torch.equal(found(ids).logits, whole)
        assert torch.equal(stepwise(found, ids, 5), steps)

    @pytest.mark.parametrize("failing", [False, True], ids=["normal", "exception"])
    def test_leaving_restores_every_bit_every_parameter_and_every_hook(
        self, loaded, corpus, failing
    ):
        rotated = not adapter_for(loaded.model).post_norms
        method = LaRoSA(
            sparsity=0.5, residual=RotationScope.group if rotated else RotationScope.none, **SMALL
        )
        artifact = calibrated(loaded, method, corpus)
        before = copy.deepcopy(loaded.model.state_dict())
        parameters = dict(loaded.model.named_parameters())
        modules = list(loaded.model.modules())
        ids = random_inputs(1, 12)
        logits = loaded.model(ids).logits

        def use() -> None:
            with method.apply(loaded.model, loaded.tokenizer, artifact):
                assert not torch.equal(loaded.model(ids).logits, logits)
                if failing:
                    raise KeyError("within")

        if failing:
            with pytest.raises(KeyError, match="within"):
                use()
        else:
            use()
        after = loaded.model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        now = dict(loaded.model.named_parameters())
        assert list(now) == list(parameters)
        assert all(now[name] is parameters[name] for name in now)
        assert all(a is b for a, b in zip(loaded.model.modules(), modules, strict=True))
        assert torch.equal(loaded.model(ids).logits, logits)
        for module in modules:
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    def test_calibration_leaves_the_model_as_it_was(self, corpus):
        loaded = draw(self.shape, DType.float64, tied=True)
        before = copy.deepcopy(loaded.model.state_dict())
        parameters = list(loaded.model.parameters())
        LaRoSA(**SMALL).calibrate(loaded.model, loaded.tokenizer, corpus)
        after = loaded.model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        for module in loaded.model.modules():
            assert "forward" not in module.__dict__
            assert not module._forward_pre_hooks
        for found, parameter in zip(loaded.model.parameters(), parameters, strict=True):
            assert found is parameter
            assert (found.requires_grad, found.grad) == (False, None)
