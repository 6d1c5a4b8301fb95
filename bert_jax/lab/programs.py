"""The programs of an experiment, compiled for a machine that need not be there, and what they need of it.

    python -m bert_jax.lab.programs REQUEST RESULTS

is the process that `lab/compile.py` starts, because a compiler that fails may end its process: REQUEST is JSON with the
config, the topology and the programs' names; each finished program adds a line of JSON to RESULTS.
"""

import json
import math
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled, Lowered
from ml_collections import ConfigDict

from bert_jax import config as configs
from bert_jax.config import Json, UserError, from_json_dict
from bert_jax.data.tokenizers.encoding import SPECIAL_TOKENS
from bert_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.lab.collectives import by_kind, collectives
from bert_jax.lab.compile import EVALUATION, TRAINING
from bert_jax.lab.topology import GIB, Topology
from bert_jax.models.config import SHAPE, bert_config, check_length
from bert_jax.phases import check_phases
from bert_jax.run import inherit
from bert_jax.sharding import Mesh, check_heads, make_mesh, tree_shardings
from bert_jax.tasks import task_class
from bert_jax.tasks.task import Task
from bert_jax.training import step as steps
from bert_jax.training.memory import memory_limit, peak_bytes
from bert_jax.training.optimizer import frozen_names, learning_rate_multipliers, make_optimizer, make_schedule
from bert_jax.training.parameters import structure
from bert_jax.training.throughput import known_tflops, state_traffic

_STEPS_PER_EPOCH = 1000  # a constant of the schedule: it changes neither memory nor time
_OVER = re.compile(r"([\d.]+)([KMGT])\)? (?:of |exceeds available HBM \()([\d.]+)([KMGT])")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": GIB, "T": GIB << 10}


def compile_programs(config: ConfigDict, topology: Topology, workdir: Path, names: list[str]) -> Iterator[Json]:
    """Yields the name of each program before it is compiled, and afterwards what it needs:

    "memory"       bytes of a device: arguments, temporary, peak and available
    "collectives"  {kind: {"count", "bytes"}} of a step on one device
    "limits"       seconds that a training step takes at least for its products, for memory and for the network
    "refused"      in their place, what the compiler says
    "seconds"      that tracing and compiling took

    The training step is that of the phase with most tokens. Raises UserError for a config that cannot run there.
    """
    devices = topology.devices()
    task = _task(config, workdir, len(devices))
    mesh = make_mesh(config.mesh, devices)
    check_heads(mesh, task.bert_config.num_attention_heads)
    largest = max((phase.task for phase in task.phases()), key=lambda one: one.tokens_per_step)
    lower = {TRAINING: (_lower_training, largest), EVALUATION: (_lower_evaluation, task)}
    for name in names:
        yield {"program": name, "devices": mesh.size, "kind": devices[0].device_kind}
        start = time.perf_counter()
        try:
            make, of_task = lower[name]
            program = make(of_task, mesh).compile()
            found = _needs(program, mesh, topology)
            if name == TRAINING:
                found["limits"] = _limits(program, of_task, mesh, topology)
        except jax.errors.JaxRuntimeError as error:
            found = _refused(str(error), topology)
        yield found | {"program": name, "seconds": time.perf_counter() - start}


def _task(config: ConfigDict, workdir: Path, num_devices: int) -> Task:
    """Returns the task without its data, after the checks that a run makes before it reads any. Fills in the config."""
    source = inherit(config, workdir)
    tokenizer = _tokenizer(config) if source is None else source.tokenizer
    model = bert_config(config.model, tokenizer.vocab_size)
    config.model.update({key: getattr(model, key) for key in SHAPE})
    check_length(model, config.data.sequence_length)
    configs.resolve_steps(config, _STEPS_PER_EPOCH)
    configs.validate(config, num_devices)
    check_phases(config, model, num_devices, is_possible=task_class(config.task).has_phases)
    is_same = source is not None and source.task == config.task and not config.train.new_head
    description = source.description if source is not None and is_same else None
    return task_class(config.task).without_data(config, tokenizer, description)


def _tokenizer(config: ConfigDict) -> Tokenizer:
    """Returns the vocabulary of data.vocab_file, or a stand-in of the size that the config says."""
    if config.data.vocab_file:
        return load_tokenizer(config.data.vocab_file, config.data)
    return stand_in_tokenizer(config.model.vocab_size or config.data.vocab_size)


def stand_in_tokenizer(size: int) -> Tokenizer:
    """Returns a tokenizer with a vocabulary of made-up words, for programs that are not run."""
    pieces = [*SPECIAL_TOKENS, *(f"piece{number}" for number in range(size - len(SPECIAL_TOKENS)))]
    return make_wordpiece(pieces, "a vocabulary that stands in", lowercase=True, strip_accents=None, split_cjk=True)


def _lower_training(task: Task, mesh: Mesh) -> Lowered:
    """Returns the step that `training/loop.py` launches, for shapes in place of arrays."""
    config, (graphdef, _) = task.config, structure(task.init)
    schedule, optimizer, frozen = _optimizer(task)
    step: Any = steps.make_train_step(task, graphdef, optimizer, schedule, mesh, config.train.accumulation, frozen)
    state = _placed(mesh, steps.abstract_state(task, optimizer)[1])
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(state, _placed(mesh, task.constants()), _rows(mesh, task, training=True), _placed(mesh, key))


def _optimizer(task: Task) -> tuple[Any, Any, Any]:
    config, (_, shapes) = task.config, structure(task.init)
    multipliers = learning_rate_multipliers(config.optimizer, {name: x.shape for name, x in shapes.items()})
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, multipliers, config.model.dtype)
    return schedule, optimizer, frozen_names(multipliers)


def _lower_evaluation(task: Task, mesh: Mesh) -> Lowered:
    graphdef, shapes = structure(task.init)
    step: Any = steps.make_eval_step(task, graphdef, task.config.eval.seed, mesh)
    return step.lower(_placed(mesh, shapes), _placed(mesh, task.constants()), _rows(mesh, task, training=False))


def _placed(mesh: Mesh, tree: object) -> Any:
    shardings = tree_shardings(mesh, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _rows(mesh: Mesh, task: Task, *, training: bool) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = task.batch_shapes(training=training).items()
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh.rows()) for name, x in shapes}


def _needs(program: Compiled, mesh: Mesh, topology: Topology) -> Json:
    sizes: Any = program.memory_analysis()
    available = topology.has.memory or memory_limit(mesh)  # of this machine
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "temporary": sizes.temp_size_in_bytes,
        "peak": peak_bytes(program),
        "available": available,
    }
    return {"memory": memory, "collectives": by_kind(collectives(program.as_text() or ""))}


def _limits(program: Compiled, task: Task, mesh: Mesh, topology: Topology) -> dict[str, float]:
    """Returns the seconds of each limit that is known, and the operations of a step."""
    chip, limits = topology.has, {"flops": task.flops_per_step}
    if peak := known_tflops(task.config.train.peak_tflops, mesh):
        limits["products"] = task.flops_per_step / (peak * 1e12 * mesh.size)
    if chip.bandwidth is not None:
        state = steps.abstract_state(task, _optimizer(task)[1])[1]
        parameters, optimizer = (
            _bytes_held(mesh, part) for part in (state.parameters, (state.optimizer, state.average))
        )
        moved = state_traffic(parameters, optimizer, task.config.train.accumulation)
        limits["memory"] = (task.bytes_per_step / mesh.size + moved) / chip.bandwidth
    if chip.network is not None:
        sent = sum(one.sent(mesh.size) for one in collectives(program.as_text() or ""))
        limits["network"] = sent / chip.network
    return limits


def _bytes_held(mesh: Mesh, tree: object) -> int:
    """Returns the bytes that one device holds of a tree of parameters or of an optimizer's state."""
    arrays, places = jax.tree.leaves(tree), jax.tree.leaves(tree_shardings(mesh, tree))
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(arrays, places, strict=True))


def _refused(message: str, topology: Topology) -> Json:
    """Returns what an error of the compiler says: of memory that is short, how much would be needed."""
    if over := _OVER.search(message):
        needed, available = (float(over[i]) * _UNITS[over[i + 1]] for i in (1, 3))
        return {"memory": {"peak": needed, "available": available}, "collectives": {}}
    if "RESOURCE_EXHAUSTED" in message:
        return {"memory": {"peak": None, "available": topology.has.memory}, "collectives": {}}
    return {"refused": message.partition("\n")[0]}


def main(argv: list[str]) -> int:
    """Compiles what the file argv[0] asks for; writes lines of JSON to argv[1]."""
    request = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    with open(argv[1], "a", encoding="utf-8") as results:

        def write(line: Json) -> None:
            results.write(json.dumps(line) + "\n")
            results.flush()

        try:
            topology, workdir = Topology.parse(request["topology"]), Path(request["workdir"])
            for line in compile_programs(from_json_dict(request["config"]), topology, workdir, request["programs"]):
                write(line)
        except UserError as error:
            write({"error": str(error)})
        except Exception:
            write({"bug": traceback.format_exc()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
