"""Which device holds what: the mesh, and rules from parameter names to partitions."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from bert_jax.config import UserError, pattern

# First match wins. Data parallelism replicates every parameter; a model-parallel rule is a line above the last.
RULES: tuple[tuple[str, PartitionSpec], ...] = ((r".*", PartitionSpec()),)


def make_mesh(mesh: ConfigDict) -> Mesh:
    """Returns a mesh with one axis, `data`, over `mesh.data` devices (-1 = all of every process).

    Raises UserError if a process would have no device in it: it could neither read nor hold its share.
    """
    devices = jax.devices() if mesh.data == -1 else jax.devices()[: mesh.data]
    idle = {device.process_index for device in jax.devices()} - {device.process_index for device in devices}
    if idle:
        raise UserError(
            f"mesh.data={mesh.data} leaves process {min(idle)} without a device: this run has {jax.process_count()} "
            f"processes and {jax.device_count()} devices; set mesh.data=-1 or start fewer processes"
        )
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns shardings for a tree of arrays whose innermost keys are parameter names; others are replicated."""

    def sharding(path, _):
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        specs = (spec for text, spec in RULES if names and pattern("RULES", text).search(names[-1]))
        return NamedSharding(mesh, next(specs, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(sharding, tree)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Guards what every process does: if it fails on one, it fails on all, which would wait for ever for the one that
    has ended. Raises UserError where only another process failed."""
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if jax.process_count() > 1:
            others = multihost_utils.process_allgather(np.int32(succeeded))
            if succeeded and not others.all():
                raise UserError(f"process {int(others.argmin())} failed; its output says why")


def on_first_process(action: Callable[[], object]) -> None:
    """Runs `action` on process 0, while the others wait. If it fails, every process does."""
    with together():
        if jax.process_index() == 0:
            action()


def place(mesh: Mesh, tree: Any) -> Any:
    """Returns a tree of arrays, which every process holds whole on the host or on one device, where the rules put
    them."""
    shardings = tree_shardings(mesh, tree)
    return jax.tree.map(lambda x, sharding: jax.device_put(np.asarray(x), sharding), tree, shardings)


def to_mesh(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns the global batch, split along `data`, of which each process gives its own rows."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
