"""What the runs of a study need, before any of them starts: the checks of a run, its memory, disk, tokens and FLOPs."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_jax import backend, checks
from bert_jax import run as runs
from bert_jax.config import Json, UserError, from_json_dict, resolve_steps
from bert_jax.data.batching.batch_order import steps_per_epoch
from bert_jax.data.labelled.languages import files_of
from bert_jax.lab.programs import stand_in_tokenizer
from bert_jax.lab.space import named_metrics
from bert_jax.lab.study import PlannedRun
from bert_jax.models.config import BertConfig, bert_config, check_structure, inherit_shape
from bert_jax.options import default_config
from bert_jax.sharding import make_mesh
from bert_jax.tasks import TASKS, task_class
from bert_jax.teaching import flops_of_teacher, source_of_teacher
from bert_jax.training.memory import host_memory
from bert_jax.training.parameters import structure
from bert_jax.training.throughput import peak_flops

_PROCESS = 600e6  # bytes that Python, jax and its compiler hold beside a small model
_USUAL_MFU = 0.3  # of a small BERT, on a CPU as well as on a GPU


@dataclass(frozen=True)
class Estimate:
    """What one run needs. None is unknown."""

    parameters: int
    checkpoint: float  # bytes of one
    disk: float  # bytes of all that it keeps
    memory: float  # bytes, estimated from parameters and batch
    steps: int | None
    tokens: float | None  # positions of all training batches, at most
    flops: float | None  # of all training steps, at most
    seconds: float | None  # of the training steps, by the FLOPs and a usual share of the device's peak


@dataclass(frozen=True)
class Request:
    """A run that is to be examined."""

    planned: PlannedRun
    config: Json
    metric: str = ""  # SPLIT.METRIC that the study asks for
    is_done: bool = False


@dataclass(frozen=True)
class Examined:
    """What was found of all runs. None is the estimate of a task that cannot be estimated without its data."""

    estimates: Mapping[str, Estimate | None]  # by the key of the run
    basis: str  # what the estimate of time rests on
    problem: str  # why the machine is too small; "" if it is not


def examine(workdir: Path, requests: Sequence[Request], jobs: int, timed: bool) -> Examined:
    """Makes the checks of a run for all of them, before any data is read, and estimates what they need. Raises
    UserError naming the run."""
    shapes: dict[str, BertConfig] = {}
    found: dict[str, Estimate | None] = {}
    known: dict[str, Estimate | None] = {}
    peak, source = peak_flops(0.0, make_mesh(default_config().mesh)) if timed else (None, "")
    for request in requests:
        config, key = from_json_dict(request.config), request.planned.key
        try:
            shapes[key] = _check(config, workdir, request, shapes)
            signature = json.dumps(config.to_dict() | {"seed": 0, "init_from": ""}, sort_keys=True, default=str)
            if signature not in known:
                known[signature] = _estimate(config, shapes[key].vocab_size, peak)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        found[key] = known[signature]
    left = [found[request.planned.key] for request in requests if not request.is_done]
    problem = _too_small(workdir, [estimate for estimate in left if estimate is not None], jobs)
    return Examined(found, f"{100 * _USUAL_MFU:.0f} % of {source}", problem)


def _too_small(workdir: Path, left: Sequence[Estimate], jobs: int) -> str:
    """Returns why the disk cannot hold the checkpoints of the runs that are left, or the memory not `jobs` of them."""
    folder = next(folder for folder in (workdir, *workdir.parents) if folder.exists())
    needed, free = sum(estimate.disk for estimate in left), shutil.disk_usage(folder).free
    if needed > free:
        return (
            f"{workdir}: the checkpoints of {len(left)} runs take about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB "
            "are free; free some space, or lower checkpoint.keep"
        )
    largest, memory = max((estimate.memory for estimate in left), default=0.0), host_memory()
    if backend.current().is_cpu and largest * jobs > memory:
        return (
            f"{jobs} runs at a time need about {jobs * largest / 1e9:.3g} GB of memory, and this machine has "
            f"{memory / 1e9:.3g} GB; lower --jobs, or train.batch_size"
        )
    return ""


def _check(config: ConfigDict, workdir: Path, request: Request, shapes: Mapping[str, BertConfig]) -> BertConfig:
    """Makes the checks of `run.start_run`, with the shape that the run before will have where there is none yet. Of a
    run that is done, files are not looked for."""
    one, is_done = request.planned, request.is_done
    if config.seeds != 1:
        raise UserError(f"seeds is {config.seeds}; in a study seeds are an axis: grid(…, seeds({config.seeds}))")
    checks.check_folders(config, workdir / one.key)
    if not is_done:
        checks.check_files(config)
    task = task_class(config.task)
    for metric in named_metrics(request.metric):
        _check_metric(config, metric)
    vocab_size = config.data.vocab_size
    if one.after:
        parent = shapes[one.after]
        check_structure(config.model, parent, one.after)
        inherit_shape(config.model, parent)
        vocab_size, config.init_from = parent.vocab_size, ""
    elif not is_done and (source := runs.inherit(config, workdir / one.key) or source_of_teacher(config)) is not None:
        vocab_size = source.tokenizer.vocab_size
    elif not task.makes_vocabulary and not config.data.vocab_file and not is_done:
        raise UserError(
            "fine-tuning needs a checkpoint (init_from, or a stage that it comes after), or data.vocab_file"
        )
    runs.check_run(config, vocab_size)
    return bert_config(config.model, config.model.vocab_size or vocab_size)


def _check_metric(config: ConfigDict, metric: str) -> None:
    split = {"eval": "validation", "last": "validation", "test": "test"}.get(metric.partition(".")[0])
    evaluated = task_class(config.task).splits(config)
    if split is not None and split not in evaluated:
        known = " and ".join(evaluated) or "no examples"
        remedy = f"take another metric, or for labelled examples set data.{split}"
        raise UserError(f"the study's metric is {metric}, but a run is evaluated on {known}: {remedy}")


def _estimate(config: ConfigDict, vocab_size: int, peak: float | None) -> Estimate | None:
    try:
        task = task_class(config.task).without_data(config, _tokenizer(vocab_size), None)
    except UserError:
        if config.task in TASKS:
            raise
        return None  # a task of the user's own need not know how
    by_teacher = flops_of_teacher(config, task)
    parameters = sum(x.size for x in structure(task.init)[1].values())
    steps = _steps(config, task)
    checkpoint = 12.0 * parameters  # parameters and two moments in float32
    kept = min(config.checkpoint.keep, 1 + (steps or 1 << 30) // (config.checkpoint.every or 1 << 30)) + 1
    phases = task.phases()
    activations = max(phase.task.bytes_per_step for phase in phases) / 3 / config.train.accumulation
    counts = np.diff([0, *(phase.end for phase in phases[:-1]), steps or 0]).tolist()
    tokens = sum(count * float(phase.task.tokens_per_step) for count, phase in zip(counts, phases, strict=True))
    costs = (phase.task.flops_per_step + by_teacher for phase in phases)
    flops = sum(count * cost for count, cost in zip(counts, costs, strict=True))
    return Estimate(
        parameters,
        checkpoint,
        kept * checkpoint,
        _PROCESS + 16.0 * parameters + activations,
        steps,
        None if steps is None else tokens,
        None if steps is None else flops,
        None if steps is None or peak is None else flops / (peak * _USUAL_MFU),
    )


def _steps(config: ConfigDict, task: object) -> int | None:
    """Returns the number of steps; of epochs over local files, by counting their examples."""
    config = config.copy_and_resolve_references()
    if config.train.epochs is not None:
        try:
            resolve_steps(config, _steps_per_epoch(task))
        except (UserError, AttributeError):  # the run itself will say what is wrong with its data
            return None
    return config.train.steps


def _steps_per_epoch(task: Any) -> int:
    """Returns the batches of an epoch, of several tasks those that have a share. Raises UserError if only the data can
    say."""
    if task.members:
        return sum(_steps_per_epoch(member) for name, member in task.members.items() if task.shares[name])
    data = task.config.data
    if not task.makes_predictions or data.train.startswith("tfds:"):
        raise UserError("the examples are not in local files")
    examples = sum(1 for files in files_of(data.train, "data.train") for _ in task.read(files))
    return steps_per_epoch(examples, task.config.train.batch_size)


@cache
def _tokenizer(vocab_size: int) -> Any:
    return stand_in_tokenizer(vocab_size)
