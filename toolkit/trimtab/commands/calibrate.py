"""Calibrate a method, or what a stack needs: configuration in, the artifacts' folders out."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trimtab.commands.check import checked, methods_of
from trimtab.commands.launch import choices, launch
from trimtab.commands.messages import one_line, stop
from trimtab.commands.parsing import MULTIRUN
from trimtab.commands.sweep import own_settings, sweep_name, without_foreign
from trimtab.commands.torchrun import is_launched, one_speaks
from trimtab.config import CalibrateConfig, TrackingMode
from trimtab.errors import TrimtabError
from trimtab.progress import answer, waiting

if TYPE_CHECKING:
    from trimtab.stack import Stack

NO_SWEEP = "-m: torchrun's processes share one calibration: give every job a command of its own"


def run(config: DictConfig) -> None:
    """Calibrate as `config` says and print the artifacts' folders, one a line.

    The artifacts of a stack are made in the order in which evaluating it would need them, each on
    the model that the methods before make.
    """
    config = without_foreign(config, HydraConfig.get())
    settings = checked(config, CalibrateConfig)
    # Heavy imports wait until the configuration is known to be sound.
    with waiting("Importing PyTorch and transformers"):
        from trimtab import shards
        from trimtab.stack import Stack

    stack = Stack(methods_of(settings))
    with shards.joined():
        _calibrate(config, settings, stack)


def _calibrate(config: DictConfig, settings: CalibrateConfig, stack: Stack) -> None:
    """Calibrate the methods of a stack, and print the artifacts' folders."""
    from trimtab import shards, tracking
    from trimtab.calibration import artifacts_for
    from trimtab.corpus import load_corpus
    from trimtab.environment import prepare
    from trimtab.files import require_artifacts
    from trimtab.models.loading import load_model

    tracked = settings.tracking
    if not shards.writes():
        tracked = replace(tracked, mode=TrackingMode.disabled)
    tracking.check(tracked)
    require_artifacts(settings.artifacts)
    prepare(settings.seed, settings.threads)
    corpus = load_corpus(settings.corpus)
    model = load_model(settings.model)
    given = [one.lstrip("+") for one in HydraConfig.get().overrides.task]
    changed = [one.partition(".")[2] for one in given if one.startswith(("method.", "methods."))]
    job = tracking.Job(
        "calibrate",
        name=" ".join([*stack.names, *changed, *own_settings(HydraConfig.get())]),
        config=tracking.configuration(config, choices()),
        tags=tuple(stack.names),
        group=sweep_name(),
    )
    with tracking.run(tracked, job, one_line) as log:
        stack.check(model.model)
        log.begin(model.name)
        made = artifacts_for(
            stack, model, corpus, settings.artifacts, make=True, force=settings.force
        )
        for artifact in made.values():
            folder = artifact.key.folder(settings.artifacts, model.name)
            log.artifact(artifact, folder)
            answer(str(folder))


def main() -> None:
    """Enter from the command line, or as one of the processes that torchrun started."""
    with one_speaks():
        if is_launched() and {*MULTIRUN} & {*sys.argv}:
            stop(TrimtabError(NO_SWEEP))
        launch(run, "calibrate")


if __name__ == "__main__":
    main()
