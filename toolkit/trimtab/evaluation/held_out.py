"""Whether the text of a measurement is new to what is measured, and read as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from trimtab.artifact import Artifact
from trimtab.corpora import Document
from trimtab.corpus import Split, encode
from trimtab.evaluation.workload import Window


def seen_before(documents: Sequence[Document], artifacts: Mapping[str, Artifact]) -> str | None:
    """Return a warning of documents that a calibration has read, None where there are none.

    A copy with other line ends, or other white space at the ends of lines and of the text, is read
    too.

    Parameters
    ----------
    artifacts : mapping of str to Artifact
        By the method's name.
    """
    marks = [{document.digest, document.likeness} for document in documents]
    read = {name: _marks(artifact) for name, artifact in artifacts.items()}
    everything = set().union(*read.values())
    if not (seen := [own for own in marks if own & everything]):
        return None
    methods = " and ".join(name for name, found in read.items() if any(own & found for own in seen))
    return (
        f"{len(seen)} of the {len(documents)} texts measured on were read by the calibration of "
        f"{methods}: the figures may be better than on new text; measure on others"
    )


def _marks(artifact: Artifact) -> set[str]:
    """Return the digests of what a calibration has read, and the likenesses where it has any."""
    kept = artifact.corpus["documents"], artifact.corpus.get("likenesses", {})
    splits = Split.calibration, Split.validation
    return {mark for part in kept for split in splits for mark in part.get(split, ())}


def read_otherwise(windows: Sequence[Window], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a warning of scored text that its tokens are not, None where all of it is.

    A space that the tokenizer puts before a text, or takes from there, is none.
    """
    changed = [one for one in windows if not _same(one.text, tokenizer)]
    if not changed:
        return None
    return (
        f"{len(changed)} of the {len(windows)} scored windows are read as another text: the "
        "tokenizer changes characters or has no token for some. Bits per byte are those of the "
        "text as it is read, over the bytes of the original: compare them between models with "
        "this tokenizer alone"
    )


def _same(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    read = tokenizer.decode(encode(tokenizer, text), clean_up_tokenization_spaces=False)
    return str(read).lstrip() == text.lstrip()
