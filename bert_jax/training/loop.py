"""The one loop: a `Task` and a config in, checkpoints and metrics out."""

import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from bert_jax import config as configs
from bert_jax.config import UserError
from bert_jax.sharding import to_mesh
from bert_jax.tasks.task import Batch, Evaluation, Task
from bert_jax.training import step as steps
from bert_jax.training.checkpoint_format import not_finite
from bert_jax.training.diagnosis import first_not_finite
from bert_jax.training.evaluation import Evaluate, check_best_metric, make_evaluation
from bert_jax.training.guard import BadStep, Guard, Taken
from bert_jax.training.memory import out_of_memory_explained
from bert_jax.training.metrics_log import MetricsLog
from bert_jax.training.mirror import mirrored
from bert_jax.training.observer import DATA_WAIT, EVALUATION, LEDGER, SAVING, Observer, Observers
from bert_jax.training.processes import check_same, ends_with_the_others, on_first_process
from bert_jax.training.programs import Programs, make_programs
from bert_jax.training.saving import Checkpoints, alone_in
from bert_jax.training.start import Record, check_data, first_state
from bert_jax.training.step import Diverged, TrainState, check_finite
from bert_jax.training.watchdog import Watchdog


@dataclass(frozen=True)
class Finished:
    """How a call of `train` ended. `signal` is the one that stopped it before its last step, or None."""

    step: int
    ended: str  # "done", "patience" or "signal"
    evaluation: Evaluation  # the last one of validation
    final: dict[str, Evaluation]  # split → evaluation of the best checkpoint
    signal: int | None = None


@dataclass(frozen=True)
class _Run:
    """What stays the same while a run trains, also when it goes back to a checkpoint."""

    task: Task
    config: ConfigDict
    workdir: Path
    programs: Programs
    watch: Observer
    evaluate: Evaluate
    checkpoints: Checkpoints
    guard: Guard


def train(task: Task, config: ConfigDict, workdir: Path, observers: Sequence[Observer] = ()) -> Finished:
    """Trains until `train.steps`, or continues the run in `workdir`: killed and started again, it computes the same
    bits. The observers change no result.

    Raises UserError for every mistake in the config, before the first step where possible; if the loss or a parameter
    is no longer finite, in which case no checkpoint is written; and if memory is short.
    """
    # Phase 1: what could fail, before anything is compiled
    configs.resolve_steps(config, task.steps_per_epoch)
    configs.validate(config, jax.device_count())
    check_best_metric(config, task)
    check_same({f"the {name}": digest for name, digest in task.fingerprints().items()})
    check_same(config.to_dict())  # which has steps that follow from the data
    workdir.mkdir(parents=True, exist_ok=True)

    # Phase 2: step functions
    watchdog = Watchdog(config.train.watchdog_seconds)
    watch = Observers([*observers, watchdog])
    programs = make_programs(task, config, watch)
    mesh, graphdef, key, constants = programs.mesh, programs.graphdef, programs.key, programs.constants
    evaluate = make_evaluation(task, graphdef, config, mesh, constants, watch)

    def explain(state: TrainState, batch: Batch) -> str:
        its = programs.phase(int(state.step)).task
        return first_not_finite(its, graphdef, constants, key, mesh, programs.frozen, state, batch)

    guard = Guard(task, config.train, workdir, explain)
    with contextlib.ExitStack() as resources:  # whatever happens below, threads and files are closed
        resources.enter_context(out_of_memory_explained())
        resources.enter_context(watchdog)
        resources.enter_context(alone_in(workdir))
        on_first_process(lambda: configs.write_or_compare(config, workdir / "config.json"))
        check_mirror = resources.enter_context(mirrored(config.checkpoint.mirror, workdir))
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint, check_mirror)
        resources.callback(checkpoints.close)
        resources.enter_context(_divergence_explained(checkpoints, workdir, guard))
        resources.enter_context(ends_with_the_others())  # before `close`, which would wait for a process that is gone
        run = _Run(task, config, workdir, programs, watch, evaluate, checkpoints, guard)
        while True:  # each time round is what a new start of the command would do
            try:
                return _train_from_checkpoint(run)
            except BadStep as bad:
                checkpoints.wait()
                guard.go_back(bad)


def _train_from_checkpoint(run: _Run) -> Finished:
    """Trains from the newest checkpoint, or else from the beginning, to the end. Raises BadStep for a step that has to
    be undone."""
    with contextlib.ExitStack() as resources:
        progress = _Progress(run, resources)
        run.watch.restart_clock()
        with _Signals() as signals:
            while not progress.is_over():
                progress.take_step()
                progress.stopped_by = signals.caught(progress.step)  # once per step: what is due must agree with itself
                if any(due := progress.due()):
                    progress.do(due)
        return progress.finish()


class _Due(NamedTuple):
    """What is done between two steps. An `extra` checkpoint is one that was not planned; the next one replaces it."""

    evaluation: bool
    checkpoint: bool
    extra: bool
    next_phase: bool


class _Progress:
    """What changes while a run trains: the state, the place in the data, the record."""

    def __init__(self, run: _Run, resources: contextlib.ExitStack):
        """Takes state and data up where the checkpoint left off; `resources` are closed when training ends."""
        task, config, programs, watch = run.task, run.config, run.programs, run.watch
        steps_done, self.run = run.checkpoints.latest or 0, run
        if jax.process_count() == 1 and steps_done < config.train.steps:  # several compile together
            resources.callback(programs.compile_ahead(steps_done))
        self.state, resumed = first_state(task, config, programs, run.checkpoints)
        resources.callback(watch.end)
        watch.begin(task, self.state, programs.mesh)
        self.first = self.step = int(self.state.step)
        self.record = Record.of(resumed, task)
        run.guard.resume(self.record.guard)
        self.number = run.guard.first_batch(self.first)  # of the next batch that is read
        self.phase, self.batches = programs.enter(self.first, self.number)
        resources.callback(lambda: self.batches.close())  # those of the phase that the run is in by then
        watch.enter_phase(self.phase.task)
        if resumed is not None:
            check_data(resumed["data"], self.batches.state(), run.workdir)
        costs = [(phase.end, phase.task.flops_per_step) for phase in programs.phases]
        since = self.first if resumed else -1
        self.log = MetricsLog(
            run.workdir, self.first, config.train.steps, forget_after=since, config=config, costs=costs
        )
        resources.callback(self.log.close)
        self.evaluation, self.report_is_due = Evaluation("validation"), False
        self.stopped_by: int | None = None  # the signal that did
        if not resumed and config.eval.at_start:
            self._validate()
            if not self.evaluation:
                logging.warning("NO VALIDATION EXAMPLES: nothing is evaluated, and no checkpoint is the best")

    def is_over(self) -> bool:
        config = self.run.config
        is_done = self.step >= config.train.steps
        return is_done or self.stopped_by is not None or _out_of_patience(self.record.history, config)

    def take_step(self) -> None:
        """Reads the next batch and launches its step. A report that fell due before is made while the step runs."""
        run, guard, watch, programs = self.run, self.run.guard, self.run.watch, self.run.programs
        guard.examine(self.state, self.step)
        watch.before_batch()
        number = guard.batch_number(self.step)
        with jax.profiler.TraceAnnotation(DATA_WAIT):
            for _ in range(self.number, number):
                next(self.batches)  # one that is left out
            position = self.batches.state() if guard.is_on else {}
            batch = to_mesh(programs.mesh, next(self.batches))
        watch.before_step(batch)
        self.state, sums = self.phase.launch(self.state, programs.constants, batch, programs.key)
        guard.watch(Taken(self.step, number, position, batch, sums))
        self.number = number + 1
        if self.report_is_due:
            self._report()
        self.step += 1
        self.record.pending.append(sums)
        watch.after_step(sums)
        self.log.advance(self.step)
        self.report_is_due = self.step % run.config.train.log_every == 0

    def due(self) -> _Due:
        """Returns what has to be done after the step that was just launched."""
        step, config, is_last = self.step, self.run.config, self.step == self.run.config.train.steps
        evaluation = step % config.eval.every == 0 or is_last
        checkpoint = step % config.checkpoint.every == 0 or is_last
        checkpoint |= evaluation and config.train.patience > 0  # the last evaluation may turn out to be this one
        is_asked_for = self.stopped_by is not None
        extra = not checkpoint and (is_asked_for or self.run.checkpoints.are_due_by_time(step, config.train))
        return _Due(evaluation, checkpoint, extra, step == self.phase.end and not is_last)

    def do(self, due: _Due) -> None:
        """Does what is due: waits for the step, reports, enters the next phase, evaluates, saves."""
        watch = self.run.watch
        self.run.guard.settle()
        if self.report_is_due or due.checkpoint or due.next_phase:  # also ends at every checkpoint that was planned
            self._report()
        if due.next_phase:
            self.batches.close()
            self.phase, self.batches = self.run.programs.enter(self.step, self.number)
            watch.enter_phase(self.phase.task)
        if due.evaluation:
            watch.pause(EVALUATION)
            self._validate()
            if self.evaluation:
                self.record.history.append(self.evaluation.metrics[self.run.config.checkpoint.best_metric])
        if due.checkpoint or due.extra:
            watch.pause(SAVING)
            self._save(self.evaluation.metrics if due.evaluation else {}, is_extra=due.extra)
        watch.restart_clock()

    def finish(self) -> Finished:
        """Returns how training ended. What was learned is on disk before; the best of it is tested."""
        run = self.run
        run.watch.pause(SAVING)
        run.checkpoints.wait()
        final = self._test() if self.stopped_by is None and run.task.final_splits else {}
        if self.step > self.first:
            self.log.record(self.step, LEDGER, run.watch.account())
        ended = "done" if self.step >= run.config.train.steps else "patience"
        ended = ended if self.stopped_by is None else "signal"
        return Finished(self.step, ended, self.evaluation, final, self.stopped_by)

    def _report(self) -> None:
        """Logs the metrics of the steps since the last report; waits for them."""
        run, pending = self.run, self.record.pending
        self.log.record(self.step, "train", steps.means(run.task, pending, self.step) | run.watch.report())
        self.record.pending, self.report_is_due = [], False

    def _validate(self) -> None:
        """Evaluates and logs the state, and takes over what is learned from it."""
        self.evaluation = self.run.evaluate(self.state.learned, "validation", self.record.description)
        self.record.description |= self.evaluation.learned
        if self.evaluation:
            check_finite(self.evaluation.metrics, self.step)
            self.log.record(self.step, "eval", self.evaluation.metrics)

    def _save(self, metrics: dict[str, float], *, is_extra: bool) -> None:
        """Writes a checkpoint. Raises Diverged if the state is not finite."""
        run, state = self.run, self.state
        if names := not_finite((state.parameters, state.optimizer, state.average)):
            raise Diverged(f"{names[0]} is no longer finite after step {self.step}")
        saved = self.record.json(self.batches.state(), run.config, run.guard)
        run.checkpoints.save(state, saved, run.task.tokenizer, metrics, temporary=is_extra)
        self.log.record(self.step, LEDGER, run.watch.account())

    def _test(self) -> dict[str, Evaluation]:
        """Returns the evaluations of the task's final splits, which are logged: of the best checkpoint, or of the last
        state if no checkpoint was evaluated."""
        run, found = self.run, {}
        run.watch.pause(EVALUATION)
        best = run.checkpoints.best(run.programs.mesh)
        parameters = self.state.learned if best is None else best[0]
        description = self.record.description if best is None else self.record.description | best[1]["task"]
        for split in run.task.final_splits:
            found[split] = run.evaluate(parameters, split, description)
            self.log.record(self.step, split, found[split].metrics)
        return found


@contextlib.contextmanager
def _divergence_explained(checkpoints: Checkpoints, workdir: Path, guard: Guard) -> Iterator[None]:
    """Adds to the error of a run that diverged what to do about it, which depends on what the workdir holds."""
    try:
        yield
    except Diverged as problem:
        advice = "lower optimizer.learning_rate or raise optimizer.warmup_steps"
        remedy = f"nothing was saved: {advice} and start again in the same --workdir"
        if (latest := checkpoints.latest) is not None:
            remedy = f"the checkpoint of step {latest} is whole and finite: {advice} in another --workdir, from the "
            remedy += f"start or with --config.init_from={workdir}"
        if not guard.is_on:
            remedy += "; to leave out the batch and learn where it arose: --config.train.max_rollbacks=1"
        raise UserError(f"{problem}; {remedy}") from None


def _out_of_patience(history: list[float], config: ConfigDict) -> bool:
    """Returns True if the last `train.patience` evaluations were no better than one before them."""
    patience, best = config.train.patience, min if config.checkpoint.best_mode == "min" else max
    if not patience or len(history) <= patience:
        return False
    earlier, last = best(history[:-patience]), best(history[-patience:])
    return best(earlier, last) == earlier


class _Signals:
    """SIGTERM and SIGINT are noted, and the loop ends after its step; a second one stops at once.

    Of several processes all have to stop at the same step: there jax's own service passes SIGTERM on to each.
    """

    def __enter__(self):
        self.noted: int | None = None
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def caught(self, step: int) -> int | None:
        """Returns the signal that asks to stop after `step`, or None."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self.noted

    def _note(self, number, _):
        self.noted = number
        self.__exit__()
        logging.warning("%s: finishing this step, then saving", signal.Signals(number).name)
