from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest

from trimtab.errors import MisfitError
from trimtab.method import Applied, Calibration, Method, Stage
from trimtab.stack import Stack

events: list[str] = []


@dataclass
class Recorder(Method):
    """A method that only notes what happens to it."""

    fails: bool = False

    def check(self, model):
        if model == "unfit":
            raise MisfitError(f"{self.name} does not fit")

    def fit(self, model, tokenizer, corpus, checkpoint):
        return Calibration({}, {})

    @contextmanager
    def apply(self, model, tokenizer, artifact):
        if self.fails:
            raise KeyError(self.name)
        events.append(f"+{self.name}")
        try:
            yield Applied(
                f"{tokenizer}>{self.name}",
                kernel=f"{self.name} kernel",
                measured=lambda: {self.name: artifact},
            )
        finally:
            events.append(f"-{self.name}")


@dataclass
class Words(Recorder):
    name: ClassVar[str] = "words"
    stage: ClassVar[Stage] = Stage.vocabulary


@dataclass
class Rows(Recorder):
    name: ClassVar[str] = "rows"
    stage: ClassVar[Stage] = Stage.weights


@dataclass
class Pages(Recorder):
    name: ClassVar[str] = "pages"
    stage: ClassVar[Stage] = Stage.cache


@pytest.fixture(autouse=True)
def _no_events():
    events.clear()


def test_methods_are_applied_in_order_and_undone_in_reverse():
    stack = Stack([Pages(), Words(), Rows()])
    with stack.apply("model", "base", {"rows": "artifact"}) as applied:
        assert events == ["+words", "+rows", "+pages"]
        assert applied.tokenizer == "base>words>rows>pages"
        assert applied.kernel == "words kernel + rows kernel + pages kernel"
        assert applied.measured() == {"words": None, "rows": "artifact", "pages": None}
    assert events[3:] == ["-pages", "-rows", "-words"]


def test_what_was_applied_is_undone_when_a_later_method_fails():
    stack = Stack([Words(), Rows(fails=True)])
    with pytest.raises(KeyError, match="rows"), stack.apply("model", "base", {}):
        pass
    assert events == ["+words", "-words"]


def test_recording_ends_with_its_block_also_on_an_exception():
    with Stack([Rows()]).apply("model", "base", {}) as applied:
        with pytest.raises(RuntimeError), applied.recording():
            assert applied.members[0].recording
            raise RuntimeError
        assert not applied.members[0].recording


def test_two_methods_of_one_stage_are_refused():
    class Other(Rows):
        name = "other"

    with pytest.raises(MisfitError, match="rows and other both change the model's weights"):
        Stack([Rows(), Other()])


def test_a_method_that_does_not_fit_the_model_is_refused():
    Stack([Rows()]).check("fit")
    with pytest.raises(MisfitError, match="rows does not fit"):
        Stack([Rows()]).check("unfit")


def test_the_empty_stack_is_the_model_itself():
    with Stack([]).apply("model", "base", {}) as applied:
        assert applied.tokenizer == "base"
        assert applied.kernel == "torch"
        assert applied.measured() == {}
