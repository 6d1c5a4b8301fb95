"""Graphs of OpenVINO's operations (opset 15), for `graph.py`. Every import of OpenVINO in this package is the one here,
which leaves out the part of it that reports each import to its makers."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from bert_jax.inference.graph_builder import Builder, Node

sys.modules.setdefault("openvino_telemetry", cast(Any, None))
import openvino as ov  # noqa: E402
from openvino import opset15 as ops  # noqa: E402


class OpenVinoGraph(Builder):
    """A graph of OpenVINO's in the making. `refusal` as in Builder."""

    def __init__(self, refusal: str):
        self.refusal = refusal
        self._inputs: list[Any] = []

    def input(self, name: str, like: jax.ShapeDtypeStruct) -> Node:
        shape = [size if isinstance(size, int) else -1 for size in like.shape]
        node = ops.parameter(shape, np.dtype(like.dtype).type, name=name)
        node.output(0).get_tensor().set_names({name})
        self._inputs.append(node)
        return node.output(0)

    def constant(self, array: np.ndarray, name: str = "") -> Node:
        return ops.constant(array).output(0)

    def apply(self, primitive: str, *operands: Node) -> Node:
        if primitive not in _OPERATIONS:
            raise self.refused(f"JAX's {primitive} operation, which this model needs")
        return _OPERATIONS[primitive](*operands).output(0)

    def convert(self, x: Node, dtype: np.dtype) -> Node:
        return ops.convert(x, self._type(dtype)).output(0)

    def select(self, which: Node, yes: Node, no: Node) -> Node:
        return ops.select(which, yes, no).output(0)

    def shape_of(self, x: Node) -> Node:
        return ops.shape_of(x, "i64").output(0)

    def expand(self, x: Node, shape: Node) -> Node:
        return ops.broadcast(x, shape).output(0)

    def reshape(self, x: Node, shape: Node, *, zero_copies: bool) -> Node:
        return ops.reshape(x, shape, zero_copies).output(0)

    def unsqueeze(self, x: Node, axes: Sequence[int]) -> Node:
        return ops.unsqueeze(x, self.integers(*axes)).output(0)

    def squeeze(self, x: Node, axes: Sequence[int]) -> Node:
        return ops.squeeze(x, self.integers(*axes)).output(0)

    def transpose(self, x: Node, order: Sequence[int]) -> Node:
        return ops.transpose(x, self.integers(*order)).output(0)

    def concat(self, parts: Sequence[Node], axis: int) -> Node:
        return ops.concat(list(parts), axis).output(0)

    def slice(self, x: Node, start: Node, stop: Node, step: Node) -> Node:
        return ops.slice(x, start, stop, step).output(0)

    def split(self, x: Node, sizes: Sequence[int], axis: int) -> list[Node]:
        parts = ops.variadic_split(x, self.integer(axis), self.integers(*sizes))
        return [parts.output(i) for i in range(len(sizes))]

    def arange(self, stop: Node, dtype: np.dtype) -> Node:
        return ops.range(self.integer(0), stop, self.integer(1), output_type=self._type(dtype)).output(0)

    def gather(self, x: Node, indices: Node, axis: int, batch_axes: int = 0) -> Node:
        return ops.gather(x, indices, self.integer(axis), batch_axes).output(0)

    def argmax(self, x: Node, axis: int) -> Node:
        found = ops.topk(x, self.integer(1), axis, "max", "value", "i32", True)
        return self.squeeze(found.output(1), [axis])

    def reduce(self, primitive: str, x: Node, axes: Sequence[int]) -> Node:
        return _REDUCTIONS[primitive](x, self.integers(*axes)).output(0)

    def matmul(self, x: Node, y: Node) -> Node:
        return ops.matmul(x, y, False, False).output(0)

    def attention(self, scores: Node, mask: Node, value: Node) -> Node | None:
        """Also takes in the product of queries, scaled already, with transposed keys that the scores must be."""
        product = scores.get_node()
        if product.get_type_name() != "MatMul":
            return None
        query, key = (product.input_value(i) for i in (0, 1))
        key = self.transpose(key, (0, 1, 3, 2))
        return ops.scaled_dot_product_attention(query, key, value, mask, self.number(1)).output(0)

    def gelu(self, x: Node, *, exact: bool) -> Node:
        return ops.gelu(x, "erf" if exact else "tanh").output(0)

    def normalised(self, x: Node, size: int, eps: float) -> Node:
        return ops.mvn(x, self.integers(-1), True, eps, "inside_sqrt").output(0)

    def finish(self, outputs: Mapping[str, tuple[Node, jax.ShapeDtypeStruct]]) -> ov.Model:
        results = []
        for name, (node, _) in outputs.items():
            results.append(ops.result(node))
            results[-1].output(0).get_tensor().set_names({name})
        model: Any = ov.Model  # whose declared types contradict each other
        return model(results, self._inputs, "bert_jax")

    def _type(self, dtype: Any) -> str:
        name = np.dtype(dtype).name
        if name not in _TYPES:
            raise self.refused(f"the type {name}")
        return _TYPES[name]


_TYPES = {"float32": "f32", "int32": "i32", "int64": "i64", "bool": "boolean", "uint32": "u32"}
# By the names of JAX's primitives.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": ops.add, "add_any": ops.add, "sub": ops.subtract, "mul": ops.multiply, "div": ops.divide,
    "max": ops.maximum, "min": ops.minimum, "pow": ops.power, "rem": ops.mod, "neg": ops.negative, "abs": ops.abs,
    "exp": ops.exp, "log": ops.log, "sqrt": ops.sqrt, "sin": ops.sin, "cos": ops.cos, "tanh": ops.tanh,
    "erf": ops.erf, "logistic": ops.sigmoid, "sign": ops.sign, "floor": ops.floor, "ceil": ops.ceiling,
    "is_finite": ops.is_finite, "eq": ops.equal, "ne": ops.not_equal, "lt": ops.less, "le": ops.less_equal,
    "gt": ops.greater, "ge": ops.greater_equal, "and": ops.logical_and, "or": ops.logical_or,
    "not": ops.logical_not, "xor": ops.logical_xor,
}  # fmt: skip
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_sum": ops.reduce_sum,
    "reduce_max": ops.reduce_max,
    "reduce_min": ops.reduce_min,
    "reduce_or": ops.reduce_logical_or,
    "reduce_and": ops.reduce_logical_and,
}
