"""Prediction by OpenVINO (predict.backend=openvino): the programs of `prepared.py`, compiled by another compiler.

A program is compiled once for every number of rows and tokens, which takes about a second, and not once for each shape.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export

from bert_jax import backend
from bert_jax.config import UserError
from bert_jax.inference.graph import graph_of
from bert_jax.inference.openvino_graph import OpenVinoGraph, ov
from bert_jax.inference.prepared import PredictionModel

# What a program is traced for: no device of JAX's, whose kernels some decisions are about.
_BACKEND = backend.Backend("openvino", unrolls_layers=True, vocabulary_multiple=1)
_REFUSAL = "predict.backend=openvino has no counterpart of {what}; set predict.backend=jax"
_Arrays = Mapping[str, np.ndarray]


class OpenVinoModel(PredictionModel):
    """A model whose programs OpenVINO runs. The model itself is one in float32; `dtype` is that of OpenVINO's
    products."""

    takes_any_shape = True

    def __init__(self, model: nnx.Module, dtype: str):
        with backend.use_backend(_BACKEND):
            super().__init__(model)
        self._options = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }

    def program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function(model, batch)` as a function of the batch, a dictionary of arrays with `input_ids`; the
        result is a dictionary of NumPy arrays. Any number of threads may call it."""
        compiled: dict[Any, _Program] = {}
        lock = threading.Lock()

        def run(*arrays: Any) -> dict[str, np.ndarray]:
            if len(arrays) != 1 or "input_ids" not in arrays[0]:
                raise UserError("predict.backend=openvino only predicts; to look inside, set predict.backend=jax")
            [batch] = arrays
            key = _axes(batch)
            with lock:
                if key not in compiled:
                    compiled[key] = _Program(self.graph(function, _symbolic(batch)), self._options)
            return compiled[key](batch)

        return run

    def graph(self, function: Callable[..., Any], shapes: Mapping[str, jax.ShapeDtypeStruct]) -> ov.Model:
        """Returns `function(model, batch)` as a graph for batches of these shapes, which may be symbolic."""

        def traced(leaves: list[Any], batch: dict[str, Any]) -> dict[str, Any]:
            return function(jax.tree.unflatten(self._tree, leaves), batch)

        with backend.use_backend(_BACKEND):
            try:
                return graph_of(traced, self._leaves, shapes, OpenVinoGraph(_REFUSAL))
            except jax.errors.InconclusiveDimensionOperation as error:
                raise UserError(
                    "predict.backend=openvino needs a task whose outputs are computed alike for every length "
                    f"({str(error).splitlines()[0]}); set predict.backend=jax"
                ) from error


class _Program:
    """A compiled graph. A request holds the memory of one call: there are as many as calls at the same time."""

    def __init__(self, graph: ov.Model, options: Mapping[str, str]):
        self._compiled = ov.Core().compile_model(graph, "CPU", dict(options))
        self._inputs = [one.get_any_name() for one in self._compiled.inputs]
        self._outputs = [(output, output.get_any_name()) for output in self._compiled.outputs]
        self._free: list[Any] = []

    def __call__(self, batch: _Arrays) -> dict[str, np.ndarray]:
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        found = request.infer({name: batch[name] for name in self._inputs}, share_inputs=True)
        results = {name: found[output] for output, name in self._outputs}
        self._free.append(request)
        return results


def _axes(batch: _Arrays) -> tuple[Any, ...]:
    """Returns the rows of a group, and of every array of a batch (`data/batching/batches.py`) its name, type and axes:
    sizes, or letters for the number of groups of rows, g, of all rows, r, of the tokens of a row, l, and of the places
    that are asked for in a row, p. Arrays called constant_… are not of rows and have sizes only."""
    rows, length = batch["input_ids"].shape
    groups = len(batch["part_weights"]) if "part_weights" in batch else rows

    def axes(name: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
        if name.startswith("constant_"):
            return shape
        if shape[:2] == (rows, length):
            return "r", "l", *shape[2:]
        return ("r", "p") if name.startswith("masked_") else ("g", *shape[1:])

    return rows // groups, *((name, batch[name].dtype, axes(name, batch[name].shape)) for name in sorted(batch))


def _symbolic(batch: _Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch with JAX's symbols in place of the letters of `_axes`."""
    rows_of_group, *arrays = _axes(batch)
    groups, tokens, places = export.symbolic_shape("g, l, p")
    symbols = {"g": groups, "r": rows_of_group * groups, "l": tokens, "p": places}
    return {
        name: jax.ShapeDtypeStruct([symbols[x] if isinstance(x, str) else x for x in axes], dtype)
        for name, dtype, axes in arrays
    }
