"""Which device holds what: the mesh, the rules by which it holds parameters, and constraints inside a program.

A mesh has three axes. `data` and `fsdp` split the rows of a batch; `fsdp` also splits parameters, gradients and the
optimizer's state; `tensor` splits the columns of products and the vocabulary. Whoever builds a program for a mesh
traces it by `mesh.traced`; the code of models asks `current()`.

Rules alone are not enough: the compiler would let the sharding of parameters spread to activations. Inside a step,
activations are therefore split by rows at the border of every layer, a layer's parameters are gathered where they are
used, in the dtype of the products, and their gradients are scattered.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from bert_jax.backend import Backend, backend_of, traced_for
from bert_jax.config import UserError, axis_sizes, pattern

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Axes = tuple[str | tuple[str, ...] | None, ...]
Rule = tuple[str, Axes]  # a pattern of names, and the mesh axes of the last dimensions of an array, None = not split

ROWS = ("data", "fsdp")
LAYERS = "encoder/layers/"
TABLES = ("embeddings/word/embedding", "heads/mlm/decoder/embedding")  # one row per entry of the vocabulary

# The first rule that matches counts. A layer has two products after each other, of which the first splits its columns
# and the second its rows: one sum over `tensor` is enough for both (Shoeybi et al. 2019, Megatron-LM, section 3).
RULES: tuple[Rule, ...] = (
    (rf"{LAYERS}(\w*attention/(query|key|value)|gate|intermediate)/kernel$", ("fsdp", "tensor")),
    (rf"{LAYERS}(\w*attention/(query|key|value)|gate|intermediate)/bias$", ("tensor",)),
    (rf"{LAYERS}(\w*attention/)?output/kernel$", ("tensor", "fsdp")),
    (f"({'|'.join(TABLES)})$", (("fsdp", "tensor"),)),
    # Numbers of patches and of their values are rarely multiples of the devices: 196 of a picture of 224 pixels.
    (r"heads/(vectors|masked_vectors/mask)/", (None, "fsdp")),
    (r"embedding$", ("fsdp",)),
    (r"kernel$", ("fsdp", None)),
)


@dataclass(frozen=True)
class Mesh:
    """Devices along the axes `data`, `fsdp` and `tensor`, the rules by which they hold parameters, and their kind."""

    of_jax: jax.sharding.Mesh
    backend: Backend
    rules: tuple[Rule, ...] = RULES
    smallest: int = 0  # arrays with fewer elements are not split along `fsdp`

    @property
    def devices(self) -> np.ndarray:
        return self.of_jax.devices

    @property
    def local_devices(self) -> list[Any]:
        return self.of_jax.local_devices

    @property
    def size(self) -> int:
        return self.of_jax.size

    @cached_property
    def row_parts(self) -> int:
        """The number of parts into which the rows of a batch are split."""
        return math.prod(self.axis(name) for name in ROWS)

    def axis(self, name: str) -> int:
        """Returns the number of devices along an axis."""
        return self.of_jax.shape.get(name, 1)

    def sharding(self, *axes: str | Sequence[str] | None) -> NamedSharding:
        return NamedSharding(self.of_jax, PartitionSpec(*axes))

    def rows(self) -> NamedSharding:
        """Returns the sharding of a batch, and of activations: its rows are split."""
        return self.sharding(tuple(name for name in ROWS if name in self.of_jax.shape))

    def of_parameter(self, name: str, shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding of the parameter `name`, or of optimizer state of the same shape. Raises UserError if a
        dimension cannot be split evenly."""
        axes = next((axes for text, axes in self.rules if pattern("mesh.rules", text).search(name)), ())
        if len(axes) > len(shape):  # state of an optimizer that keeps less than one number per element
            return self.sharding()
        split = [self._used(axis, math.prod(shape)) for axis in axes]
        for size, names in zip(shape[len(shape) - len(axes) :], split, strict=True):
            if size % math.prod(map(self.axis, names)):
                parts = " × ".join(f"mesh.{one}={self.axis(one)}" for one in names)
                raise UserError(
                    f"{parts} does not divide {size}, a dimension of {name} {tuple(shape)}: choose a mesh that splits "
                    "it evenly, or exempt it by mesh.rules"
                )
        if not any(split):
            return self.sharding()
        return self.sharding(*[None] * (len(shape) - len(axes)), *(names or None for names in split))

    def _used(self, axis: str | tuple[str, ...] | None, elements: int) -> tuple[str, ...]:
        names = () if axis is None else (axis,) if isinstance(axis, str) else axis
        exempt = "fsdp" if elements < self.smallest else ""
        return tuple(name for name in names if self.axis(name) > 1 and name != exempt)

    def traced(self, function: Callable[P, R]) -> Callable[P, R]:
        """Returns the function as it is traced for this mesh, whenever that happens."""
        for_backend = traced_for(self.backend, function)

        @wraps(function)
        def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            with _use(self):
                return for_backend(*args, **kwargs)

        return traced


def current() -> Mesh | None:
    """Returns the mesh that a program is traced for; None where there is none, as in prediction."""
    return _current.get()


_current: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextmanager
def _use(mesh: Mesh) -> Iterator[None]:
    token = _current.set(mesh)
    try:
        yield
    finally:
        _current.reset(token)


def make_mesh(mesh: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh that the options `mesh.*` describe, over all devices of every process or those given, such as
    the devices of a topology.

    Raises UserError if the axes do not fit the devices, or if a process would have no device in the mesh: it could
    neither read nor hold its share.
    """
    available = jax.devices() if devices is None else list(devices)
    sizes = axis_sizes(mesh, len(available))
    used = available[: math.prod(sizes)]
    idle = {device.process_index for device in available} - {device.process_index for device in used}
    if idle:
        raise UserError(
            f"the mesh of {len(used)} devices leaves process {min(idle)} without a device: this run has "
            f"{len(available)} devices; set mesh.data=-1 or start fewer processes"
        )
    made = jax.sharding.Mesh(_arranged(sizes, used), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rules = (*_own_rules(mesh.rules), *RULES)
    return Mesh(made, backend_of(used[0]), rules, mesh.smallest)


def _arranged(sizes: tuple[int, int, int], devices: list[Any]) -> np.ndarray:
    """Returns the devices in the order of the mesh: neighbours along an axis are neighbours in the network.

    The network between TPU slices is slow: the first axis that their number divides spans them, the others stay inside
    a slice. Raises UserError if no axis can.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    spans = next((axis for axis, size in enumerate(sizes) if size % slices == 0), None)
    if spans is None:
        raise UserError(f"the mesh is {sizes} (data, fsdp, tensor): {slices} slices must divide one of these axes")
    between = tuple(slices if axis == spans else 1 for axis in range(3))
    inside = tuple(size // count for size, count in zip(sizes, between, strict=True))

    def arrange(**options: bool) -> np.ndarray:
        if slices > 1:
            return mesh_utils.create_hybrid_device_mesh(inside, between, devices, **options)
        return mesh_utils.create_device_mesh(sizes, devices, **options)

    try:
        return arrange()
    except NotImplementedError:  # an axis of the mesh is less than one of the network
        return arrange(allow_split_physical_axes=True)


def check_heads(mesh: Mesh, heads: int) -> None:
    """Raises UserError if `tensor` splits a layer's attention heads unevenly."""
    if heads % (parts := mesh.axis("tensor")):
        raise UserError(
            f"mesh.tensor={parts} does not divide the {heads} attention heads: choose a divisor of them, or split the "
            "parameters along mesh.fsdp"
        )


def _own_rules(text: str) -> Iterator[Rule]:
    """Yields the rules of the option mesh.rules, `pattern=axis,axis;…`, in which - is a dimension that is not split.
    Raises UserError."""
    for rule in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, axes = rule.rpartition("=")
        names = [axis.strip() for axis in axes.split(",")]
        unknown = [axis for axis in names if axis not in ("data", "fsdp", "tensor", "-", "")]
        if not equals or not name or unknown:
            raise UserError(f"mesh.rules has {rule!r}; a rule is pattern=axis,axis of data, fsdp, tensor and -")
        pattern("mesh.rules", name)
        yield name, tuple(None if axis in ("-", "") else axis for axis in names)


def tree_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns shardings for a tree of arrays whose innermost keys are parameter names; others are replicated."""

    def sharding(path, x):
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        return mesh.of_parameter(names[-1], x.shape) if names else mesh.sharding()

    return jax.tree_util.tree_map_with_path(sharding, tree)


def place(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns a tree of arrays, which every process holds whole on the host or on one device, where the rules put
    them."""
    shardings = tree_shardings(mesh, tree)
    return jax.tree.map(lambda x, sharding: jax.device_put(np.asarray(x), sharding), tree, shardings)


def to_mesh(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns the global batch, split by rows, of which each process gives its own, in their order in the batch
    (`training/processes.py: parts_of_batch`)."""
    sharding = mesh.rows()
    parts = mesh.devices.reshape(mesh.row_parts, -1)
    mine = sum(any(device.process_index == jax.process_index() for device in part) for part in parts)

    def whole(rows: np.ndarray) -> jax.Array:
        shape = (len(rows) // mine * mesh.row_parts, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return {name: whole(rows) for name, rows in batch.items()}


# Inside a program


def as_placed(mesh: Mesh, tree: T) -> T:
    """Constrains parameters, gradients or a state to the shardings of the rules."""
    if mesh.size == 1:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, tree_shardings(mesh, tree))


def by_rows(x: Array) -> Array:
    """Constrains activations to be split by rows alone."""
    mesh = current()
    return x if mesh is None or mesh.size == 1 else jax.lax.with_sharding_constraint(x, mesh.rows())


def by_slices(x: Array) -> Array:
    """Constrains an array to be split along its first axis alone, over as many devices as divide it."""
    mesh = current()
    if mesh is None or mesh.size == 1:
        return x
    axes, left = (), x.shape[0]
    for name, size in mesh.of_jax.shape.items():
        if left % size == 0:
            axes, left = (*axes, name), left // size
    return jax.lax.with_sharding_constraint(x, mesh.sharding(axes))


def gathered(mesh: Mesh, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the parameters as a step uses them: whole along `fsdp`, with gradients that are scattered.

    Stacked layers are left as they are, since each layer gathers its own (`gathered_layer`). Of the tables of the
    vocabulary every part of the rows gets a copy (`_copies`).
    """
    if mesh.size == 1:
        return dict(parameters)
    found = {}
    for name, x in parameters.items():
        found[name] = x if name.startswith(LAYERS) else _copies(mesh, x) if name in TABLES else _gathered(mesh, name, x)
    return found


def gathered_layer(layer: T, dtype: str) -> T:
    """Returns one layer of the encoder with its parameters whole along `fsdp`: the kernels in the precision of `dtype`,
    to which a product rounds them anyway."""
    mesh = current()
    if mesh is None or mesh.axis("fsdp") == 1:
        return layer

    def gather(path, x):
        keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        name = LAYERS + "/".join(key for key in keys if key != "value")
        return _gathered(mesh, name, x, dtype if name.endswith("kernel") else "float32")

    return jax.tree_util.tree_map_with_path(gather, layer)


def gathers_layers() -> bool:
    """Returns whether the layers of the program that is traced now gather their parameters."""
    return (mesh := current()) is not None and mesh.axis("fsdp") > 1


def _gathered(mesh: Mesh, name: str, x: Array, dtype: str = "float32") -> Array:
    split = mesh.of_parameter(name, x.shape)
    whole = mesh.sharding(*(_without_fsdp(axes) for axes in split.spec))
    if whole == split:
        return x

    @jax.custom_vjp
    def gather(x):
        # Rounded before it travels, which halves the bytes; also what was rounded is split, or it would be gathered
        # first.
        low = jax.lax.with_sharding_constraint(x.astype(dtype), split)
        return jax.lax.with_sharding_constraint(low, whole).astype(x.dtype)

    def scatter(_, g):
        # First whole: otherwise the split would spread to the activations that the gradient is computed from.
        return (jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(g, whole), split),)

    gather.defvjp(lambda x: (gather(x), None), scatter)
    return cast(Array, gather(x))


def _without_fsdp(axes: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return tuple(name for name in names if name != "fsdp") or None


def _copies(mesh: Mesh, table: Float[Array, "V E"]) -> Float[Array, "N W E"]:
    """Returns a copy of the table for each of the N parts of a batch's rows, with its W rows split along `tensor`.

    The table of the words is used twice, by the lookup and, if it is tied, by the MLM product. Each device adds up the
    gradients of its own copy, so that the sum over the devices is taken once. V is padded to a multiple of `tensor` and
    of what the backend wants.
    """
    multiple = math.lcm(mesh.backend.vocabulary_multiple, mesh.axis("tensor"))
    table = jnp.pad(table, ((0, -table.shape[0] % multiple), (0, 0)))
    copies = jnp.broadcast_to(table[None], (mesh.row_parts, *table.shape))
    return jax.lax.with_sharding_constraint(copies, mesh.sharding(ROWS, "tensor"))
