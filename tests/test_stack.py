"""Stacks of methods that only note what happens to them."""

from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
from torch import nn

from tests.conftest import tiny
from trimtab.adaptivocab.method import AdaptiVocab
from trimtab.capabilities import ChangesVocabulary, ProposesDrafts, ProvidesCache, SkipsBytes
from trimtab.errors import ArtifactError, MisfitError, TrimtabError
from trimtab.larosa import LaRoSA
from trimtab.method import DRAFTS, KV_CACHE, TOKENIZER, Calibration, Method, Stage
from trimtab.settings import Settings, setting, settings
from trimtab.stack import AppliedStack, Stack

events: list[str] = []


@dataclass
class Noted:
    """What an applied method of these tests yields: a kernel, and something to report."""

    name: str

    @property
    def kernel(self) -> str:
        return f"{self.name} kernel"

    def measured(self):
        return {self.name: {"said": self.name}}


@dataclass
class Worded(Noted):
    tokenizer: str
    output_tokenizer: str
    ngram_tokens: dict

    @contextmanager
    def base_output(self):
        events.append(f"base of {self.name}")
        yield


@settings
class Recorder(Settings, Method):
    """A method that only notes what happens to it."""

    name: ClassVar[str] = "recorder"
    stage: ClassVar[Stage] = Stage.weights
    calibrated: ClassVar[bool] = False
    claimed: ClassVar[set[str]] = set()

    fails: bool = setting(default=False, meaning="whether applying it fails")

    def check(self, model):
        if getattr(model, "unfit", False):
            raise MisfitError(f"{self.name} does not fit")

    def claims(self, model):
        return frozenset(self.claimed)

    def fit(self, model, tokenizer, corpus, checkpoint):
        return Calibration()

    def applied(self, tokenizer):
        return Noted(self.name)

    @contextmanager
    def applying(self, model, tokenizer, artifact):
        if self.fails:
            raise KeyError(self.name)
        events.append(f"+{self.name}")
        try:
            yield self.applied(tokenizer)
        finally:
            events.append(f"-{self.name}")


class Words(Recorder):
    name: ClassVar[str] = "words"
    stage: ClassVar[Stage] = Stage.vocabulary
    claimed: ClassVar[set[str]] = {TOKENIZER, "embedding"}

    def applied(self, tokenizer):
        return Worded(self.name, f"{tokenizer}>in", f"{tokenizer}>out", {300: (1, 2)})


class Rows(Recorder):
    name: ClassVar[str] = "rows"
    stage: ClassVar[Stage] = Stage.weights
    claimed: ClassVar[set[str]] = {"layers.0.mlp", "layers.1.mlp"}


class Pages(Recorder):
    name: ClassVar[str] = "pages"
    stage: ClassVar[Stage] = Stage.cache
    claimed: ClassVar[set[str]] = {KV_CACHE}


@pytest.fixture(autouse=True)
def _no_events():
    events.clear()


@pytest.fixture
def model():
    return nn.Linear(1, 1)


def test_methods_are_applied_in_order_and_undone_in_reverse(model):
    with Stack([Pages(), Words(), Rows()]).apply(model, "base", {}) as applied:
        assert events == ["+words", "+rows", "+pages"]
        assert (applied.tokenizer, applied.output_tokenizer) == ("base>in", "base>out")
        assert applied.ngram_tokens == {300: (1, 2)}
        assert applied.kernel == "words kernel + rows kernel + pages kernel"
        assert list(applied.measured()) == ["words", "rows", "pages"]
        with applied.base_output():
            assert events[3:] == ["base of words"]
    assert events[4:] == ["-pages", "-rows", "-words"]


def test_what_was_applied_is_undone_when_a_later_method_fails(model):
    stack = Stack([Words(), Rows(fails=True)])
    with pytest.raises(KeyError, match="rows"), stack.apply(model, "base", {}):
        pass
    assert events == ["+words", "-words"]


def test_a_model_is_evaluated_without_gradients_and_gets_its_own_state_back():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model[0].weight.requires_grad_(False)
    model.train()
    model[1].eval()
    with pytest.raises(RuntimeError), Stack([Rows()]).apply(model, "base", {}):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True]


def claiming(*names: str) -> Method:
    class Other(Recorder):
        name = "other"
        stage = Stage.weights
        claimed: ClassVar[set[str]] = set(names)

    return Other()


@pytest.mark.parametrize(
    ("claim", "shared"),
    [
        ("layers.0.mlp", "layers.0.mlp"),
        ("layers.0.mlp.down", "layers.0.mlp"),
        ("layers.0", "layers.0"),
    ],
)
def test_two_methods_that_change_the_same_are_refused(model, claim, shared):
    expected = f"rows and other both change the model's {shared}: a stack takes one"
    with pytest.raises(MisfitError, match=expected):
        Stack([Rows(), claiming(claim)]).check(model)
    with (
        pytest.raises(MisfitError, match=expected),
        Stack([Rows(), claiming(claim)]).apply(model, "base", {}),
    ):
        pass
    assert events == []


@pytest.mark.parametrize("claim", ["layers.0.attention", "layers.0.mlp2", "layers.10", DRAFTS])
def test_two_methods_of_one_stage_that_change_different_things_stand_together(model, claim):
    with Stack([Rows(), claiming(claim)]).apply(model, "base", {}) as applied:
        assert list(applied.measured()) == ["rows", "other"]


def test_a_method_that_is_there_twice_is_refused():
    with pytest.raises(MisfitError, match="rows is in the stack twice"):
        Stack([Rows(), Rows()])


def test_a_method_that_does_not_fit_the_model_is_refused(model):
    Stack([Rows()]).check(model)
    with pytest.raises(MisfitError, match="rows does not fit"):
        Stack([Rows()]).check(SimpleNamespace(unfit=True))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (Rows(), Rows(), "rows is at work on the model already: leave its `with` first"),
        (Pages(), Pages(), "pages is at work on the model already"),
        (Rows(), Words(), "rows is at work on the model, and words comes before it: name both"),
        (Rows(), claiming("layers.0"), "other would change its layers.0 too"),
    ],
    ids=["twice", "twice, no module", "in the wrong order", "on the same"],
)
def test_methods_that_were_applied_one_by_one_are_held_against_each_other(
    model, first, second, reason
):
    def applied_on(part: nn.Module) -> None:
        with second.apply(part, "base", None):
            pass

    with first.apply(model, "base", None):
        held = list(events)
        with pytest.raises(MisfitError, match=reason):
            second.apply(model, "base", None)
        with pytest.raises(MisfitError, match=reason), Stack([second]).apply(model, "base", {}):
            pass
        with pytest.raises(MisfitError, match=reason):
            second.calibrate(model, "base", None)
        assert events == held
        applied_on(nn.Linear(1, 1))
    applied_on(model)


def test_what_was_let_in_before_the_other_began_is_refused_when_it_begins(model):
    first, second = (Rows().apply(model, "base", None) for _ in range(2))
    with first, pytest.raises(MisfitError, match="rows is at work"), second:
        pass
    assert events == ["+rows", "-rows"]


def test_an_artifact_of_another_model_is_refused_before_anything_is_applied(corpus):
    first, other = tiny(), tiny(seed=1)
    method = LaRoSA(tokens=256, probe_tokens=128, window=64)
    artifacts = {"larosa": method.calibrate(first.model, first.tokenizer, corpus)}
    stack, norm = Stack([method]), other.model.model.layers[0].input_layernorm
    with (
        pytest.raises(ArtifactError, match="belongs to another model"),
        stack.apply(other.model, other.tokenizer, artifacts),
    ):
        pass
    with pytest.raises(ArtifactError, match="belongs to another model"):
        method.apply(other.model, other.tokenizer, artifacts["larosa"])
    with pytest.raises(ArtifactError, match="is one of larosa, not of adaptivocab"):
        AdaptiVocab().apply(first.model, first.tokenizer, artifacts["larosa"])
    with pytest.raises(TrimtabError, match="larosa is applied by its artifact"):
        method.apply(first.model, first.tokenizer, None)
    assert other.model.model.layers[0].input_layernorm is norm
    with stack.apply(first.model, first.tokenizer, artifacts, first.fingerprint) as applied:
        assert isinstance(applied.members[0], SkipsBytes)
        for other_kind in (ChangesVocabulary, ProposesDrafts, ProvidesCache):
            assert not isinstance(applied.members[0], other_kind)


def test_the_empty_stack_is_the_model_itself(model):
    with Stack([]).apply(model, "base", {}) as applied:
        assert applied == AppliedStack("base", "base")
        assert applied.kernel == "torch"
        assert applied.measured() == {}
        assert not applied.needs_engine
