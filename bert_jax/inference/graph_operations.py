"""JAX's operations as those of a `Builder`, for `graph.py`.

JAX broadcasts before it adds; the operations of other formats broadcast by themselves. A `Value` may therefore have
size 1 where the jaxpr has more, until an operation needs its full shape.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, Literal

from bert_jax.inference.graph_builder import Builder, Equation, Node, Size


class Value(NamedTuple):
    """A node, the shape that it has in the jaxpr, and whether it has that shape already."""

    node: Node
    shape: tuple[Size, ...]
    is_whole: bool = True


class Sizes:
    """The builder of a graph with the sizes of its inputs' dynamic axes, by their symbols; and shapes made of them."""

    def __init__(self, builder: Builder):
        self.builder = builder
        self._known: dict[str, Node] = {}  # int64[1]

    def input(self, name: str, like: jax.ShapeDtypeStruct) -> Value:
        """Returns an input of the graph, and takes the sizes of symbols from it."""
        builder, node = self.builder, self.builder.input(name, like)
        for axis, size in enumerate(like.shape):
            if not isinstance(size, int):
                factor, [symbol] = self._product(size)
                if symbol not in self._known:
                    own = builder.gather(builder.shape_of(node), builder.integers(axis), 0)
                    self._known[symbol] = own if factor == 1 else builder.apply("div", own, builder.integers(factor))
        return Value(node, like.shape)

    def constant(self, x: object, name: str = "") -> Value:
        array = np.asarray(x)
        return Value(self.builder.constant(array, name), array.shape)

    def size(self, size: Size) -> Node:
        """Returns a size as int64[1]."""
        if isinstance(size, int):
            return self.builder.integers(size)
        factor, symbols = self._product(size)
        nodes = [self._known[symbol] for symbol in symbols]
        if factor != 1:
            nodes.append(self.builder.integers(factor))
        node = nodes[0]
        for other in nodes[1:]:
            node = self.builder.apply("mul", node, other)
        return node

    def shape(self, sizes: Sequence[Size]) -> Node:
        if all(isinstance(size, int) for size in sizes):
            return self.builder.integers(*sizes)
        return self.builder.concat([self.size(size) for size in sizes], 0)

    def whole(self, value: Value) -> Node:
        """Returns the node with the full shape of its value."""
        return value.node if value.is_whole else self.builder.expand(value.node, self.shape(value.shape))

    def _product(self, size: Size) -> tuple[int, list[str]]:
        """Returns the factors of a symbolic size, which is a product such as 2*g."""
        parts = str(size).split("*")
        symbols = [part for part in parts if not part.isdigit()]
        if not all(symbol.isidentifier() for symbol in symbols):
            raise self.builder.refused(f"the size {size}")
        return math.prod(int(part) for part in parts if part.isdigit()), symbols


def elementwise(sizes: Sizes, equation: Equation, operands: Sequence[Value]) -> Value:
    shape, nodes = equation.outvars[0].aval.shape, [operand.node for operand in operands]
    name, builder = equation.primitive.name, sizes.builder
    node = COMPOSED[name](builder, equation, *nodes) if name in COMPOSED else builder.apply(name, *nodes)
    return Value(node, shape, any(x.is_whole and x.shape == shape for x in operands))


def _convert(builder: Builder, equation: Equation, x: Node) -> Node:
    before, after = equation.invars[0].aval.dtype, equation.params["new_dtype"]
    return x if before == after else builder.convert(x, np.dtype(after))


def _power(builder: Builder, equation: Equation, x: Node) -> Node:
    power = equation.params["y"]
    return builder.apply("mul", x, x) if power == 2 else builder.apply("pow", x, builder.number(power))


def _select(builder: Builder, equation: Equation, which: Node, no: Node, yes: Node) -> Node:
    if equation.outvars[0].aval.dtype != bool:
        return builder.select(which, yes, no)
    # ONNX Runtime does not choose between truth values.
    return builder.apply("or", builder.apply("and", which, yes), builder.apply("and", builder.apply("not", which), no))


def _clamp(builder: Builder, equation: Equation, low: Node, x: Node, high: Node) -> Node:
    return builder.apply("min", builder.apply("max", x, low), high)


def _broadcast_in_dim(sizes: Sizes, equation: Equation, x: Value, *_: object) -> Value:
    shape, kept = equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
    added = [axis for axis in range(len(shape)) if axis not in kept]
    node = sizes.builder.unsqueeze(x.node, added) if added else x.node
    is_whole = all(shape[axis] == 1 for axis in added) and x.shape == tuple(shape[axis] for axis in kept)
    return Value(node, shape, is_whole and x.is_whole)


def _reshape(sizes: Sizes, equation: Equation, x: Value, *_: object) -> Node:
    before, after = x.shape, equation.outvars[0].aval.shape
    # 0 takes the size of the operand's axis, −1 what is left.
    wanted = [
        size if isinstance(size, int) else 0 if i < len(before) and before[i] == size else -1
        for i, size in enumerate(after)
    ]
    if wanted.count(-1) > 1 or 0 in after:
        return sizes.builder.reshape(sizes.whole(x), sizes.shape(after), zero_copies=False)
    return sizes.builder.reshape(sizes.whole(x), sizes.builder.integers(*wanted), zero_copies=True)


def _squeeze(sizes: Sizes, equation: Equation, x: Value) -> Value:
    node = sizes.builder.squeeze(x.node, equation.params["dimensions"])
    return Value(node, equation.outvars[0].aval.shape, x.is_whole)


def _transpose(sizes: Sizes, equation: Equation, x: Value) -> Value:
    node = sizes.builder.transpose(x.node, equation.params["permutation"])
    return Value(node, equation.outvars[0].aval.shape, x.is_whole)


def _concatenate(sizes: Sizes, equation: Equation, *parts: Value) -> Node:
    return sizes.builder.concat([sizes.whole(part) for part in parts], equation.params["dimension"])


def _stack(sizes: Sizes, equation: Equation, *parts: Value) -> Node:
    axis, builder = equation.params["axis"], sizes.builder
    return builder.concat([builder.unsqueeze(sizes.whole(part), [axis]) for part in parts], axis)


def _slice(sizes: Sizes, equation: Equation, x: Value) -> Node:
    start, stop, step = (equation.params[key] for key in ("start_indices", "limit_indices", "strides"))
    step = sizes.builder.integers(*(step or [1] * len(start)))
    return sizes.builder.slice(sizes.whole(x), sizes.shape(start), sizes.shape(stop), step)


def _split(sizes: Sizes, equation: Equation, x: Value) -> list[Value]:
    parts = sizes.builder.split(sizes.whole(x), equation.params["sizes"], equation.params["axis"])
    return [Value(part, variable.aval.shape) for part, variable in zip(parts, equation.outvars, strict=True)]


def _iota(sizes: Sizes, equation: Equation, *_: object) -> Value:
    shape, dtype, along = (equation.params[key] for key in ("shape", "dtype", "dimension"))
    builder = sizes.builder
    numbers = builder.arange(builder.squeeze(sizes.size(shape[along]), [0]), np.dtype(dtype))
    if others := [axis for axis in range(len(shape)) if axis != along]:
        numbers = builder.unsqueeze(numbers, others)
    return Value(numbers, shape, all(shape[axis] == 1 for axis in others))


def _dim_as_value(sizes: Sizes, equation: Equation) -> Node:
    size = sizes.builder.squeeze(sizes.size(equation.params["dim"]), [0])
    return sizes.builder.convert(size, equation.outvars[0].aval.dtype)


def _argmax(sizes: Sizes, equation: Equation, x: Value) -> Node:
    [axis], operand = equation.params["axes"], sizes.whole(x)
    if equation.invars[0].aval.dtype == bool:  # of which other formats know no largest
        operand = sizes.builder.convert(operand, np.dtype(np.int32))
    return sizes.builder.argmax(operand, axis)


def _gather(sizes: Sizes, equation: Equation, table: Value, places: Value) -> Node:
    """Translates `jnp.take` along one axis and `jnp.take_along_axis`."""
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes, batch = numbers.start_index_map, numbers.operand_batching_dims
    is_plain = len(axes) == 1 and numbers.collapsed_slice_dims == axes and batch == tuple(range(len(batch)))
    others = [axis for axis in range(len(table.shape)) if axis not in (*axes, *batch)]
    if not is_plain or any(taken[axis] != table.shape[axis] for axis in others):
        raise sizes.builder.refused("JAX's gather in this model")
    indices = sizes.builder.squeeze(sizes.whole(places), [len(places.shape) - 1])
    axis, operand = axes[0], sizes.whole(table)
    if batch and axis != len(batch):  # not every format gathers along an axis behind others
        operand, axis = _transposed(sizes, operand, [*batch, axis, *others]), len(batch)
    node = sizes.builder.gather(operand, indices, axis, len(batch))
    # The axes of the indices stand in the place of the gathered one; JAX has them where offset_dims leave room.
    rank, new = len(equation.outvars[0].aval.shape), len(places.shape) - 1 - len(batch)
    indexed = [*range(len(batch)), *range(axis, axis + new)]
    order, kept = [0] * rank, [axis for axis in range(rank) if axis not in indexed]
    for place, axis in zip([p for p in range(rank) if p not in numbers.offset_dims], indexed, strict=True):
        order[place] = axis
    for place, axis in zip(numbers.offset_dims, kept, strict=True):
        order[place] = axis
    return _transposed(sizes, node, order)


def _dot_general(sizes: Sizes, equation: Equation, left: Value, right: Value) -> Node:
    (of_left, of_right), (batch, right_batch) = equation.params["dimension_numbers"]
    if len(of_left) != 1:
        raise sizes.builder.refused("JAX's outer product or product over several axes in this model")
    [of_left], [of_right] = of_left, of_right
    free = [axis for axis in range(len(left.shape)) if axis not in (*batch, of_left)]
    right_free = [axis for axis in range(len(right.shape)) if axis not in (*right_batch, of_right)]
    x = _transposed(sizes, sizes.whole(left), [*batch, *free, of_left])
    y = _transposed(sizes, sizes.whole(right), [*right_batch, of_right, *right_free])
    if len(right_free) == 1 and (len(free) == 1 or not batch):
        return sizes.builder.matmul(x, y)
    rows, columns = (math.prod(v.shape[i] for i in axes) for v, axes in ((left, free), (right, right_free)))
    leading, contracted = [left.shape[axis] for axis in batch], left.shape[of_left]
    x = sizes.builder.reshape(x, sizes.shape([*leading, rows, contracted]), zero_copies=False)
    y = sizes.builder.reshape(y, sizes.shape([*leading, contracted, columns]), zero_copies=False)
    whole = sizes.shape(equation.outvars[0].aval.shape)
    return sizes.builder.reshape(sizes.builder.matmul(x, y), whole, zero_copies=False)


def _reduced(sizes: Sizes, equation: Equation, x: Value) -> Node:
    return sizes.builder.reduce(equation.primitive.name, sizes.whole(x), equation.params["axes"])


def _attention(sizes: Sizes, inner: Jaxpr, scores: Value, mask: Value, value: Value) -> Node | None:
    return sizes.builder.attention(sizes.whole(scores), mask.node, sizes.whole(value))


def _gelu(sizes: Sizes, inner: Jaxpr, x: Value) -> Node:
    return sizes.builder.gelu(sizes.whole(x), exact=any(one.primitive.name == "erf" for one in inner.eqns))


def _normalised(sizes: Sizes, inner: Jaxpr, x: Value) -> Node:
    added = (operand for equation in inner.eqns if equation.primitive.name == "add" for operand in equation.invars)
    [eps] = (float(operand.val) for operand in added if isinstance(operand, Literal))
    return sizes.builder.normalised(sizes.whole(x), x.shape[-1], eps)


def _transposed(sizes: Sizes, x: Node, order: Sequence[int]) -> Node:
    return x if list(order) == list(range(len(order))) else sizes.builder.transpose(x, order)


# By the names of JAX's primitives.
SAME = ("stop_gradient", "copy", "copy_p", "optimization_barrier", "sharding_constraint", "device_put")
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")
# Number by number, and made of others; the rest are `Builder.apply`.
COMPOSED: dict[str, Callable[..., Node]] = {
    "square": lambda builder, _, x: builder.apply("mul", x, x),
    "rsqrt": lambda builder, _, x: builder.apply("div", builder.number(1), builder.apply("sqrt", x)),
    "log1p": lambda builder, _, x: builder.apply("log", builder.apply("add", x, builder.number(1))),
    "integer_pow": _power,
    "select_n": _select,
    "clamp": _clamp,
    "convert_element_type": _convert,
}
OPERATIONS: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "split": _split,
    "iota": _iota,
    "dim_as_value": _dim_as_value,
    "argmax": _argmax,
    "gather": _gather,
    "dot_general": _dot_general,
} | dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_or", "reduce_and"), _reduced)
# By the names of functions in models/ that have a derivative of their own, by which a jaxpr keeps them whole.
FUSED: dict[str, Callable[..., Node]] = {"_context": _attention, "gelu": _gelu, "_normalised": _normalised}
