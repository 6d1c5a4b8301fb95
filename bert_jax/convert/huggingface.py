"""Hugging Face folders: config.json and model.safetensors (one file or shards) ↔ our parameters.

One table, `MODULES`, names every module on both sides; reading and writing are the same walk over it. Linear kernels
are stored transposed there ([out, in]), and every layer by itself, where ours are stacked along a leading axis.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bert_jax.config import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import BertForPretraining
from bert_jax.training.parameters import Parameters

Tensors = Mapping[str, Callable[[], np.ndarray]]  # their name → reads the tensor

LINEAR, NORM, TABLE = {"kernel": "weight", "bias": "bias"}, {"scale": "weight", "bias": "bias"}, {"embedding": "weight"}

# Our module, theirs (without the prefix "bert."; {} is the layer), and the names of the parameters in it.
MODULES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("embeddings/word", "embeddings.word_embeddings", TABLE),
    ("embeddings/position", "embeddings.position_embeddings", TABLE),
    ("embeddings/token_type", "embeddings.token_type_embeddings", TABLE),
    ("embeddings/layer_norm", "embeddings.LayerNorm", NORM),
    ("encoder/layers/attention/query", "encoder.layer.{}.attention.self.query", LINEAR),
    ("encoder/layers/attention/key", "encoder.layer.{}.attention.self.key", LINEAR),
    ("encoder/layers/attention/value", "encoder.layer.{}.attention.self.value", LINEAR),
    ("encoder/layers/attention/output", "encoder.layer.{}.attention.output.dense", LINEAR),
    ("encoder/layers/attention_layer_norm", "encoder.layer.{}.attention.output.LayerNorm", NORM),
    ("encoder/layers/intermediate", "encoder.layer.{}.intermediate.dense", LINEAR),
    ("encoder/layers/output", "encoder.layer.{}.output.dense", LINEAR),
    ("encoder/layers/output_layer_norm", "encoder.layer.{}.output.LayerNorm", NORM),
    ("pooler", "pooler.dense", LINEAR),
    ("mlm/transform", "cls.predictions.transform.dense", LINEAR),
    ("mlm/layer_norm", "cls.predictions.transform.LayerNorm", NORM),
    ("mlm", "cls.predictions", {"bias": "bias"}),
    ("nsp", "cls.seq_relationship", LINEAR),
)

# Stored besides by some versions: (what it must be equal to, or None for a buffer that is no parameter).
COPIES = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "embeddings.position_ids": None,
}

# The parts that an architecture has besides embeddings and encoder. A part is there entirely, or not at all.
ARCHITECTURES = {
    "BertForPreTraining": ("pooler", "mlm", "nsp"),
    "BertForMaskedLM": ("mlm",),
    "BertModel": ("pooler",),
}

# Our field, theirs.
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "causal": "is_decoder",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
# What a field that changes the computation must be for us to compute the same thing.
FIXED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
}


@dataclass
class Report:
    """What became of every name. `loaded` is ours → theirs; of the layers' names only the pattern."""

    loaded: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # ours, not in the checkpoint: a head or the pooler
    unexpected: list[str] = field(default_factory=list)  # theirs, left behind because the caller said so
    copies: list[str] = field(default_factory=list)  # theirs, equal to another tensor or no parameter
    reshaped: list[str] = field(default_factory=list)  # ours, transposed or stacked
    widened: list[str] = field(default_factory=list)  # theirs, not stored in float32

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded, {len(self.reshaped)} of them transposed or stacked"]
        for what, names in (
            ("missing (left as initialised)", self.missing),
            ("unexpected (left behind)", self.unexpected),
            ("copies (not needed)", self.copies),
            ("converted to float32", self.widened),
        ):
            lines += [f"{what}: {', '.join(names)}"] if names else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Loaded:
    config: BertConfig
    parameters: Parameters
    report: Report


def load(folder: str | Path, *, dtype: str = "float32", allow: str = "") -> Loaded:
    """Config and float32 parameters of a Hugging Face BERT.

    `dtype` is the config's, of the computation. `allow` is a regular expression (matched at the start) of their names
    that may be left behind, such as a classifier. Raises UserError for a folder, field, name or shape that is not
    explained.
    """
    folder = Path(folder)
    config = read_config(folder / "config.json", dtype)
    parameters, report = from_tensors(_open(folder), config, origin=str(folder), allow=allow)
    return Loaded(config, parameters, report)


def save(folder: str | Path, parameters: Mapping[str, Any], config: BertConfig, architecture: str) -> None:
    """Writes config.json and model.safetensors, as Transformers writes them.

    Raises UserError if the config is no BERT of theirs, or parameters are missing or have no place in `architecture`.
    """
    folder = Path(folder)
    settings = _their_config(config, architecture)  # before anything is written
    tensors = to_tensors(parameters, config.num_hidden_layers, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def read_config(path: Path, dtype: str) -> BertConfig:
    """Raises UserError for a field that we cannot honour."""
    if not path.is_file():
        raise UserError(f"{path.parent} is no Hugging Face checkpoint: it has no config.json")
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fetch the checkpoint again") from None
    for name, value in FIXED.items():
        if theirs.get(name) not in (None, value):
            raise UserError(f"{path}: {name} is {theirs[name]!r}, only {value!r} can be loaded")
    if theirs.get("hidden_act") not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act is {theirs.get('hidden_act')!r}; it can be {', '.join(ACTIVATIONS)}")
    absent = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in theirs]
    if absent:
        raise UserError(f"{path} has no {', '.join(absent)}; is it the config of a BERT?")
    given = {ours: theirs[name] for ours, name in CONFIG.items() if name in theirs}
    given |= {"embedding_size": theirs["hidden_size"], "hidden_act": ACTIVATIONS[theirs["hidden_act"]]}
    return BertConfig(**given, dtype=dtype)


def from_tensors(tensors: Tensors, config: BertConfig, *, origin: str, allow: str) -> tuple[Parameters, Report]:
    """Their tensors → our parameters; `origin` is for messages, `allow` as in `load`."""
    model = nnx.eval_shape(lambda: BertForPretraining(config, rngs=nnx.Rngs(0)))
    expected = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    left = _canonical(tensors, origin)
    report, parameters = Report(), {}
    copies = {name: left.pop(name) for name in COPIES if name in left}
    _check_copies(copies, left, origin)
    report.copies = list(copies)
    for ours, theirs, transposed, stacked in _names():
        names = [theirs.format(layer) for layer in range(config.num_hidden_layers)] if stacked else [theirs]
        found = [name for name in names if name in left]
        if not found:
            report.missing.append(ours)
        elif len(found) < len(names):
            raise UserError(
                f"{origin} has {len(found)} of {len(names)} layers of {theirs}; config.json says {len(names)}"
            )
        else:
            sources = [left.pop(name) for name in names]
            parameters[ours] = _read(names, sources, expected[ours], transposed, stacked, origin, report)
            report.loaded[ours] = theirs
            report.reshaped += [ours] if transposed or stacked else []
    unexplained = [name for name in left if not (allow and re.match(allow, name))]
    if unexplained:
        more = f" and {len(unexplained) - 3} more" if len(unexplained) > 3 else ""
        raise UserError(
            f"{origin} has tensors with no place here: {', '.join(unexplained[:3])}{more}; allow them by name"
        )
    report.unexpected = list(left)
    _check_parts(parameters, report.missing, origin)
    return parameters, report


def to_tensors(parameters: Mapping[str, Any], num_layers: int, architecture: str) -> dict[str, np.ndarray]:
    """Our parameters → their tensors, one a layer, contiguous, under the names that `architecture` has."""
    if architecture not in ARCHITECTURES:
        raise UserError(f"cannot write a {architecture}; it can be {', '.join(ARCHITECTURES)}")
    parts = ("embeddings", "encoder", *ARCHITECTURES[architecture])
    prefix = "" if architecture == "BertModel" else "bert."
    left, tensors = dict(parameters), {}
    for ours, theirs, transposed, stacked in _names():
        value = left.pop(ours, None)
        if ours.partition("/")[0] not in parts:
            continue
        if value is None:
            raise UserError(f"a {architecture} needs {ours}, which is not among the parameters")
        value = np.asarray(value)
        for layer, part in enumerate(value if stacked else value[None]):
            name = theirs.format(layer) if theirs.startswith("cls.") else prefix + theirs.format(layer)
            tensors[name] = np.ascontiguousarray(part.T if transposed else part)
        if stacked and len(value) != num_layers:
            raise UserError(f"{ours} has {len(value)} layers, the config {num_layers}")
    if left:
        raise UserError(f"a {architecture} has no place for {', '.join(list(left)[:3])}")
    return tensors


def _names() -> Iterator[tuple[str, str, bool, bool]]:
    """(our name, their name or pattern, whether it is transposed, whether it is stacked) of every parameter."""
    for ours, theirs, parameters in MODULES:
        for our_name, their_name in parameters.items():
            yield f"{ours}/{our_name}", f"{theirs}.{their_name}", our_name == "kernel", "{}" in theirs


def _canonical(tensors: Tensors, origin: str) -> dict[str, Callable[[], np.ndarray]]:
    """Without the prefix of a model with heads, and with the names that LayerNorm's parameters have today."""
    named = {}
    for name, read in tensors.items():
        canonical = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        canonical = canonical.replace("LayerNorm.beta", "LayerNorm.bias")
        if canonical in named:
            raise UserError(f"{origin} has {canonical} under two names; which one is meant cannot be known")
        named[canonical] = read
    return named


def _read(names, sources, shape, transposed, stacked, origin, report) -> np.ndarray:
    """Straight into the array that is kept, so that no more than one layer is in memory twice."""
    value = np.empty(shape, np.float32)
    targets = value if stacked else value[None]
    for i, (name, source) in enumerate(zip(names, sources, strict=True)):
        tensor = source()
        report.widened += [name] if tensor.dtype != np.float32 else []
        tensor = tensor.T if transposed else tensor
        if tensor.shape != targets.shape[1:]:
            is_, should_be = (tuple(x[::-1]) if transposed else tuple(x) for x in (tensor.shape, targets.shape[1:]))
            raise UserError(f"{origin}: {name} is {is_}, but by config.json {should_be}")
        targets[i] = tensor
    return value


def _check_copies(copies, tensors, origin) -> None:
    """A decoder of its own, not the embedding table, is another model."""
    for name, read in copies.items():
        same_as = COPIES[name]
        if same_as and (same_as not in tensors or not np.array_equal(read(), tensors[same_as]())):
            raise UserError(f"{origin}: {name} differs from {same_as}; a model with an untied decoder cannot be loaded")


def _check_parts(parameters, missing, origin) -> None:
    """The trunk must be whole; pooler and heads may be missing, but not by halves."""
    present = {name.partition("/")[0] for name in parameters} | {"embeddings", "encoder"}
    for name in missing:
        if name.partition("/")[0] in present:
            theirs = next(theirs for ours, theirs, *_ in _names() if ours == name)
            raise UserError(f"{origin} has no {theirs.format(0)}; the checkpoint is not whole")


def _their_config(config: BertConfig, architecture: str) -> dict[str, Any]:
    needed = {"norm": "post", "position_embedding": "learned", "embedding_size": config.hidden_size}
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise UserError(f"model.{name} is {getattr(config, name)}; a Hugging Face BERT has {value} only")
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.hidden_act)
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG.items()}
    return settings | FIXED | {"architectures": [architecture], "hidden_act": activation, "dtype": "float32"}


def _open(folder: Path) -> Tensors:
    """Readers of all tensors in a folder. Safetensors are memory-mapped: nothing is read before it is asked for."""
    index, single, pickled = (
        folder / name for name in ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
    )
    if single.is_file():
        return _open_safetensors(single)
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {file: _open_safetensors(folder / file) for file in sorted(set(weight_map.values()))}
        for name, file in weight_map.items():
            if name not in shards[file]:
                raise UserError(f"{folder / file} has no {name}, which {index.name} puts there; fetch it again")
        return {name: shards[file][name] for name, file in weight_map.items()}
    if pickled.is_file():
        return _open_pickle(pickled)
    raise UserError(f"{folder} has no weights: neither {single.name} nor {index.name} nor {pickled.name}")


def _open_safetensors(path: Path) -> Tensors:
    if not path.is_file():
        raise UserError(f"{path} is missing; fetch the checkpoint again")
    try:
        file = safe_open(path, framework="np")
        return {name: (lambda name=name: file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None


def _open_pickle(path: Path) -> Tensors:
    """Only plain tensors are unpickled; needs PyTorch."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a pickle: reading it needs `pip install torch`, or save it as safetensors"
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"{path} is not a file of plain tensors ({str(error).splitlines()[0]}); refused") from None
    return {name: (lambda tensor=tensor: tensor.float().numpy()) for name, tensor in tensors.items()}
