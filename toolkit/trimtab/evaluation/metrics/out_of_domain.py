"""How well the models predict text of another domain than what they are measured on."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import TypedDict

from trimtab.config import QualityConfig
from trimtab.corpora import Document
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Column
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.metric import Metric, Rows, names
from trimtab.evaluation.metrics.scores import BitsPerByte, bits_per_byte, score_rows
from trimtab.evaluation.result import Result
from trimtab.evaluation.scoring import Score
from trimtab.evaluation.workload import Window, windows_of
from trimtab.progress import track
from trimtab.windows import evenly

TEXT = f"source files of the standard library of Python {platform.python_version()}"
NAME = "quality.out_of_domain"


class Section(TypedDict):
    """What `quality.out_of_domain` holds."""

    bits_per_byte: BitsPerByte
    text: str
    windows: int


class OutOfDomain(Metric):
    """Bits per byte of Python's own source."""

    reads_weights = True
    generates = True
    columns = (
        Column(
            "other domain",
            "quality.out_of_domain.bits_per_byte.difference",
            "+.4f",
            "change of bits per byte on source files of Python's standard library",
        ),
    )
    fields: ClassVar[dict[str, Any]] = {NAME: Section, "samples.out_of_domain": Rows}

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        quality = job.settings.quality
        self.windows = source_windows(quality)
        job.require_positions(
            ((one.context, one.text) for one in self.windows),
            f"quality.window_bytes={quality.window_bytes}",
        )
        self.scores: dict[str, list[Score]] = {"baseline": [], "candidate": []}

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        windows = self.windows
        for window in track(windows, f"Another domain's text: {names(contenders)}", len(windows)):
            for one in contenders:
                self.scores[one.name].append(replace(one.score(window), log_probs=None))

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        settings = self.job.settings
        if len(self.windows) < 2:
            result.missing(NAME, _too_few(settings.quality))
        else:
            found = bits_per_byte(self.scores["baseline"], self.scores["candidate"], settings.seed)
            count = len(self.windows)
            result.put(NAME, {"bits_per_byte": found, "text": TEXT, "windows": count})
        result.put("samples.out_of_domain", score_rows(self.windows, self.scores))


def source_windows(quality: QualityConfig) -> list[Window]:
    """Return `quality.out_of_domain_windows` windows of Python's own source.

    Fewer where there are not as many: none, where the running Python comes without its source.
    """
    if quality.out_of_domain_windows == 0:
        return []
    documents = [Document(path.name, path.read_text("utf-8", "ignore")) for path in _files()]
    found = list(windows_of(documents, quality.window_bytes, quality.context_bytes))
    return evenly(found, min(quality.out_of_domain_windows, len(found)))


def _files() -> list[Path]:
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def _too_few(quality: QualityConfig) -> str:
    """Return why there are not two windows."""
    if quality.out_of_domain_windows == 0:
        return "quality.out_of_domain_windows=0"
    if not _files():
        return f"this Python comes without the {TEXT}"
    return f"quality.window_bytes={quality.window_bytes}: the {TEXT} hold fewer than 2 such windows"
