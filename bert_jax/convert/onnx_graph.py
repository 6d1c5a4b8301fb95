"""Graphs of ONNX's operations, for `inference/graph.py`.

Operations are those of opset 20, the first with GELU; LayerNormalization is from 17. Both have meant the same since, so
a later opset needs nothing else. A node is the name of a value.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

from bert_jax.config import UserError
from bert_jax.convert.programs import OPSET
from bert_jax.inference.graph_builder import Builder, Node

_LARGEST = (1 << 31) - (1 << 24)  # bytes of a file: Protocol Buffers end at 2 GiB; the graph itself is small
_ONES = "ones_"  # scale of a normalisation without one of its own
_SHARED = 64  # bytes of a constant that is written once however often it occurs


class OnnxGraph(Builder):
    """A graph of ONNX's in the making."""

    refusal = "--format=onnx has no counterpart of {what}; choose --format=stablehlo"

    def __init__(self, opset: int):
        newest = onnx.defs.onnx_opset_version()
        if not OPSET <= opset <= newest:
            raise UserError(f"--opset is {opset}; it can be {OPSET} to {newest} with onnx {onnx.__version__}")
        self._opset = opset
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: dict[Node, onnx.NodeProto] = {}  # by their first output, in order
        self._weights: dict[str, onnx.TensorProto] = {}
        self._shared: dict[Any, Node] = {}

    def input(self, name: str, like: jax.ShapeDtypeStruct) -> Node:
        self._inputs.append(_described(name, like))
        return name

    def constant(self, array: np.ndarray, name: str = "") -> Node:
        array = np.asarray(array, order="C")
        if name or array.nbytes > _SHARED:
            return self._weight(array, name)
        key = array.tobytes(), array.dtype, array.shape
        if key not in self._shared:
            self._shared[key] = self._weight(array)
        return self._shared[key]

    def apply(self, primitive: str, *operands: Node) -> Node:
        if primitive == "is_finite":
            odd = self._node("Or", self._node("IsNaN", *operands), self._node("IsInf", *operands))
            return self._node("Not", odd)
        if primitive == "ne":
            return self._node("Not", self._node("Equal", *operands))
        if primitive not in _OPERATIONS:
            raise self.refused(f"JAX's {primitive} operation, which this model needs")
        if primitive in ("mul", "add") and (whole := self._whole_layer_norm(primitive, *operands)):
            return whole
        options = {"fmod": 1} if primitive == "rem" else {}  # the sign of the dividend
        return self._node(_OPERATIONS[primitive], *operands, **options)

    def convert(self, x: Node, dtype: np.dtype) -> Node:
        return self._node("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def select(self, which: Node, yes: Node, no: Node) -> Node:
        return self._node("Where", which, yes, no)

    def shape_of(self, x: Node) -> Node:
        return self._node("Shape", x)

    def expand(self, x: Node, shape: Node) -> Node:
        return self._node("Expand", x, shape)

    def reshape(self, x: Node, shape: Node, *, zero_copies: bool) -> Node:
        return self._node("Reshape", x, shape, allowzero=int(not zero_copies))

    def unsqueeze(self, x: Node, axes: Sequence[int]) -> Node:
        return self._node("Unsqueeze", x, self.integers(*axes))

    def squeeze(self, x: Node, axes: Sequence[int]) -> Node:
        return self._node("Squeeze", x, self.integers(*axes))

    def transpose(self, x: Node, order: Sequence[int]) -> Node:
        return self._node("Transpose", x, perm=list(order))

    def concat(self, parts: Sequence[Node], axis: int) -> Node:
        return self._node("Concat", *parts, axis=axis)

    def slice(self, x: Node, start: Node, stop: Node, step: Node) -> Node:
        rank = self._weights[step].dims[0]
        return self._node("Slice", x, start, stop, self.integers(*range(rank)), step)

    def split(self, x: Node, sizes: Sequence[int], axis: int) -> list[Node]:
        names = [f"split_{len(self._nodes)}_{i}" for i in range(len(sizes))]
        self._nodes[names[0]] = helper.make_node("Split", [x, self.integers(*sizes)], names, axis=axis)
        return names

    def arange(self, stop: Node, dtype: np.dtype) -> Node:
        return self.convert(self._node("Range", self.integer(0), stop, self.integer(1)), dtype)

    def gather(self, x: Node, indices: Node, axis: int, batch_axes: int = 0) -> Node:
        if not batch_axes:
            return self._node("Gather", x, indices, axis=axis)
        assert axis == batch_axes
        indices = self.unsqueeze(self.convert(indices, np.dtype(np.int64)), [-1])
        return self._node("GatherND", x, indices, batch_dims=batch_axes)

    def argmax(self, x: Node, axis: int) -> Node:
        return self.convert(self._node("ArgMax", x, axis=axis, keepdims=0), np.dtype(np.int32))

    def reduce(self, primitive: str, x: Node, axes: Sequence[int]) -> Node:
        if primitive in ("reduce_or", "reduce_and"):  # of truth values as 0 and 1
            larger = self.reduce(
                "reduce_max" if primitive == "reduce_or" else "reduce_min", self.convert(x, np.dtype(np.int32)), axes
            )
            return self.convert(larger, np.dtype(bool))
        return self._node(_REDUCTIONS[primitive], x, self.integers(*axes), keepdims=0)

    def matmul(self, x: Node, y: Node) -> Node:
        return self._node("MatMul", x, y)

    def attention(self, scores: Node, mask: Node, value: Node) -> Node:
        masked = self._node("Where", mask, scores, self.number(float(np.finfo(np.float32).min)))
        return self._node("MatMul", self._node("Softmax", masked, axis=-1), value)

    def gelu(self, x: Node, *, exact: bool) -> Node:
        return self._node("Gelu", x, approximate="none" if exact else "tanh")

    def normalised(self, x: Node, size: int, eps: float) -> Node:
        scale = self.constant(np.ones(size, np.float32), f"{_ONES}{size}")
        return self._node("LayerNormalization", x, scale, axis=-1, epsilon=eps)

    def finish(self, outputs: Mapping[str, tuple[Node, jax.ShapeDtypeStruct]]) -> onnx.ModelProto:
        for name, (node, _) in outputs.items():
            self._nodes[name] = helper.make_node("Identity", [node], [name])
        described, used, nodes = [_described(name, like) for name, (_, like) in outputs.items()], set(outputs), []
        for node in reversed(self._nodes.values()):
            if not used.isdisjoint(node.output):
                used.update(node.input)
                nodes.insert(0, node)
        weights = [tensor for name, tensor in self._weights.items() if name in used]
        graph = helper.make_graph(nodes, "bert_jax", self._inputs, described, weights)
        opsets = [helper.make_opsetid("", self._opset)]
        # The oldest form of the file that the opset allows, so that engines which are older than this package read it.
        version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="bert_jax")

    def _weight(self, array: np.ndarray, name: str = "") -> Node:
        name = name or f"constant_{len(self._weights)}"
        self._weights[name] = numpy_helper.from_array(array, name)
        return name

    def _node(self, kind: str, *operands: Node, **attributes: Any) -> Node:
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes[name] = helper.make_node(kind, list(operands), [name], name=name, **attributes)
        return name

    def _whole_layer_norm(self, primitive: str, x: Node, y: Node) -> Node | None:
        """Returns a normalisation x with its scale y (`mul`) or, when it has that, its bias (`add`) as one operation;
        None for anything else."""
        node, vector = self._nodes.get(x), self._nodes.get(y)
        if node is None or node.op_type != "LayerNormalization" or vector is None:
            return None
        weight = vector.input[0]  # a vector with further axes of size 1
        source = self._nodes.get(weight)
        stored = self._weights.get(source.input[0] if source is not None and source.op_type == "Cast" else weight)
        if vector.op_type not in ("Unsqueeze", "Reshape") or stored is None or len(stored.dims) != 1:
            return None
        has_scale = not node.input[1].startswith(_ONES)
        if has_scale != (primitive == "add") or len(node.input) == 3:
            return None
        operands = [*node.input, weight] if has_scale else [node.input[0], weight]
        eps = helper.get_node_attr_value(node, "epsilon")
        return self._node("LayerNormalization", *operands, axis=-1, epsilon=eps)


def save(model: onnx.ModelProto, file: Path, largest: int = _LARGEST) -> None:
    """Writes and checks a model; weights of more than `largest` bytes go to a file of their own beside it."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    options = {"save_as_external_data": True, "location": f"{file.name}.data", "size_threshold": _SHARED}
    onnx.save_model(model, file, **(options if size > largest else {}))
    onnx.checker.check_model(file)


def _described(name: str, like: jax.ShapeDtypeStruct) -> onnx.ValueInfoProto:
    shape = [size if isinstance(size, int) else str(size) for size in like.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(like.dtype)), shape)


# By the names of JAX's primitives.
_OPERATIONS = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
    "rem": "Mod", "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos",
    "tanh": "Tanh", "erf": "Erf", "logistic": "Sigmoid", "sign": "Sign", "floor": "Floor", "ceil": "Ceil",
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "and": "And", "or": "Or",
    "not": "Not", "xor": "Xor",
}  # fmt: skip
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
