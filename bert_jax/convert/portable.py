"""A model as a program that runs without this package: StableHLO with its weights beside it, or OpenVINO's graph.

A folder of either has the program, the tokenizer's files, and `program.json`: the names of inputs and outputs, of the
labels, and what a caller has to know to read the outputs. The program takes any number of rows of any length up to the
model's: int32 [rows, length] each

    input_ids        tokens, [CLS] and [SEP] included
    token_type_ids   1 for the tokens of a second text, else 0
    attention_mask   1 for tokens, 0 for padding

and returns float32: the logits of the head, before any softmax, [rows, outputs] or of tokens [rows, length, outputs];
of a model without a head of such a kind `last_hidden_state` [rows, length, size] and `pooled` [rows, size].
"""

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax import export
from jaxtyping import Array
from safetensors.numpy import save_file

from bert_jax import backend
from bert_jax.config import UserError
from bert_jax.data.tokenizers.encoding import write_json
from bert_jax.inference.open import Opened, openvino_model
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.tasks.finetuning import FineTuning
from bert_jax.training.parameters import unflatten

FORMATS = ("stablehlo", "openvino")
DTYPES = ("float32", "bfloat16", "float16")
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
STABLEHLO, WEIGHTS, OPENVINO, FACTS = "model.stablehlo", "model.safetensors", "model.xml", "program.json"
PLATFORMS = ("cpu", "cuda", "tpu")
WRITTEN = {STABLEHLO, WEIGHTS, OPENVINO, "model.bin", FACTS, "README.md"}
WRITTEN |= {"vocab.txt", "tokenizer.json", "spm.model", "tokenizer_config.json"}
# No device in particular: nothing of the program may depend on the one that exports it.
_ANY_DEVICE = backend.Backend("any", unrolls_layers=True, vocabulary_multiple=1)

Batch = dict[str, Array]


def write(folder: Path, opened: Opened, *, format: str, dtype: str = "float32") -> str:
    """Writes the model in one of FORMATS and returns the report: what it computes, and by how much the program that was
    written, read again, differs from the model itself on the same rows.

    Weights are stored in `dtype`; the program computes in float32. Raises UserError for a model that a program of
    token rows cannot hold.
    """
    for needed, package, extra in (("openvino", "openvino", "openvino"), ("stablehlo", "flatbuffers", "export")):
        if format == needed and importlib.util.find_spec(package) is None:
            raise UserError(f"--format={format} needs the extra {extra}: pip install -e '.[{extra}]'")
    if format == "openvino" and dtype == "bfloat16":
        raise UserError("--dtype=bfloat16: OpenVINO's files have float32 or float16; choose one of them")
    opened.config.model.dtype = "float32"
    vars(opened).pop("bert_config", None)
    function = _function(opened)
    graphdef, parameters = opened.fit(opened.task.init, absent="^(pooler|heads)/", dropped="^heads/")
    rounded = {name: np.asarray(x).astype(_numpy(dtype)) for name, x in parameters.items()}
    folder.mkdir(parents=True, exist_ok=True)
    opened.tokenizer.save(folder)
    exact = jax.jit(_traced(graphdef, function))
    rows: Mapping[str, Any] = _rows(opened)
    outputs = jax.eval_shape(partial(_traced(graphdef, function), dict(parameters)), _shapes())
    expected = jax.device_get(exact(parameters, rows))
    if format == "stablehlo":
        found = _stablehlo(folder, graphdef, function, rounded, rows)
    else:
        found = _openvino(folder, unflatten(graphdef, parameters), function, rows, dtype)
    write_json(folder / FACTS, _facts(opened, format, dtype, outputs))
    difference = max(float(np.max(np.abs(found[name] - value))) for name, value in expected.items())
    size = sum(file.stat().st_size for file in folder.iterdir())
    named = ", ".join(f"{name} [{', '.join(map(str, x.shape))}]" for name, x in outputs.items())
    lines = [
        f"{format}: {', '.join(INPUTS)} → {named}; {size / 1e6:.1f} MB in {dtype}",
        f"the program, read again, differs from the model by at most {difference:.2g} on {len(rows['input_ids'])} rows",
    ]
    return "\n".join(lines)


def _traced(graphdef: nnx.GraphDef, function: Callable[..., Batch]) -> Callable[..., Batch]:
    return lambda parameters, batch: function(unflatten(graphdef, parameters), batch)


def _function(opened: Opened) -> Callable[[Any, Batch], Batch]:
    """Returns the function of (model, inputs) that is exported. Raises UserError if the task needs other inputs."""
    task = opened.task
    if not isinstance(task, FineTuning):
        return _trunk
    if problem := task.not_portable():
        raise UserError(f"{opened.path} cannot be exported: {problem}")

    def outputs(model: Model, batch: Batch) -> Batch:
        ids, real = batch["input_ids"], batch["attention_mask"]
        one = jnp.zeros_like(ids[:, :1])
        rows = {"input_ids": ids, "token_type_ids": batch["token_type_ids"], "sequence_ids": real}
        rows |= {"position_ids": _positions(ids), "first_tokens": one, "part_weights": jnp.ones_like(one, jnp.float32)}
        found = task.outputs(model, rows, None)
        logits = {name: x for name, x in found.items() if name.endswith("logits")}
        return {name: x if name in task.token_outputs else x[:, 0] for name, x in logits.items()}

    return outputs


def _trunk(model: Model, batch: Batch) -> Batch:
    ids, types, real = (batch[name] for name in INPUTS)
    hidden = model.trunk.encode(TrunkInputs(ids, types, _positions(ids), real)).hidden
    return {"last_hidden_state": hidden.astype(jnp.float32), "pooled": model.trunk.pool(hidden)}


def _positions(ids: Array) -> Array:
    return jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)


def _shapes() -> dict[str, jax.ShapeDtypeStruct]:
    rows, length = export.symbolic_shape("rows, length")
    return {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in INPUTS}


def _stablehlo(
    folder: Path,
    graphdef: nnx.GraphDef,
    function: Callable[..., Batch],
    parameters: dict[str, np.ndarray],
    rows: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    def program(given: Mapping[str, Array], batch: Batch) -> Batch:
        whole = {name: x.astype(jnp.float32) for name, x in given.items()}
        return _traced(graphdef, function)(whole, batch)

    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in parameters.items()}
    traced = jax.jit(backend.traced_for(_ANY_DEVICE, program))
    exported = export.export(traced, platforms=PLATFORMS)(shapes, _shapes())
    (folder / STABLEHLO).write_bytes(exported.serialize())
    save_file({name: np.ascontiguousarray(x) for name, x in parameters.items()}, folder / WEIGHTS)
    shutil.copymode(folder / STABLEHLO, folder / WEIGHTS)  # safetensors makes its file readable by its owner alone
    again = export.deserialize(bytearray((folder / STABLEHLO).read_bytes()))
    return jax.device_get(jax.jit(again.call)(parameters, rows))


def _openvino(
    folder: Path, model: nnx.Module, function: Callable[..., Batch], rows: Mapping[str, Any], dtype: str
) -> dict[str, np.ndarray]:
    graph = openvino_model(model, "float32").graph(function, _shapes())
    import openvino as ov  # after the line above, which says how

    ov.save_model(graph, folder / OPENVINO, compress_to_fp16=dtype == "float16")
    compiled = ov.Core().compile_model(folder / OPENVINO, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({one.get_any_name(): rows[one.get_any_name()] for one in compiled.inputs})
    return {one.get_any_name(): found[one] for one in compiled.outputs}


def _rows(opened: Opened) -> dict[str, np.ndarray]:
    """Returns rows of random tokens of three lengths, that of the longest up to 128."""
    tokenizer, longest = opened.tokenizer, min(opened.bert_config.max_position_embeddings, 128)
    usual = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
    found = {name: np.zeros((3, longest), np.int32) for name in INPUTS}
    for row, length in enumerate((longest, longest // 2, 3)):
        middle = np.random.default_rng(row).choice(usual, length - 2)
        found["input_ids"][row, :length] = [tokenizer.cls_id, *middle, tokenizer.sep_id]
        found["token_type_ids"][row, length // 2 : length] = min(1, opened.bert_config.type_vocab_size - 1)
        found["attention_mask"][row, :length] = 1
    return found


def _facts(opened: Opened, format: str, dtype: str, outputs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    config, tokenizer = opened.config, opened.tokenizer
    special = {name: getattr(tokenizer, f"{name}_id") for name in ("pad", "cls", "sep")}
    return {
        "format": f"bert_jax {format} 1",
        "task": config.task,
        "dtype": dtype,
        "platforms": list(PLATFORMS) if format == "stablehlo" else ["cpu"],
        "inputs": list(INPUTS),
        "outputs": {
            name: [x if isinstance(x, int) else str(x) for x in value.shape] for name, value in outputs.items()
        },
        "longest": opened.bert_config.max_position_embeddings,
        "tokens": special,
        "learned": opened.run["task"],
    }


def _numpy(dtype: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
