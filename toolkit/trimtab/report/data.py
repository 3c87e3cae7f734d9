"""The figures of all jobs for programs: results.csv and comprehensive_benchmark_results.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from trimtab.files import flatten, is_table
from trimtab.report.attribution import Attribution, missing, wholes
from trimtab.report.claims import claims
from trimtab.report.job import Job
from trimtab.report.published import comparisons

SCHEMA = 1


def csv_table(jobs: Sequence[Job]) -> str:
    """Return every scalar field of every job, one row a job, under its dotted name.

    What is null in every job has no column.
    """
    rows = [_scalars({**job.content, "label": job.label}) for job in jobs]
    names = list(dict.fromkeys(name for row in rows for name in row if row[name] is not None))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_summary(
    jobs: Sequence[Job], rows: Sequence[Job], attributed: Sequence[Attribution]
) -> str:
    """Return all jobs without raw samples, the rows of the report and the attribution.

    `rows` holds the means of jobs that differ in their seed alone; all other rows are jobs.
    """
    content = {
        "schema": SCHEMA,
        "jobs": [_without_samples(job) for job in jobs],
        "rows": [{**_without_samples(row), "seeds": list(row.seeds)} for row in rows if row.seeds],
        "attribution": [_attribution(one) for one in attributed],
        "not_attributed": [
            {"label": whole.label, "missing": [list(part) for part in missing(whole, rows)]}
            for whole in wholes(rows)
            if missing(whole, rows)
        ],
        "published": [
            {
                "method": one.published.method,
                "source": one.published.source,
                "setting": one.published.setting,
                "quantity": one.published.quantity,
                "published": one.published.figure,
                "label": one.row.label,
                "field": one.published.field,
                "measured": one.measured,
                "reason": one.reason,
                "mark": one.mark or None,
            }
            for one in comparisons(rows)
        ],
        "claims": [
            {
                "label": one.row.label,
                "claim": one.claim,
                "amounts": one.amounts,
                "change": one.change,
                "answer": one.answer,
            }
            for one in claims(rows)
        ],
        "machines": _machines(jobs),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _without_samples(job: Job) -> dict[str, Any]:
    content = {name: item for name, item in job.content.items() if name != "samples"}
    return {**content, "label": job.label}


def _attribution(one: Attribution) -> dict[str, Any]:
    value, start = one.metric.value, one.start
    return {
        "label": one.whole.label,
        "metric": one.metric.key,
        "scale": "log" if one.metric.multiplies else "linear",
        "baseline": start,
        "candidate": one.end,
        "effects": [
            {
                "kind": effect.kind,
                "method": effect.method or None,
                "change": effect.change,
                "low": effect.low,
                "high": effect.high,
                "mark": effect.mark or None,
                "difference": value(start, effect.change) - start,
            }
            for effect in one.effects
        ],
    }


def _machines(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return what jobs ran on, each once, with the labels of its jobs."""
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        if job.ok:
            facts = {
                name: item
                for name, item in job.content["environment"].items()
                if name not in ("seed", "load")
            }
            key = json.dumps(facts, sort_keys=True)
            found.setdefault(key, {**facts, "labels": []})["labels"].append(job.label)
    return list(found.values())


def _scalars(content: dict[str, Any]) -> dict[str, Any]:
    figures = {name: item for name, item in content.items() if name not in ("samples", "reasons")}
    return {
        name: " ".join(map(str, item)) if isinstance(item, list) else item
        for name, item in flatten(figures).items()
        if not is_table(item)
    }
