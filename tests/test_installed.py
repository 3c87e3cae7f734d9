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
    templates = (ROOT / "toolkit/trimtab/report/templates").iterdir()
    assert {f"trimtab/report/templates/{path.name}" for path in templates} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "trimtab", "trimtab_kernels", "hydra_plugins"
    }  # fmt: skip
    assert "hydra_plugins/__init__.py" not in names  # it is Hydra's and other plugins' too
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
    assert "project: ${tracking_default:WANDB_PROJECT,project}" in done.stdout
    assert list(work.iterdir()) == []


def test_from_a_wheel_other_packages_of_our_folders_names_are_theirs(wheel, tmp_path):
    site, others = tmp_path / "site", tmp_path / "others"
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("kernels", "evaluate", "toolkit"):
        (others / name).mkdir(parents=True)
        (others / name / "__init__.py").write_text("__version__ = '0.0.1'\nWHOSE = 'theirs'\n")
    code = (
        "import evaluate, kernels, toolkit, trimtab, trimtab_kernels\n"
        "from transformers import LlamaForCausalLM\n"
        "print(evaluate.WHOSE, kernels.WHOSE, toolkit.WHOSE)\n"
        "print(trimtab.__file__, trimtab_kernels.__file__, trimtab.LaRoSA.__module__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{others}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "theirs theirs theirs"
    assert all(place.startswith(str(site)) for place in second.split()[:2])
