"""The wheel: what is in it, and that its commands work from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("trimtab-*.whl")
    return built


def test_it_holds_the_packages_and_the_configuration_and_shadows_nothing(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configuration = {str(path.relative_to(ROOT)) for path in ROOT.glob("conf/**/*.yaml")}
    assert {f"trimtab/{name}" for name in configuration} <= names
    assert "trimtab/models/shapes.yaml" in names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "trimtab", "trimtab_kernels"
    }  # fmt: skip
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "trimtab-calibrate = trimtab.commands.calibrate:main" in text
    assert "trimtab-evaluate = trimtab.commands.evaluate:main" in text


@pytest.mark.parametrize("name", ["calibrate", "evaluate"])
def test_the_installed_commands_find_their_configuration_anywhere(wheel, tmp_path, name):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", f"from trimtab.commands.{name} import main; main()", "--cfg", "job"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "project: trimtab" in done.stdout
    assert list(work.iterdir()) == []
