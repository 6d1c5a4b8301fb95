"""Which device holds what: the mesh, and rules from parameter names to partitions."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

# First match wins. Data parallelism replicates every parameter; a model-parallel rule is a line above the last.
RULES: tuple[tuple[str, PartitionSpec], ...] = ((r".*", PartitionSpec()),)


def make_mesh(mesh: ConfigDict) -> Mesh:
    """One axis, `data`, over `mesh.data` devices (-1 = all of every process)."""
    devices = jax.devices() if mesh.data == -1 else jax.devices()[: mesh.data]
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def parameter_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """Of a parameter, or of what the optimizer keeps for it (whose name ends in the parameter's)."""
    spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: Mesh, tree):
    """A tree of shardings for a tree of arrays whose innermost keys are parameter names."""

    def sharding(path, _):
        name = next((str(key.key) for key in reversed(path) if isinstance(key, jax.tree_util.DictKey)), "")
        return parameter_sharding(mesh, name) if name else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def place(mesh: Mesh, parameters: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Parameters that every process holds whole, on the host or on one device, where the rules put them."""
    host = ((name, np.asarray(x)) for name, x in parameters.items())
    return {name: jax.device_put(x, parameter_sharding(mesh, name)) for name, x in host}


def to_mesh(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch → the global batch, split along `data`."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
