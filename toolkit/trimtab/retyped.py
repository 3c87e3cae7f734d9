"""Commands that are printed: they read the configuration that a job did."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def options(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a job's file says of where its configuration was read beside ours."""
    return tuple(content.get("options") or ())


def retyped(content: Mapping[str, Any], *arguments: str, script: str = "evaluate.py") -> str:
    """Return a command of these arguments, as it is typed where a job was started.

    Parameters
    ----------
    content : mapping
        Of the job's result.json or error.json.
    """
    return shlex.join(["python", script, *options(content), *arguments])
