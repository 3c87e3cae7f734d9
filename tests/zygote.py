"""A Python that has imported the heavy packages already, and forks the processes of tests.

PyTorch, transformers, W&B and matplotlib take seconds to import, longer than most commands of the
tests run. `Zygote` starts one process that imports them, nothing of Trimtab, and does no work, so
that it is safe to fork. Each child takes the folder, the variables, the arguments and the standard
streams of a command, imports Trimtab and runs the script as ``__main__``.

Variables that those packages read while they are imported, such as ``OMP_NUM_THREADS``, are those
that the zygote was started with, and a child does not take the interpreter down when it ends. A
test that is about one of these, or about starting up, needs a Python of its own.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

HEAVY = (
    "torch", "torch._dynamo", "accelerate", "gguf", "hydra", "matplotlib.figure", "rich.progress",
    "safetensors.torch", "scipy.optimize", "scipy.stats", "transformers",
    "transformers.models.gemma2.modeling_gemma2", "transformers.models.gemma3.modeling_gemma3",
    "transformers.models.llama.modeling_llama", "transformers.trainer_utils", "wandb.sdk.launch",
)  # fmt: skip


class Zygote:
    """Runs one command at a time, each with the variables in `environment` unless it has others."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._child: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],  # -P: what is beside this file hides no package
            env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
            bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        """Run ``python SCRIPT ...``, ``-m MODULE ...`` or ``-c CODE ...`` to its end."""
        with tempfile.TemporaryDirectory() as output:
            self.start(*arguments, cwd=cwd, output=Path(output), **environment)
            code = self.wait(300)
            self.kill()
            assert code is not None, f"{arguments} still ran after five minutes"
            streams = [Path(output, name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, code, *streams)

    def start(self, *arguments: str, cwd: Path, output: Path, **environment: str) -> None:
        """Start a command that writes to the files stdout and stderr in the folder `output`."""
        variables = {**self._environment, **environment}
        request = json.dumps([arguments, str(cwd), str(output), variables])
        self._process.stdin.write(f"{request}\n".encode())
        self._child = int(self._process.stdout.readline())

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, negative for a signal; None if it still runs after that time."""
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        self._child = None
        return int(self._process.stdout.readline())

    def kill(self) -> None:
        """End what is running at once, if anything is."""
        if self._child is not None:
            with suppress(ProcessLookupError):  # it has ended, and nobody has waited for it
                os.kill(self._child, signal.SIGKILL)
            self.wait(60)

    def close(self) -> None:
        """End the zygote, and what is running with it."""
        self.kill()
        self._process.communicate()


def become(arguments: list[str], cwd: str, output: str, environment: dict[str, str]) -> None:
    """Go on as the process that a request describes."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    tempfile.tempdir = output  # folders for media that W&B makes are not removed in a child
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        file = os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
    script, *rest = arguments
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    own = script in ("-c", "-m")
    sys.path[:0] = [cwd if own else str(Path(script).parent), *filter(None, path)]
    if own:
        sys.argv = [script, *rest[1:]]
    if script == "-c":
        exec(rest[0], {"__name__": "__main__"})
    elif script == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(script, run_name="__main__")


def main() -> None:
    """Import, then answer each request with a child's id and, once it has ended, its exit code."""
    for name in HEAVY:
        import_module(name)
    gc.collect()
    gc.freeze()  # what is there is never looked at again, by no child's collections either
    for line in iter(sys.stdin.readline, ""):
        child = get_context("fork").Process(target=become, args=json.loads(line))
        child.start()
        print(child.pid, flush=True)
        child.join()
        print(child.exitcode, flush=True)
    gc.unfreeze()


if __name__ == "__main__":
    main()
