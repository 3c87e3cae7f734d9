"""What a calibration of AdaptiVocab finds, as tensors and files of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trimtab.adaptivocab.drafting.drafter import ContextDrafter
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.extended import NewRows
from trimtab.adaptivocab.tokenizer.extender import load_tokenizer
from trimtab.artifact import Artifact
from trimtab.files import temporary_folder

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Vocabulary:
    """N-grams that are tokens, and what proposes drafts.

    Parameters
    ----------
    merged : NGrams
        The n-grams that are tokens; none in draft mode.
    rows : NewRows or None
        Their rows; None without any.
    tokenizer : PreTrainedTokenizerBase or None
        The extended tokenizer; None without any.
    drafter : ContextDrafter or None
        What proposes drafts while generating; None where nothing does.
    """

    merged: NGrams
    rows: NewRows | None
    tokenizer: PreTrainedTokenizerBase | None
    drafter: ContextDrafter | None

    def to_tensors(self) -> dict[str, Tensor]:
        tensors = {
            "base_size": torch.tensor([self.merged.base_size]),
            "merged": self.merged.to_tensor(),
        }
        if self.rows:
            tensors |= {f"rows.{name}": part for name, part in self.rows.to_tensors().items()}
        if self.drafter:
            tensors |= {f"drafter.{name}": part for name, part in self.drafter.to_tensors().items()}
        return tensors

    def to_files(self) -> dict[str, bytes]:
        """Return the files of the extended tokenizer."""
        if self.tokenizer is None:
            return {}
        with temporary_folder() as folder:
            self.tokenizer.save_pretrained(folder)
            return {
                f"{TOKENIZER}/{path.relative_to(folder)}": path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> Vocabulary:
        """Undo `to_tensors` and `to_files`."""
        rows, drafter = (_under(artifact.tensors, part) for part in ("rows", "drafter"))
        return cls(
            NGrams.from_tensor(int(artifact.tensors["base_size"]), artifact.tensors["merged"]),
            NewRows(**rows) if rows else None,
            _load(artifact.files) if artifact.files else None,
            ContextDrafter.from_tensors(drafter) if drafter else None,
        )


def _under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _load(files: Mapping[str, bytes]) -> PreTrainedTokenizerBase:
    with temporary_folder() as folder:
        for path, content in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return load_tokenizer(folder / TOKENIZER)
