"""The one loop: a `Task` and a config in, checkpoints and metrics out."""

import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from bert_jax import config as configs
from bert_jax.config import UserError
from bert_jax.sharding import Mesh, to_mesh
from bert_jax.tasks.task import Batch, Description, Evaluation, Sums, Task
from bert_jax.training import step as steps
from bert_jax.training.checkpoint import choose_checkpoint, on_mesh, read_checkpoint
from bert_jax.training.checkpoint_format import not_finite
from bert_jax.training.diagnosis import first_not_finite
from bert_jax.training.evaluation import Evaluate, check_best_metric, make_evaluation
from bert_jax.training.guard import BadStep, Guard, Taken
from bert_jax.training.memory import out_of_memory_explained
from bert_jax.training.metrics_log import MetricsLog
from bert_jax.training.mirror import mirrored
from bert_jax.training.observer import DATA_WAIT, EVALUATION, LEDGER, SAVING, Observer, Observers
from bert_jax.training.parameters import Parameters, is_stacked, matching, of_one_task, take_over, with_copies
from bert_jax.training.processes import check_same, ends_with_the_others, on_first_process
from bert_jax.training.programs import Programs, make_programs
from bert_jax.training.saving import Checkpoints, alone_in
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
    task, config, watch, guard, checkpoints = run.task, run.config, run.watch, run.guard, run.checkpoints
    train, saving, programs = config.train, config.checkpoint, run.programs
    mesh, key, constants = programs.mesh, programs.key, programs.constants
    with contextlib.ExitStack() as resources:
        # Phase 3: state and data, from where the checkpoint left off
        if jax.process_count() == 1 and (checkpoints.latest or 0) < train.steps:  # several compile together
            resources.callback(programs.compile_ahead(checkpoints.latest or 0))
        state, resumed = _first_state(run)
        resources.callback(watch.end)
        watch.begin(task, state, mesh)
        first = int(state.step)
        record = _Record.of(resumed, task)
        guard.resume(record.guard)
        number = guard.first_batch(first)  # of the next batch that is read
        phase, batches = programs.enter(first, number)
        resources.callback(lambda: batches.close())  # those of the phase that the run is in by then
        watch.enter_phase(phase.task)
        if resumed is not None:
            _check_data(resumed["data"], batches.state(), run.workdir)
        costs = [(phase.end, phase.task.flops_per_step) for phase in programs.phases]
        since = first if resumed else -1
        log = MetricsLog(run.workdir, first, train.steps, forget_after=since, config=config, costs=costs)
        resources.callback(log.close)
        evaluation = Evaluation("validation")
        if not resumed and config.eval.at_start and not (evaluation := _validate(run, state, record, log)):
            logging.warning("NO VALIDATION EXAMPLES: nothing is evaluated, and no checkpoint is the best")

        # Phase 4: the loop. A report that falls due is made while the next step runs, unless it is needed now
        step, report_due, stopped_by = first, False, None
        pending: list[Sums] = record.pending  # of the steps since the last report
        watch.restart_clock()
        with _Signals() as signals:
            while step < train.steps and stopped_by is None and not _out_of_patience(record.history, config):
                guard.examine(state, step)
                watch.before_batch()
                with jax.profiler.TraceAnnotation(DATA_WAIT):
                    for _ in range(number, guard.batch_number(step)):
                        next(batches)  # one that is left out
                    position = batches.state() if guard.is_on else {}
                    batch = to_mesh(mesh, next(batches))
                watch.before_step(batch)
                state, sums = phase.launch(state, constants, batch, key)
                guard.watch(Taken(step, guard.batch_number(step), position, batch, sums))
                number = guard.batch_number(step) + 1
                if report_due:
                    log.record(step, "train", steps.means(task, pending, step) | watch.report())
                    pending = []
                step += 1
                pending.append(sums)
                watch.after_step(sums)
                log.advance(step)
                stopped_by = signals.caught(step)  # once per step: what is decided below must agree with itself
                report_due = step % train.log_every == 0
                eval_due = step % config.eval.every == 0 or step == train.steps
                save_due = step % saving.every == 0 or step == train.steps
                save_due |= eval_due and train.patience > 0  # the last evaluation may turn out to be this one
                phase_ends = step == phase.end < train.steps
                extra_due = not save_due and (stopped_by is not None or checkpoints.are_due_by_time(step, train))
                if eval_due or save_due or extra_due or phase_ends:
                    guard.settle()
                    if report_due or save_due or phase_ends:  # also ends at every checkpoint that was planned
                        log.record(step, "train", steps.means(task, pending, step) | watch.report())
                        pending, report_due = [], False
                if phase_ends:
                    batches.close()
                    phase, batches = programs.enter(step, number)
                    watch.enter_phase(phase.task)
                if eval_due:
                    watch.pause(EVALUATION)
                    if evaluation := _validate(run, state, record, log):
                        record.history.append(evaluation.metrics[saving.best_metric])
                if save_due or extra_due:
                    watch.pause(SAVING)
                    if names := not_finite((state.parameters, state.optimizer, state.average)):
                        raise Diverged(f"{names[0]} is no longer finite after step {step}")
                    saved = record.json(batches.state(), config, guard, pending)
                    metrics = evaluation.metrics if eval_due else {}
                    checkpoints.save(state, saved, task.tokenizer, metrics, temporary=extra_due)
                    log.record(step, LEDGER, watch.account())
                if eval_due or save_due or extra_due or phase_ends:
                    watch.restart_clock()

        # Phase 5: what was learned is on disk before this returns; the best of it is tested
        watch.pause(SAVING)
        checkpoints.wait()
        final = _test(run, state, record, log) if stopped_by is None and task.final_splits else {}
        if step > first:
            log.record(step, LEDGER, watch.account())
    ended = "done" if step >= train.steps else "patience"
    return Finished(step, ended if stopped_by is None else "signal", evaluation, final, stopped_by)


def _validate(run: _Run, state: TrainState, record: "_Record", log: MetricsLog) -> Evaluation:
    """Returns the evaluation of a state, which is logged, and takes over what was learned from it."""
    evaluation, step = run.evaluate(state.learned, "validation", record.description), int(state.step)
    record.description |= evaluation.learned
    if evaluation:
        check_finite(evaluation.metrics, step)
        log.record(step, "eval", evaluation.metrics)
    return evaluation


def _test(run: _Run, state: TrainState, record: "_Record", log: MetricsLog) -> dict[str, Evaluation]:
    """Returns the evaluations of the task's final splits, which are logged: of the best checkpoint, or of the last
    state if no checkpoint was evaluated."""
    run.watch.pause(EVALUATION)
    best, found = run.checkpoints.best(run.programs.mesh), {}
    parameters = state.learned if best is None else best[0]
    description = record.description if best is None else record.description | best[1]["task"]
    for split in run.task.final_splits:
        found[split] = run.evaluate(parameters, split, description)
        log.record(int(state.step), split, found[split].metrics)
    return found


@dataclass
class _Record:
    """What a checkpoint says of a run besides its arrays, and the run continues from."""

    description: Description
    history: list[float]  # checkpoint.best_metric of each evaluation
    pending: list[Sums]  # of the steps since the last report
    guard: dict[str, Any]

    @classmethod
    def of(cls, resumed: dict[str, Any] | None, task: Task) -> "_Record":
        """Returns the record in a checkpoint's `run` item, or that of a run that begins."""
        run = {"task": {}, "history": [], "pending": [], "guard": {}} if resumed is None else resumed
        pending = [
            {name: (jnp.asarray(total), jnp.asarray(weight)) for name, (total, weight) in sums.items()}
            for sums in run["pending"]
        ]
        return cls(task.description() | run["task"], run["history"], pending, run["guard"])

    def json(self, data: dict[str, Any], config: ConfigDict, guard: Guard, pending: list[Sums]) -> dict[str, Any]:
        """Returns the fields of the `run` item. It copies what is in it: that is written in the background, while the
        originals change. Waits for the steps whose sums are pending."""
        host = jax.device_get(pending)
        lists = [{name: [np.asarray(x).tolist() for x in pair] for name, pair in sums.items()} for sums in host]
        run = {"data": data, "config": config.to_dict(), "task": self.description, "history": self.history}
        return run | {"pending": lists, "guard": guard.state()}


def _first_state(run: _Run) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns the state to begin with and, if it is a resumed one, the checkpoint's `run` item. It comes from 1. the
    newest whole checkpoint of this workdir, 2. `init_from`, 3. random initialisation."""
    task, config, (mesh, _, optimizer, abstract, *_) = run.task, run.config, run.programs
    restored = run.checkpoints.restore_latest(abstract, mesh, task.tokenizer.content_hash)
    if restored is not None:
        logging.info("resuming %s at step %d", run.workdir, int(restored[0].step))
        return restored
    known = _warm_start(abstract.parameters, task, config, mesh) if config.init_from else {}
    return steps.init_state(task, optimizer, config.seed, mesh, known), None


def _warm_start(shapes: Parameters, task: Task, config: ConfigDict, mesh: Mesh) -> Parameters:
    """Returns the parameters that are taken from `init_from`, on the mesh."""
    folder = choose_checkpoint(config.init_from)
    saved = read_checkpoint(folder, shardings=on_mesh(mesh), tokenizer_hash=task.tokenizer.content_hash)
    source, copied = with_copies(of_one_task(saved.parameters, config.init_task), task.copied_parameters)
    renewed = matching("renewed_parameters", task.renewed_parameters, source)
    source = {name: value for name, value in source.items() if name not in renewed}
    _, report = take_over(shapes, source, new=task.new_parameters, dropped=task.dropped_parameters, origin=str(folder))
    logging.info("warm start from %s: %s", folder, replace(report, copied=copied))
    return _without_top_layers({name: source[name] for name in report.loaded}, config.train.reinitialise_layers)


def _without_top_layers(known: Parameters, top: int) -> Parameters:
    """Leaves out the `top` layers and the pooler, which then start as initialised (Zhang et al. 2021, arXiv:2006.05987,
    section 4). Raises UserError if there are fewer layers."""
    if not top:
        return known
    depth = next(x.shape[0] for name, x in known.items() if is_stacked(name))
    if top > depth:
        raise UserError(f"train.reinitialise_layers is {top}; the model has {depth} layers")
    kept = {name: x[: depth - top] if is_stacked(name) else x for name, x in known.items()}
    return {name: x for name, x in kept.items() if x.size and not name.startswith("pooler/")}


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


def _check_data(saved: dict, now: dict, workdir: Path) -> None:
    if saved != now:
        raise UserError(
            f"{workdir} was trained on other data ({saved}, now {now}): "
            "restore the corpus as it was, or choose another --workdir and --config.init_from"
        )


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
