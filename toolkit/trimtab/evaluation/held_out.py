"""Whether the text of a measurement is new to what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab.artifact import Artifact
from trimtab.corpora import Document
from trimtab.corpus import Split


def seen_before(documents: Sequence[Document], artifacts: Mapping[str, Artifact]) -> str | None:
    """Return a warning of documents that a calibration has read, None where there are none.

    Parameters
    ----------
    artifacts : mapping of str to Artifact
        By the method's name.
    """
    read = {
        name: {
            digest
            for split in (Split.calibration, Split.validation)
            for digest in artifact.corpus["documents"][split]
        }
        for name, artifact in artifacts.items()
    }
    digests = {document.digest for document in documents}
    if not (seen := digests & set().union(*read.values())):
        return None
    methods = " and ".join(name for name, own in read.items() if own & digests)
    return (
        f"{len(seen)} of the {len(digests)} texts measured on were read by the calibration of "
        f"{methods}: the figures may be better than on new text; measure on others"
    )
