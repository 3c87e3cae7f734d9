"""The JSON schema of result.json, composed of what every metric declares."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from trimtab.adaptivocab.applied import VocabularySection
from trimtab.config import METRICS
from trimtab.evaluation.metrics import metrics_of
from trimtab.larosa.account import Sparsity

SCHEMA = 8


class CalibrationRun(TypedDict, total=False):
    """What making an artifact took, of `Artifact.run`."""

    wall_seconds: float
    peak_host_bytes: int
    device: str
    processes: int


ENVIRONMENT: dict[str, Any] = {
    "cpu": str,
    "cores": int,
    "threads": int,
    "sdpa_kernels": list[str],
    "memory_bytes": int,
    "gpu": str,
    "driver": str,
    "cuda": str,
    "system": str,
    "packages": dict[str, str | None],
    "commit": str,
    "seed": int,
}
HEAD: dict[str, Any] = {
    "schema": int,
    "status": str,
    "label": str,
    "methods": list[str],
    "settings": dict[str, Any],
    "artifacts": dict[str, str],
    "calibration": dict[str, CalibrationRun],
    "model.name": str,
    "model.architecture": str,
    "model.fingerprint": str,
    "model.dtype": str,
    "corpus.name": str,
    "corpus.digest": str,
    "corpus.documents": int,
    "generation.set_aside": dict[str, Any],
    "kernel": str,
    "device": str,
    "sparsity": Sparsity,
    "vocabulary": VocabularySection,
    **{f"environment.{name}": kind for name, kind in ENVIRONMENT.items()},
    "warnings": list[str],
    "reasons": dict[str, str],
}
"""Fields that are no metric's."""
OPTIONAL = {"vocabulary"}
"""Sections that only a method writes: they are not there where no method of the stack does."""


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of result.json.

    Every field may be null, but for the first ones: `reasons` says why one is. A command adds
    `overrides` and `options`; a method of one's own any section, which the schema does not tell.
    """
    fields = dict(HEAD)
    for metric in metrics_of(METRICS):
        fields |= metric.fields
    return _model("result", fields).model_json_schema()


def _model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    """Return the model of the fields with these dotted names, those of a section in one of its own.

    Raises
    ------
    ValueError
        If a name is a field's and a section's at once.
    """
    own = {field: kind for field, kind in fields.items() if "." not in field}
    sections: dict[str, dict[str, Any]] = {}
    for field, kind in fields.items():
        section, dot, rest = field.partition(".")
        if dot:
            sections.setdefault(section, {})[rest] = kind
    if both := own.keys() & sections.keys():
        raise ValueError(f"{', '.join(sorted(both))}: a field and a section at once")
    kinds = own | {section: _model(section, rest) for section, rest in sections.items()}
    never_null = kinds.keys() & {"schema", "status", "label", "methods", "warnings", "reasons"}
    # By an alias, as a model has attributes of its own, `schema` among them.
    found: dict[str, Any] = {
        f"field_{field}": (
            kind if field in never_null else kind | None,
            Field(None if field in OPTIONAL else ..., alias=field),
        )
        for field, kind in kinds.items()
    }
    return create_model(name, __config__=ConfigDict(extra="allow"), **found)
