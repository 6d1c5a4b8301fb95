"""A search for hyper-parameters as a study: Optuna (extra `lab`) makes up the runs, our evaluations prune them.

What Optuna knows is in `<workdir>/optuna.db`. A trial whose process, or whose sweep, was killed stays a trial: its run
continues from its checkpoint.
"""

import contextlib
import logging
import math
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bert_jax.config import Json, UserError
from bert_jax.extras import install
from bert_jax.lab.records import COMPLETE, FAILED, PRUNED, RunRecord, read_run
from bert_jax.lab.space import Distribution, label, short
from bert_jax.lab.study import PlannedRun, Study, run_name
from bert_jax.training.metrics_log import read_metrics

STORAGE = "optuna.db"


class OptunaTrials:
    """The trials of a search; each is a run of the study's only stage."""

    def __init__(self, study: Study, name: str, workdir: Path, admit: Callable[[PlannedRun], None]):
        """`admit` writes what the process of a new run reads. Raises UserError for a search that cannot be made."""
        assert study.search is not None
        self.search, self.stage = study.search, study.stages[0]
        self.workdir, self.admit = workdir, admit
        self.optuna = _optuna()
        with _quiet(), _explained(workdir / STORAGE):
            # A URL, which Optuna fills in like a template, would read ?, % and braces in the folder's name.
            connect = partial(sqlite3.connect, workdir / STORAGE, check_same_thread=False)
            self.storage = self.optuna.storages.RDBStorage(f"sqlite:///{STORAGE}", {"creator": connect})
            self.study = self._open(name)
        self.trials: Json = {}  # key of a run → trial
        self.seen: dict[str, int] = {}  # key of a run → step of the last evaluation that was reported
        self.sizes: dict[str, int] = {}  # key of a run → bytes of its metrics.jsonl that have been read

    def planned(self) -> list[PlannedRun]:
        """Returns the runs of all trials so far, and tells Optuna what it does not know yet of those that have
        ended."""
        found = []
        for frozen in self.study.get_trials(deepcopy=False):
            one = self._run(frozen.number, frozen.params)
            if not frozen.state.is_finished():
                trial = self.optuna.trial.Trial(self.study, frozen._trial_id)
                if not (self.workdir / one.key).is_dir():  # killed before all of its options were drawn
                    with _quiet():
                        parameters = {name: trial._suggest(name, one) for name, one in self._space().items()}
                    one = self._run(frozen.number, parameters)
                self.trials[one.key] = trial
                self.seen[one.key] = max(frozen.intermediate_values, default=-1)
                self.admit(one)  # the sweep may have been killed before it did so
                record = read_run(self.workdir, one)
                if record.status in (COMPLETE, FAILED, PRUNED):
                    self.tell(one, record)
            found.append(one)
        return found

    def ask(self) -> PlannedRun | None:
        if len(self.study.get_trials(deepcopy=False)) >= self.search.trials:
            return None
        with _quiet():
            trial = self.study.ask(self._space())
        one = self._run(trial.number, trial.params)
        self.trials[one.key], self.seen[one.key] = trial, -1
        self.admit(one)
        return one

    def watch(self, running: Sequence[PlannedRun]) -> list[PlannedRun]:
        metric, given_up = self.search.metric.partition(".")[2], []
        for one in running:
            trial = self.trials.get(one.key)
            if trial is None or self.search.pruner == "none":
                continue
            file = self.workdir / one.key / "metrics.jsonl"
            if not file.is_file() or file.stat().st_size == self.sizes.get(one.key):
                continue
            self.sizes[one.key] = file.stat().st_size
            evaluations = (line for line in read_metrics(file) if line["split"] == "eval" and metric in line)
            for step, value in ((line["step"], line[metric]) for line in evaluations):
                if step > self.seen[one.key] and step > 0 and math.isfinite(value):
                    trial.report(value, step)
                    self.seen[one.key] = step
                    if trial.should_prune():
                        given_up.append(one)
                        break
        return given_up

    def tell(self, planned: PlannedRun, record: RunRecord) -> None:
        """Tells Optuna how a run has ended. The trial of one that failed stays open, since what Optuna calls failed is
        final, and `--rerun=failed` continues it; until then no sampler learns from it."""
        if record.status == FAILED:
            return
        trial, states = self.trials.pop(planned.key, None), self.optuna.trial.TrialState
        if trial is None:
            return
        value = record.metric(self.search.metric)
        with _quiet():
            if value is not None and math.isfinite(value):
                self.study.tell(trial.number, value)
            else:
                self.study.tell(trial.number, state=states.PRUNED if record.status == PRUNED else states.FAIL)

    def best(self) -> str:
        """Returns a sentence about the best trial."""
        done = [trial for trial in self.study.get_trials(deepcopy=False) if trial.value is not None]
        done = [trial for trial in done if trial.state == self.optuna.trial.TrialState.COMPLETE]
        if not done:
            return "no trial is complete"
        best = (min if self.search.direction == "min" else max)(done, key=lambda trial: trial.value or 0.0)
        options = ", ".join(f"{name}={label(short(value))}" for name, value in best.params.items())
        where = f"trial {best.number}, {best.value:.4g} ({options})"
        return f"best of {len(done)} complete trials by {self.search.metric}: {where}"

    def close(self) -> None:
        """Closes the connections to the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def _run(self, number: int, parameters: dict[str, Any]) -> PlannedRun:
        # The names of a trial's options are in the order of the search, whatever order the storage has.
        drawn = {name: short(parameters[name]) for name in self.search.space if name in parameters}
        levels = {"trial": str(number)} | {name: label(value) for name, value in drawn.items()}
        return PlannedRun(self.stage.name, run_name(levels), levels, {**self.stage.overrides, **drawn})

    def _open(self, name: str) -> Any:
        samplers, pruners = self.optuna.samplers, self.optuna.pruners
        known = {one.study_name: one for one in self.optuna.get_all_study_summaries(self.storage)}
        # A sampler that starts again with the same seed would propose its first trials again.
        seed = self.search.seed + (known[name].n_trials if name in known else 0)
        sampler = samplers.TPESampler(seed=seed) if self.search.sampler == "tpe" else samplers.RandomSampler(seed=seed)
        pruner = {"median": pruners.MedianPruner, "asha": pruners.SuccessiveHalvingPruner, "none": pruners.NopPruner}
        direction = {"min": "minimize", "max": "maximize"}[self.search.direction]
        return self.optuna.create_study(
            storage=self.storage,
            sampler=sampler,
            pruner=pruner[self.search.pruner](),
            study_name=name,
            direction=direction,
            load_if_exists=True,
        )

    def _space(self) -> Json:
        return {name: self._distribution(one) for name, one in self.search.space.items()}

    def _distribution(self, one: Distribution) -> Any:
        distributions = self.optuna.distributions
        if one.choices:
            return distributions.CategoricalDistribution(one.choices)
        if one.whole:
            return distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
        return distributions.FloatDistribution(one.low, one.high, log=one.log)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna's remarks on its experimental parts and its own log to itself."""
    logging.getLogger("optuna").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    from sqlalchemy.exc import DBAPIError  # of Optuna

    try:
        yield
    except DBAPIError as problem:
        reason = str(problem.orig or problem)
        raise UserError(f"{path} cannot be used ({reason}); restore it, or choose another --workdir") from None


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(f"a search needs the extra lab: {install('lab')}") from None
    return optuna
