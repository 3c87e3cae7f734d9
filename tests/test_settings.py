"""Settings: one declaration for defaults, checks, docstrings and help."""

import copy
import pickle
from dataclasses import replace
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar

import numpy as np
import pytest
import torch

from trimtab import AdaptiVocab, ConfigError, LaRoSA, VAttention
from trimtab.settings import Settings, defaults, describe, setting, settings


class Colour(StrEnum):
    red = "red"
    green = "green"
    blue = "blue"


@settings
class Paint(Settings):
    """Paint."""

    place: ClassVar[str] = "paint"

    colour: Colour = setting(default=Colour.red, meaning="its colour")
    share: float = setting(default=0.5, meaning="how much of it", at_least=0, below=1)
    coats: int | None = setting(default=None, meaning="layers", above=0, at_most=3, unit="coats")
    wet: bool = setting(default=False, meaning="whether it is wet")
    name: str = setting(meaning="what it is called")
    shops: list[str] = setting(default=[], meaning="where it is sold")
    sizes: list[int] = setting(default=[1, 5], meaning="its tins", at_least=1, unit="litres")


def test_values_are_converted_to_what_they_are_declared_as():
    paint = Paint(name="a", colour="green", share=0, coats=2)  # type: ignore[arg-type]
    assert paint.colour is Colour.green
    assert (paint.share, type(paint.share)) == (0.0, float)
    paint = Paint(name="a", wet=np.bool_(True), share=np.float32(0.5), coats=np.int64(2))
    assert (paint.wet, paint.share, paint.coats) == (True, 0.5, 2)
    assert [type(one) for one in (paint.wet, paint.share, paint.coats)] == [bool, float, int]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": "pink"}, "paint.colour=pink: expected one of red, green, blue"),
        ({"share": 1}, "paint.share=1.0: expected at least 0 and below 1"),
        ({"share": -0.1}, "paint.share=-0.1: expected at least 0 and below 1"),
        ({"share": float("nan")}, "paint.share=nan: expected at least 0"),
        ({"share": float("inf")}, "paint.share=inf: expected at least 0"),
        ({"share": "0.5"}, "paint.share='0.5': expected a number"),
        ({"share": "a lot"}, "paint.share=a lot: expected a number"),
        ({"share": Decimal("0.5")}, "paint.share=Decimal('0.5'): expected a number"),
        ({"share": torch.tensor(0.5)}, "paint.share=tensor(0.5000): expected a number"),
        ({"wet": "true"}, "paint.wet='true': expected true or false"),
        ({"share": True}, "paint.share=True: expected a number"),
        ({"share": None}, "paint.share=None: expected a number"),
        ({"coats": 0}, "paint.coats=0: expected null or above 0 and at most 3 coats"),
        ({"coats": 4}, "paint.coats=4: expected null or above 0 and at most 3 coats"),
        ({"coats": 1.5}, "paint.coats=1.5: expected null or a whole number"),
        ({"coats": True}, "paint.coats=True: expected null or a whole number"),
        ({"wet": 1}, "paint.wet=1: expected true or false"),
        ({"name": 3}, "paint.name=3: expected a text"),
        ({"name": " "}, "paint.name= : expected a text, not empty"),
        ({"shops": "here"}, "paint.shops=here: expected a list of texts: [A,B]"),
        ({"shops": ["here", 2]}, "paint.shops=['here', 2]: expected a list of texts: [A,B]"),
        ({"shops": [" "]}, "paint.shops=[' ']: expected a list of texts: [A,B]"),
        ({"sizes": 3}, "paint.sizes=3: expected a list of whole numbers: [1,2]"),
        ({"sizes": [1, 2.0]}, "paint.sizes=[1, 2.0]: expected a list of whole numbers: [1,2]"),
        ({"sizes": [2, 0]}, "paint.sizes=[2, 0]: expected each at least 1 litre"),
        ({"coats": 10**400}, f"paint.coats={10**400}: expected null or above 0 and at most 3"),
        ({"share": 10**400}, f"paint.share={10**400}: expected a number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values, message):
    with pytest.raises(ConfigError) as error:
        Paint(**{"name": "a", **values})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("name", "value"), [("share", 7), ("share", 0.1), ("shere", 0.1)])
def test_what_is_set_after_the_checks_is_refused(name, value):
    paint = Paint(name="a")
    with pytest.raises(ConfigError, match=f"paint.{name}={value}: "):
        setattr(paint, name, value)
    assert replace(paint, share=0.1).share == 0.1
    assert paint == Paint(name="a")
    paint.shops.append("here")
    assert Paint(name="a").shops == []


def test_what_is_no_setting_is_refused_with_the_one_that_was_meant():
    expected = r"^larosa.sparcity=0.4: no such setting, did you mean sparsity\?; there are: spars"
    with pytest.raises(ConfigError, match=expected):
        LaRoSA(sparcity=0.4)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="did you mean name"):
        Paint(nam="a")  # type: ignore[call-arg]
    paint = Paint(name="a", shops=["here"])
    assert copy.deepcopy(paint) == pickle.loads(pickle.dumps(paint)) == paint


def test_help_and_docstring_say_the_same_from_one_declaration():
    assert defaults(Paint) == {
        "colour": Colour.red, "share": 0.5, "coats": None, "wet": False, "name": "???", "shops": [],
        "sizes": [1, 5],
    }  # fmt: skip
    said = dict(describe(Paint))
    assert said == {
        "colour: red": "its colour (one of red, green, blue)",
        "share: 0.5": "how much of it (at least 0 and below 1)",
        "coats: null": "layers (null or above 0 and at most 3 coats)",
        "wet: false": "whether it is wet",
        "name: required": "what it is called",
        "shops: []": "where it is sold",
        "sizes: [1,5]": "its tins (each at least 1 litre)",
    }
    for name, meaning in said.items():
        assert f"{name}\n    {meaning}\n" in f"{Paint.__doc__}\n"


@pytest.mark.parametrize("kind", [AdaptiVocab, LaRoSA, VAttention])
def test_every_setting_of_a_method_is_explained(kind):
    for name, meaning in describe(kind):
        assert len(meaning) > 10
        assert name in str(kind.__doc__)


def test_choices_are_strings_or_members_from_python_too():
    assert LaRoSA(selection="topk") == LaRoSA(selection=LaRoSA(selection="topk").selection)
    for made in (
        lambda: LaRoSA(basis="nonsense"),
        lambda: AdaptiVocab(mode="drafts"),
        lambda: VAttention(layout="paged"),
    ):
        with pytest.raises(ConfigError, match="expected"):
            made()


CHOICES = [
    (kind, name, choice)
    for kind in (AdaptiVocab, LaRoSA, VAttention)
    for name, value in vars(kind()).items()
    if isinstance(value, StrEnum)
    for choice in type(value)
]
# What a choice cannot be without.
WITH: dict[str, dict[str, object]] = {
    "alpha": {"transforms": "none"},
    "uniform": {"transforms": "none"},
}


@pytest.mark.parametrize(("kind", "name", "choice"), CHOICES, ids=lambda one: str(one))
def test_every_choice_of_every_method_is_the_member_that_its_name_means(kind, name, choice):
    more = WITH.get(str(choice), {}) if name == "allocation" else {}
    made, expected = kind(**{name: str(choice)}, **more), kind(**{name: choice}, **more)
    assert getattr(made, name) is choice
    assert made.config() == expected.config()
    with pytest.raises(ConfigError, match=f"{kind.place}.{name}=nonsense: expected"):
        kind(**{name: "nonsense"})
