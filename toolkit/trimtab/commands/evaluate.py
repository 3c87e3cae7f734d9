"""Evaluate a stack of methods: configuration in, result.json and a report out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from trimtab.commands import sweep_progress
from trimtab.commands.check import checked, methods_of
from trimtab.commands.folders import claimed, withdraw
from trimtab.commands.launch import choices, launch, output_folder, sources
from trimtab.commands.messages import one_line, stop
from trimtab.commands.search import objective, require_objective
from trimtab.commands.sweep import (
    in_sweep,
    own_settings,
    repeats,
    require_below,
    sweep_folder,
    sweep_name,
    tries_all,
    without_foreign,
)
from trimtab.commands.torchrun import is_launched, one_speaks
from trimtab.config import EvaluateConfig, OnMissing
from trimtab.errors import TrimtabError
from trimtab.files import REPEAT, RESULTS, require_artifacts, write_json
from trimtab.progress import answer, say, waiting
from trimtab.registry import method_names, stack_members
from trimtab.sweep_state import more_jobs

NO_TORCHRUN = (
    "torchrun: its processes would measure the same beside each other; start evaluate.py alone, "
    "and spread a model over GPUs with model.device_map=auto"
)


def run(config: DictConfig) -> float | None:
    """Evaluate as `config` says and print the report's path on standard output.

    Writes result.json, or error.json where it fails before; repeat.json where another job of the
    sweep does the same. What can never be run is refused before anything is written: here, or, of
    a sweep, before it starts. Of a single job what Hydra has written is removed.

    Returns
    -------
    objective : float or None
        In a search, what is to be large.
    """
    folder = output_folder()
    setting = "hydra.sweep.subdir" if in_sweep() else "hydra.run.dir"
    resume = HydraConfig.get().callbacks["folder"].resume
    if in_sweep():  # other sweepers than those that try all choose their folders as they go
        require_below(sweep_folder(), str(folder))
    else:
        try:
            checked(without_foreign(config, HydraConfig.get()), EvaluateConfig)
        except Exception:
            if not resume:
                withdraw(folder, HydraConfig.get().output_subdir)
            raise
    with claimed(folder, setting, resume=resume):
        for name in RESULTS if resume else ():  # a result that is there is damaged
            (folder / name).unlink(missing_ok=True)
        try:
            repeated = repeats(config)
            config = without_foreign(config, HydraConfig.get())
            if repeated:
                say(f"Not run: {_title(config)} is what the job with {repeated} measures")
                write_json(folder / REPEAT, {"status": "repeat", "of": repeated})
                if more_jobs(sweep_folder()) == 0:
                    _report(folder)
                return None
            if in_sweep():
                sweep_progress.begins(folder, _title(config))
            value = _evaluate(config, folder)
        except Exception as error:
            if not (folder / "result.json").exists():
                failure = {"type": type(error).__name__, "message": one_line(error)}
                write_json(folder / "error.json", {"status": "error", **_names(config), **failure})
                _report(folder)
            if in_sweep():
                sweep_progress.ends(folder, one_line(error))
            raise
        if in_sweep():
            sweep_progress.ends(folder)
        return value


def _evaluate(config: DictConfig, folder: Path) -> float | None:
    settings = checked(config, EvaluateConfig)
    search = in_sweep() and not tries_all(HydraConfig.get())
    if search:
        require_objective(settings)
    if not in_sweep():
        say(f"Folder: {folder}")
    # Heavy imports wait until the configuration is known to be sound.
    with waiting("Importing PyTorch and transformers"):
        from trimtab import tracking

    if settings.on_missing is OnMissing.calibrate:
        require_artifacts(settings.artifacts)
    job = tracking.Job(
        "evaluate",
        name=_run_name(config),
        config=tracking.configuration(config, choices()),
        tags=tuple(settings.methods) or ("baseline",),
        group=sweep_name(),
        folder=folder,
    )
    with tracking.run(settings.tracking, job, one_line) as log:
        result = {**evaluate(settings, label(config), log.begin), **_names(config)}
        write_json(folder / "result.json", result)
        report = _report(folder)
        log.result(result, folder, settings.artifacts)
    answer(str(report))
    return objective(result, settings.search.max_bpb_increase) if search else None


def evaluate(
    settings: EvaluateConfig, label: str, ready: Callable[[str], None] = lambda model: None
) -> dict[str, Any]:
    """Measure a stack as `settings` say, and return the content of result.json.

    Parameters
    ----------
    label : str
        What is measured: the stack and its settings changed.
    ready : callable
        Called with the model's name when all is loaded and fits, before anything is calibrated.

    Raises
    ------
    TrimtabError
        If the model, the corpus or an artifact cannot be had, or the stack does not fit.
    """
    import trimtab
    from trimtab.backing import Backing, pack, use_pages
    from trimtab.calibration import artifacts_for
    from trimtab.corpus import Split, load_corpus
    from trimtab.environment import prepare
    from trimtab.evaluation.job import Job
    from trimtab.evaluation.memory import copied, require_room_for_copy
    from trimtab.evaluation.metrics import prepare as prepare_metrics
    from trimtab.evaluation.run import Subject
    from trimtab.evaluation.trace import trace_of
    from trimtab.models.loading import load_model
    from trimtab.stack import Stack

    stack = Stack(methods_of(settings))
    use_pages(settings.memory)
    prepare(settings.seed, settings.threads)
    corpus = load_corpus(settings.corpus)
    documents = corpus.documents(Split.test)  # refused here, before minutes of calibration
    trace_of(settings.serving)  # likewise
    loaded = load_model(settings.model)
    stack.check(loaded.model)
    if settings.paired:
        require_room_for_copy(loaded.model)
    prepare_metrics(  # likewise: whether there is text enough
        Job(
            documents,
            loaded.tokenizer,
            loaded.model.config,
            settings,
            known_weights=not loaded.random_weights,
            changes_vocabulary=False,
            paired=settings.paired,
        )
    )
    ready(loaded.name)
    make = settings.on_missing is OnMissing.calibrate
    artifacts = artifacts_for(stack, loaded, corpus, settings.artifacts, make=make)
    members = [artifacts.get(method.name, method) for method in stack.methods]
    model = copied(loaded.model) if settings.paired else loaded.model
    known = loaded.fingerprint
    with trimtab.apply(model, loaded.tokenizer, members, fingerprint=known) as optimized:
        if settings.memory is Backing.huge:
            for one in dict.fromkeys((loaded.model, model)):
                pack(one)
        return trimtab.measure(
            optimized,
            corpus,
            settings,
            baseline=loaded.model if settings.paired else None,
            subject=Subject(loaded.name, known, not loaded.random_weights),
            label=label,
        )


def _report(folder: Path) -> Path:
    from trimtab.report import build_report

    if in_sweep():
        return build_report(sweep_folder(), last_draws=True)
    return build_report(folder)


def _names(config: DictConfig) -> dict[str, Any]:
    """Return what the reports of this job and of others tell it by."""
    overrides = HydraConfig.get().overrides.task
    measured = [one for one in overrides if not one.startswith("tracking.")]
    typed = {"options": found} if (found := sources("evaluate")) else {}
    return {"label": label(config), "overrides": measured, **typed}


def label(config: DictConfig) -> str:
    """Return what the job measures: the stack and its settings changed."""
    overrides = [item.lstrip("+") for item in HydraConfig.get().overrides.task]
    stacks = [item.partition("=")[2] for item in overrides if item.startswith("methods=")]
    held = [] if OmegaConf.is_missing(config, "methods") else list(config.methods)
    ours = {*held} & {*method_names()}
    whole = stacks and stack_members(stacks[-1]) >= ours  # no file adds to it
    stack = stacks[-1] if whole else ",".join(held) or "baseline"
    changed = [
        item.replace("methods.", "", 1)
        for item in overrides
        if item.startswith(("~methods.", *(f"methods.{name}." for name in held)))
    ]
    return " ".join([stack, *(item.removeprefix(f"{stack}.") for item in changed)])


def _title(config: DictConfig) -> str:
    """Return what tells the job from the others of its sweep."""
    return " ".join([label(config), *own_settings(HydraConfig.get())])


def _run_name(config: DictConfig) -> str:
    """Return the title without a seed: W&B draws error bars over runs of one name."""
    own = own_settings(HydraConfig.get())
    return " ".join([label(config), *(one for one in own if not one.startswith("seed="))])


def main() -> None:
    """Enter from the command line."""
    with one_speaks():
        if is_launched():
            stop(TrimtabError(NO_TORCHRUN))
    launch(run, "evaluate")


if __name__ == "__main__":
    main()
