"""JAX's operations as those of OpenVINO (opset 15), for `openvino_graph.py`.

JAX broadcasts before it adds; OpenVINO's operations broadcast by themselves. A `Value` may therefore have size 1 where
the jaxpr has more, until an operation needs its full shape.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Jaxpr, Literal
from openvino import opset15 as ops

from bert_jax.config import UserError

Node = Any  # an operation or its output; OpenVINO's have no types that pyright knows
Size = Any  # a whole number, or a symbolic one of jax.export


class Value(NamedTuple):
    """A node, the shape that it has in the jaxpr, and whether it has that shape already."""

    node: Node
    shape: tuple[Size, ...]
    is_whole: bool = True


class Sizes:
    """The sizes of the inputs' dynamic axes, by their symbols; and shapes made of them."""

    def __init__(self):
        self._known: dict[str, Node] = {}  # int64[1]

    def learn(self, node: Node, shape: Sequence[Size]) -> None:
        """Takes the sizes of symbols from an input of the graph."""
        for axis, size in enumerate(shape):
            if not isinstance(size, int):
                factor, [symbol] = _product(size)
                own = ops.gather(ops.shape_of(node, "i64"), integers(axis), integer(0))
                self._known.setdefault(symbol, own if factor == 1 else ops.divide(own, integers(factor)))

    def size(self, size: Size) -> Node:
        """Returns a size as int64[1]."""
        if isinstance(size, int):
            return integers(size)
        factor, symbols = _product(size)
        node = integers(factor)
        for symbol in symbols:
            node = ops.multiply(node, self._known[symbol])
        return node

    def shape(self, sizes: Sequence[Size]) -> Node:
        if all(isinstance(size, int) for size in sizes):
            return integers(*sizes)
        return ops.concat([self.size(size) for size in sizes], 0)

    def whole(self, value: Value) -> Node:
        """Returns the node with the full shape of its value."""
        return value.node if value.is_whole else ops.broadcast(value.node, self.shape(value.shape)).output(0)


def constant(x: Any) -> Value:
    array = np.asarray(x)
    return Value(ops.constant(array).output(0), array.shape)


def integers(*values: int) -> Node:
    return ops.constant(np.asarray(values, np.int64))


def integer(value: int) -> Node:
    return ops.constant(np.asarray(value, np.int64))


def elementwise(equation: Any, operands: Sequence[Value]) -> Value:
    shape = equation.outvars[0].aval.shape
    node = ELEMENTWISE[equation.primitive.name](equation.params, *(operand.node for operand in operands))
    return Value(node.output(0), shape, any(x.is_whole and x.shape == shape for x in operands))


def _product(size: Size) -> tuple[int, list[str]]:
    """Returns the factors of a symbolic size, which is a product such as 2*g."""
    parts = str(size).split("*")
    symbols = [part for part in parts if not part.isdigit()]
    if not all(symbol.isidentifier() for symbol in symbols):
        raise UserError(f"predict.backend=openvino has no counterpart of the size {size}; set predict.backend=jax")
    return math.prod(int(part) for part in parts if part.isdigit()), symbols


def _broadcast_in_dim(sizes: Sizes, equation: Any, x: Value, *_: Any) -> Value:
    shape, kept = equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
    added = [axis for axis in range(len(shape)) if axis not in kept]
    node = ops.unsqueeze(x.node, integers(*added)).output(0) if added else x.node
    is_whole = all(shape[axis] == 1 for axis in added) and x.shape == tuple(shape[axis] for axis in kept)
    return Value(node, shape, is_whole and x.is_whole)


def _reshape(sizes: Sizes, equation: Any, x: Value, *_: Any) -> Node:
    before, after = x.shape, equation.outvars[0].aval.shape
    # 0 takes the size of the operand's axis, −1 what is left.
    wanted = [
        size if isinstance(size, int) else 0 if i < len(before) and before[i] == size else -1
        for i, size in enumerate(after)
    ]
    if wanted.count(-1) > 1 or 0 in after:
        return ops.reshape(sizes.whole(x), sizes.shape(after), False)
    return ops.reshape(sizes.whole(x), integers(*wanted), True)


def _squeeze(sizes: Sizes, equation: Any, x: Value) -> Value:
    node = ops.squeeze(x.node, integers(*equation.params["dimensions"]))
    return Value(node.output(0), equation.outvars[0].aval.shape, x.is_whole)


def _transpose(sizes: Sizes, equation: Any, x: Value) -> Value:
    node = ops.transpose(x.node, integers(*equation.params["permutation"]))
    return Value(node.output(0), equation.outvars[0].aval.shape, x.is_whole)


def _concatenate(sizes: Sizes, equation: Any, *parts: Value) -> Node:
    return ops.concat([sizes.whole(part) for part in parts], equation.params["dimension"])


def _stack(sizes: Sizes, equation: Any, *parts: Value) -> Node:
    axis = equation.params["axis"]
    return ops.concat([ops.unsqueeze(sizes.whole(part), integers(axis)) for part in parts], axis)


def _slice(sizes: Sizes, equation: Any, x: Value) -> Node:
    start, stop, step = (equation.params[key] for key in ("start_indices", "limit_indices", "strides"))
    return ops.slice(sizes.whole(x), sizes.shape(start), sizes.shape(stop), integers(*(step or [1] * len(start))))


def _split(sizes: Sizes, equation: Any, x: Value) -> list[Value]:
    parts = ops.variadic_split(sizes.whole(x), integer(equation.params["axis"]), integers(*equation.params["sizes"]))
    return [Value(parts.output(i), variable.aval.shape) for i, variable in enumerate(equation.outvars)]


def _iota(sizes: Sizes, equation: Any, *_: Any) -> Value:
    shape, dtype, along = (equation.params[key] for key in ("shape", "dtype", "dimension"))
    stop = ops.squeeze(sizes.size(shape[along]), integers(0))
    numbers = ops.range(integer(0), stop, integer(1), output_type=_type(dtype))
    node = ops.reshape(numbers, integers(*(-1 if axis == along else 1 for axis in range(len(shape)))), False)
    return Value(node.output(0), shape, all(size == 1 for axis, size in enumerate(shape) if axis != along))


def _dim_as_value(sizes: Sizes, equation: Any) -> Node:
    dtype = equation.outvars[0].aval.dtype
    return ops.convert(ops.squeeze(sizes.size(equation.params["dim"]), integers(0)), _type(dtype))


def _argmax(sizes: Sizes, equation: Any, x: Value) -> Node:
    [axis] = equation.params["axes"]
    found = ops.topk(sizes.whole(x), integer(1), axis, "max", "value", "i32", True)
    return ops.squeeze(found.output(1), integers(axis))


def _gather(sizes: Sizes, equation: Any, table: Value, places: Value) -> Node:
    """Translates `jnp.take` along one axis and `jnp.take_along_axis`."""
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes, batch = numbers.start_index_map, numbers.operand_batching_dims
    is_plain = len(axes) == 1 and numbers.collapsed_slice_dims == axes and batch == tuple(range(len(batch)))
    others = [axis for axis in range(len(table.shape)) if axis not in (*axes, *batch)]
    if not is_plain or any(taken[axis] != table.shape[axis] for axis in others):
        raise UserError(
            "predict.backend=openvino has no counterpart of JAX's gather in this model; set predict.backend=jax"
        )
    indices = ops.squeeze(sizes.whole(places), integers(len(places.shape) - 1))
    node = ops.gather(sizes.whole(table), indices, integer(axes[0]), len(batch))
    # The axes of the indices stand in the place of the gathered one; JAX has them where offset_dims leave room.
    rank, new = len(equation.outvars[0].aval.shape), len(places.shape) - 1 - len(batch)
    indexed = [*range(len(batch)), *range(axes[0], axes[0] + new)]
    order, kept = [0] * rank, [axis for axis in range(rank) if axis not in indexed]
    for place, axis in zip([p for p in range(rank) if p not in numbers.offset_dims], indexed, strict=True):
        order[place] = axis
    for place, axis in zip(numbers.offset_dims, kept, strict=True):
        order[place] = axis
    return _transposed(node, order)


def _dot_general(sizes: Sizes, equation: Any, left: Value, right: Value) -> Node:
    ([of_left], [of_right]), (batch, right_batch) = equation.params["dimension_numbers"]
    free = [axis for axis in range(len(left.shape)) if axis not in (*batch, of_left)]
    right_free = [axis for axis in range(len(right.shape)) if axis not in (*right_batch, of_right)]
    x = _transposed(sizes.whole(left), [*batch, *free, of_left])
    y = _transposed(sizes.whole(right), [*right_batch, of_right, *right_free])
    if len(right_free) == 1 and (len(free) == 1 or not batch):
        return ops.matmul(x, y, False, False)
    rows, columns = (math.prod(v.shape[i] for i in axes) for v, axes in ((left, free), (right, right_free)))
    leading, contracted = [left.shape[axis] for axis in batch], left.shape[of_left]
    x = ops.reshape(x, sizes.shape([*leading, rows, contracted]), False)
    y = ops.reshape(y, sizes.shape([*leading, contracted, columns]), False)
    return ops.reshape(ops.matmul(x, y, False, False), sizes.shape(equation.outvars[0].aval.shape), False)


def _reduced(operation: Callable[..., Node]) -> Callable[..., Node]:
    return lambda sizes, equation, x: operation(sizes.whole(x), integers(*equation.params["axes"]))


def _attention(sizes: Sizes, inner: Jaxpr, scores: Value, mask: Value, value: Value) -> Node | None:
    """Translates `attention.attend`, whose scores are a product of queries, scaled already, with transposed keys; None
    for other scores."""
    product = scores.node.get_node()
    if product.get_type_name() != "MatMul":
        return None
    query, key = (product.input_value(i) for i in (0, 1))
    key = ops.transpose(key, integers(0, 1, 3, 2))
    one = ops.constant(np.asarray(1, np.float32))
    return ops.scaled_dot_product_attention(query, key, sizes.whole(value), mask.node, one)


def _gelu(sizes: Sizes, inner: Jaxpr, x: Value) -> Node:
    is_exact = any(equation.primitive.name == "erf" for equation in inner.eqns)
    return ops.gelu(sizes.whole(x), "erf" if is_exact else "tanh")


def _normalised(sizes: Sizes, inner: Jaxpr, x: Value) -> Node:
    added = (operand for equation in inner.eqns if equation.primitive.name == "add" for operand in equation.invars)
    [eps] = (float(operand.val) for operand in added if isinstance(operand, Literal))
    return ops.mvn(sizes.whole(x), integers(-1), True, eps, "inside_sqrt")


def _transposed(x: Node, order: Sequence[int]) -> Node:
    return x if list(order) == list(range(len(order))) else ops.transpose(x, integers(*order))


def _type(dtype: Any) -> str:
    names = {"float32": "f32", "int32": "i32", "int64": "i64", "bool": "boolean", "uint32": "u32"}
    name = np.dtype(dtype).name
    if name not in names:
        raise UserError(f"predict.backend=openvino has no counterpart of the type {name}; set predict.backend=jax")
    return names[name]


def _plain(operation: Callable[..., Node]) -> Callable[..., Node]:
    return lambda parameters, *operands: operation(*operands)


def _power(parameters: Any, x: Node) -> Node:
    return ops.multiply(x, x) if parameters["y"] == 2 else ops.power(x, ops.constant(np.float32(parameters["y"])))


# By the names of JAX's primitives.
SAME = ("stop_gradient", "copy", "copy_p", "optimization_barrier", "sharding_constraint", "device_put")
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")
ELEMENTWISE: dict[str, Callable[..., Node]] = {
    name: _plain(operation)
    for name, operation in {
        "add": ops.add, "add_any": ops.add, "sub": ops.subtract, "mul": ops.multiply, "div": ops.divide,
        "max": ops.maximum, "min": ops.minimum, "pow": ops.power, "rem": ops.mod, "neg": ops.negative, "abs": ops.abs,
        "exp": ops.exp, "log": ops.log, "sqrt": ops.sqrt, "sin": ops.sin, "cos": ops.cos, "tanh": ops.tanh,
        "erf": ops.erf, "logistic": ops.sigmoid, "sign": ops.sign, "floor": ops.floor, "ceil": ops.ceiling,
        "is_finite": ops.is_finite, "eq": ops.equal, "ne": ops.not_equal, "lt": ops.less, "le": ops.less_equal,
        "gt": ops.greater, "ge": ops.greater_equal, "and": ops.logical_and, "or": ops.logical_or,
        "not": ops.logical_not, "xor": ops.logical_xor,
    }.items()
} | {
    "square": lambda _, x: ops.multiply(x, x),
    "rsqrt": lambda _, x: ops.divide(ops.constant(np.float32(1)), ops.sqrt(x)),
    "log1p": lambda _, x: ops.log(ops.add(x, ops.constant(np.float32(1)))),
    "integer_pow": _power,
    "select_n": lambda _, which, no, yes: ops.select(which, yes, no),
    "clamp": lambda _, low, x, high: ops.minimum(ops.maximum(x, low), high),
    "convert_element_type": lambda parameters, x: ops.convert(x, _type(parameters["new_dtype"])),
}  # fmt: skip
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
    "reduce_sum": _reduced(ops.reduce_sum),
    "reduce_max": _reduced(ops.reduce_max),
    "reduce_min": _reduced(ops.reduce_min),
    "reduce_or": _reduced(ops.reduce_logical_or),
    "reduce_and": _reduced(ops.reduce_logical_and),
}
# By the names of functions in models/ that have a derivative of their own, by which a jaxpr keeps them whole.
FUSED: dict[str, Callable[..., Node]] = {"_context": _attention, "gelu": _gelu, "_normalised": _normalised}
