from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny
from trimtab.artifact import Artifact
from trimtab.larosa import LaRoSA, RotationScope, checkpoint

# Every kind of file: moments, hidden states, gradients, residual rotations and costs.
METHOD = LaRoSA(
    sparsity=0.5, residual=RotationScope.group, group=2, tokens=512, window=64, probe_tokens=128
)


class KilledError(BaseException):
    """Stands for a kill: no handler within the toolkit may catch it."""


class Disk:
    """Notes what is written; fails at one write, before or after it happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fatal: int | None = None
        self.afterwards = False
        self.written: list[str] = []
        save = checkpoint.save_tensors

        def write(path, tensors, **metadata):
            dies = len(self.written) == self.fatal
            if dies and not self.afterwards:
                raise KilledError
            save(path, tensors, **metadata)
            self.written.append(f"{path.parent.name}/{path.stem}")
            if dies:
                raise KilledError

        monkeypatch.setattr(checkpoint, "save_tensors", write)

    def dies_at(self, write: int, *, afterwards: bool) -> None:
        self.fatal, self.afterwards, self.written = write, afterwards, []

    def works(self) -> None:
        self.fatal, self.written = None, []


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def calibrated(corpus, folder: Path) -> Artifact:
    loaded = tiny()
    return METHOD.calibrate(loaded.model, loaded.tokenizer, corpus, folder)


def assert_same(found: Artifact, expected: Artifact) -> None:
    assert found.statistics == expected.statistics
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in found.tensors)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> tuple[Artifact, Path]:
    """Return an artifact, and the checkpoint folder of its calibration."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return calibrated(corpus, folder), folder


def test_every_layer_leaves_its_files(corpus, tmp_path, disk):
    calibrated(corpus, tmp_path)
    layers = ["000", "001", "002"]
    expected = [f"{kind}/{n}" for kind in ("moments", "entering", "costs") for n in layers]
    expected += [f"fisher/{n}" for n in layers] + ["residual/000", "residual/002"]
    expected += ["moments/front"] * 3 + ["fisher/front"] * 3
    assert sorted(disk.written) == sorted(expected)


def test_no_tensor_of_an_artifact_is_mapped_from_the_checkpoint(corpus, tmp_path):
    """It is removed at the end, and with it, on some network file systems, what is mapped."""
    artifact = calibrated(corpus, tmp_path)
    gc.collect()
    assert artifact.tensors
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("write", "afterwards"),
    [
        (0, False),  # the very first file
        (3, True),  # moments of the second layer, without the hidden states that go with them
        (8, False),  # all moments but for the note that they are complete
        (8, True),
        (11, True),  # gradients of the middle layer, before the note
        (12, True),
        (15, True),  # the rotation of the first group, before that of the second
        (19, False),  # the last costs
    ],
)
def test_a_calibration_killed_at_a_write_resumes_to_the_same_bits(
    corpus, tmp_path, disk, undisturbed, write, afterwards
):
    disk.dies_at(write, afterwards=afterwards)
    with pytest.raises(KilledError):
        calibrated(corpus, tmp_path)
    disk.works()
    assert_same(calibrated(corpus, tmp_path), undisturbed[0])


def test_killed_again_and_again_it_ends_in_the_same_bits_and_finishes_a_layer_each_time(
    corpus, tmp_path, disk, undisturbed
):
    """No life writes more than a layer's three files, with the note that it is complete."""
    complete: list[str] = []
    artifact = None
    for _ in range(20):
        disk.dies_at(3, afterwards=False)
        try:
            artifact = calibrated(corpus, tmp_path)
            break
        except KilledError:
            again = [name for name in disk.written if name in complete]
            assert again == []
            kinds = ("moments", "costs", "residual")  # what nothing has to follow
            complete += [name for name in disk.written if name.startswith(kinds)]
            complete = [name for name in complete if not name.endswith("front")]
        assert len(complete) <= 8
    assert len(complete) > 4
    assert artifact is not None
    assert_same(artifact, undisturbed[0])


def test_a_finished_calibration_is_not_computed_again(corpus, tmp_path, disk, undisturbed):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[1], folder)
    disk.dies_at(0, afterwards=False)
    assert_same(calibrated(corpus, folder), undisturbed[0])
    assert disk.written == []


@pytest.mark.parametrize("left", [100, 3, 0, None, -1], ids=str)
@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("moments/front", "moments entering"),
        ("moments/000", "moments entering"),
        ("entering/001", "moments entering"),
        ("fisher/front", "fisher"),
        ("fisher/001", "fisher"),
        ("residual/002", "residual costs"),
        ("costs/000", "residual costs"),
    ],
)
def test_what_a_pass_left_damaged_it_finds_again(
    corpus, tmp_path, disk, undisturbed, capsys, name, again, left
):
    """Of a file there may be none, a part, or zeros where something was."""
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[1], folder)
    path = folder / f"{name}.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(bytes(len(whole)) if left < 0 else whole[:left])
    assert_same(calibrated(corpus, folder), undisturbed[0])
    found = {written.partition("/")[0] for written in disk.written}
    if left is None:  # not known to have been there, but for those that a front says are done
        assert found <= set(again.split())
    else:
        assert found == set(again.split())
        assert f"{name}.safetensors is lost or damaged" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_costs_of_a_layer_between_others_that_are_lost_are_counted_again(
    corpus, tmp_path, disk, undisturbed
):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[1], folder)
    (folder / "costs" / "001.safetensors").unlink()
    assert_same(calibrated(corpus, folder), undisturbed[0])
    assert disk.written == ["costs/001", "costs/002"]
