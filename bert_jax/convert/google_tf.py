"""Folders of google-research/bert: bert_config.json, vocab.txt, bert_model.ckpt.{index,data-*} → a `Loaded`.

As BERT was published in 2018, and as run_pretraining.py, run_classifier.py and run_squad.py save it.
"""

import re
from pathlib import Path

from bert_jax.config import UserError
from bert_jax.convert.foreign_json import field, model_fields, read_json
from bert_jax.convert.huggingface import check_vocabulary
from bert_jax.convert.mapping import Loaded, Tensors, from_tensors
from bert_jax.convert.names import CONFIG_FIELDS, PRETRAINING_HEADS, TRUNK, google_names
from bert_jax.convert.tensor_bundle import open_bundle
from bert_jax.data.tokenizers.tokenizer import WordPieceTokenizer
from bert_jax.data.tokenizers.vocabulary import read_vocab_file
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.models.config import BertConfig

OPTIMIZER = re.compile(r"global_step$|.*/(adam|lamb)_[mv]$")


def read(path: str | Path, *, allow: str = "") -> Loaded:
    """A checkpoint of google-research/bert, named by its folder or by its prefix (folder/model.ckpt-343).

    Lower-casing is what the vocabulary was made with: off if it has words in capitals. `allow` as in huggingface.read.
    Raises UserError for whatever is missing, damaged or not explained.
    """
    prefix = _prefix(Path(path))
    folder = prefix.parent
    config = _config(folder / "bert_config.json")
    tensors, slots = _without_optimizer(_canonical(open_bundle(prefix)))
    head, num_labels = "", 1
    if "output_bias" in tensors:  # of run_classifier.py
        head, num_labels = "classifier", tensors["output_bias"]().size
    elif "cls/squad/output_bias" in tensors:
        head = "span"
    parts = (*TRUNK, "pooler", *((head,) if head else PRETRAINING_HEADS))
    names = [name for name in google_names() if name.part in parts]
    parameters, report = from_tensors(tensors, names, config, num_labels=num_labels, origin=str(prefix), allow=allow)
    report.optimizer = slots
    tokenizer, casing = _tokenizer(folder / "vocab.txt")
    check_vocabulary(config, tokenizer, str(folder))
    report.notes.append(f"the vocabulary is {casing}; tokenizer and GELU (tanh) are those of google-research/bert")
    task = {"": "pretraining", "classifier": "classification", "span": "span_qa"}[head]
    description = {"may_have_no_answer": False, "threshold": 0.0} if head == "span" else {}
    if head == "classifier":
        labels = [f"LABEL_{i}" for i in range(num_labels)] if num_labels > 1 else []
        kind = "single" if num_labels > 1 else "regression"
        description = {"labels": labels, "thresholds": [], "label_kind": kind}
        report.notes.append(f"names of labels are not in the checkpoint: {', '.join(labels) or 'a number'}")
    return Loaded(config, parameters, tokenizer, task, description, report)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder, or a prefix, is a TensorFlow checkpoint."""
    return Path(f"{path}.index").is_file() or (path.is_dir() and any(path.glob("*.index")))


def _prefix(path: Path) -> Path:
    if Path(f"{path}.index").is_file():
        return path
    found = sorted(path.glob("*.index"))
    if len(found) > 1:
        listed = ", ".join(str(index.with_suffix("")) for index in found)
        raise UserError(f"{path} holds {len(found)} checkpoints: name one of {listed}")
    return found[0].with_suffix("")


def _config(path: Path) -> BertConfig:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; put it beside the checkpoint")
    settings = read_json(path)
    absent = [name for name in CONFIG_FIELDS.values() if settings.get(name) is None]
    if absent:
        raise UserError(f"{path} has no {', '.join(absent)}; is it the config of a BERT?")
    if field(settings, "hidden_act", str, path, "") != "gelu":
        raise UserError(f"{path}: hidden_act is {settings.get('hidden_act')!r}; only 'gelu' can be read")
    if settings.get("directionality", "bidi") != "bidi":
        raise UserError(f"{path}: directionality is {settings['directionality']!r}; only 'bidi' can be read")
    given = model_fields(settings, CONFIG_FIELDS, path)
    given["embedding_size"] = given["hidden_size"]
    try:
        return BertConfig(**given, hidden_act="gelu_tanh", dtype="float32")
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None


def _canonical(tensors: Tensors) -> dict:
    return {name.removeprefix("bert/"): reader for name, reader in tensors.items()}


def _without_optimizer(tensors: dict) -> tuple[dict, list[str]]:
    slots = [name for name in tensors if OPTIMIZER.match(name)]
    return {name: reader for name, reader in tensors.items() if name not in slots}, slots


def _tokenizer(path: Path) -> tuple[WordPieceTokenizer, str]:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; put it beside the checkpoint")
    tokens = read_vocab_file(path)
    letters = (token.removeprefix("##") for token in tokens)
    cased = any(token.isalpha() and token != token.lower() for token in letters)
    return make_wordpiece(tokens, str(path), not cased, None, True, original=True), "cased" if cased else "lower-cased"
