"""Memory: what a step needs at least, what a device has, and which options to change when that is not enough."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled

from bert_jax.config import UserError
from bert_jax.sharding import Mesh, tree_shardings
from bert_jax.tasks.task import Task

ADVICE = (
    "lower train.batch_size, raise train.accumulation, set model.remat=full, "
    "shorten data.sequence_length or choose a smaller model"
)


def check_fits(task: Task, state: Any, mesh: Mesh) -> None:
    """Raises UserError if a step cannot fit a device's memory; `state` is a TrainState of shapes.

    Counted are parameters, their gradients and average, the optimizer's state, and of the activations only the input
    of each layer, which even model.remat=full keeps: a step that passes may still need more.
    """
    config, shape = task.config, task.bert_config
    counted = (state.parameters, state.parameters, state.optimizer, state.average)
    arrays, places = jax.tree.leaves(counted), jax.tree.leaves(tree_shardings(mesh, counted))
    held = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(arrays, places, strict=True))
    tokens = task.tokens_per_step / mesh.row_parts / config.train.accumulation
    width = shape.hidden_size * (2 if config.model.dtype == "bfloat16" else 4)
    activations = tokens * shape.num_hidden_layers * width
    counted = f" (parameters, gradients and optimizer {held / 1e9:.3g}, activations {activations / 1e9:.3g})"
    _check(held + activations, mesh, "at least ", counted)


def check_program_fits(program: Compiled, mesh: Mesh) -> None:
    """Raises UserError if a compiled step needs more memory than a device has; on a CPU the kernel would kill us."""
    _check(peak_bytes(program), mesh)


def _check(needed: float | None, mesh: Mesh, least: str = "", counted: str = "") -> None:
    limit = memory_limit(mesh)
    if needed is not None and limit is not None and needed > limit:
        has = f"{limit / 1e9:.3g} GB"
        raise UserError(f"a step needs {least}{needed / 1e9:.3g} GB per device{counted}, and it has {has}: {ADVICE}")


@contextlib.contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turns an out-of-memory error of the host or a device into a UserError that says which options to change."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as problem:
        text = str(problem).strip() or "MemoryError"
        if not isinstance(problem, MemoryError) and not ("RESOURCE_EXHAUSTED" in text or "ut of memory" in text):
            raise
        raise UserError(f"out of memory ({text.splitlines()[0][:120]}): {ADVICE}") from problem


def memory_limit(mesh: Mesh) -> int | None:
    """Returns the bytes that one of this process's devices in the mesh may use; None if they are unknown."""
    devices = mesh.local_devices
    if devices and mesh.backend.is_cpu:
        return host_memory() // len(devices)  # virtual devices share it
    return (devices[0].memory_stats() or {}).get("bytes_limit") if devices else None


def host_memory() -> int:
    """Returns the bytes of this machine's memory, or of the container's share where that is limited."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, int(Path(file).read_text()))
    return total


def peak_bytes(program: Compiled) -> int | None:
    """Returns the bytes of one device that a call needs: arguments, results and temporary arrays, with donated memory
    counted once. None where the back end does not say."""
    memory = program.memory_analysis()
    if memory is None:
        return None
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return arrays - memory.alias_size_in_bytes
