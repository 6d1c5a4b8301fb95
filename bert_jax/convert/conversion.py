"""From any source to any target: what `python -m bert_jax.convert` does, to be called from a notebook as well."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors import SafetensorError

from bert_jax.config import UserError, pattern
from bert_jax.convert import google_tf, hub, huggingface
from bert_jax.convert.mapping import Arrays, Loaded, Report, to_host
from bert_jax.convert.model_card import model_card
from bert_jax.convert.resize import extend_positions, extend_vocabulary, read_words
from bert_jax.inference.open import open_model
from bert_jax.models.layers import Linear
from bert_jax.options import default_config
from bert_jax.training.checkpoint import has_checkpoint, write_checkpoint
from bert_jax.training.parameters import flatten

FORMATS = ("bert_jax", "huggingface")
CARD = "README.md"
_MOST_POSITIONS = 1 << 20
# What a converted checkpoint of ours consists of. One that was trained has an optimizer or metrics besides, and is not
# replaced by one that lacks them.
WRITTEN = {"parameters", "run", "tokenizer", "_CHECKPOINT_METADATA", "commit_success.txt"}


@dataclass
class Source:
    """A model, and what is known of how it was trained: the `run` item of a checkpoint, its metrics.jsonl."""

    model: Loaded
    run: dict[str, Any]
    metrics: Path | None


def convert(
    source: str,
    target: str,
    *,
    format: str = "bert_jax",
    architecture: str = "",
    extend_vocab: str = "",
    max_position_embeddings: int = 0,
    allow: str = "",
    overwrite: bool = False,
) -> str:
    """Reads `source`, writes `target`, gives the report of every name.

    `source` is a folder or prefix of any kind that is known here, or a name of the Hugging Face Hub. The options are
    those of the command line. Raises UserError before anything is written, or with the old `target` as it was.
    """
    pattern("--allow", allow)
    if format not in FORMATS:
        raise UserError(f"--format is '{format}'; it can be {', '.join(FORMATS)}")
    if not 0 <= max_position_embeddings <= _MOST_POSITIONS:
        raise UserError(f"--max_position_embeddings is {max_position_embeddings}; it can be 1 to {_MOST_POSITIONS}")
    words = read_words(Path(extend_vocab)) if extend_vocab else []
    _check_target(Path(target), source, overwrite)
    opened = open_source(source, architecture="" if format == "huggingface" else architecture, allow=allow)
    lines = [f"read {source}: {opened.model.report}"]
    lines += _resize(opened, words, max_position_embeddings)
    with _replacing(Path(target)) as folder:
        if format == "huggingface":
            written = _write_huggingface(folder, opened, architecture, allow)
            lines.append(f"wrote {target}: {written}")
        else:
            lines.append(f"wrote {target}: {len(opened.model.parameters)} parameters, task {opened.model.task}")
            write_checkpoint(folder, opened.model.parameters, opened.run, opened.model.tokenizer)
    return "\n".join(lines)


def open_source(source: str, *, architecture: str = "", allow: str = "") -> Source:
    """What `source` holds, whatever its kind: 1. our checkpoint or workdir, 2. a Hugging Face folder, 3. a TensorFlow
    checkpoint, 4. a name of the Hub."""
    path = Path(source)
    if has_checkpoint(source):
        _refuse(architecture)
        return _read_ours(source)
    if path.is_dir() and any((path / name).is_file() for name in ("config.json", "modules.json")):
        return _foreign(huggingface.read(path, architecture=architecture, allow=allow), source)
    if google_tf.is_checkpoint(path):
        _refuse(architecture)
        return _foreign(google_tf.read(path, allow=allow), source)
    if path.is_dir():
        raise UserError(
            f"{source} is not a checkpoint: it has neither config.json (Hugging Face) nor *.index (TensorFlow) "
            "nor checkpoints of bert_jax"
        )
    if path.exists():
        raise UserError(f"{source} is a file; give the folder that it lies in (of TensorFlow also folder/model.ckpt-N)")
    if not hub.is_name(source):
        raise UserError(f"{source} does not exist")
    return _foreign(huggingface.read(hub.fetch(source), architecture=architecture, allow=allow), source)


def _refuse(architecture: str) -> None:
    if architecture:
        raise UserError(f"--architecture={architecture}: this source says itself what it is; leave the flag out")


def _read_ours(source: str) -> Source:
    opened = open_model(source)
    folder, saved = opened.path, opened.run
    report = Report(loaded={name: name for name in opened.parameters})
    parameters = to_host(opened.parameters)
    model = Loaded(opened.bert_config, parameters, opened.tokenizer, opened.config.task, saved["task"], report)
    run = {name: value for name, value in saved.items() if name not in ("checksums", "data", "history")}
    run["config"] = without_private_paths(run["config"])
    workdir = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    return Source(model, run, workdir / "metrics.jsonl")


def _foreign(model: Loaded, source: str) -> Source:
    """With the config that a run of ours would have that ended with this model."""
    if model.task in ("tagging", "span_qa"):
        model.parameters |= _unused_pooler(model)
    config = default_config()
    config.task = model.task
    # A head that was trained elsewhere predicts on texts of any length that it can take.
    longest = config.data.sequence_length if model.task == "pretraining" else 512
    config.data.sequence_length = min(longest, model.config.max_position_embeddings)
    config.data.label_kind = model.description.get("label_kind", config.data.label_kind)
    run = {"step": 0, "config": config.to_dict(), "task": model.description, "converted_from": _public_name(source)}
    _record_shape(run, model)
    return Source(model, run, None)


def _public_name(source: str) -> str:
    """Returns the name of a folder without where it lies, which is private; the name of a model of the Hub as it is."""
    return Path(source).resolve().name if Path(source).exists() else source


def without_private_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config in which files and folders have their names only, without where they lie."""
    data = config["data"]
    named = {key: _names_only(data[key]) for key in ("files", "vocab_file", "prepared", "train", "validation", "test")}
    start = config["init_from"]
    return config | {"init_from": start if hub.is_name(start) else Path(start).name, "data": data | named}


def _names_only(paths: str) -> str:
    """Returns comma-separated paths and globs by their last parts; names of TFDS stay as they are."""
    parts = (part.strip() for part in paths.split(","))
    return ",".join(part if part.startswith("tfds:") else Path(part).name for part in parts)


def _unused_pooler(model: Loaded) -> Arrays:
    """As initialised, where a head that does not use it came without: all our models have one."""
    if "pooler/kernel" in model.parameters:
        return {}
    model.report.notes.append("a pooler was added, as initialised: this head does not use it")
    size = model.config.hidden_size
    pooler = Linear(size, size, stddev=model.config.initializer_range, rngs=nnx.Rngs(params=0))
    return {f"pooler/{name}": np.asarray(value) for name, value in flatten(pooler).items()}


def _record_shape(run: dict[str, Any], model: Loaded) -> None:
    run["config"]["model"] |= asdict(model.config) | {"size": None}


def _resize(opened: Source, words: list[str], positions: int) -> list[str]:
    model, lines = opened.model, []
    if words:
        model.tokenizer, model.parameters, lines = extend_vocabulary(model.tokenizer, model.parameters, words)
        model.config = replace(model.config, vocab_size=model.tokenizer.vocab_size)
    if positions:
        model.parameters, note = extend_positions(model.parameters, positions)
        model.config = replace(model.config, max_position_embeddings=positions)
        lines.append(note)
    _record_shape(opened.run, model)
    return lines


def _write_huggingface(folder: Path, opened: Source, architecture: str, allow: str) -> Report:
    model = opened.model
    architecture = architecture or huggingface.default_architecture(model)
    count = sum(value.size for value in model.parameters.values())
    card = model_card(opened.run, opened.metrics, architecture, count)
    return huggingface.write(folder, model, architecture=architecture, card=card, allow=allow)


def _check_target(target: Path, source: str, overwrite: bool) -> None:
    if not target.exists():
        return
    if Path(source).exists() and (target.resolve() in (Path(source).resolve(), *Path(source).resolve().parents)):
        raise UserError(f"--to={target} holds --from={source}; choose another folder")
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--to={target} exists; choose another folder, or replace it with --overwrite")
    if target.is_symlink() or not target.is_dir():
        raise UserError(f"--to={target} is not a folder, and nothing else is replaced; remove it by hand")
    names = {path.name for path in target.iterdir()}
    written = WRITTEN if "run" in names else huggingface.WRITTEN
    if not names & {"run", "model.safetensors"} or not names <= written:
        others = ", ".join(sorted(names - written)[:3]) or "no checkpoint"
        raise UserError(
            f"--to={target} holds what a conversion does not write ({others}); move it away, or choose another folder"
        )


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target`, at once and only if all went well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            yield new
            if target.exists():
                if (target / CARD).is_file():  # it is meant to be completed by hand
                    shutil.copyfile(target / CARD, new / CARD)
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
    except (OSError, SafetensorError) as problem:
        cause = getattr(problem, "strerror", None) or "the disk may be full"
        raise UserError(f"--to={target} cannot be written ({cause}); what was there is as it was") from problem
