"""What the files of benchmarks that answer requests begin with."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from arguments import command
from decode_parts.machine import environment

from trimtab.artifact import Artifact
from trimtab.models.loading import LoadedModel

SETTINGS = ("model", "dtype", "repeats", "sparsity", "memory")


def beginning(
    options: Namespace, loaded: LoadedModel, artifacts: Mapping[str, Artifact]
) -> dict[str, Any]:
    """Return the command, its settings, the machine and what is measured, without a run yet."""
    return {
        "command": command(),
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "environment": environment(options.seed),
        "model": loaded.name,
        "artifacts": {name: artifact.key.digest for name, artifact in artifacts.items()},
        "runs": [],
    }
