"""Writing so that a reader finds either all of it or nothing: a temporary name, then a rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from trimtab.errors import FULL, ROOM, ConfigError, TrimtabError
from trimtab.settings import path_of

if TYPE_CHECKING:
    from torch import Tensor

Made = TypeVar("Made")

OS_ERROR = re.compile(r"\(os error (\d+)\)$")  # what Rust's libraries end the message with
LEAST_ROOM = 2**16  # bytes, without which nothing is begun
ARTIFACT = "artifact.json"
RESULT = "result.json"
ERROR = "error.json"
RESULTS = RESULT, ERROR  # what a job of evaluate.py leaves, one of the two
REPEAT = "repeat.json"  # what it leaves where another job of its sweep measures the same
FINISHED = RESULT, REPEAT  # what a job leaves that needs not run again
COMMAND = "command.json"  # what was typed, beside the results of a job or the folders of a sweep's
REPORT = "report"  # the folder beside it, or beside the folders of a sweep's jobs


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say which folder it is, where a write fails without saying so: a disk is full."""
    try:
        yield
    except SafetensorError as error:
        if "I/O error" not in str(error):
            raise
        raise OSError(errno.EIO, str(error), str(folder)) from error
    except OSError as error:
        if error.filename is not None or error.errno not in FULL:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error
    except Exception as error:
        found = OS_ERROR.search(str(error))
        if type(error) is not Exception or found is None:  # as tokenizers raises it
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(folder)) from error


@contextmanager
def _called(path: Path) -> Iterator[None]:
    """Name the path that is asked for where no temporary one can be made beside it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed over it if the block succeeds."""
    with _called(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        with _naming(path.parent):
            yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def publishing(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, renamed to it if the block succeeds.

    Where `path` exists already it is kept (somebody else published the same content
    meanwhile), unless it is empty, or `replace` is true: then the old folder is removed first.
    Where it is a symbolic link, this is said of what it leads to.
    """
    path = path.resolve()
    with _called(path):
        if path.is_mount():
            reason = "A file system is mounted there: name a folder within it"
            raise OSError(errno.EBUSY, reason, str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with _naming(path.parent):
            yield temporary
        temporary.chmod(0o755)
        if replace and path.exists():
            shutil.rmtree(path)
        if is_vacant(path):
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def made_temporary(make: Callable[[], AbstractContextManager[Made]], name: str) -> Iterator[Made]:
    """Yield a temporary file or folder, called `name`.

    Raises
    ------
    TrimtabError
        If there is no folder that it can be in.
    """
    with ExitStack() as undo:
        try:
            made = undo.enter_context(make())
        except OSError as error:
            raise TrimtabError(
                f"no temporary {name} can be made: {error.strerror}; {ROOM}"
            ) from error
        yield made


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that is removed after the block.

    Raises
    ------
    TrimtabError
        If it cannot be made, or what is written to it has no room.
    """
    with made_temporary(tempfile.TemporaryDirectory, "folder") as name:
        try:
            with _naming(Path(name)):
                yield Path(name)
        except OSError as error:
            if not Path(str(error.filename)).is_relative_to(name):
                raise
            raise TrimtabError(f"{error.filename}: {error.strerror}; {ROOM}") from error


def is_vacant(path: Path) -> bool:
    """Return whether a folder is not there yet, or empty."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def require_writable(setting: str, folder: str | Path) -> None:
    """Refuse a folder that cannot be made, or has no room for small files; it leaves nothing there.

    Parameters
    ----------
    setting : str
        Full name of the setting that the folder comes from.
    """
    try:
        with tempfile.TemporaryFile(dir=_existing(path_of(folder).resolve())) as file:
            file.write(bytes(LEAST_ROOM))
    except OSError as error:
        reason = f"cannot be written: {error.strerror}; name a folder that can"
        raise ConfigError(setting, folder, reason) from error


def require_artifacts(folder: str | Path) -> None:
    """Refuse a folder of artifacts that holds none, and where none could be written."""
    if not any(path_of(folder).glob(f"*/*/*/{ARTIFACT}")):
        require_writable("artifacts", folder)


def _existing(path: Path) -> Path:
    """Return `path` or the nearest folder above that exists."""
    try:
        path.lstat()
    except FileNotFoundError:
        return _existing(path.parent)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write tensors, and strings about them, as safetensors, atomically."""
    from safetensors.torch import save_file  # imports PyTorch, which a command's checks do without

    with replacing(path) as temporary:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata=metadata or None)


def canonical_json(value: Any) -> bytes:
    """Encode `value` as the one byte string that digests of it are taken over."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one, with dotted keys: the names that docs/results.md documents."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = item
    return flat


def is_table(item: Any) -> bool:
    """Return whether a JSON value is rows of named cells."""
    return isinstance(item, list) and bool(item) and isinstance(item[0], dict)


def sha256_of_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
