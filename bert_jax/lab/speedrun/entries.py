"""Classes and entries of the speedrun. An entry is a file that says what it changes and has the config of its runs:

    def get_entry(folder: str = "corpus") -> Entry:
        return Entry("cpu2-30min", "four layers in place of two")

    def get_config(folder: str = "corpus") -> ConfigDict: ...

docs/speedrun.md has the rules; `load_entry` checks those that follow from the config.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config import Json, UserError, flatten, resolve_steps
from bert_jax.experiment import load_experiment, load_from_file, split_argument
from bert_jax.models.config import bert_config
from bert_jax.options import OPTIONS, RESTART, SHAPE, default_config

SCORE, SECONDS, MLM_LOSS = "nats_per_character", "training_seconds", "mlm_loss"


@dataclass(frozen=True)
class Track:
    """A class of entries: the machine, what bounds a run, and what is compared (lower is better)."""

    title: str
    platform: str
    units: int  # cores of a CPU, or devices
    compared: str  # SCORE or SECONDS
    most_seconds: float | None = None  # of training
    target: float | None = None  # MLM_LOSS that every run has to reach


TRACKS = {
    "cpu2-target": Track("Two CPU cores to an MLM loss of 4.24", "cpu", 2, SECONDS, target=4.24),
    "cpu2-30min": Track("Two CPU cores, 30 minutes", "cpu", 2, SCORE, most_seconds=1800),
    "gpu-30min": Track("One GPU, 30 minutes", "gpu", 1, SCORE, most_seconds=1800),
    "gpu-24h": Track("One GPU, 24 hours", "gpu", 1, SCORE, most_seconds=86_400),
}

# What an entry must leave as it is: held-out documents stay held out, and a run begins with nothing.
_FIXED = ("task", "init_from", "data.seed", "data.validation_share", "data.test_share", "data.vocab_file")
_FIXED += ("train.patience", "distillation.teacher")
# What decides which pieces the MLM loss of an evaluation is about, beside the vocabulary.
_OF_MLM_LOSS = {"data.vocab_size": 8_000, "eval.max_examples": 4_000, "data.sequence_length": 128}
_SAME = "data.tokenizer data.lowercase data.strip_accents data.split_cjk data.vocab_sample_megabytes data.mask_rate"
_SAME += " data.mask_unit data.masking data.packing data.clean data.deduplicate eval.seed"
_OF_MLM_LOSS |= {name: OPTIONS[name].default for name in _SAME.split()}
_ELSEWHERE = {*RESTART, "seed", "data.files"}  # may differ between machines, or between the runs of an entry
_NAME = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True)
class Entry:
    """What `get_entry` returns: the class, and in a few words what differs from the record before it."""

    track: str
    changed: str


@dataclass(frozen=True)
class LoadedEntry:
    """An entry with its config. `file` is FILE[:FOLDER] as the user named it."""

    name: str
    file: str
    entry: Entry
    config: ConfigDict

    @property
    def track(self) -> Track:
        return TRACKS[self.entry.track]

    @property
    def config_hash(self) -> str:
        return config_hash(self.config)


def load_entry(text: str) -> LoadedEntry:
    """Returns the entry of FILE[:FOLDER]. Raises UserError, which begins with the file, for one against the rules."""
    path = split_argument(text)[0]
    entry = load_from_file(text, "entry", Entry, _checked)
    config = load_experiment(text)
    if not _NAME.fullmatch(path.stem):
        raise UserError(f"{path}: an entry's name is up to 64 of a-z, 0-9 and _; rename the file")
    if problem := _problem(config, TRACKS[entry.track]):
        raise UserError(f"{path}: {problem}")
    return LoadedEntry(path.stem, text, entry, config)


def config_hash(config: ConfigDict) -> str:
    """Returns a hash of the options that differ from their defaults, but for seed, paths and what changes no result.
    An option that is added later leaves it as it is."""
    defaults, own = (_resolved(one) for one in (default_config(), config))
    changed = {name: value for name, value in own.items() if name not in _ELSEWHERE and value != defaults.get(name)}
    return hashlib.blake2b(json.dumps(changed, sort_keys=True).encode(), digest_size=16).hexdigest()


def has_comparable_mlm_loss(config: ConfigDict) -> bool:
    """Returns whether the MLM loss of an evaluation is about the same pieces as that of small_en."""
    return not _differing(config, _OF_MLM_LOSS)


def _resolved(config: ConfigDict) -> Json:
    """Returns the options with what a run fills in, as in its `config.json`: the model's shape, steps of warm-up."""
    config = config.copy_and_resolve_references()
    resolve_steps(config, 1)  # the steps per epoch matter to no option of an entry: it fixes its steps
    shape = bert_config(config.model, config.model.vocab_size or 1)
    return flatten(config.to_dict()) | {f"model.{name}": getattr(shape, name) for name in SHAPE}


def _checked(entry: Entry) -> Entry:
    if entry.track not in TRACKS:
        raise UserError(f"the class {entry.track!r} is unknown; choose {', '.join(TRACKS)}")
    if not entry.changed.strip():
        raise UserError("the entry does not say what it changes; name it in a few words")
    return entry


def _problem(config: ConfigDict, track: Track) -> str:
    """Returns what is against the rules, or ""."""
    if differing := _differing(config, {name: OPTIONS[name].default for name in _FIXED}):
        name, wanted, value = differing[0]
        return f"{name} is {value!r}; the rules of the speedrun fix it at {wanted!r}"
    if config.corpora:
        return f"corpora has {', '.join(config.corpora)}; the rules fix the corpus, which data.files names"
    if config.model.causal:
        return "model.causal is True; the score is of masked models"
    if config.train.epochs is not None:
        return f"train.epochs is {config.train.epochs}; an entry fixes its steps: set train.steps"
    if track.target is not None and (differing := _differing(config, _OF_MLM_LOSS)):
        name, wanted, value = differing[0]
        return f"{name} is {value!r}; this class compares the MLM loss, which needs {wanted!r} as in small_en"
    return ""


def _differing(config: ConfigDict, wanted: Mapping[str, object]) -> list[tuple[str, Any, Any]]:
    own = flatten(config.to_dict())
    return [(name, value, own.get(name)) for name, value in wanted.items() if own.get(name) != value]
