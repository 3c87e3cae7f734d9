"""Ctrl-C leaves no model half changed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

import trimtab
from tests.conftest import tiny
from tests.generation.models import TOKENIZER
from tests.larosa.test_waiting import as_on_a_gpu
from trimtab.interrupts import uninterrupted
from trimtab.larosa import replaced
from trimtab.models.fingerprint import fingerprint

TEXTS = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)) for n in range(12)]


@pytest.fixture(autouse=True)
def python_interrupts() -> Iterator[None]:
    """Have Python's own handler, which a process that was started in the background has not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def larosa() -> trimtab.Artifact:
    method = trimtab.LaRoSA(tokens=512, probe_tokens=256, window=64)
    return trimtab.calibrate(tiny().model, TOKENIZER, method, TEXTS)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_takes_effect_after_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        interrupt()
        done.append("the rest of the block")
    assert done
    with uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_hold_nothing_back():
    handlers = []

    def run() -> None:
        with uninterrupted():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


@pytest.mark.parametrize("where", ["file", "host"])
@pytest.mark.parametrize("way", ["leave", "suspend", "fail to enter"])
def test_interrupts_while_weights_come_back_lose_none(larosa, monkeypatch, way, where):
    if where == "host":
        as_on_a_gpu(monkeypatch)
    model = tiny().model
    before, loaded = fingerprint(model), replaced._Moved.loaded

    def interrupted(moved: replaced._Moved) -> object:
        interrupt()
        return loaded(moved)

    def enter_and_leave() -> None:
        with trimtab.apply(model, TOKENIZER, [larosa]) as optimized:
            monkeypatch.setattr(replaced._Moved, "loaded", interrupted)
            if way == "suspend":
                with optimized.suspended():
                    pass

    if way == "fail to enter":
        monkeypatch.setattr(replaced._Moved, "loaded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        enter_and_leave()
    assert fingerprint(model) == before
    monkeypatch.setattr(replaced._Moved, "loaded", loaded)
    with trimtab.apply(model, TOKENIZER, [larosa]) as optimized:
        assert optimized.generate(["abc"], max_new_tokens=2)
    assert fingerprint(model) == before


def test_an_interrupt_after_the_methods_were_put_on_takes_them_off(larosa, monkeypatch):
    model = tiny().model
    before = fingerprint(model)
    optimized = trimtab.apply(model, TOKENIZER, [larosa], fingerprint=before)

    def interrupted(_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trimtab.optimized.fingerprint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimized.__enter__()
    assert fingerprint(model) == before
    with optimized:
        assert optimized.generate(["abc"], max_new_tokens=2)
