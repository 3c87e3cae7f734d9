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
    read = {
        name: {
            likeness
            for split in (Split.calibration, Split.validation)
            for likeness in artifact.corpus["documents"][split]
        }
        for name, artifact in artifacts.items()
    }
    likenesses = {document.likeness for document in documents}
    if not (seen := likenesses & set().union(*read.values())):
        return None
    methods = " and ".join(name for name, own in read.items() if own & likenesses)
    return (
        f"{len(seen)} of the {len(likenesses)} texts measured on were read by the calibration of "
        f"{methods}: the figures may be better than on new text; measure on others"
    )


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
