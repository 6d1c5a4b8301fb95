"""Hugging Face folders: config.json, model.safetensors (one file or shards) and tokenizer files ↔ a `Loaded`."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bert_jax.config import Json, UserError
from bert_jax.convert import encoder_decoder, labels, mapping, sentence_encoder
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
from bert_jax.convert.tensor_files import open_tensors
from bert_jax.data.text.json_files import JsonObject, read_object
from bert_jax.data.tokenizers.encoding import write_json
from bert_jax.data.tokenizers.tokenizer import load_tokenizer
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer

# Stored besides by some versions: (what it must be equal to, or None for a buffer that is no parameter).
COPIES = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "embeddings.position_ids": None,
}
# The same of an encoder and a decoder.
COPIES |= {
    "decoder.cls.predictions.decoder.weight": "decoder.bert.embeddings.word_embeddings.weight",
    "decoder.cls.predictions.decoder.bias": "decoder.cls.predictions.bias",
    "decoder.bert.embeddings.position_ids": None,
    "encoder.embeddings.position_ids": None,
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
ABSENT = ("auto_map", "quantization_config")  # code of its own; weights that are not plain numbers
# The files of a folder that `write` makes, with those of either kind of tokenizer.
WRITTEN = {"config.json", "model.safetensors", "README.md", "tokenizer_config.json"}
WRITTEN |= {"vocab.txt", "tokenizer.json", "spm.model", "generation_config.json"}


def read(folder: str | Path, *, architecture: str = "", allow: str = "") -> Loaded:
    """Reads a Hugging Face BERT, as float32.

    `architecture` says what it is where config.json does not. `allow` is a pattern of their names that may be left
    behind, such as `classifier`. Raises UserError for a folder, field, name or shape that is not explained.
    """
    folder = Path(folder)
    weights, pooling, notes = sentence_encoder.find_bert(folder)
    path = weights / "config.json"
    whole = mapping.read_settings(path)
    writes = whole.content.get("model_type") == encoder_decoder.KIND
    settings = _checked(encoder_decoder.encoder(whole) if writes else whole, path)
    config = replace(mapping.shape_of(settings, CONFIG, REQUIRED, ACTIVATIONS), pooling=pooling)
    listed = settings.get("architectures", list, default=[]) or ["BertModel"]
    architecture = architecture or str(listed[0])
    architecture = READ_AS.get(architecture, architecture)
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: architecture {architecture} is not known; --architecture can be {known}")
    if (architecture == encoder_decoder.NAME) != writes:
        raise UserError(f"{path}: model_type {whole.content.get('model_type')!r} cannot be read as {architecture}")
    task, parts = ARCHITECTURES[architecture]
    description, num_labels = labels.read(task, settings)
    tensors, copies = _canonical(open_tensors(weights), folder)
    # Models of pretraining often have more heads in the file than their architecture uses; all are welcome.
    welcome = {*TRUNK, "pooler", *(PRETRAINING_HEADS if task == "pretraining" else parts)}
    names = encoder_decoder.names() if writes else [name for name in huggingface_names() if name.part in welcome]
    parameters, report = from_tensors(tensors, names, config, num_labels=num_labels, origin=folder, allow=allow)
    if task != "pretraining" and not any(name.startswith("heads/") for name in parameters):
        raise UserError(f"{folder} is a {architecture} without a head; read it with --architecture=BertModel")
    report.copies, report.notes = copies, notes
    dropout = settings.content.get("classifier_dropout")
    if dropout not in (None, config.hidden_dropout):
        report.notes.append(f"classifier_dropout {dropout} is not kept: our heads use model.hidden_dropout")
    tokenizer = load_tokenizer(weights)
    mapping.check_vocabulary(config, tokenizer, folder)
    if writes:
        encoder_decoder.check_tokens(whole, tokenizer, path)
    return Loaded(config, parameters, tokenizer, task, description, report)


def write(folder: Path, model: Loaded, *, architecture: str = "", card: str = "", allow: str = "") -> Report:
    """Writes config.json, model.safetensors, tokenizer files and README.md, as Transformers writes and reads them.

    Raises UserError, before anything is written, if the model is no BERT of theirs, or parameters are missing or have
    no place in `architecture` ("" = the fullest one of the task).
    """
    if any(name.startswith("heads/vectors/") for name in model.parameters):
        what = "this model reads vectors beside its text (heads/vectors/)"
        raise UserError(f"{what}, which no architecture of Hugging Face written here does: use it with bert_jax")
    architecture = architecture or default_architecture(model)
    if architecture not in ARCHITECTURES:
        raise UserError(f"cannot write a {architecture}; it can be {', '.join(ARCHITECTURES)}")
    task = ARCHITECTURES[architecture][0]
    if "pretraining" not in (task, model.task) and task != model.task:
        raise UserError(f"a {architecture} is for task={task}; this model was trained for task={model.task}")
    if task != "pretraining" and (head := model.description.get("features")):
        options = ", ".join(f"head.{name}={value}" for name, value in head.items())
        raise UserError(
            f"the head of a {architecture} reads the last layer, that of this model does not ({options}); "
            "--architecture=BertModel writes the model without its head"
        )
    settings, names = _their_settings(model, architecture), _written_names(architecture)
    num_layers, parameters, notes = model.config.num_hidden_layers, model.parameters, []
    if architecture == encoder_decoder.NAME:
        parameters, notes = encoder_decoder.whole(parameters)
    tensors, report = to_tensors(parameters, names, num_layers, what=architecture, allow=allow)
    report.notes = notes + _what_transformers_does_otherwise(model, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", dict(sorted(settings.items())))
    if architecture == encoder_decoder.NAME:
        write_json(folder / "generation_config.json", encoder_decoder.generation_settings(model.tokenizer))
    # safetensors makes its file readable by its owner alone; the others have what the umask lets.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    model.tokenizer.save(folder)
    options = folder / "tokenizer_config.json"
    write_json(
        options,
        read_object(options, "start again").content | {"model_max_length": model.config.max_position_embeddings},
    )
    if card:
        (folder / "README.md").write_text(card, "utf-8")
    return report


def default_architecture(model: Loaded) -> str:
    """Returns the first architecture of the task for which everything is there; of a UniLM, which is a BERT that reads
    by another mask, BertForMaskedLM."""
    present = {part_of(name) for name in model.parameters}
    if model.task == encoder_decoder.TASK and "decoder" not in present:
        return "BertForMaskedLM"
    for name, (task, parts) in ARCHITECTURES.items():
        if task == model.task and present.issuperset(parts):
            return name
    raise UserError(
        f"no Hugging Face architecture for task '{model.task}' has just {', '.join(sorted(present))}; "
        f"choose --architecture among {', '.join(ARCHITECTURES)}"
    )


def _checked(settings: JsonObject, path: Path) -> JsonObject:
    """Returns the config of a BERT. Raises UserError for a field that we cannot honour."""
    content = settings.content
    if isinstance(content.get("model"), dict):
        raise UserError(f"{path.parent} is a workdir of bert_jax without a checkpoint; train first")
    for name, value in FIXED.items():
        if content.get(name, value) != value:
            raise UserError(f"{path}: {name} is {content[name]!r}, only {value!r} can be read")
    for name in ABSENT:
        if content.get(name):
            raise UserError(f"{path}: {name} is set; a model with that cannot be read")
    return settings


def _canonical(tensors: Tensors, origin: Path) -> tuple[dict[str, Callable[[], np.ndarray]], list[str]]:
    """Returns the tensors by their names without the prefix of a model with heads, LayerNorm's as they are today; and
    the copies that were left out. A copy that differs, such as a decoder of its own, is another model."""
    named = {}
    for name, reader in tensors.items():
        canonical = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        canonical = canonical.replace("LayerNorm.beta", "LayerNorm.bias")
        if canonical in named:
            raise UserError(f"{origin} has {canonical} under two names; which one is meant cannot be known")
        named[canonical] = reader
    copies = [name for name in COPIES if name in named]
    for name in copies:
        same_as = COPIES[name]
        if same_as and (same_as not in named or not np.array_equal(named[name](), named[same_as]())):
            raise UserError(f"{origin}: {name} differs from {same_as}; a model with an untied decoder cannot be read")
    return {name: reader for name, reader in named.items() if name not in COPIES}, copies


def _written_names(architecture: str) -> list[Name]:
    if architecture == encoder_decoder.NAME:
        return encoder_decoder.names()
    parts = (*TRUNK, *ARCHITECTURES[architecture][1])
    prefix = "" if architecture == "BertModel" else "bert."
    names = [name for name in huggingface_names() if name.part in parts]
    of_trunk = (*TRUNK, "pooler")
    return [replace(name, theirs=prefix + name.theirs) if name.part in of_trunk else name for name in names]


def _their_settings(model: Loaded, architecture: str) -> Json:
    config, (task, parts) = model.config, ARCHITECTURES[architecture]
    needed = {"norm": "post", "position_embedding": "learned", "embedding_size": config.hidden_size}
    needed |= {"gated": False, "use_bias": True, "languages": ""}
    if "mlm" in parts:
        needed["tie_embeddings"] = True
    if task in ("classification", "multiple_choice"):
        needed["pooling"] = "cls"
    if differing := {name: value for name, value in needed.items() if getattr(config, name) != value}:
        ours = ", ".join(f"model.{name} is {getattr(config, name)}" for name in differing)
        theirs = ", ".join(str(value) or "none" for value in differing.values())
        raise UserError(f"{ours}; a {architecture} has {theirs} only")
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.hidden_act)
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG.items()} | FIXED
    settings |= {"architectures": [architecture], "hidden_act": activation}
    settings |= {"dtype": next(iter(model.parameters.values())).dtype.name, "pad_token_id": model.tokenizer.pad_id}
    if architecture == encoder_decoder.NAME:
        return encoder_decoder.settings(settings, model.tokenizer)
    return settings | (labels.written(task, model.description) if task == model.task else {})


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
    if model.task == encoder_decoder.TASK and architecture != encoder_decoder.NAME:
        notes.append(f"a {architecture} has another mask than a model that writes (UniLM), which Transformers lacks")
    thresholds = model.description.get("thresholds") or []
    if any(threshold != 0.5 for threshold in thresholds):
        notes.append(f"thresholds of the labels are not part of a {architecture}: {thresholds}")
    return notes
