"""The one loop: a `Task` and a config in, checkpoints and metrics out."""

import contextlib
import difflib
import logging
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bert_jax import config as configs
from bert_jax.config import UserError
from bert_jax.tasks.task import Description, Evaluation, HostSums, Sums, Task
from bert_jax.training.checkpoint import choose_checkpoint, on_mesh, read_checkpoint
from bert_jax.training.metrics_log import MetricsLog
from bert_jax.training.optimizer import is_frozen, learning_rate_multipliers, make_optimizer, make_schedule
from bert_jax.training.parameters import Parameters, take_over
from bert_jax.training.saving import Checkpoints
from bert_jax.training.sharding import make_mesh, to_mesh
from bert_jax.training.step import TrainState, abstract_state, init_state, make_eval_step, make_train_step
from bert_jax.training.throughput import Programs, Window, roofline

# Ends of the names of metrics that are better when lower; all others are better when higher.
LOWER_IS_BETTER = ("loss", "perplexity", "entropy", "error", "mse")


@dataclass(frozen=True)
class Finished:
    """How a call of `train` ended. `signal` is the one that stopped it before its last step, or None."""

    step: int
    evaluation: Evaluation  # the last one of validation
    final: dict[str, Evaluation]  # split → evaluation of the best checkpoint
    signal: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        return self.evaluation.metrics


class StepProfiler(Protocol):
    """Is told of every step."""

    def before_step(self) -> None: ...

    def after_step(self, sums: Sums, programs: Programs) -> bool:
        """Whether this took time that is not the training's."""
        ...


def train(task: Task, config: ConfigDict, workdir: Path, profiler: StepProfiler | None = None) -> Finished:
    """Trains until `train.steps`, resuming what `workdir` holds. Killed and started again, it computes the same bits.

    Where the first state comes from: 1. the newest whole checkpoint of this workdir; 2. `init_from`; 3. scratch.
    """
    # Phase 1: what could fail, before anything is compiled
    configs.resolve_steps(config, task.steps_per_epoch)
    configs.validate(config, jax.device_count())
    check_best_metric(config, task)
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        configs.write_or_compare(config, workdir / "config.json")

    # Phase 2: mesh, step functions, state
    mesh = make_mesh(config.mesh)
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    key = jax.random.key(config.seed)
    graphdef, shapes = abstract_state(task, optimizer)
    multipliers = learning_rate_multipliers(config.optimizer, {name: x.shape for name, x in shapes.parameters.items()})
    frozen = {name for name, multiplier in multipliers.items() if is_frozen(multiplier)}
    train_step = make_train_step(task, graphdef, optimizer, schedule, config.train.accumulation, frozen)
    evaluate = make_evaluation(task, graphdef, config, mesh)
    with contextlib.ExitStack() as resources:  # whatever happens below, threads and files are closed
        checkpoints = resources.enter_context(
            contextlib.closing(Checkpoints(workdir / "checkpoints", config.checkpoint))
        )
        state, resumed = _first_state(shapes, task, optimizer, config, checkpoints, mesh)

        # Phase 3: data, from where the state left off
        first = int(state.step)
        batches = resources.enter_context(
            contextlib.closing(task.train_batches(first, jax.process_index(), jax.process_count()))
        )
        description = task.description()
        if resumed is not None:
            _check_data(resumed["data"], batches.state(), workdir)
            description |= resumed["task"]
        log = resources.enter_context(
            contextlib.closing(MetricsLog(workdir, first, config.train.steps, forget_after=first if resumed else -1))
        )
        window = Window(task, config.train.batch_size, Programs(train_step, roofline(task, state, config)))
        evaluation = Evaluation("validation")
        history: list[float] = resumed["history"] if resumed else []  # checkpoint.best_metric, one an evaluation
        if not resumed and config.eval.at_start:
            evaluation = evaluate(state.parameters, "validation", description)
            description |= evaluation.learned
            if evaluation:
                log.record(first, "eval", evaluation.metrics)
            else:
                logging.warning("NO VALIDATION EXAMPLES: nothing is evaluated, and no checkpoint is the best")

        # Phase 4: the loop. A report that falls due is made while the next step runs, unless it is needed now
        step, report_due, stopped_by = first, False, None
        window.restart_clock()
        with _Signals() as signals:
            while step < config.train.steps and stopped_by is None and not _out_of_patience(history, config):
                if profiler is not None:
                    profiler.before_step()
                with window.waiting():
                    batch = to_mesh(mesh, next(batches))
                state, sums = window.launch(state, batch, key)
                if report_due:
                    log.record(step, "train", window.flush(step))
                step += 1
                window.add(sums)
                if profiler is not None and profiler.after_step(sums, window.programs):
                    window.restart_clock()
                log.advance(step)
                stopped_by = signals.caught(step)  # once a step: what is decided below must agree with itself
                report_due = step % config.train.log_every == 0
                eval_due = step % config.eval.every == 0 or step == config.train.steps
                save_due = step % config.checkpoint.every == 0 or step == config.train.steps or stopped_by is not None
                save_due |= eval_due and config.train.patience > 0  # the last evaluation may turn out to be this one
                if (report_due and eval_due) or save_due:  # a window ends at a checkpoint: resumed curves are the same
                    log.record(step, "train", window.flush(step))
                    report_due = False
                if eval_due:
                    evaluation = evaluate(state.parameters, "validation", description)
                    description |= evaluation.learned
                    if evaluation:
                        history.append(evaluation.metrics[config.checkpoint.best_metric])
                        log.record(step, "eval", evaluation.metrics)
                if save_due:
                    run = {"data": batches.state(), "config": config.to_dict()}
                    # Copies: they are written in the background, while the originals change.
                    run |= {"task": {**description}, "history": [*history]}
                    checkpoints.save(state, run, task.tokenizer, evaluation.metrics if eval_due else {})
                if eval_due or save_due:
                    window.restart_clock()

        # Phase 5: what was learned is on disk before this returns; the best of it is tested
        checkpoints.wait()
        final: dict[str, Evaluation] = {}
        if stopped_by is None and task.final_splits:
            best = checkpoints.best(mesh)  # None if no checkpoint was evaluated
            parameters = state.parameters if best is None else best[0]
            description = description if best is None else description | best[1]["task"]
            for split in task.final_splits:
                final[split] = evaluate(parameters, split, description)
                log.record(step, split, final[split].metrics)
    return Finished(step, evaluation, final, stopped_by)


def make_evaluation(
    task: Task, graphdef: nnx.GraphDef, config: ConfigDict, mesh: Mesh
) -> Callable[[Parameters, str, Description], Evaluation]:
    """(parameters, split, the description that belongs to them) → evaluation over every example of the split."""
    eval_step = make_eval_step(task, graphdef, config.eval.seed, mesh)

    def evaluate(parameters: Parameters, split: str, description: Description) -> Evaluation:
        totals: HostSums | None = None
        kept = []
        for batch in task.eval_batches(split, jax.process_index(), jax.process_count()):
            sums, rows = jax.device_get(eval_step(parameters, to_mesh(mesh, batch)))
            # float64 on the host: the sums of many batches outgrow float32
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
            kept += [rows] if rows else []
        return Evaluation(split) if totals is None else task.evaluation(split, totals, kept, description)

    return evaluate


def _check_data(saved: dict, now: dict, workdir: Path) -> None:
    if saved != now:
        raise UserError(
            f"{workdir} was trained on other data ({saved}, now {now}): "
            "restore the corpus as it was, or choose another --workdir and --config.init_from"
        )


def check_best_metric(config: ConfigDict, task: Task) -> None:
    """Raises UserError if no evaluation of the task gives checkpoint.best_metric; warns of a mode that looks wrong."""
    name, names = config.checkpoint.best_metric, task.metric_names("validation")
    if names and name not in names:
        near = difflib.get_close_matches(name, names, n=len(names), cutoff=0.0)
        raise UserError(f"checkpoint.best_metric is '{name}'; of task={config.task} it can be {', '.join(near)}")
    right = "min" if name.endswith(LOWER_IS_BETTER) else "max"
    if names and config.checkpoint.best_mode != right:
        logging.warning(
            "checkpoint.best_mode is %s, so the best checkpoint is the one with the %s %s; usual is %s",
            *(config.checkpoint.best_mode, {"min": "lowest", "max": "highest"}[config.checkpoint.best_mode]),
            *(name, right),
        )


def _out_of_patience(history: list[float], config: ConfigDict) -> bool:
    """Whether the last `train.patience` evaluations were no better than one before them."""
    patience = config.train.patience
    if not patience or len(history) <= patience:
        return False
    sign = -1 if config.checkpoint.best_mode == "min" else 1
    values = [sign * value for value in history]
    return max(values[-patience:]) <= max(values[:-patience])


def _first_state(
    shapes: TrainState,
    task: Task,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    checkpoints: Checkpoints,
    mesh: Mesh,
) -> tuple[TrainState, dict | None]:
    """The state to begin with and, if it is a resumed one, what the checkpoint says of the run."""
    restored = checkpoints.restore_latest(shapes, mesh, task.tokenizer.content_hash)
    if restored is not None:
        state, run = restored
        logging.info("resuming %s at step %d", checkpoints.directory.parent, int(state.step))
        return state, run
    if not config.init_from:
        return init_state(task, optimizer, config.seed, mesh), None
    folder = choose_checkpoint(config.init_from)
    saved = read_checkpoint(folder, shardings=on_mesh(mesh))
    if saved.tokenizer.content_hash != task.tokenizer.content_hash:
        raise UserError(
            f"init_from: {folder} was trained with another vocabulary than this run's data has; "
            "prepare the data with its vocabulary (data.vocab_file)"
        )
    renewed = re.compile(task.renewed_parameters or r"(?!)")
    source = {name: value for name, value in saved.parameters.items() if not renewed.match(name)}
    _, report = take_over(
        shapes.parameters, source, new=task.new_parameters, dropped=task.dropped_parameters, origin=str(folder)
    )
    logging.info("warm start from %s: %s", folder, report)
    known = {name: source[name] for name in report.loaded}
    top = config.train.reinitialise_layers
    if not top:
        return init_state(task, optimizer, config.seed, mesh, known), None
    # The top layers and the pooler as initialised (Zhang et al. 2021, arXiv:2006.05987, section 4)
    stacked = [name for name in known if name.startswith("encoder/layers/")]
    depth = known[stacked[0]].shape[0]
    if top > depth:
        raise UserError(f"train.reinitialise_layers is {top}; the model has {depth} layers")
    kept = {n: x for n, x in known.items() if n not in stacked and not n.startswith("pooler/")}
    state = init_state(task, optimizer, config.seed, mesh, kept)
    lower = {n: state.parameters[n].at[: depth - top].set(known[n][: depth - top]) for n in stacked}
    return TrainState(state.step, state.parameters | lower, state.optimizer), None


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
        """The signal that asks to stop after `step`, or None."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self.noted

    def _note(self, number, _):
        self.noted = number
        for other, handler in self.before.items():
            signal.signal(other, handler)
        logging.warning("%s: finishing this step, then saving", signal.Signals(number).name)
