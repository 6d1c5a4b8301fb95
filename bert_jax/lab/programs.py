"""The programs of an experiment, compiled for a machine that need not be there, and what they need of it.

    python -m bert_jax.lab.programs REQUEST RESULTS

is the process that `lab/compile.py` starts, because a compiler that fails may end its process: REQUEST is JSON with the
config, the topology and the programs' names; each finished program adds a line of JSON to RESULTS.
"""

import json
import re
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered
from ml_collections import ConfigDict

from bert_jax import config as configs
from bert_jax.backend import backend_of
from bert_jax.config import UserError, from_json_dict
from bert_jax.data.tokenizers.encoding import SPECIAL_TOKENS
from bert_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.lab.profile import Collective, collectives
from bert_jax.lab.topology import Chip, Topology
from bert_jax.models.config import SHAPE, bert_config, check_length
from bert_jax.run import inherit
from bert_jax.tasks import task_class
from bert_jax.tasks.task import Task
from bert_jax.training import step as steps
from bert_jax.training.memory import memory_limit, peak_bytes
from bert_jax.training.optimizer import frozen_names, learning_rate_multipliers, make_optimizer, make_schedule
from bert_jax.training.parameters import structure
from bert_jax.training.sharding import make_mesh, tree_shardings
from bert_jax.training.throughput import Roofline, peak_flops, state_traffic

TRAINING, EVALUATION = "training step", "evaluation step"

_STEPS_PER_EPOCH = 1000  # a constant of the schedule; no program's memory or time depends on it
_OUT_OF_MEMORY = re.compile(r"(?:Used |\()([\d.]+)([KMGT])\)? ?(?:of|exceeds available \w+ \()")


def compile_programs(
    config: ConfigDict, topology: Topology, workdir: Path, names: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields for each program its name, then what it needs of a device. Raises UserError for a config that cannot run
    there."""
    devices = topology.devices()
    task = _task(config, workdir, len(devices))
    mesh = make_mesh(config.mesh, devices)
    makers = {TRAINING: _lower_training, EVALUATION: _lower_evaluation}
    for name in names:
        yield {"program": name}
        start = time.perf_counter()
        lowered = makers[name](task, mesh)
        try:
            needs = _needs(lowered, task if name == TRAINING else None, mesh, topology.has)
        except jax.errors.JaxRuntimeError as error:
            needs = _refused(str(error))
        yield needs | {"program": name, "devices": mesh.size, "seconds": time.perf_counter() - start}


def _task(config: ConfigDict, workdir: Path, num_devices: int) -> Task:
    """Returns the task without its data, after the checks that a run makes before it reads any. Fills in the config."""
    source = inherit(config, workdir)
    tokenizer = _tokenizer(config) if source is None else source.tokenizer
    model = bert_config(config.model, tokenizer.vocab_size)
    config.model.update({key: getattr(model, key) for key in SHAPE})
    check_length(model, config.data.sequence_length)
    configs.resolve_steps(config, _STEPS_PER_EPOCH)
    configs.validate(config, num_devices)
    is_same = source is not None and source.task == config.task and not config.train.new_head
    description = source.description if source is not None and is_same else None
    return task_class(config.task).without_data(config, tokenizer, description)


def _tokenizer(config: ConfigDict) -> Tokenizer:
    """Returns the vocabulary of data.vocab_file, or a stand-in of the size that the config says."""
    if config.data.vocab_file:
        return load_tokenizer(config.data.vocab_file, config.data)
    size = config.model.vocab_size or config.data.vocab_size
    pieces = [*SPECIAL_TOKENS, *(f"piece{number}" for number in range(size - len(SPECIAL_TOKENS)))]
    return make_wordpiece(pieces, "a vocabulary that stands in", lowercase=True, strip_accents=None, split_cjk=True)


def _lower_training(task: Task, mesh: Mesh) -> Lowered:
    """Returns the step that `training/loop.py` launches, for shapes in place of arrays."""
    config, (graphdef, shapes) = task.config, structure(task.init)
    multipliers = learning_rate_multipliers(config.optimizer, {name: x.shape for name, x in shapes.items()})
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, multipliers)
    state = _placed(mesh, steps.abstract_state(task, optimizer)[1])
    accumulation, frozen = config.train.accumulation, frozen_names(multipliers)
    step = steps.make_train_step(task, graphdef, optimizer, schedule, accumulation, frozen, backend_of(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = state, _placed(mesh, task.constants()), _split(mesh, task.batch_shapes(training=True)), key
    return step.lower(*arguments)  # pyright: ignore[reportFunctionMemberAccess]


def _lower_evaluation(task: Task, mesh: Mesh) -> Lowered:
    graphdef, shapes = structure(task.init)
    step = steps.make_eval_step(task, graphdef, task.config.eval.seed, mesh)
    arguments = _placed(mesh, shapes), _placed(mesh, task.constants()), _split(mesh, task.batch_shapes(training=False))
    return step.lower(*arguments)  # pyright: ignore[reportFunctionMemberAccess]


def _placed(mesh: Mesh, tree: Any) -> Any:
    shardings = tree_shardings(mesh, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _split(mesh: Mesh, batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in batch.items()}


