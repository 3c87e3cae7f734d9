"""Progress on standard error: bars where the amount is known, a clock where it is not.

Where standard error is no terminal, lines stand for them, two a minute at most.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

EVERY = 30.0  # seconds between the lines that stand for a bar where there is no terminal
MUTED: dict[int, int] = {}  # standard streams that are muted, and what they were


class _Forgiving:
    """A stream whose reader may go and whose disk may fill: what is written then is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def prepare_streams() -> None:
    """Have a command do its work whether or not anybody reads what it says on the way."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    sys.stderr = cast(TextIO, _Forgiving(sys.stderr))


def mute() -> None:
    """Lose what this process writes to standard output and standard error, until `unmute`."""
    unmute()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        MUTED[descriptor] = os.dup(descriptor)
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def unmute() -> None:
    """End what `mute` began, if it did."""
    while MUTED:
        descriptor, stream = MUTED.popitem()
        os.dup2(stream, descriptor)
        os.close(stream)


def is_muted() -> bool:
    return bool(MUTED)


def say(message: str) -> None:
    """Print one line for the user on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


def duration(seconds: float) -> str:
    """Return a time as it is told to a person."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def answer(text: str) -> None:
    """Print what a command ends in on standard output, which its reader may have closed.

    Characters that its encoding does not have are escaped.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with may_go_unread():
        print(text.encode(encoding, "backslashreplace").decode(encoding))


@contextmanager
def may_go_unread() -> Iterator[None]:
    """Take it for no failure that nobody reads standard output any more, as after ``| head -1``.

    What is printed from then on is lost.

    Raises
    ------
    OSError
        If standard output cannot be written for another reason.
    """
    try:
        yield
    except BrokenPipeError:
        if not _abandoned():
            raise  # it was another pipe that broke
    finally:
        if _abandoned():  # what is buffered would fail again when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        _flush()


def _abandoned() -> bool:
    """Return whether standard output is a pipe whose other end is closed."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError):  # closed from the start, or no file at all
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def track(items: Iterable[T], description: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield `items` under a bar of `total` steps, `done` of which are taken already."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=10 * EVERY,  # a step may take minutes
    )
    with progress, _lines(progress):
        task = progress.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show a spinner and the elapsed time around a step of unknown length."""
    console = Console(stderr=True)
    progress = Progress(
        *([SpinnerColumn()] if console.is_terminal else []),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress, _lines(progress):
        progress.add_task(description, total=None)
        yield


@contextmanager
def _lines(progress: Progress) -> Iterator[None]:
    """Print every `EVERY` seconds how far it is, where no terminal shows it all the time."""
    ended = Event()

    def speak() -> None:
        while not ended.wait(EVERY):
            progress.console.print(progress.get_renderable())

    thread = Thread(target=speak, daemon=True)
    if not progress.console.is_terminal:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()
