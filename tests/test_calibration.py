"""Artifacts found, or the command that makes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import tiny
from toolkit.adaptivocab import AdaptiVocab
from toolkit.calibration import find
from toolkit.corpus import Corpus
from toolkit.errors import ArtifactError
from toolkit.larosa import LaRoSA


@pytest.mark.parametrize("method", [AdaptiVocab(max_bpb_increase=None), LaRoSA()])
def test_a_missing_artifact_comes_with_a_command_that_makes_it(
    method, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=f"no artifact of {method.name}") as error:
        find(tiny(), method, corpus, tmp_path)
    (command,) = re.findall(r"calibrate\.py (.*) and the same model", str(error.value))
    overrides = OverridesParser.create().parse_overrides(command.split())
    values = {one.key_or_group: one.value() for one in overrides}
    assert values.pop("method") == method.name
    assert values == method.config()
