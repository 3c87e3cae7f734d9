"""A checkout first on the path, or the wheel, hides no other package; ours are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NAMES = "kernels", "evaluate"
CHECK = """
import evaluate, kernels
print(evaluate.WHOSE, kernels.WHOSE)
from transformers import LlamaForCausalLM
import trimtab, trimtab_kernels
"""


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """Return a folder of packages that have the names of Hugging Face's."""
    folder = tmp_path_factory.mktemp("site")
    for name in NAMES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(
            # transformers looks for these in the package `kernels`.
            f"WHOSE = 'theirs'\n__version__ = '0.0.1'\nNAME = '{name}'\n"
        )
    return folder


def python(path: list[Path], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The virtual environment's own packages come last, as those of a system might.
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True
    )


def test_with_the_checkout_first_on_the_path(stand_ins, tmp_path):
    done = python([ROOT, stand_ins], "-c", CHECK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["theirs", "theirs"]


def test_from_within_the_checkout(stand_ins):
    done = python([stand_ins], "-c", CHECK, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["theirs", "theirs"]


def test_where_hugging_faces_packages_are_not_installed():
    code = (
        "from importlib.util import find_spec\n"
        "import transformers.utils\n"
        "try:\n    import evaluate\nexcept ModuleNotFoundError as error:\n    print(error.name)\n"
        "from transformers import LlamaForCausalLM\n"
    )
    done = python([ROOT], "-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() in (["evaluate"], [])  # nothing where it is installed


@pytest.mark.parametrize("script", ["calibrate.py", "evaluate.py"])
def test_the_scripts_drop_their_own_folder_from_the_path(stand_ins, tmp_path, script):
    """A method that imports Hugging Face's packages gets those."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "@atexit.register\n"
        "def check():\n"
        "    import evaluate, kernels\n"
        "    print(evaluate.WHOSE, kernels.WHOSE, file=sys.stderr)\n"
    )
    done = python([tmp_path, stand_ins], str(ROOT / script), "--cfg", "job", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == ["theirs", "theirs"]
