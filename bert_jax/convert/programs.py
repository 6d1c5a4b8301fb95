"""The formats of programs that run without this package: how each is written, and how it is opened again.

A program is a function of arrays by name to arrays by name. Its stored weights (`training/stored.py`) are widened to
float32 by the program itself, whichever the format.
"""

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file, save_file

from bert_jax.config import UserError
from bert_jax.extras import install
from bert_jax.inference.graph import graph_of
from bert_jax.training.stored import DTYPES

STABLEHLO, WEIGHTS, OPENVINO, ONNX = "model.stablehlo", "model.safetensors", "model.xml", "model.onnx"
PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 20  # of ONNX: the first one with GELU

Arrays = Mapping[str, np.ndarray]
Program = Callable[[Arrays], dict[str, np.ndarray]]
Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Format:
    """`package` writes the format, `engine` runs it; both belong to the `extra`. `write` takes the folder, a function
    of (weights, inputs), the stored weights, the shapes of the inputs, and the opset."""

    package: str
    engine: str
    extra: str
    files: tuple[str, ...]
    dtypes: tuple[str, ...]
    platforms: tuple[str, ...]
    stacks_layers: bool  # whether a parameter of all layers is one array
    write: Callable[[Path, Callable[..., Any], Arrays, Shapes, int], None]
    open: Callable[[Path], Program]

    def cannot_run(self) -> str:
        """Returns what is missing to run programs of this format here; "" if nothing is."""
        is_there = importlib.util.find_spec(self.engine) is not None
        return "" if is_there else f"it needs {self.engine}: {install(self.extra)}"

    def check(self, name: str, dtype: str, *, runs: bool) -> None:
        """Raises UserError if the format cannot be written, not with weights of this dtype, or not run if `runs`."""
        if importlib.util.find_spec(self.package) is None:
            raise UserError(f"--format={name} needs the extra {self.extra}: {install(self.extra)}")
        if dtype not in self.dtypes:
            raise UserError(f"--dtype={dtype} is not for --format={name}, which can have {', '.join(self.dtypes)}")
        if runs and (missing := self.cannot_run()):
            raise UserError(f"--check runs the program, and {missing}")


def _write_stablehlo(folder: Path, function: Callable[..., Any], weights: Arrays, inputs: Shapes, _: int) -> None:
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(shapes, dict(inputs))
    (folder / STABLEHLO).write_bytes(exported.serialize())
    save_file({name: np.ascontiguousarray(x) for name, x in weights.items()}, folder / WEIGHTS)
    shutil.copymode(folder / STABLEHLO, folder / WEIGHTS)  # safetensors makes its file readable by its owner alone


def _open_stablehlo(folder: Path) -> Program:
    program = jax.jit(export.deserialize(bytearray((folder / STABLEHLO).read_bytes())).call)
    weights = jax.device_put(load_file(folder / WEIGHTS))
    return lambda inputs: jax.device_get(program(weights, dict(inputs)))


def _write_openvino(folder: Path, function: Callable[..., Any], weights: Arrays, inputs: Shapes, _: int) -> None:
    from bert_jax.inference.openvino_graph import OpenVinoGraph, ov

    builder = OpenVinoGraph("--format=openvino has no counterpart of {what}; choose --format=stablehlo")
    ov.save_model(graph_of(function, dict(weights), inputs, builder), folder / OPENVINO, compress_to_fp16=False)


def _open_openvino(folder: Path) -> Program:
    from bert_jax.inference.openvino_graph import ov

    # Without the second one, OpenVINO rounds the other side of a product to int8 too where weights are int8.
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.Core().compile_model(folder / OPENVINO, "CPU", options)
    names = [one.get_any_name() for one in compiled.inputs]
    outputs = {one.get_any_name(): one for one in compiled.outputs}

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        found = compiled({name: inputs[name] for name in names})
        return {name: found[output] for name, output in outputs.items()}

    return run


def _write_onnx(folder: Path, function: Callable[..., Any], weights: Arrays, inputs: Shapes, opset: int) -> None:
    from bert_jax.convert.onnx_graph import OnnxGraph, save

    save(graph_of(function, dict(weights), inputs, OnnxGraph(opset or OPSET)), folder / ONNX)


def _open_onnx(folder: Path) -> Program:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors alone; its warnings are about parts that it leaves out
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    names: Sequence[str] = [one.name for one in session.get_inputs()]
    outputs = [one.name for one in session.get_outputs()]

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        found = session.run(outputs, {name: inputs[name] for name in names})
        return {name: np.asarray(x) for name, x in zip(outputs, found, strict=True)}

    return run


FORMATS = {
    "stablehlo": Format(
        "flatbuffers", "jax", "export", (STABLEHLO, WEIGHTS), DTYPES, PLATFORMS, True,
        _write_stablehlo, _open_stablehlo,
    ),
    "onnx": Format(
        "onnx", "onnxruntime", "onnx", (ONNX, f"{ONNX}.data"), DTYPES, ("any",), False, _write_onnx, _open_onnx
    ),
    "openvino": Format(
        "openvino", "openvino", "openvino", (OPENVINO, "model.bin"), ("float32", "float16", "int8"), ("cpu",), False,
        _write_openvino, _open_openvino,
    ),
}  # fmt: skip
