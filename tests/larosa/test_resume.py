import pytest
import torch
from safetensors.torch import load_file

import toolkit.larosa.calibrate as calibration
from tests.conftest import tiny
from toolkit.larosa import LaRoSA, Selection

METHOD = LaRoSA(selection=Selection.threshold, tokens=512, window=64)


class KilledError(BaseException):
    """Stands for a kill: no handler within the toolkit may catch it."""


def calibrate(corpus, checkpoint):
    loaded = tiny()
    return METHOD.calibrate(loaded.model, loaded.tokenizer, corpus, checkpoint)


@pytest.mark.parametrize("write", range(6))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_calibration_killed_at_any_write_resumes_to_the_same_bits(
    corpus, tmp_path, monkeypatch, write, moment
):
    """Three layers make six writes: the tensors of each, then the hidden states it leaves."""
    expected = calibrate(corpus, tmp_path / "undisturbed")
    writes = 0

    def dying(path, tensors, **metadata):
        nonlocal writes
        if writes == write and moment == "before":
            raise KilledError
        save(path, tensors, **metadata)
        if writes == write:
            raise KilledError
        writes += 1

    save = calibration.save_tensors
    monkeypatch.setattr(calibration, "save_tensors", dying)
    with pytest.raises(KilledError):
        calibrate(corpus, tmp_path / "killed")
    monkeypatch.setattr(calibration, "save_tensors", save)
    resumed = calibrate(corpus, tmp_path / "killed")
    assert resumed.statistics == expected.statistics
    assert resumed.tensors.keys() == expected.tensors.keys()
    assert all(
        torch.equal(resumed.tensors[name], expected.tensors[name]) for name in expected.tensors
    )


def test_resuming_skips_what_was_finished(corpus, tmp_path, monkeypatch):
    calibrate(corpus, tmp_path)
    monkeypatch.setattr(calibration, "_calibrate_layer", None)  # any layer computed again fails
    calibrate(corpus, tmp_path)


def test_damaged_hidden_states_are_computed_again(corpus, tmp_path):
    expected = calibrate(corpus, tmp_path)
    path = tmp_path / calibration.HIDDEN
    path.write_bytes(path.read_bytes()[:100])
    again = calibrate(corpus, tmp_path)
    assert all(
        torch.equal(again.tensors[name], expected.tensors[name]) for name in expected.tensors
    )
    assert load_file(path)["hidden"].shape == (8, 64, 64)
