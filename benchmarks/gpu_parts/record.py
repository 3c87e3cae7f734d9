"""The file of what was measured: whole at any time, and what a killed run goes on from."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from pathlib import Path
from typing import Any

from arguments import command

import trimtab
import trimtab_kernels
from trimtab.environment import describe_environment
from trimtab.errors import TrimtabError, first_line
from trimtab.files import write_json

BENCHMARKS = Path(__file__).parents[1]
FOLDERS = Path(trimtab.__file__).parent, Path(trimtab_kernels.__file__).parent, BENCHMARKS
SOURCES = {".py", ".cpp", ".h", ".yaml"}
MACHINE = "cpu", "gpu", "driver", "cuda", "packages"


def code_digest() -> str:
    """Return what differs once the toolkit, the kernels or the benchmarks do, committed or not."""
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for file in sorted(folder.rglob("*")):
            if file.suffix in SOURCES:
                digest.update(f"{file.relative_to(folder)}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


class Record:
    """What was measured with the present code, settings and machine.

    The file may hold more runs, of other code, settings or machines, which stay there.

    Parameters
    ----------
    out : Path or None
        The file; None keeps nothing.
    settings : dict
        JSON values.
    seed : int

    Raises
    ------
    TrimtabError
        If the file is not one that this benchmark wrote.
    """

    def __init__(self, out: Path | None, settings: dict[str, Any], seed: int) -> None:
        self._out = out
        environment = describe_environment(seed)
        machine = {name: environment[name] for name in MACHINE}
        same = {"code": code_digest(), "settings": settings, "machine": machine}
        same = json.loads(json.dumps(same))  # as the file has it
        self._content = _read(out)
        runs = self._content["runs"]
        found = [run for run in runs if all(run[name] == value for name, value in same.items())]
        if not found:
            found = [{**same, "environment": environment, "begun": {}, "units": {}}]
            runs += found
        (self._run,) = found
        self._content["command"] = command()

    def result(self, name: str) -> dict[str, Any] | None:
        """Return what a unit returned; None if it was not measured, or failed."""
        found: dict[str, Any] | None = self._run["units"].get(name, {}).get("result")
        return found

    def error(self, name: str, since: float = 0.0) -> str | None:
        """Return what the error of a unit says that failed, at `since` (of the epoch) or later."""
        found = self._run["units"].get(name, {})
        return found["error"] if "error" in found and found["ended"] >= since else None

    def unfinished(self, name: str) -> int:
        """Return how often a unit was begun and the run ended during it."""
        count: int = self._run["begun"].get(name, 0)
        return count

    def begin(self, name: str) -> None:
        """Note that a unit is begun."""
        self._run["begun"][name] = self.unfinished(name) + 1
        self._write()

    def keep(self, name: str, seconds: float, result: dict[str, Any]) -> None:
        """Keep what a unit returned.

        Raises
        ------
        ValueError
            If that is no JSON; then nothing is kept.
        """
        json.dumps(result, allow_nan=False)
        self._end(name, {"seconds": round(seconds, 3), "result": result})

    def fail(self, name: str, error: Exception) -> None:
        """Keep how a unit failed."""
        told = f"{type(error).__name__}: {first_line(error)}"
        self._end(name, {"error": told, "traceback": "".join(traceback.format_exception(error))})

    def _end(self, name: str, what: dict[str, Any]) -> None:
        self._run["begun"].pop(name, None)
        self._run["units"][name] = {"ended": time.time(), **what}
        self._write()

    def _write(self) -> None:
        if self._out is not None:
            write_json(self._out, self._content)


def _read(out: Path | None) -> dict[str, Any]:
    if out is None or not out.exists():
        return {"command": [], "runs": []}
    try:
        content: dict[str, Any] = json.loads(out.read_text("utf-8"))
        for run in content["runs"]:
            run["code"], run["settings"], run["machine"], run["begun"], run["units"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrimtabError(
            f"--out {out}: {type(error).__name__}: {error}; expected a file that this benchmark "
            "wrote, or none: name another"
        ) from error
    return content
