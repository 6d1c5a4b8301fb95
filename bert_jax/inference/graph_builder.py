"""What a format of graphs has to offer so that a JAX function can be written in it (`graph.py`).

A `Builder` makes the operations of one format: OpenVINO's (`openvino_graph.py`) or ONNX's (`convert/onnx_graph.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.config import UserError

Node = Any  # an output of an operation, as the format has it
Equation = Any  # of a jaxpr: a JaxprEqn, whose variables' shapes pyright does not know
Size = Any  # a whole number, or a symbolic one of jax.export


class Builder(ABC):
    """A graph of one format in the making. Operations broadcast their operands as NumPy does."""

    refusal: str  # a message with {what} for what the format lacks

    def refused(self, what: str) -> UserError:
        return UserError(self.refusal.format(what=what))

    @abstractmethod
    def input(self, name: str, like: jax.ShapeDtypeStruct) -> Node:
        """Returns an input; its symbolic sizes are dynamic."""

    @abstractmethod
    def constant(self, array: np.ndarray, name: str = "") -> Node: ...

    @abstractmethod
    def apply(self, primitive: str, *operands: Node) -> Node:
        """Returns one of JAX's primitives that work number by number. Raises UserError for one that is unknown."""

    @abstractmethod
    def convert(self, x: Node, dtype: np.dtype) -> Node: ...

    @abstractmethod
    def select(self, which: Node, yes: Node, no: Node) -> Node: ...

    @abstractmethod
    def shape_of(self, x: Node) -> Node:
        """Returns int64[rank]."""

    @abstractmethod
    def expand(self, x: Node, shape: Node) -> Node: ...

    @abstractmethod
    def reshape(self, x: Node, shape: Node, *, zero_copies: bool) -> Node:
        """Returns x in a shape with at most one −1; with `zero_copies` a 0 is the size of the operand's axis."""

    @abstractmethod
    def unsqueeze(self, x: Node, axes: Sequence[int]) -> Node: ...

    @abstractmethod
    def squeeze(self, x: Node, axes: Sequence[int]) -> Node: ...

    @abstractmethod
    def transpose(self, x: Node, order: Sequence[int]) -> Node: ...

    @abstractmethod
    def concat(self, parts: Sequence[Node], axis: int) -> Node: ...

    @abstractmethod
    def slice(self, x: Node, start: Node, stop: Node, step: Node) -> Node: ...

    @abstractmethod
    def split(self, x: Node, sizes: Sequence[int], axis: int) -> list[Node]: ...

    @abstractmethod
    def arange(self, stop: Node, dtype: np.dtype) -> Node:
        """Returns 0, 1, … below `stop`, which is int64[]."""

    @abstractmethod
    def gather(self, x: Node, indices: Node, axis: int, batch_axes: int = 0) -> Node:
        """Returns the parts of x along an axis. With `batch_axes`, the first axes of x are those of the indices too,
        and `axis` is the next one."""

    @abstractmethod
    def argmax(self, x: Node, axis: int) -> Node:
        """Returns int32."""

    @abstractmethod
    def reduce(self, primitive: str, x: Node, axes: Sequence[int]) -> Node: ...

    @abstractmethod
    def matmul(self, x: Node, y: Node) -> Node: ...

    # Functions of the models that are few operations each, since the format's own kernels are faster than their parts

    @abstractmethod
    def attention(self, scores: Node, mask: Node, value: Node) -> Node | None:
        """Returns softmax(scores where mask) · value, or None for scores that the format's operation cannot take."""

    @abstractmethod
    def gelu(self, x: Node, *, exact: bool) -> Node: ...

    @abstractmethod
    def normalised(self, x: Node, size: int, eps: float) -> Node:
        """Returns x with mean 0 and variance 1 along the last axis, which has `size` numbers."""

    @abstractmethod
    def finish(self, outputs: Mapping[str, tuple[Node, jax.ShapeDtypeStruct]]) -> Any:
        """Returns the graph with these outputs."""

    def integers(self, *values: int) -> Node:
        return self.constant(np.asarray(values, np.int64))

    def integer(self, value: int) -> Node:
        return self.constant(np.asarray(value, np.int64))

    def number(self, value: float) -> Node:
        return self.constant(np.asarray(value, np.float32))
