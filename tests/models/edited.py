"""What has to happen to a model that was edited by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import ArtifactError, MisfitError


def check_refused(
    method: Any, loaded: Any, corpus: Any, folder: Path, edit: Callable[[Any], object], told: str
) -> None:
    """Edit a model: an older artifact is not applied to it, its own is, and it is not exported.

    Parameters
    ----------
    edit : callable
        Returns the name of what it has changed.
    told : str
        A pattern of what the error says of that.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    older = method.calibrate(model, tokenizer, corpus)
    name = edit(model)
    with pytest.raises(ArtifactError, match="belongs to another model"):
        method.apply(model, tokenizer, older)
    own = method.calibrate(model, tokenizer, corpus)
    with method.apply(model, tokenizer, own):
        pass
    with pytest.raises(MisfitError, match=f"^{name}{told}"):
        own.export(model, folder, tokenizer)
    assert not folder.exists()
