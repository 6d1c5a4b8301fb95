"""Hugging Face folders: config.json, model.safetensors (one file or shards) and tokenizer files ↔ a `Loaded`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bert_jax.config import UserError
from bert_jax.convert.foreign_json import field, model_fields, read_json, refuse
from bert_jax.convert.mapping import Loaded, Report, Tensors, from_tensors, to_tensors
from bert_jax.convert.names import (
    ARCHITECTURES,
    CONFIG_FIELDS,
    PRETRAINING_HEADS,
    READ_AS,
    TRUNK,
    Name,
    huggingface_names,
    part_of,
)
from bert_jax.convert.sentence_encoder import left_out_of
from bert_jax.convert.tensor_files import open_tensors
from bert_jax.data.tokenizers.encoding import write_json
from bert_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer
from bert_jax.models.config import BertConfig

# Stored besides by some versions: (what it must be equal to, or None for a buffer that is no parameter).
COPIES = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "embeddings.position_ids": None,
}

# Our field, theirs. The original has neither of the last two: its epsilon is 1e-12 in the code.
CONFIG = CONFIG_FIELDS | {"layer_norm_eps": "layer_norm_eps", "causal": "is_decoder"}
REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
# What a field that changes the computation must be for us to compute the same thing.
FIXED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
}
_MAX_LABELS = 1_000_000
# The files of a folder that `write` makes, with those of either kind of tokenizer.
WRITTEN = {"config.json", "model.safetensors", "README.md", "tokenizer_config.json"}
WRITTEN |= {"vocab.txt", "tokenizer.json", "spm.model"}
ABSENT = ("auto_map", "quantization_config")  # code of its own; weights that are not plain numbers
LABEL_KINDS = {
    "regression": "regression",
    "single_label_classification": "single",
    "multi_label_classification": "multi",
}


def read(folder: str | Path, *, architecture: str = "", allow: str = "") -> Loaded:
    """A Hugging Face BERT, float32.

    `architecture` says what it is where config.json does not. `allow` is a pattern (searched, see options.py) of
    their names that may be left behind, such as `classifier`. Raises UserError for a folder, field, name or shape that
    is not explained.
    """
    folder = Path(folder)
    weights, pooling, notes = left_out_of(folder)
    settings = read_settings(weights / "config.json")
    config = replace(model_config(settings, weights / "config.json"), pooling=pooling)
    architecture = _architecture(settings, architecture, weights / "config.json")
    task, description, num_labels = _task(settings, architecture, weights / "config.json")
    tensors, copies = _without_copies(_canonical(open_tensors(weights), str(folder)), str(folder))
    names = [name for name in huggingface_names() if name.part in _parts_read(architecture)]
    parameters, report = from_tensors(tensors, names, config, num_labels=num_labels, origin=str(folder), allow=allow)
    head = {"classification": "classifier", "tagging": "classifier", "multiple_choice": "classifier", "span_qa": "span"}
    if task in head and f"heads/{head[task]}/kernel" not in parameters:
        raise UserError(f"{folder} is a {architecture} without a head; read it with --architecture=BertModel")
    report.copies, report.notes = copies, notes
    dropout = settings.get("classifier_dropout")
    if dropout not in (None, config.hidden_dropout):
        report.notes.append(f"classifier_dropout {dropout} is not kept: our heads use model.hidden_dropout")
    tokenizer = load_tokenizer(weights)
    check_vocabulary(config, tokenizer, str(folder))
    return Loaded(config, parameters, tokenizer, task, description, report)


def write(folder: Path, model: Loaded, *, architecture: str = "", card: str = "", allow: str = "") -> Report:
    """config.json, model.safetensors, tokenizer files and README.md, as Transformers writes and reads them.

    Raises UserError, before anything is written, if the model is no BERT of theirs, or parameters are missing or have
    no place in `architecture` ("" = the fullest one of the task).
    """
    architecture = architecture or default_architecture(model)
    if architecture not in ARCHITECTURES:
        raise UserError(f"cannot write a {architecture}; it can be {', '.join(ARCHITECTURES)}")
    task = ARCHITECTURES[architecture][0]
    if "pretraining" not in (task, model.task) and task != model.task:
        raise UserError(f"a {architecture} is for task={task}; this model was trained for task={model.task}")
    settings = _their_settings(model, architecture)
    names = _written_names(architecture)
    num_layers = model.config.num_hidden_layers
    tensors, report = to_tensors(model.parameters, names, num_layers, what=architecture, allow=allow)
    report.notes = _what_transformers_does_otherwise(model, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", dict(sorted(settings.items())))
    # safetensors makes its file readable by its owner alone; the others have what the umask lets.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    model.tokenizer.save(folder)
    options_file = folder / "tokenizer_config.json"
    options = json.loads(options_file.read_text("utf-8"))
    write_json(options_file, options | {"model_max_length": model.config.max_position_embeddings})
    if card:
        (folder / "README.md").write_text(card, "utf-8")
    return report


def default_architecture(model: Loaded) -> str:
    """The first architecture of the task for which everything is there."""
    present = {part_of(name) for name in model.parameters}
    fitting = [
        name for name, (task, parts) in ARCHITECTURES.items() if task == model.task and present.issuperset(parts)
    ]
    if not fitting:
        raise UserError(
            f"no Hugging Face architecture for task '{model.task}' has just {', '.join(sorted(present))}; "
            f"choose --architecture among {', '.join(ARCHITECTURES)}"
        )
    return fitting[0]


def read_settings(path: Path) -> dict[str, Any]:
    """config.json. Raises UserError for a field that we cannot honour."""
    settings = read_json(path)
    if isinstance(settings.get("model"), dict):
        raise UserError(f"{path.parent} is a workdir of bert_jax without a checkpoint; train first")
    for name, value in FIXED.items():
        if settings.get(name) not in (None, value):
            raise UserError(f"{path}: {name} is {settings[name]!r}, only {value!r} can be read")
    for name in ABSENT:
        if settings.get(name):
            raise UserError(f"{path}: {name} is set; a model with that cannot be read")
    absent = [name for name in REQUIRED if settings.get(name) is None]
    if absent:
        raise UserError(f"{path} has no {', '.join(absent)}; is it the config of a BERT?")
    if field(settings, "hidden_act", str, path, "") not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act is {settings.get('hidden_act')!r}; it can be {', '.join(ACTIVATIONS)}")
    return settings


def model_config(settings: dict[str, Any], path: Path) -> BertConfig:
    given = model_fields(settings, CONFIG, path)
    given |= {"embedding_size": given["hidden_size"], "hidden_act": ACTIVATIONS[settings["hidden_act"]]}
    try:
        return BertConfig(**given, dtype="float32")
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None


def check_vocabulary(config: BertConfig, tokenizer: Tokenizer, origin: str) -> None:
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{origin}: the vocabulary has {tokenizer.vocab_size:,} tokens, the word embeddings {config.vocab_size:,} "
            "rows; put the vocabulary there that the model was trained with"
        )


def _architecture(settings: dict[str, Any], given: str, path: Path) -> str:
    listed = field(settings, "architectures", list, path, []) or ["BertModel"]
    name = given or str(listed[0])
    name = READ_AS.get(name, name)
    if name not in ARCHITECTURES:
        raise UserError(f"{path}: architecture {name} is not known; --architecture can be {', '.join(ARCHITECTURES)}")
    return name


def _parts_read(architecture: str) -> tuple[str, ...]:
    """Models of pretraining often have more heads in the file than their architecture uses; all are welcome."""
    task, parts = ARCHITECTURES[architecture]
    return (*TRUNK, "pooler", *(PRETRAINING_HEADS if task == "pretraining" else parts))


def _task(settings: dict[str, Any], architecture: str, path: Path) -> tuple[str, dict[str, Any], int]:
    """Task, its description, outputs of the classifier."""
    task, _ = ARCHITECTURES[architecture]
    if task == "span_qa":  # whether it was trained on questions without an answer is not recorded
        return task, {"may_have_no_answer": False, "threshold": 0.0}, 1
    if task not in ("classification", "tagging"):
        return task, {}, 1
    names = _label_names(settings, path)
    if task == "tagging":
        return task, {"labels": names, "characters": False}, len(names)
    usual = "regression" if len(names) == 1 else "single_label_classification"
    kind = field(settings, "problem_type", str, path, usual)
    if kind not in LABEL_KINDS:
        raise UserError(f"{path}: problem_type is {kind!r}; it can be {', '.join(LABEL_KINDS)}")
    if kind == "regression" and len(names) > 1:
        raise UserError(f"{path}: regression with {len(names)} outputs; only one can be read")
    thresholds = [0.5] * len(names) if LABEL_KINDS[kind] == "multi" else []
    labels = [] if kind == "regression" else names
    return task, {"labels": labels, "thresholds": thresholds, "label_kind": LABEL_KINDS[kind]}, len(names)


def _label_names(settings: dict[str, Any], path: Path) -> list[str]:
    """Returns the names of the labels in the order of their numbers."""
    labels = field(settings, "id2label", dict, path, {})
    if not labels:
        count = field(settings, "num_labels", int, path, 2)
        if not 0 < count <= _MAX_LABELS:
            refuse(count, "num_labels", f"an integer from 1 to {_MAX_LABELS}", path)
        labels = {str(i): f"LABEL_{i}" for i in range(count)}
    numbers = [str(i) for i in range(len(labels))]
    if labels.keys() != set(numbers):
        raise UserError(f"{path}: id2label must have the numbers 0 to {len(labels) - 1} as keys")
    names = [labels[number] for number in numbers]
    for name in names:
        if not isinstance(name, str):
            refuse(name, "a label of id2label", "a string", path)
    if len(set(names)) < len(names):
        raise UserError(f"{path}: id2label has the same label for two numbers; give each a name of its own")
    return names


def _canonical(tensors: Tensors, origin: str) -> dict[str, Callable[[], np.ndarray]]:
    """Without the prefix of a model with heads, and with the names that LayerNorm's parameters have today."""
    named = {}
    for name, reader in tensors.items():
        canonical = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        canonical = canonical.replace("LayerNorm.beta", "LayerNorm.bias")
        if canonical in named:
            raise UserError(f"{origin} has {canonical} under two names; which one is meant cannot be known")
        named[canonical] = reader
    return named


def _without_copies(tensors: dict[str, Callable], origin: str) -> tuple[dict[str, Callable], list[str]]:
    """A decoder of its own, not the embedding table, is another model."""
    copies = [name for name in COPIES if name in tensors]
    for name in copies:
        same_as = COPIES[name]
        if same_as and (same_as not in tensors or not np.array_equal(tensors[name](), tensors[same_as]())):
            raise UserError(f"{origin}: {name} differs from {same_as}; a model with an untied decoder cannot be read")
    return {name: reader for name, reader in tensors.items() if name not in COPIES}, copies


def _written_names(architecture: str) -> list[Name]:
    parts = (*TRUNK, *ARCHITECTURES[architecture][1])
    prefix = "" if architecture == "BertModel" else "bert."
    return [
        replace(name, theirs=prefix + name.theirs) if name.part in (*TRUNK, "pooler") else name
        for name in huggingface_names()
        if name.part in parts
    ]


def _their_settings(model: Loaded, architecture: str) -> dict[str, Any]:
    config = model.config
    needed = {"norm": "post", "position_embedding": "learned", "embedding_size": config.hidden_size}
    if ARCHITECTURES[architecture][0] in ("classification", "multiple_choice"):
        needed["pooling"] = "cls"
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise UserError(f"model.{name} is {getattr(config, name)}; a {architecture} has {value} only")
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.hidden_act)
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG.items()} | FIXED
    settings |= {"architectures": [architecture], "hidden_act": activation, "dtype": "float32"}
    settings["pad_token_id"] = model.tokenizer.pad_id
    if ARCHITECTURES[architecture][0] != model.task or model.task not in ("classification", "tagging"):
        return settings
    labels = model.description["labels"] or ["LABEL_0"]  # of a regression
    settings["id2label"] = {str(i): label for i, label in enumerate(labels)}
    settings["label2id"] = {label: i for i, label in enumerate(labels)}
    if model.task == "classification":
        kind = model.description["label_kind"]
        settings["problem_type"] = next(theirs for theirs, ours in LABEL_KINDS.items() if ours == kind)
    return settings


def _what_transformers_does_otherwise(model: Loaded, architecture: str) -> list[str]:
    notes = []
    if model.config.pooling != "cls":
        notes.append(f"model.pooling={model.config.pooling} is not part of a {architecture}: apply it to its output")
    if not isinstance(model.tokenizer, WordPieceTokenizer):
        notes.append("the tokenizer is SentencePiece (spm.model), which no BERT of Transformers loads: encode with it")
    elif model.tokenizer.original:
        notes.append(
            "the tokenizer follows google-research/bert; that of Transformers differs in rare characters and in words "
            "of over 100 characters"
        )
    thresholds = model.description.get("thresholds") or []
    if any(threshold != 0.5 for threshold in thresholds):
        notes.append(f"thresholds of the labels are not part of a {architecture}: {thresholds}")
    return notes
