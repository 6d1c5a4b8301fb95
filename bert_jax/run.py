"""One run: how it starts (processes, data, task), trains, and ends (curves, report)."""

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import jax
from ml_collections import ConfigDict

from bert_jax.backend import keep_programs
from bert_jax.checks import check_files, check_folders, check_writable
from bert_jax.command import report_as_process
from bert_jax.config import UserError, check_option, from_json_dict, naming, read_config, validate
from bert_jax.convert import google_tf, hub
from bert_jax.convert.extend import extend_start
from bert_jax.data.pretraining.corpora import languages_of
from bert_jax.data.text.buckets import is_url
from bert_jax.entries import of_task
from bert_jax.inference.open import check_alike, open_model
from bert_jax.lab.plots import plot_run
from bert_jax.lab.profile import Profiler
from bert_jax.lab.provenance import Provenance, digest_of
from bert_jax.lab.report.run_page import write_report
from bert_jax.models.config import (
    SHAPE,
    BertConfig,
    bert_config,
    check_length,
    check_structure,
    inherit_shape,
    layer_numbers,
)
from bert_jax.option import Value
from bert_jax.phases import check_phases
from bert_jax.sharding import check_heads, make_mesh, place
from bert_jax.tasks import task_class
from bert_jax.tasks.task import Description, Evaluation, Source, Task, description_of
from bert_jax.teaching import source_of_teacher, trained_task
from bert_jax.training import checkpoint
from bert_jax.training.energy import Energy, check_energy, energy_of
from bert_jax.training.evaluation import make_evaluation
from bert_jax.training.ledger import Ledger
from bert_jax.training.loop import Finished, train
from bert_jax.training.metrics_log import read_metrics
from bert_jax.training.mirror import Mirror
from bert_jax.training.observer import Observer
from bert_jax.training.processes import (
    check_same,
    ends_with_the_others,
    join_processes,
    on_first_process,
    several_processes,
    together,
)
from bert_jax.training.saving import alone_in
from bert_jax.training.throughput import Throughput
from bert_jax.training.trackers import check_trackers

Overrides = Mapping[str, Value] | None  # the options that were set on the command line


@dataclass(frozen=True)
class Result:
    """The outcome of a run. Metrics are {name: value}, as in metrics.jsonl; {} where there are no examples."""

    workdir: Path
    step: int  # updates made
    ended: str  # "done", "patience" (no better evaluation for train.patience of them) or "signal"
    last: dict[str, float]  # validation, the newest evaluation
    best: dict[str, float]  # validation, at the best checkpoint by checkpoint.best_metric
    test: dict[str, float]  # data.test, with the best checkpoint
    checkpoint: Path  # the best checkpoint; the newest if none was evaluated
    signal: int | None = None
    energy: dict[str, float] = field(default_factory=dict)  # what it cost over all starts, with energy.meter

    @property
    def status(self) -> int:
        """The exit status of a command: 0, or 128 + n for a run that signal n stopped and that can be continued."""
        return 0 if self.signal is None else 128 + self.signal


def run(config: ConfigDict, workdir: Path, *, overrides: Overrides = None, profile: int = 0) -> Result:
    """Trains, or continues the run in `workdir`: prepares the data if need be, trains, draws the curves and writes the
    page of results.

    What the config leaves open is filled in, in place. `overrides` are the options set on the command line, for the
    page. The time of `profile` steps is broken down, see `lab/profile.py`. Raises UserError.
    """
    if config.seeds > 1:
        raise UserError(f"seeds is {config.seeds}: this makes one run; use bert_jax.lab.seeds.train_seeds")
    with ends_with_the_others():
        return _run(config, workdir, overrides, profile)


def start_run(config: ConfigDict, workdir: Path) -> Source | None:
    """Joins the processes of a run, fills in what the config leaves open, and returns what the run inherits from a
    checkpoint. Raises UserError for every mistake that shows before any data is read."""
    check_option("mesh.join_seconds", config.mesh.join_seconds)
    check_option("train.trackers", config.train.trackers)
    check_trackers(config.train.trackers)
    check_energy(config.energy)
    check_folders(config, workdir)
    keep_programs(workdir)
    join_processes(os.environ, config.mesh.join_seconds)
    if several_processes():
        report_as_process(jax.process_index())
    check_same(config.to_dict() | {"--workdir": str(workdir)})
    with together():
        check_files(config)
        task_class(config.task)
        _fetch(config.checkpoint.mirror, workdir)
        on_first_process(lambda: extend_start(config, workdir))
        source = inherit(config, workdir) or source_of_teacher(config)
        check_run(config, config.data.vocab_size if source is None else source.tokenizer.vocab_size)
    return source


def check_run(config: ConfigDict, vocab_size: int) -> None:
    """Fills in what the config leaves open of the model's shape. Raises UserError for values that do not go together,
    or not with the devices of this process."""
    languages = languages_of(config)  # which refuses a corpus of another language than the model's
    if config.model.languages == "auto":
        config.model.languages = ",".join(languages)
    model = bert_config(config.model, config.model.vocab_size or vocab_size)
    config.model.update({key: getattr(model, key) for key in SHAPE})
    check_length(model, config.data.sequence_length)
    validate(config, jax.device_count())
    check_phases(config, model, jax.device_count(), is_possible=task_class(config.task).has_phases)
    check_heads(make_mesh(config.mesh), model.num_attention_heads)
    has_members = task_class(config.task).has_members
    if config.tasks and not has_members:
        name = next(iter(config.tasks))
        raise UserError(
            f"tasks.{name} is for task=multitask, not for task={config.task}: set it, or leave the tasks out"
        )
    for name in config.tasks:
        with naming(f"tasks.{name}"):
            check_run(of_task(config, name), vocab_size)


def _fetch(mirror: str, workdir: Path) -> None:
    """Copies what the mirror of a run has and its workdir lacks, before anything is read from the workdir."""
    if mirror:
        on_first_process(lambda: check_writable(workdir))
        with alone_in(workdir):
            on_first_process(lambda: Mirror(mirror, workdir).fetch())


def evaluate_checkpoint(task: Task, config: ConfigDict, path: str, which: str) -> tuple[dict[str, Evaluation], int]:
    """Returns the evaluation of each split of a checkpoint ({} for none), and its step. Thresholds found on validation
    are used on test. Raises UserError if the checkpoint holds another model or vocabulary than the config and its
    data."""
    mesh = make_mesh(config.mesh)
    opened = open_model(path, which=which, users_task=config.task, shardings=checkpoint.on_mesh(mesh))
    check_alike(opened.bert_config, {f"model.{key}": value for key, value in config.model.items()}, opened.path)
    if opened.tokenizer.content_hash != task.tokenizer.content_hash:
        raise UserError(
            f"{opened.path} was trained with another vocabulary than this run's data has; prepare the data with its "
            "vocabulary (--config.data.vocab_file), or restore the corpus as it was"
        )
    if unknown := [name for name in task.members if name not in opened.config.tasks]:
        known = ", ".join(opened.config.tasks) or "none"
        raise UserError(f"{opened.path} has no head for tasks.{unknown[0]} (its tasks: {known}); leave it out")
    # Members of the run that this task leaves out are not evaluated.
    graphdef, parameters = opened.fit(task.init, dropped=task.dropped_parameters if task.members else "")
    evaluate = make_evaluation(task, graphdef, config, mesh, place(mesh, task.constants()))
    description: Description = task.description() | opened.run["task"]
    found = {}
    for split in ("validation", "test"):
        found[split] = evaluate(parameters, split, description)
        description |= found[split].learned
    return {split: evaluation for split, evaluation in found.items() if evaluation}, opened.step


def _run(config: ConfigDict, workdir: Path, overrides: Overrides, profile: int) -> Result:
    ledger = Ledger(workdir)
    source = start_run(config, workdir)
    with together():
        check_writable(workdir)
        if (workdir / "seeds.json").exists():
            raise UserError(f"{workdir} holds the runs of several seeds; choose another --workdir for one run")
        task = trained_task(config, source)
    observers: list[Observer] = [Throughput(), ledger, Provenance(workdir, source.parameters if source else "")]
    observers.append(_ImportsForTheEnd())
    observers += [Energy(workdir, config.energy)] if config.energy.meter != "none" else []
    observers += [Profiler(workdir / "profile", profile)] if profile and jax.process_index() == 0 else []
    finished = train(task, config, workdir, observers)
    on_first_process(lambda: plot_run(workdir))
    best = checkpoint.choose_checkpoint(str(workdir))
    if finished.signal is None and task.makes_predictions and finished.evaluation:
        _report(task, config, workdir, finished, best, overrides)
    _log_bests(task, workdir, int(best.name))
    return _result(workdir, finished, best)


def _log_bests(task: Task, workdir: Path, best: int) -> None:
    """Logs when each of several tasks was at its best, which may be another step than that of the best checkpoint."""
    evaluations = [line for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == "eval"]
    for name, metric in task.main_metrics.items():
        found = {line["step"]: line[key] for line in evaluations if (key := f"{name}/{metric}") in line}
        step = max(found, key=found.__getitem__, default=None)
        if step is not None and best in found:
            values = name, metric, found[step], step, found[best], best
            logging.info("%s: best %s %.4f at step %d; %.4f at the best checkpoint, step %d", *values)


class _ImportsForTheEnd(Observer):
    """Imports, while the compiler works on the first step, what metrics and curves need: seconds that would else be
    spent when nothing else runs."""

    def __init__(self):
        self._is_scored = False
        self._thread: threading.Thread | None = None

    def begin(self, task, state, mesh) -> None:
        self._is_scored = task.makes_predictions

    def compiling(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._load, name="imports", daemon=True)
            self._thread.start()

    def end(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _load(self) -> None:
        import matplotlib.figure  # noqa: F401

        if self._is_scored:
            import sklearn.metrics  # noqa: F401


def inherit(config: ConfigDict, workdir: Path) -> Source | None:
    """Returns what the run takes from a checkpoint, besides parameters; None if it starts from scratch.

    What the config leaves open of the model's shape is filled in from the run that this one continues, else from
    `init_from`.
    """
    # A run that continues no longer needs what it started from, unless its newest checkpoint is damaged.
    has_own = checkpoint.has_checkpoint(str(workdir))
    if has_own and (workdir / "config.json").is_file():
        model = read_config(workdir / "config.json").model
        own = bert_config(model, model.vocab_size or config.data.vocab_size)
        _inherit_shape(config.model, own, workdir)
    if not (start := checkpoint.start_of(config, workdir)):
        return None
    if not has_own and not checkpoint.has_checkpoint(start):
        _explain_init_from(start)
    try:
        folder = checkpoint.find_checkpoint(str(workdir)) if has_own else checkpoint.choose_checkpoint(start)
        item, tokenizer = checkpoint.describe_checkpoint(folder)
    except checkpoint.Damaged:
        if not has_own:
            raise
        item, tokenizer = checkpoint.describe_checkpoint(checkpoint.choose_checkpoint(start))
    saved = from_json_dict(item["config"])
    shape = bert_config(saved.model, tokenizer.vocab_size)
    if not has_own:
        taken = layer_numbers("train.take_layers", config.train.take_layers, shape.num_hidden_layers)
        shape = replace(shape, num_hidden_layers=len(taken))
    _inherit_shape(config.model, shape, config.init_from)
    if config.init_task and not has_own:
        with naming(f"init_task: {config.init_from}"):
            saved = of_task(saved, config.init_task)
            item["task"] = description_of(item["task"], config.init_task)
        if saved.task != config.task:
            raise UserError(
                f"init_task={config.init_task} is a task={saved.task}, whose head task={config.task} cannot take: "
                "leave it out, which begins a new head"
            )
    return Source(tokenizer, saved.task, item["task"], "" if has_own else digest_of(item))


def _inherit_shape(model: ConfigDict, source: BertConfig, origin: object) -> None:
    if model.languages == "auto" and source.languages:
        model.languages = None  # those of the source, in its order
    check_structure(model, source, origin)
    inherit_shape(model, source)


def _explain_init_from(path: str) -> NoReturn:
    """Raises UserError. The commonest first mistake is the name or the folder of a model in another format."""
    folder = Path(path)
    convert = f"python -m bert_jax.convert --from={path} --to=ckpts/{folder.name}"
    then = f"{convert}, then give --config.init_from=ckpts/{folder.name}"
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        raise UserError(f"init_from={path} is a workdir without a checkpoint; train that run first")
    if google_tf.is_checkpoint(folder) or any((folder / name).is_file() for name in ("config.json", "modules.json")):
        raise UserError(f"init_from={path} is a model in another format; convert it first: {then}")
    if is_url(path) or folder.exists():
        raise UserError(f"init_from={path} is not a checkpoint; give a workdir or one of its checkpoints")
    if hub.is_name(path):
        raise UserError(f"init_from={path} does not exist; if it is a model of the Hugging Face Hub: {then}")
    raise UserError(f"init_from={path} does not exist; correct the path")


def _result(workdir: Path, finished: Finished, best: Path) -> Result:
    """Metrics are read from the log, because a run that was continued made some of its evaluations earlier."""
    by_step: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    lines = read_metrics(workdir / "metrics.jsonl")
    for line in lines:
        by_step[line["split"]][line["step"]] = {k: v for k, v in line.items() if k not in ("step", "split")}
    evaluations = by_step["eval"]
    last = evaluations[max(evaluations)] if evaluations else {}
    at_best, test = evaluations.get(int(best.name), {}), by_step["test"].get(finished.step, {})
    energy = energy_of(lines)
    return Result(workdir, finished.step, finished.ended, last, at_best, test, best, finished.signal, energy)


def _report(
    task: Task, config: ConfigDict, workdir: Path, finished: Finished, best: Path, overrides: Overrides
) -> None:
    """Reports on the best checkpoint, which is evaluated again unless it was what the run evaluated last."""
    evaluation = finished.evaluation
    if int(best.name) != finished.step:
        evaluation = evaluate_checkpoint(task, config, str(best), "best")[0]["validation"]
    report = task.report(evaluation)
    if report is not None:
        on_first_process(lambda: write_report(report, evaluation.metrics, config, workdir, overrides))
