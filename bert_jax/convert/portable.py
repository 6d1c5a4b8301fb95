"""A model as a program that runs without this package: StableHLO with its weights beside it, ONNX, or OpenVINO's graph.

A folder of any has the program, the tokenizer's files, `program.json`: the names of inputs and outputs, of the labels,
and what a caller has to know to read the outputs; and a model card. The program takes any number of rows of any length
up to the model's: int32 [rows, length] each

    input_ids        tokens, [CLS] and [SEP] included
    token_type_ids   1 for the tokens of a second text, else 0
    attention_mask   1 for tokens, 0 for padding

and returns float32: the logits of the head, before any softmax, [rows, outputs] or of tokens [rows, length, outputs];
of a model without a head of such a kind `last_hidden_state` [rows, length, size] and, if it has a pooler, `pooled`
[rows, size].
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jaxtyping import Array

from bert_jax import backend
from bert_jax.config import Json, UserError
from bert_jax.convert import parity
from bert_jax.convert.programs import FORMATS, OPSET, Arrays, Format, Program
from bert_jax.data.tokenizers.encoding import write_json
from bert_jax.inference.open import Opened
from bert_jax.inference.prepared import prepared
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.tasks.finetuning import FineTuning
from bert_jax.training.parameters import Parameters, unflatten
from bert_jax.training.stored import stored, widened

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
FACTS, CARD = "program.json", "README.md"
WRITTEN = {FACTS, CARD}.union(*(form.files for form in FORMATS.values()))
WRITTEN |= {"vocab.txt", "tokenizer.json", "spm.model", "tokenizer_config.json"}
# No device in particular: nothing of the program may depend on the one that exports it.
_ANY_DEVICE = backend.Backend("any", unrolls_layers=True, vocabulary_multiple=1)

Batch = dict[str, Array]
Traced = Callable[[Mapping[str, Any], Batch], Batch]  # of parameters in float32, and inputs


def check_options(format: str, dtype: str, opset: int, check: str) -> None:
    """Raises UserError, before a model is opened, for what cannot be written or run here."""
    FORMATS[format].check(format, dtype, runs=bool(check))
    if opset and format != "onnx":
        raise UserError(f"--opset is for --format=onnx; leave it out for {format}")
    if opset:
        from bert_jax.convert.onnx_graph import OnnxGraph

        OnnxGraph(opset)


def write(
    folder: Path,
    opened: Opened,
    card: Callable[[Mapping[str, object]], str],
    *,
    format: str,
    dtype: str = "float32",
    opset: int = 0,
    check: str = "",
) -> str:
    """Writes the model in one of FORMATS and returns the report: what it computes, and by how much the program that was
    written, read again, differs from the model itself: on rows of random tokens, and on those of the file `check`.

    Weights are stored in `dtype`; the program computes in float32. `opset` is ONNX's (0 = the oldest that will do).
    `card` makes the model card of what program.json says.
    Raises UserError for a model that a program of token rows cannot hold. `check_options` comes before.
    """
    form = FORMATS[format]
    opened.config.model.dtype = "float32"
    vars(opened).pop("bert_config", None)
    function = _function(opened)
    examples = parity.read(opened, check) if check else None
    graphdef, parameters = opened.fit(opened.task.init, absent="^(pooler|heads)/", dropped="^heads/")
    traced, written = _traced(graphdef, function), dict(parameters)
    exact = partial(jax.jit(traced), parameters)
    outputs = jax.eval_shape(partial(traced, written), _shapes())
    if not form.stacks_layers:
        traced, written = _by_layer(graphdef, parameters, function)
    weights = stored(written, dtype)

    def program(given: Mapping[str, Array], batch: Batch) -> Batch:
        return traced(widened(given), batch)

    folder.mkdir(parents=True, exist_ok=True)
    opened.tokenizer.save(folder)
    form.write(folder, backend.traced_for(_ANY_DEVICE, program), weights, _shapes(), opset)
    size = sum(file.stat().st_size for name in form.files if (file := folder / name).is_file())
    facts = _facts(opened, format, dtype, outputs) | {"bytes": size}
    facts |= {"opset": opset or OPSET} if format == "onnx" else {}
    facts["check"] = _compared(opened, lambda rows: jax.device_get(exact(rows)), form, folder, examples)
    write_json(folder / FACTS, facts)
    (folder / CARD).write_text(card(facts), "utf-8")
    named = ", ".join(f"{name} [{', '.join(map(str, x.shape))}]" for name, x in outputs.items())
    first = f"{format}: {', '.join(INPUTS)} → {named}; {size / 1e6:.1f} MB in {dtype}"
    return "\n".join([first, *parity.lines(facts)])


def _compared(opened: Opened, exact: Program, form: Format, folder: Path, examples: parity.Examples | None) -> Json:
    """Returns what program.json says about the program, read again, beside the model."""
    if missing := form.cannot_run():
        return {"not_run": missing}
    program, rows = form.open(folder), _rows(opened)
    expected, found = exact(rows), program(rows)
    difference = parity.largest(found[name] - value for name, value in expected.items())
    facts: Json = {"rows": len(rows["input_ids"]), "difference": difference}
    if examples is not None:
        own = {"name": examples.name, "examples": len(examples.examples), "unlabelled": examples.unlabelled}
        facts["file"] = own | parity.compare(opened, exact, program, examples)
    return facts


def _traced(graphdef: nnx.GraphDef, function: Callable[..., Batch]) -> Callable[..., Batch]:
    return lambda parameters, batch: function(unflatten(graphdef, parameters), batch)


def _function(opened: Opened) -> Callable[[Any, Batch], Batch]:
    """Returns the function of (model, inputs) that is exported. Raises UserError if the task needs other inputs."""
    task = opened.task
    if not isinstance(task, FineTuning):
        return partial(_trunk, has_pooler=opened.has("pooler/"))
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


def _trunk(model: Model, batch: Batch, *, has_pooler: bool) -> Batch:
    ids, types, real = (batch[name] for name in INPUTS)
    hidden = model.trunk.encode(TrunkInputs(ids, types, _positions(ids), real)).hidden
    outputs = {"last_hidden_state": hidden.astype(jnp.float32)}
    return outputs | ({"pooled": model.trunk.pool(hidden)} if has_pooler else {})


def _positions(ids: Array) -> Array:
    return jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)


def _shapes() -> dict[str, jax.ShapeDtypeStruct]:
    rows, length = export.symbolic_shape("rows, length")
    return {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in INPUTS}


def _by_layer(graphdef: nnx.GraphDef, parameters: Parameters, function: Callable[..., Batch]) -> tuple[Traced, Arrays]:
    """Returns the function of parameters that are arrays of single layers, and these parameters."""
    with backend.use_backend(_ANY_DEVICE):
        leaves, tree = jax.tree.flatten_with_path(jax.jit(prepared)(unflatten(graphdef, parameters)))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    names = [name.removeprefix("trunk/").removesuffix("/value") for name in names]

    def traced(given: Mapping[str, object], batch: Batch) -> Batch:
        return function(jax.tree.unflatten(tree, [given[name] for name in names]), batch)

    return traced, {name: np.asarray(x) for name, (_, x) in zip(names, leaves, strict=True)}


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


def _facts(opened: Opened, format: str, dtype: str, outputs: Mapping[str, jax.ShapeDtypeStruct]) -> Json:
    config, tokenizer, longest = opened.config, opened.tokenizer, opened.bert_config.max_position_embeddings
    cut = config.data.sequence_length if isinstance(opened.task, FineTuning) else longest
    special = {name: getattr(tokenizer, f"{name}_id") for name in ("pad", "cls", "sep")}
    return {
        "format": f"bert_jax {format} 1",
        "task": config.task,
        "dtype": dtype,
        "platforms": list(FORMATS[format].platforms),
        "inputs": list(INPUTS),
        "outputs": {
            name: [x if isinstance(x, int) else str(x) for x in value.shape] for name, value in outputs.items()
        },
        "longest": longest,
        "sequence_length": cut,  # of the rows that the model itself makes of texts
        "tokens": special,
        "learned": opened.run["task"],
    }
