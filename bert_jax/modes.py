"""What `--mode` can be: each a function of (config, workdir, …) that can be called from a notebook as well.

Heavy imports are inside the functions, so that `--help` and a mistyped flag answer at once.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from bert_jax.command import say
from bert_jax.config import UserError
from bert_jax.start import check_writable, keep_programs, start_run
from bert_jax.tasks import task_class

if TYPE_CHECKING:
    from bert_jax.tasks.task import Evaluation, Task
    from bert_jax.training.loop import Finished


def prepare(config: ConfigDict, workdir: Path, **_) -> int:
    """Text → vocabulary → prepared data set, or finds the one that is already there."""
    source = start_run(config, workdir)
    from bert_jax.tasks.pretraining import prepared_corpus

    logging.info("prepared: %s", prepared_corpus(config, source).directory)
    return 0


def train(
    config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None, profile: int = 0, **_
) -> int:
    """Prepares if need be, trains or resumes, draws the curves and, after fine-tuning, the page of results; with
    `config.seeds` over 1, a run a seed. `profile` steps are traced, see `lab/profile.py`."""
    check_writable(workdir)
    if config.seeds > 1:
        if profile:
            raise UserError(f"--profile={profile} is for one run; leave it out, or set --config.seeds=1")
        from bert_jax.lab.seeds import train_seeds

        return train_seeds(config, workdir, train)
    source = start_run(config, workdir)
    import jax

    from bert_jax.lab.plots import plot_run
    from bert_jax.lab.profile import Profiler
    from bert_jax.training.loop import train as run_loop
    from bert_jax.training.observer import Observer
    from bert_jax.training.throughput import Throughput

    task = task_class(config.task).with_data(config, source)
    observers: list[Observer] = [Throughput()]
    observers += [Profiler(workdir / "profile", profile)] if profile and jax.process_index() == 0 else []
    finished = run_loop(task, config, workdir, observers)
    if jax.process_index() == 0:
        plot_run(workdir)
    if finished.signal is None and task.makes_predictions and finished.evaluation:
        _report(task, config, workdir, finished, overrides)
    if finished.signal is not None:
        logging.warning("stopped at step %d, saved in %s; the same command continues", finished.step, workdir)
        return 128 + finished.signal
    logging.info("done: %s", workdir)
    return 0


def evaluate(config: ConfigDict, workdir: Path, *, checkpoint: str = "best", **_) -> int:
    """Prints the metrics of a checkpoint on the validation and test examples, and adds them to metrics.jsonl."""
    source = start_run(config, workdir)
    from bert_jax.inference.open import meant
    from bert_jax.training.metrics_log import MetricsLog

    task = task_class(config.task).with_data(config, source)
    run, description, step = _evaluation(task, config, meant(workdir, config.init_from), checkpoint)
    log = MetricsLog(workdir, step, step)
    for split, name in (("validation", "eval"), ("test", "test")):
        evaluation = run(split, description)
        description |= evaluation.learned
        if evaluation:
            log.record(step, name, evaluation.metrics)
            say(f"{split}: " + ", ".join(f"{key} {value:.4f}" for key, value in evaluation.metrics.items()))
    log.close()
    return 0


def fill_mask(config: ConfigDict, workdir: Path, *, text: list[str], top_k: int, checkpoint: str = "best", **_) -> int:
    """Prints the likeliest tokens for every [MASK] in every --text."""
    if not text:
        raise UserError("--mode=fill_mask needs a text, e.g. --text='The [MASK] of the list is returned.'")
    from bert_jax.inference.fill_mask import FillMask
    from bert_jax.inference.open import meant

    fill = FillMask(meant(workdir, config.init_from), checkpoint)
    for one in text:
        say(one)
        for number, candidates in enumerate(fill(one, top_k), start=1):
            say(f"  mask {number}: " + "  ".join(f"{token} {probability:.3f}" for token, probability in candidates))
    return 0


def predict(
    config: ConfigDict,
    workdir: Path,
    *,
    input: str,
    output: str,
    input_format: str = "",
    bad_lines: str = "fail",
    glue: str = "",
    overrides: Mapping[str, Any] | None = None,
    checkpoint: str = "best",
    **_,
) -> int:
    """A prediction for every row of `input`: lines of JSON, the answers of SQuAD, or one file of a submission to
    GLUE."""
    if not input:
        raise UserError("--mode=predict needs --input: a file, - for standard input, or tfds:NAME@SPLIT")
    if output.endswith(".zip") != bool(glue):
        raise UserError("a submission to GLUE needs both --output=<name>.zip and --glue=<test set>")
    from bert_jax.inference.output import check_output, results, write_answers, write_jsonl

    check_output(output, (".jsonl", ".json", ".zip"), [input, *_records(workdir)])
    keep_programs(workdir)
    from bert_jax.inference import glue_submission
    from bert_jax.inference.open import meant
    from bert_jax.inference.predictor import Predictor

    path = meant(workdir, config.init_from)
    predictor = Predictor(path, config.eval.batch_size, overrides, checkpoint, users_task=config.task)
    rows = _rows(input, predictor.config.data.text, predictor.config.data.text_pair, input_format)
    if glue:
        glue_submission.check_submission(Path(output), glue, predictor.task.description())
        predictions = [prediction for _, prediction in results(rows, predictor.stream, skip_bad=False)]
        glue_submission.add_to_submission(Path(output), glue, predictions, predictor.task.description()["labels"])
        return 0
    if output.endswith(".json") and not predictor.task.makes_answers:
        raise UserError(f"--output={output}: .json is SQuAD's form of answers; of {predictor.config.task} use .jsonl")
    write = write_answers if output.endswith(".json") else write_jsonl
    write(rows, predictor.stream, output, skip_bad=bad_lines == "skip")
    return 0


def embed(
    config: ConfigDict,
    workdir: Path,
    *,
    input: str,
    output: str,
    input_format: str = "",
    bad_lines: str = "fail",
    overrides: Mapping[str, Any] | None = None,
    pooling: str = "mean",
    layer: str = "-1",
    normalize: bool = False,
    tokens: bool = False,
    checkpoint: str = "best",
    **_,
) -> int:
    """The vector of every text of `input`, or those of its tokens, of any checkpoint."""
    suffix = Path(output).suffix
    if not input or suffix not in (".npy", ".parquet"):
        raise UserError("--mode=embed needs --input and --output=<name>.npy or <name>.parquet")
    if tokens and suffix == ".npy":
        raise UserError("--tokens: each text has its own number of vectors; give --output=<name>.parquet")
    from bert_jax.inference.output import check_output

    check_output(output, (".npy", ".parquet"), [input, *_records(workdir)])
    keep_programs(workdir)
    from bert_jax.inference.embeddings import Embedder, write_npy, write_parquet
    from bert_jax.inference.open import meant

    names = {"data.sequence_length": "max_length", "data.long_texts": "long_texts", "model.dtype": "dtype"}
    given = {names[key]: value for key, value in (overrides or {}).items() if key in names}
    given |= {"pooling": pooling, "layer": layer, "normalize": normalize, "which": checkpoint, "overrides": overrides}
    embedder = Embedder(meant(workdir, config.init_from), batch_size=config.eval.batch_size, **given)
    # A run without labelled examples, such as pretraining, says nothing about columns.
    names_column = embedder.run_config.data.train and "data.text" not in (overrides or {})
    column = (embedder.run_config if names_column else config).data.text
    rows = _rows(input, column, "", input_format)
    skip_bad = bad_lines == "skip"
    if suffix == ".npy":
        write_npy(rows, embedder, column, Path(output), skip_bad=skip_bad)
    else:
        write_parquet(rows, embedder, column, Path(output), skip_bad=skip_bad, tokens=tokens)
    return 0


MODES = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "fill_mask": fill_mask,
    "predict": predict,
    "embed": embed,
}


def _evaluation(
    task: "Task", config: ConfigDict, path: str, which: str
) -> tuple[Callable[[str, dict], "Evaluation"], dict[str, Any], int]:
    """Returns the evaluation of a checkpoint as a function of (split, description), its description and its step."""
    from bert_jax.inference.open import check_alike, open_model
    from bert_jax.training.checkpoint import on_mesh
    from bert_jax.training.evaluation import make_evaluation
    from bert_jax.training.sharding import make_mesh, place

    mesh = make_mesh(config.mesh)
    opened = open_model(path, which=which, users_task=config.task, shardings=on_mesh(mesh))
    check_alike(opened.bert_config, {f"model.{key}": value for key, value in config.model.items()}, opened.path)
    if opened.tokenizer.content_hash != task.tokenizer.content_hash:
        raise UserError(
            f"{opened.path} was trained with another vocabulary than this run's data has; prepare the data with its "
            "vocabulary (--config.data.vocab_file), or restore the corpus as it was"
        )
    graphdef, parameters = opened.fit(task.init)
    run = make_evaluation(task, graphdef, config, mesh, place(mesh, task.constants()))
    return partial(run, parameters), task.description() | opened.run["task"], opened.step


def _report(task: "Task", config: ConfigDict, workdir: Path, finished: "Finished", overrides) -> None:
    """Reports on the best checkpoint, which is evaluated again unless it was what the run evaluated last."""
    import jax

    from bert_jax.lab.report import write_report
    from bert_jax.training.checkpoint import choose_checkpoint

    folder, evaluation = choose_checkpoint(str(workdir)), finished.evaluation
    if int(folder.name) != finished.step:
        run, description, _ = _evaluation(task, config, str(folder), "best")
        evaluation = run("validation", description)
    report = task.report(evaluation)
    if report is not None and jax.process_index() == 0:
        write_report(report, evaluation.metrics, config, workdir, overrides)


def _records(workdir: Path) -> list[Path]:
    """Returns the files of a run that no output may replace."""
    return [workdir / "config.json", workdir / "metrics.jsonl"]


def _rows(source: str, text: str, text_pair: str, input_format: str):
    from bert_jax.data.labelled.inputs import read_input

    has_header = not any(column.removeprefix("-").isdigit() for column in (text, text_pair))
    return read_input(source, text=text, has_header=has_header, file_format=input_format)
