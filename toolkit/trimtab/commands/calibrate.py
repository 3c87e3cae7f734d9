"""Calibrate a method: configuration in, the artifact's folder out."""

from __future__ import annotations

from omegaconf import DictConfig

from trimtab.commands.launch import launch, typed
from trimtab.config import CalibrateConfig
from trimtab.errors import TrimtabError
from trimtab.method import NOT_CALIBRATED, Method
from trimtab.progress import answer, waiting
from trimtab.registry import build


def run(config: DictConfig) -> None:
    """Calibrate as `config` says and print the artifact's folder on standard output."""
    settings = typed(config, CalibrateConfig)
    # Heavy imports wait until the configuration is known to be sound.
    with waiting("Importing PyTorch and transformers"):
        from trimtab import tracking
        from trimtab.calibration import calibrate
        from trimtab.corpus import load_corpus
        from trimtab.environment import prepare
        from trimtab.files import require_writable
        from trimtab.models.loading import load_model

    method = build(settings.method, Method)
    if not method.calibrated:
        raise TrimtabError(NOT_CALIBRATED.format(name=method.name))
    tracking.check(settings.tracking)
    require_writable("artifacts", settings.artifacts)
    prepare(settings.seed, settings.threads)
    corpus = load_corpus(settings.corpus)
    model = load_model(settings.model)
    with tracking.run(settings.tracking, "calibrate", config, group=None) as log:
        artifact, folder = calibrate(
            model, method, corpus, settings.artifacts, force=settings.force
        )
        log.artifact(artifact, folder)
    answer(str(folder))


def main() -> None:
    """Enter from the command line."""
    launch(run, "calibrate")


if __name__ == "__main__":
    main()
