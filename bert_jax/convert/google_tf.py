"""Folders of google-research/bert: bert_config.json, vocab.txt, bert_model.ckpt.{index,data-*} → a `Loaded`.

As BERT was published in 2018, and as run_pretraining.py, run_classifier.py and run_squad.py save it.
"""

import re
from pathlib import Path

from bert_jax.config import UserError
from bert_jax.convert.mapping import Loaded, check_vocabulary, from_tensors, read_settings, shape_of
from bert_jax.convert.names import CONFIG_FIELDS, PRETRAINING_HEADS, TRUNK, google_names
from bert_jax.convert.tensor_bundle import open_bundle
from bert_jax.data.tokenizers.vocabulary import read_vocab_file
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer, make_wordpiece
from bert_jax.models.config import BertConfig

OPTIMIZER = re.compile(r"global_step$|.*/(adam|lamb)_[mv]$")


def read(path: str | Path, *, allow: str = "") -> Loaded:
    """Reads a checkpoint of google-research/bert, named by its folder or by its prefix (folder/model.ckpt-343).

    Lower-casing is what the vocabulary was made with: off if it has words in capitals. `allow` as in huggingface.read.
    Raises UserError for whatever is missing, damaged or not explained.
    """
    prefix = _prefix(Path(path))
    folder = prefix.parent
    for name in ("bert_config.json", "vocab.txt"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; put it beside the checkpoint")
    config = _config(folder / "bert_config.json")
    saved = {name.removeprefix("bert/"): reader for name, reader in open_bundle(prefix).items()}
    tensors = {name: reader for name, reader in saved.items() if not OPTIMIZER.match(name)}
    head, num_labels, task, description = "", 1, "pretraining", {}
    if "output_bias" in tensors:  # of run_classifier.py
        head, num_labels, task = "classifier", tensors["output_bias"]().size, "classification"
        labels = [f"LABEL_{i}" for i in range(num_labels)] if num_labels > 1 else []
        description = {"labels": labels, "thresholds": [], "label_kind": "single" if labels else "regression"}
    elif "cls/squad/output_bias" in tensors:
        head, task, description = "span", "span_qa", {"may_have_no_answer": False, "threshold": 0.0}
    parts = (*TRUNK, "pooler", *((head,) if head else PRETRAINING_HEADS))
    names = [name for name in google_names() if name.part in parts]
    parameters, report = from_tensors(tensors, names, config, num_labels=num_labels, origin=prefix, allow=allow)
    report.optimizer = [name for name in saved if name not in tensors]
    tokenizer, casing = _tokenizer(folder / "vocab.txt")
    check_vocabulary(config, tokenizer, folder)
    report.notes.append(f"the vocabulary is {casing}; tokenizer and GELU (tanh) are those of google-research/bert")
    if head == "classifier":
        listed = ", ".join(description["labels"]) or "a number"
        report.notes.append(f"names of labels are not in the checkpoint: {listed}")
    return Loaded(config, parameters, tokenizer, task, description, report)


def is_checkpoint(path: Path) -> bool:
    """Returns True for a folder, or a prefix, of a TensorFlow checkpoint."""
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
    settings = read_settings(path)
    direction = settings.content.get("directionality", "bidi")
    if direction != "bidi":
        raise UserError(f"{path}: directionality is {direction!r}; only 'bidi' can be read")
    # Its "gelu" is the approximation by tanh.
    return shape_of(settings, CONFIG_FIELDS, CONFIG_FIELDS.values(), {"gelu": "gelu_tanh"})


def _tokenizer(path: Path) -> tuple[WordPieceTokenizer, str]:
    tokens = read_vocab_file(path)
    letters = (token.removeprefix("##") for token in tokens)
    cased = any(token.isalpha() and token != token.lower() for token in letters)
    return make_wordpiece(tokens, str(path), not cased, None, True, original=True), "cased" if cased else "lower-cased"
