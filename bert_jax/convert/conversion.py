"""From any source to any target: what `python -m bert_jax.convert` does, to be called from a notebook as well."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors import SafetensorError

from bert_jax.config import Json, UserError, pattern
from bert_jax.convert import encoder_decoder, google_tf, hub, huggingface, portable
from bert_jax.convert.mapping import Loaded, Report
from bert_jax.convert.model_card import model_card
from bert_jax.convert.program_card import kept, program_card
from bert_jax.convert.resize import extend_positions, extend_vocabulary, fill_heads, read_words
from bert_jax.inference.open import Opened, open_model
from bert_jax.models.layers import Linear
from bert_jax.options import default_config
from bert_jax.training.checkpoint import has_checkpoint, write_checkpoint
from bert_jax.training.parameters import flatten
from bert_jax.training.stored import DTYPES, stored

# Options, whatever their group, that name models or files.
_MODELS = {"init_from", "teacher"}
_FILES = {"files", "vocab_file", "prepared", "train", "validation", "test", "media", "blimp", "retrieval", "mirror"}
_FILES |= {"beam_temp"}
FORMATS = ("bert_jax", "huggingface", *portable.FORMATS)
CARD = "README.md"
_MOST_POSITIONS = 1 << 20
# What a converted checkpoint of ours consists of. One that was trained has an optimizer or metrics besides, and is not
# replaced by one that lacks them.
WRITTEN = {"parameters", "run", "tokenizer", "_CHECKPOINT_METADATA", "commit_success.txt"}


@dataclass
class Source:
    """A model, and what is known of how it was trained: the `run` item of a checkpoint, its metrics.jsonl."""

    model: Loaded
    run: Json
    metrics: Path | None


def convert(
    source: str,
    target: str,
    *,
    format: str = "bert_jax",
    architecture: str = "",
    task: str = "",
    extend_vocab: str = "",
    max_position_embeddings: int = 0,
    allow: str = "",
    overwrite: bool = False,
    dtype: str = "float32",
    opset: int = 0,
    check: str = "",
) -> str:
    """Reads `source`, writes `target` and returns the report of every name.

    `source` is a folder or prefix of any kind that is known here, or a name of the Hugging Face Hub. The options are
    those of the command line. Raises UserError before anything is written, or with the old `target` as it was.
    """
    pattern("--allow", allow)
    if format not in FORMATS:
        raise UserError(f"--format is '{format}'; it can be {', '.join(FORMATS)}")
    if not 0 <= max_position_embeddings <= _MOST_POSITIONS:
        raise UserError(f"--max_position_embeddings is {max_position_embeddings}; it can be 1 to {_MOST_POSITIONS}")
    if dtype not in DTYPES:
        raise UserError(f"--dtype is '{dtype}'; it can be {', '.join(DTYPES)}")
    if format in portable.FORMATS:
        others = {"architecture": architecture, "extend_vocab": extend_vocab, "allow": allow}
        others["max_position_embeddings"] = str(max_position_embeddings or "")
        if given := [name for name, value in others.items() if value]:
            raise UserError(f"--{given[0]} is not for --format={format}: convert to bert_jax first, then export that")
        options = {"format": format, "dtype": dtype, "opset": opset, "check": check}
        return _program(source, Path(target), task, overwrite, options)
    for name, value in (("opset", opset), ("check", check)):
        if value:
            raise UserError(f"--{name} is for --format={', '.join(portable.FORMATS)}; leave it out for {format}")
    if format == "huggingface" and dtype == "int8":
        raise UserError("--dtype=int8: Transformers does not read int8 with our scales; choose float16 or bfloat16")
    words = read_words(Path(extend_vocab)) if extend_vocab else []
    check_target(Path(target), source, overwrite)
    opened = open_source(source, architecture="" if format == "huggingface" else architecture, task=task, allow=allow)
    model, run = opened.model, opened.run
    note = ""
    if format == "huggingface":
        model.parameters, model.config, note = fill_heads(model.parameters, model.config)
    lines = [f"read {source}: {model.report}", *_resize(model, words, max_position_embeddings), *[note] * bool(note)]
    run["config"]["model"] |= _shape(model)
    count = len(model.parameters)
    model.parameters = stored(model.parameters, dtype)
    with replacing(Path(target)) as folder:
        if format == "huggingface":
            architecture = architecture or huggingface.default_architecture(model)
            card = model_card(run, opened.metrics, architecture, sum(x.size for x in model.parameters.values()))
            report = huggingface.write(folder, model, architecture=architecture, card=card, allow=allow)
            lines.append(f"wrote {target}: {report}")
        else:
            lines.append(f"wrote {target}: {count} parameters in {dtype}, task {model.task}")
            write_checkpoint(folder, model.parameters, run, model.tokenizer)
    return "\n".join(lines)


def open_source(source: str, *, architecture: str = "", task: str = "", allow: str = "") -> Source:
    """Opens whatever `source` is: 1. our checkpoint or workdir, 2. a Hugging Face folder, 3. a TensorFlow checkpoint,
    4. a name of the Hub. Raises UserError if it is none of these."""
    path = Path(source)
    is_ours, is_folder = has_checkpoint(source), path.is_dir()
    is_theirs = is_folder and any((path / name).is_file() for name in ("config.json", "modules.json"))
    is_google = not is_theirs and google_tf.is_checkpoint(path)
    if architecture and (is_ours or is_google):
        raise UserError(f"--architecture={architecture}: this source says itself what it is; leave the flag out")
    if is_ours:
        return _open_ours(source, task)
    if task:
        raise UserError(f"--task={task}: {source} was not trained by bert_jax for several tasks; leave the flag out")
    if is_google:
        return _foreign(google_tf.read(path, allow=allow), path.resolve().name)
    if is_theirs:  # without where the folder lies, which is private
        return _foreign(huggingface.read(path, architecture=architecture, allow=allow), path.resolve().name)
    if is_folder:
        raise UserError(
            f"{source} is not a checkpoint: it has neither config.json (Hugging Face) nor *.index (TensorFlow) "
            "nor checkpoints of bert_jax"
        )
    if path.exists():
        raise UserError(f"{source} is a file; give the folder that it lies in (of TensorFlow also folder/model.ckpt-N)")
    if not hub.is_name(source):
        raise UserError(f"{source} does not exist")
    return _foreign(huggingface.read(hub.fetch(source), architecture=architecture, allow=allow), source)


def _open_ours(source: str, task: str) -> Source:
    opened = open_model(source, task_name=task)
    _check_single(opened)
    parameters = {name: np.asarray(value) for name, value in opened.parameters.items()}  # on a CPU the same memory
    report, saved = Report(loaded={name: name for name in parameters}), opened.run
    model = Loaded(opened.bert_config, parameters, opened.tokenizer, opened.config.task, saved["task"], report)
    run = {name: value for name, value in saved.items() if name not in ("checksums", "data", "history")}
    run["config"] = without_private_paths(run["config"])
    workdir = opened.path.parent.parent if opened.path.parent.name == "checkpoints" else opened.path
    return Source(model, run, workdir / "metrics.jsonl")


def _program(source: str, target: Path, task: str, overwrite: bool, options: dict[str, Any]) -> str:
    portable.check_options(**options)
    check_target(target, source, overwrite)
    opened = open_model(source, task_name=task)
    _check_single(opened)
    run = opened.run | {"config": without_private_paths(opened.run["config"])}
    with replacing(target) as folder:
        return f"wrote {target}: " + portable.write(folder, opened, partial(program_card, run), **options)


def _check_single(opened: Opened) -> None:
    if names := ", ".join(opened.config.tasks):
        raise UserError(f"{opened.path} holds the tasks {names}: choose the one to write by --task=NAME")


def _foreign(model: Loaded, name: str) -> Source:
    """Returns the model with the config that a run of ours would have that ended with it."""
    if model.task in ("tagging", "span_qa", encoder_decoder.TASK) and "pooler/kernel" not in model.parameters:
        model.report.notes.append("a pooler was added, as initialised: this head does not use it")
        size = model.config.hidden_size
        pooler = Linear(size, size, stddev=model.config.kernel_stddev(size), rngs=nnx.Rngs(params=0))
        model.parameters |= {f"pooler/{name}": np.asarray(value) for name, value in flatten(pooler).items()}
    config = default_config()
    config.task = model.task
    # A head that was trained elsewhere predicts on texts of any length that it can take.
    longest = config.data.sequence_length if model.task == "pretraining" else 512
    config.data.sequence_length = min(longest, model.config.max_position_embeddings)
    if kind := model.description.get("label_kind"):
        config.data.label_kind = kind
    if model.task == encoder_decoder.TASK:
        config.seq2seq.model = "encoder_decoder"
        config.data.target_length = min(config.data.target_length, model.config.max_position_embeddings)
    config = config.to_dict()
    config["model"] |= _shape(model)
    return Source(model, {"step": 0, "config": config, "task": model.description, "converted_from": name}, None)


def without_private_paths(config: Json) -> Json:
    """Returns a config in which files and folders have their names only, without where they lie, also those of single
    tasks and corpora. Names of TFDS and of the Hub stay as they are."""

    def shortened(key: str, value: object) -> object:
        if isinstance(value, dict):
            return without_private_paths(value)
        if not isinstance(value, str):
            return value
        if key in _MODELS:
            return value if hub.is_name(value) else Path(value).name
        return ",".join(map(_names_only, value.split(","))) if key in _FILES else value

    return {key: shortened(key, value) for key, value in config.items()}


def _names_only(text: str) -> str:
    """Returns LANGUAGE=FILE or FILE+FILE without folders."""
    language, equals, files = text.strip().rpartition("=")
    if "/" in language:  # a folder with "=" in its name
        language, equals, files = "", "", text
    names = files if files.startswith("tfds:") else "+".join(Path(file).name for file in files.split("+"))
    return language + equals + names


def _shape(model: Loaded) -> Json:
    return asdict(model.config) | {"size": None}


def _resize(model: Loaded, words: list[str], positions: int) -> list[str]:
    lines = []
    if words:
        model.tokenizer, model.parameters, lines = extend_vocabulary(model.tokenizer, model.parameters, words)
        model.config = replace(model.config, vocab_size=model.tokenizer.vocab_size)
    if positions:
        model.parameters, note = extend_positions(model.parameters, positions)
        model.config = replace(model.config, max_position_embeddings=positions)
        lines.append(note)
    return lines


def check_target(target: Path, source: str, overwrite: bool) -> None:
    """Raises UserError for a target that may not be replaced: what another program wrote, or training."""
    origin, is_folder = Path(source).resolve(), target.is_dir() and not target.is_symlink()
    if not target.exists():
        return
    if origin.exists() and target.resolve() in (origin, *origin.parents):
        raise UserError(f"--to={target} holds --from={source}; choose another folder")
    names = {path.name for path in target.iterdir()} if is_folder else set()
    if is_folder and not names:
        return
    if not overwrite:
        raise UserError(f"--to={target} exists; choose another folder, or replace it with --overwrite")
    if not is_folder:
        raise UserError(f"--to={target} is not a folder, and nothing else is replaced; remove it by hand")
    written = WRITTEN if "run" in names else portable.WRITTEN | huggingface.WRITTEN
    if not names & {"run", "model.safetensors", portable.FACTS} or not names <= written:
        others = ", ".join(sorted(names - written)[:3]) or "no checkpoint"
        raise UserError(
            f"--to={target} holds what a conversion does not write ({others}); move it away, or choose another folder"
        )


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a folder to write into that becomes `target`, at once and only if all went well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            yield new
            if (target / CARD).is_file():  # it is meant to be completed by hand
                text = {"encoding": "utf-8", "errors": "surrogateescape"}
                own = (new / CARD).read_text(**text) if (new / CARD).is_file() else ""
                if (card := kept((target / CARD).read_text(**text), own)) is None:
                    raise UserError(
                        f"--to={target} has the model card ({CARD}) of another format; remove that, or choose another "
                        "folder"
                    )
                (new / CARD).write_text(card, **text)
            if target.exists():
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
