import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from trimtab.errors import ConfigError, TrimtabError
from trimtab.files import (
    canonical_json,
    publishing,
    replacing,
    require_artifacts,
    require_writable,
    save_tensors,
    temporary_folder,
    write_json,
)


def test_a_file_is_replaced_only_when_the_block_succeeds(tmp_path):
    path = tmp_path / "folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_appears_only_when_the_block_succeeds(tmp_path):
    with pytest.raises(RuntimeError), publishing(tmp_path / "a") as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with publishing(tmp_path / "a") as temporary:
        (temporary / "whole").write_text("x")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("write", [replacing, publishing])
def test_a_place_that_cannot_be_is_named_and_no_temporary_one(tmp_path, write):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "a", Path("/proc/nowhere")):
        with pytest.raises(OSError, match="nowhere|file") as found, write(place):
            pass
        assert found.value.filename == str(place)


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left"),
    SafetensorError("I/O error: No space left"),
    Exception("No space left on device (os error 28)"),  # as tokenizers says it
])  # fmt: skip
def test_a_temporary_folder_without_room_is_one_line(error):
    with pytest.raises(TrimtabError, match=r"No space left.*; set TMPDIR"), temporary_folder():
        raise error


def test_what_else_fails_beside_a_temporary_folder_stays_what_it_is(tmp_path):
    errors = OSError(errno.ENOSPC, "No space left", str(tmp_path)), Exception("os error"), OSError()
    for error in errors:
        with pytest.raises(type(error)) as found, temporary_folder() as folder:
            (folder / "file").touch()
            raise error
        assert found.value is error
        assert not folder.exists()


@pytest.mark.parametrize("write", [replacing, publishing])
def test_a_full_disk_is_named_by_its_folder(tmp_path, write):
    for error in (OSError(errno.ENOSPC, "No space left"), SafetensorError("I/O error: No space")):
        with pytest.raises(OSError, match="No space") as found, write(tmp_path / "a" / "b"):
            raise error
        assert found.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="Bad file") as found, write(tmp_path / "a" / "b"):
        raise OSError(errno.EBADF, "Bad file descriptor")
    assert found.value.filename is None


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert canonical_json({"b": 1, "a": [0.1, "é"]}) == canonical_json({"a": [0.1, "é"], "b": 1})
    assert canonical_json({"a": 1}) != canonical_json({"a": 2})


def test_json_that_no_reader_could_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"value": float("inf")})
    assert list(tmp_path.iterdir()) == []


def test_views_of_one_tensor_are_saved_as_their_content(tmp_path):
    from safetensors.torch import load_file

    base = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "x.safetensors", {"transposed": base.T, "row": base[0]})
    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["transposed"], base.T)
    assert torch.equal(loaded["row"], base[0])


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_followed(tmp_path, there):
    if there:
        (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    for text in ("first", "second"):
        with publishing(tmp_path / "link", replace=True) as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "file").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_what_a_link_leads_to_can_be_written_or_not(tmp_path):
    (tmp_path / "link").symlink_to("not there yet")
    require_writable("artifacts", tmp_path / "link")
    (tmp_path / "broken").symlink_to("/proc/nothing")
    with pytest.raises(ConfigError, match=r"artifacts=.*broken: cannot be written: .*name a"):
        require_writable("artifacts", tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "link"]


def test_artifacts_are_found_where_none_can_be_written(tmp_path, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigError, match="artifacts=.*: cannot be written: Read-only"):
        require_artifacts(tmp_path)
    folder = tmp_path / "model" / "method" / "digest"
    folder.mkdir(parents=True)
    (folder / "artifact.json").touch()
    require_artifacts(tmp_path)


def test_a_folder_without_room_for_a_few_small_files_is_refused(tmp_path):
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written: File too large; name a folder"):
            require_writable("hydra.run.dir", tmp_path / "job")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    require_writable("hydra.run.dir", tmp_path / "job")
    assert not any(tmp_path.iterdir())


def test_a_mount_point_is_refused_before_anything_is_written():
    refused = pytest.raises(OSError, match="mounted there: name a folder within it")
    with refused, publishing(Path("/proc")):
        pytest.fail("not refused")


def test_an_empty_folder_is_published_into_and_a_full_one_is_kept(tmp_path):
    (tmp_path / "made").mkdir()
    for text in ("first", "second"):
        with publishing(tmp_path / "made") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "made" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
