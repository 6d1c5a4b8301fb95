"""What `--mode` can be: each a function of (config, workdir, …) that can be called from a notebook as well.

Heavy imports are inside the functions, so that `--help` and a mistyped flag answer at once.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from bert_jax.config import UserError, differences, from_json_dict, read_config, validate
from bert_jax.tasks import task_class

if TYPE_CHECKING:
    from bert_jax.data.tokenizer import Tokenizer


def prepare(config: ConfigDict, workdir: Path, **_) -> int:
    """Text → vocabulary → prepared data set, or finds the one that is already there."""
    logging.info("prepared: %s", _prepared(config, _start(config, workdir)).directory)
    return 0


def train(
    config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None, profile: int = 0, **_
) -> int:
    """Prepares if need be, trains or resumes, draws the curves and, after fine-tuning, the page of results; with
    `config.seeds` over 1, a run a seed. `profile` steps are traced, see `lab/profile.py`."""
    _writable(workdir)
    if config.seeds > 1:
        if profile:
            raise UserError(f"--profile={profile} is for one run; leave it out, or set --config.seeds=1")
        from bert_jax.lab.seeds import train_seeds

        return train_seeds(config, workdir, train)
    source = _start(config, workdir)
    import jax

    from bert_jax.lab.plots import plot_run
    from bert_jax.lab.profile import Profiler
    from bert_jax.training.loop import train as run_loop

    task = _task(config, source)
    profiler = Profiler(workdir / "profile", profile) if profile and jax.process_index() == 0 else None
    finished = run_loop(task, config, workdir, profiler)
    if profiler is not None:
        profiler.finish()
    if jax.process_index() == 0:
        plot_run(workdir)
    if finished.signal is None and config.task != "pretraining" and "validation" in task.items:
        _report(task, config, workdir, finished.step, overrides)
    if finished.signal is not None:
        logging.warning("stopped at step %d, saved in %s; the same command continues", finished.step, workdir)
        return 128 + finished.signal
    logging.info("done: %s", workdir)
    return 0


def evaluate(config: ConfigDict, workdir: Path, **_) -> int:
    """Metrics on the validation and test examples of the newest checkpoint, after fine-tuning of the best one; printed
    and added to metrics.jsonl."""
    source = _start(config, workdir)
    from bert_jax.training.checkpoint import find_checkpoint
    from bert_jax.training.metrics_log import MetricsLog

    folder = find_checkpoint(str(workdir), best=config.task != "pretraining")
    run, step = _evaluation(_task(config, source), config, folder)
    log = MetricsLog(workdir, step, step)
    for split, name in (("validation", "eval"), ("test", "test")):
        metrics = run(split)
        if metrics:
            log.record(step, name, metrics)
            print(f"{split}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    log.close()
    return 0


def fill_mask(config: ConfigDict, workdir: Path, *, text: list[str], top_k: int, **_) -> int:
    """Prints the likeliest tokens for every [MASK] in every --text."""
    if not text:
        raise UserError("--mode=fill_mask needs a text, e.g. --text='The [MASK] of the list is returned.'")
    from bert_jax.inference.fill_mask import FillMask

    fill = FillMask(config.init_from or str(workdir))
    for one in text:
        print(one)
        for number, candidates in enumerate(fill(one, top_k), start=1):
            print(f"  mask {number}: " + "  ".join(f"{token} {probability:.3f}" for token, probability in candidates))
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
    **_,
) -> int:
    """A prediction for every row of `input`: lines of JSON, the answers of SQuAD, or one file of a submission to
    GLUE."""
    if not input:
        raise UserError("--mode=predict needs --input: a file, - for standard input, or tfds:NAME@SPLIT")
    if output.endswith(".zip") != bool(glue):
        raise UserError("a submission to GLUE needs both --output=<name>.zip and --glue=<test set>")
    _keep_programs(workdir)
    from bert_jax.inference import glue_submission
    from bert_jax.inference.output import results, write_answers, write_jsonl
    from bert_jax.inference.predictor import Predictor

    predictor = Predictor(_trained(config, workdir), config.eval.batch_size, overrides)
    rows = _rows(input, predictor.config.data.text, predictor.config.data.text_pair, input_format)
    if glue:
        predictions = [prediction for _, prediction in results(rows, predictor.stream, skip_bad=False)]
        glue_submission.add_to_submission(Path(output), glue, predictions, predictor.task.description()["labels"])
        return 0
    if output.endswith(".json") and predictor.config.task != "span_qa":
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
    **_,
) -> int:
    """The vector of every text of `input`, or those of its tokens, of any checkpoint."""
    suffix = Path(output).suffix
    if not input or suffix not in (".npy", ".parquet"):
        raise UserError("--mode=embed needs --input and --output=<name>.npy or <name>.parquet")
    if tokens and suffix == ".npy":
        raise UserError("vectors of tokens are as many as a text has tokens: --output=<name>.parquet")
    _keep_programs(workdir)
    from bert_jax.inference.embeddings import Embedder, write_npy, write_parquet

    names = {"data.sequence_length": "max_length", "data.long_texts": "long_texts", "model.dtype": "dtype"}
    given = {names[key]: value for key, value in (overrides or {}).items() if key in names}
    given |= {"pooling": pooling, "layer": layer, "normalize": normalize}
    embedder = Embedder(_trained(config, workdir), batch_size=config.eval.batch_size, **given)
    is_pretrained = embedder.run_config.task == "pretraining"  # and so says nothing of columns
    column = (config if is_pretrained or "data.text" in (overrides or {}) else embedder.run_config).data.text
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


class Source(NamedTuple):
    """What a run takes from the checkpoint that it goes on or starts from, besides parameters and the model's shape."""

    tokenizer: "Tokenizer"
    task: str
    description: dict  # of that task


def _start(config: ConfigDict, workdir: Path) -> Source | None:
    """Devices, and every mistake in the config that can be seen before any data is."""
    task_class(config.task)
    import jax

    from bert_jax.models.config import SHAPE, bert_config, check_length

    _keep_programs(workdir)
    _join_processes(os.environ)
    source = _inherit(config, workdir)
    vocab_size = config.data.vocab_size if source is None else source.tokenizer.vocab_size
    model = bert_config(config.model, config.model.vocab_size or vocab_size)
    config.model.update({key: getattr(model, key) for key in SHAPE})
    check_length(model, config.data.sequence_length)
    validate(config, jax.device_count())
    return source


def _evaluation(task, config: ConfigDict, folder: Path) -> tuple[Callable[[str], dict[str, float]], int]:
    """What gives the metrics of a checkpoint on a split, and its step."""
    import jax
    from flax import nnx

    from bert_jax.training.checkpoint import read_checkpoint
    from bert_jax.training.loop import make_evaluation
    from bert_jax.training.parameters import flatten, take_over
    from bert_jax.training.sharding import make_mesh

    saved = read_checkpoint(folder, tokenizer_hash=task.tokenizer.content_hash)
    differing = differences(saved.run["config"]["model"], config.model.to_dict())
    if differing:
        keys = "; ".join(f"model.{key} was {old!r}, is {new!r}" for key, old, new in differing)
        raise UserError(f"{folder} holds another model ({keys}); give the config that it was trained with")
    task.describe(saved.run["task"])
    model = nnx.eval_shape(lambda: task.init(nnx.Rngs(params=0)))
    parameters, _ = take_over(flatten(model), saved.parameters, new="", dropped="", origin=str(folder))
    run = make_evaluation(task, nnx.split(model)[0], config, make_mesh(config.mesh))
    host = jax.device_get(parameters)
    return (lambda split: run(host, split)), saved.run["step"]


def _report(task, config: ConfigDict, workdir: Path, last_step: int, overrides: Mapping[str, Any] | None) -> None:
    """On the best checkpoint, which is evaluated again unless it was what the run evaluated last."""
    import jax

    from bert_jax.lab.report import write_report
    from bert_jax.training.checkpoint import find_checkpoint

    folder = find_checkpoint(str(workdir), best=True)
    if task.evaluated != "validation" or int(folder.name) != last_step:
        _evaluation(task, config, folder)[0]("validation")
    if jax.process_index() == 0:
        write_report(task, config, workdir, overrides)


def _keep_programs(workdir: Path) -> None:
    """Programs compiled by one run are there for the next; jax's own setting goes first."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute().parent / ".compiled"))


def _trained(config: ConfigDict, workdir: Path) -> str:
    """1. the checkpoints of the workdir; 2. those that `init_from` names."""
    from bert_jax.training.checkpoint import has_checkpoint

    return config.init_from if config.init_from and not has_checkpoint(str(workdir)) else str(workdir)


def _rows(source: str, text: str, text_pair: str, input_format: str):
    from bert_jax.inference.input_rows import read_input

    has_header = not any(column.removeprefix("-").isdigit() for column in (text, text_pair))
    return read_input(source, text=text, has_header=has_header, file_format=input_format)


def _inherit(config: ConfigDict, workdir: Path) -> Source | None:
    """What the config leaves open is as in the run that this one continues, else as in `init_from`: the model's shape,
    and what `Source` holds (None: nothing is inherited)."""
    from bert_jax.models.config import bert_config, inherit_shape
    from bert_jax.training.checkpoint import Damaged, describe_checkpoint, find_checkpoint, has_checkpoint

    if (workdir / "config.json").is_file():
        model = read_config(workdir / "config.json").model
        inherit_shape(config.model, bert_config(model, model.vocab_size or config.data.vocab_size))
    if not config.init_from:
        return None
    # A run that goes on no longer needs what it started from, unless its newest checkpoint is damaged.
    own = [str(workdir)] if has_checkpoint(str(workdir)) else []
    try:
        run, tokenizer = describe_checkpoint(find_checkpoint((own or [config.init_from])[0]))
    except Damaged:
        if not own:
            raise
        run, tokenizer = describe_checkpoint(find_checkpoint(config.init_from))
    saved = from_json_dict(run["config"])
    inherit_shape(config.model, bert_config(saved.model, tokenizer.vocab_size))
    return Source(tokenizer, saved.task, run["task"])


def _join_processes(environment: Mapping[str, str]) -> None:
    """Makes one run of several processes where JAX_COORDINATOR_ADDRESS is set: to `auto` where jax can find out
    by itself (TPU pods, Slurm, Kubernetes, MPI), else to host:port, with JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    import jax

    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address == "auto":
        del os.environ["JAX_COORDINATOR_ADDRESS"]  # jax would take it for a host
        jax.distributed.initialize()
    elif address is not None:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        if any(not environment.get(name, "").isdigit() for name in names):
            raise UserError("JAX_COORDINATOR_ADDRESS is set; set JAX_NUM_PROCESSES and JAX_PROCESS_ID to numbers too")
        count, number = (int(environment[name]) for name in names)
        jax.distributed.initialize(address, count, number)


def _prepared(config: ConfigDict, source: Source | None):
    from bert_jax.data.prepare import prepare as prepare_corpus

    if config.data.corpus == "sample" and not config.data.files:
        logging.warning(
            "THE CORPUS IS THE BUILT-IN SAMPLE (2 MB of Python's own documentation). "
            "For yours: --config.data.corpus=text --config.data.files='corpus/*.txt'"
        )
    import jax
    from jax.experimental import multihost_utils

    # Of several processes the first prepares; the others find it done. Each machine needs the same folder.
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("prepared")
    prepared = prepare_corpus(config.data, config.data.seed, source and source.tokenizer)
    if jax.process_index() == 0 and jax.process_count() > 1:
        multihost_utils.sync_global_devices("prepared")
    return prepared


def _task(config: ConfigDict, source: Source | None):
    make = task_class(config.task)
    if config.task == "pretraining":
        return make(config, _prepared(config, source))
    from bert_jax.data.tokenizer import load_tokenizer

    if source is None and not config.data.vocab_file:
        raise UserError("fine-tuning needs a checkpoint (init_from), or for a model from scratch data.vocab_file")
    tokenizer = load_tokenizer(config.data.vocab_file, config.data) if source is None else source.tokenizer
    same_task = source is not None and source.task == config.task
    task = make(config, tokenizer, source.description if source is not None and same_task else None)
    task.load()
    return task


def _writable(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as problem:
        raise UserError(f"--workdir {workdir} cannot be written to ({problem.strerror}); choose another") from problem
