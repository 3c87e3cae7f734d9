"""A Hydra sweeper that has Optuna choose what to measure next.

The study lies in the sweep's folder, so that a search goes on where it stopped; Hydra's own plugin,
hydra-optuna-sweeper 1.3, takes Optuna below 3 alone and starts again. Hydra imports this module in
all its programs: what is heavy is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial, TrialState

STUDY = "study.log"
TRIES = 50  # at a configuration that has not been measured; then there is taken to be none


class Search(Sweeper):
    """Measures those configurations next that look best by what was measured before.

    Parameters
    ----------
    n_trials : int
        Configurations to measure.
    n_jobs : int
        How many the launcher is given at a time.
    seed : int
    params : mapping of str
        What to search over, as it would be typed: ``interval(0.1, 0.6)``.
    """

    def __init__(
        self, n_trials: int, n_jobs: int, seed: int, params: Mapping[str, str] | None
    ) -> None:
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.seed = seed
        self.params = params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives every sweeper."""
        self.config, self.hydra_context = config, hydra_context
        self.folder = Path(config.hydra.sweep.dir)
        self.budget = config.search.max_bpb_increase
        self.jobs: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run as many trials as are left, and print the command of the best.

        A setting of a method is chosen for those stacks that hold it.

        Raises
        ------
        TrimtabError
            If Optuna is not installed.
        Exception
            What the first job that failed raised, when all have ended.
        """
        from trimtab.commands.parsing import parsed
        from trimtab.commands.search import tell_winner
        from trimtab.commands.search_space import arguments_of

        typed = parsed([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        overrides = {one.key_or_group: one for one in typed}  # the last of a key counts
        study = self._study()
        self._reopen(study)
        waiting = sum(trial.state.name == "WAITING" for trial in study.trials)
        left = waiting + self.n_trials - len(_numbers(study))
        ended: list[JobReturn] = []
        while left > 0:
            asked = (self._ask(study, overrides) for _ in range(min(left, self.n_jobs)))
            if not (trials := [trial for trial in asked if trial is not None]):
                break
            jobs = [arguments_of(trial, overrides) for trial in trials]
            ended += self.jobs.launch(jobs, initial_job_idx=trials[0].user_attrs["job"])
            for trial in trials:
                self._tell(study, trial)
            left -= len(trials)
        tell_winner(self.folder, self.budget)
        for job in ended:
            _ = job.return_value  # raises what a failed one raised

    def _study(self) -> Study:
        from trimtab.errors import TrimtabError

        try:
            import optuna
        except ImportError as error:
            reason = "a search needs Optuna: pip install 'trimtab[search]'"
            raise TrimtabError(reason) from error
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(self.folder / STUDY)))
        study = optuna.create_study(
            storage=storage, study_name="search", direction="maximize", load_if_exists=True
        )
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        return study

    def _reopen(self, study: Study) -> None:
        """Put trials in line again whose job failed, was killed or left a damaged result."""
        from trimtab.sweep_state import is_finished

        last = {t.user_attrs["job"]: t for t in study.trials if "job" in t.user_attrs}
        for trial in last.values():
            ended = self._tell(study, trial) if trial.state.name == "RUNNING" else trial
            folder = self.folder / str(trial.user_attrs["job"])
            if ended.state.is_finished() and not is_finished(folder):
                study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)

    def _ask(self, study: Study, overrides: Mapping[str, Override]) -> Trial | None:
        """Return a trial of a configuration that has not been measured; None where none is left."""
        from trimtab.commands.search_space import suggest

        known = [trial.params for trial in study.trials if "job" in trial.user_attrs]
        for _ in range(TRIES):
            trial = study.ask()
            again = "job" in trial.user_attrs
            suggest(trial, overrides)
            if again:
                return trial
            if trial.params not in known:
                trial.set_user_attr("job", len(_numbers(study)))
                return trial
            study.tell(trial, state=_state("PRUNED"))
        return None

    def _tell(self, study: Study, trial: Trial | FrozenTrial) -> FrozenTrial:
        """Close a trial by what its job left."""
        from trimtab.commands.search import objective
        from trimtab.sweep_state import read_whole

        result = read_whole(self.folder / str(trial.user_attrs["job"]) / "result.json")
        if result is None:
            return study.tell(trial.number, state=_state("FAIL"))
        return study.tell(trial.number, objective(result, self.budget))


def _numbers(study: Study) -> set[int]:
    """Return the numbers of the jobs that there are, each the name of its folder."""
    return {trial.user_attrs["job"] for trial in study.trials if "job" in trial.user_attrs}


def _state(name: str) -> TrialState:
    from optuna.trial import TrialState

    return TrialState[name]
