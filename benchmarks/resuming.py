"""Benchmarks that write what they have as they go on, and go on from what a file has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arguments import command
from decode_parts.machine import environment

from trimtab.errors import TrimtabError


def begun(
    out: Path, settings: dict[str, Any], seed: int, beginning: dict[str, Any]
) -> dict[str, Any]:
    """Return what a file has already, or the beginning of a new one.

    Raises
    ------
    TrimtabError
        If it was measured with other settings, or on another processor.
    """
    here = environment(seed)
    if not out.exists():
        return {"command": command(), "settings": settings, "environment": here, **beginning}
    content: dict[str, Any] = json.loads(out.read_text("utf-8"))
    found = {**content["settings"], "cpu": content["environment"]["cpu"]}
    if found != (asked := {**settings, "cpu": here["cpu"]}):
        other = ", ".join(f"{name} {found[name]}" for name in asked if found[name] != asked[name])
        raise TrimtabError(f"--out {out}: measured with {other}; name another file, or remove it")
    return content
