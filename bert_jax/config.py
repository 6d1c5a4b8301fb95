"""From a config file and flags to a config that can be trusted: validation, comparison, JSON and back.

`UserError` is how every room says that something is wrong which the user can mend; `main.py` turns it into
one line and exit status 2.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


class UserError(Exception):
    """Something a user can mend: what is wrong, where, and what to do, in one line."""


# What may differ between two starts of one run: nothing here changes a bit of what is learned.
FREE_TO_CHANGE = (
    "data.prepared",
    "data.workers",
    "data.read_workers",
    "data.prefetch",
    "data.test",
    "train.log_every",
    "train.peak_tflops",
    "eval.every",
    "eval.at_start",
    "eval.batch_size",
    "eval.max_examples",
    "checkpoint.every",
    "checkpoint.keep",
)

CHOICES = {
    "data.tokenizer": ("wordpiece", "unigram", "bpe"),
    "data.pairing": ("nsp", "sop", "none"),
    "data.masking": ("dynamic", "static"),
    "data.mask_unit": ("token", "word", "span"),
    "data.label_kind": ("single", "multi", "regression"),
    "data.long_texts": ("head", "tail", "head+tail", "windows", "error"),
    "data.window_pooling": ("mean", "max", "attention"),
    "train.class_weights": ("none", "balanced"),
    "optimizer.name": ("adamw", "lamb"),
    "optimizer.schedule": ("bert", "hf", "electra", "cosine", "constant"),
    "checkpoint.best_mode": ("min", "max"),
}

AT_LEAST = {
    "data.vocab_size": 100,
    "data.vocab_sample_megabytes": 1,
    "data.sequence_length": 8,
    "data.max_predictions_per_sequence": 1,
    "data.dupe_factor": 1,
    "data.workers": 1,
    "data.read_workers": 0,
    "data.prefetch": 1,
    "data.window_stride": 1,
    "data.max_windows": 1,
    "data.max_query_length": 1,
    "data.buckets": 1,
    "optimizer.learning_rate": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.decay_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0,
    "seeds": 1,
    "train.steps": 1,
    "train.batch_size": 1,
    "train.accumulation": 1,
    "train.log_every": 1,
    "train.patience": 0,
    "train.reinitialise_layers": 0,
    "train.peak_tflops": 0,
    "eval.every": 1,
    "eval.batch_size": 1,
    "eval.max_examples": 0,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
}

SHARES = (
    "data.random_next_rate",
    "data.short_sequence_rate",
    "data.mask_rate",
    "data.mask_share",
    "data.random_share",
    "data.keep_share",
    "data.validation_share",
    "data.test_share",
    "optimizer.layer_decay",
    "train.label_smoothing",
)


def validate(config: ConfigDict, num_devices: int) -> None:
    """Raises UserError for any value that could only fail later, with the numbers in the message."""
    for key, allowed in CHOICES.items():
        if _value(config, key) not in allowed:
            raise UserError(f"{key} is '{_value(config, key)}'; it can be {', '.join(allowed)}")
    for key, least in AT_LEAST.items():
        if _value(config, key) is not None and not _value(config, key) >= least:
            raise UserError(f"{key} is {_value(config, key)}; it must be at least {least}")
    for key in SHARES:
        if not 0 <= _value(config, key) <= 1:
            raise UserError(f"{key} is {_value(config, key)}; a share is between 0 and 1")
    data, train = config.data, config.train
    shares = data.mask_share + data.random_share + data.keep_share
    if abs(shares - 1) > 1e-6:
        raise UserError(f"data.mask_share + data.random_share + data.keep_share is {shares:g}; it must be 1")
    if data.validation_share + data.test_share >= 1:
        raise UserError("data.validation_share + data.test_share leaves no documents to train on")
    if data.masking == "static" and (data.pairing != "nsp" or data.mask_unit == "span"):
        raise UserError("data.masking=static is the original script: data.pairing=nsp, data.mask_unit=token or word")
    if data.masking == "static" and data.packing:
        raise UserError("data.packing packs pairs made while training: it needs data.masking=dynamic")
    _validate_batches(config, num_devices)
    if train.epochs is not None and not train.epochs > 0:
        raise UserError(f"train.epochs is {train.epochs}; it must be over 0 (or None, for train.steps to count)")
    if config.optimizer.warmup_share is not None:
        if not 0 <= config.optimizer.warmup_share < 1:
            raise UserError(f"optimizer.warmup_share is {config.optimizer.warmup_share}; it must be in [0, 1)")
        return
    steps = config.optimizer.decay_steps or train.steps
    if config.optimizer.warmup_steps >= steps and config.optimizer.schedule != "constant":
        raise UserError(f"optimizer.warmup_steps {config.optimizer.warmup_steps} leaves nothing of the {steps} steps")


def resolve_steps(config: ConfigDict, steps_per_epoch: int) -> None:
    """Turns what counts in epochs or shares into steps: train, eval, checkpoint, warm-up."""
    train, optimizer = config.train, config.optimizer
    if train.epochs is not None:
        train.steps = max(1, round(train.epochs * steps_per_epoch))
    if config.eval.every is None:
        config.eval.every = steps_per_epoch
    if config.checkpoint.every is None:
        config.checkpoint.every = config.eval.every
    if optimizer.warmup_share is not None:
        optimizer.warmup_steps = int(optimizer.warmup_share * (optimizer.decay_steps or train.steps))


def _validate_batches(config, num_devices):
    wanted = config.mesh.data
    if wanted != -1 and not 1 <= wanted <= num_devices:
        raise UserError(f"mesh.data is {wanted}; this machine has {num_devices} devices (-1 takes all)")
    devices = num_devices if wanted == -1 else wanted
    for name, size, parts in (
        ("train.batch_size", config.train.batch_size, config.train.accumulation),
        ("eval.batch_size", config.eval.batch_size, 1),
    ):
        if size % (devices * parts):
            micro_batches = f" × {parts} micro-batches (train.accumulation)" if parts > 1 else ""
            raise UserError(f"{name} {size} is not a multiple of {devices} devices{micro_batches}")


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2)


def from_json_dict(saved: dict) -> ConfigDict:
    """The config that a checkpoint or `config.json` holds."""
    return ConfigDict(saved)


def read_config(path: Path) -> ConfigDict:
    """A workdir's `config.json`."""
    try:
        return ConfigDict(json.loads(path.read_text()))
    except ValueError:
        raise UserError(f"{path} is not JSON; restore it, or choose another --workdir") from None


def write_or_compare(config: ConfigDict, path: Path) -> None:
    """Writes `config.json` of a fresh workdir; of a used one, raises UserError naming every key that differs.

    More steps are allowed where that leaves the steps already taken as they were (`optimizer.decay_steps` given).
    """
    if path.exists():
        saved = read_config(path).to_dict()
        free = (*FREE_TO_CHANGE, "train.steps") if config.optimizer.decay_steps else FREE_TO_CHANGE
        differing = [
            f"{key} was {old!r}, is {new!r}"
            for key, old, new in differences(saved, config.to_dict())
            if key not in free
        ]
        if differing:
            raise UserError(
                f"{path.parent} holds a run with another config ({'; '.join(differing)}); choose another --workdir"
            )
    path.write_text(to_json(config))


def differences(old: dict, new: dict) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) for every dotted key in which two nested dicts differ."""
    before, after = _flatten(old), _flatten(new)
    absent = "(absent)"
    pairs = ((key, before.get(key, absent), after.get(key, absent)) for key in sorted({*before, *after}))
    return [(key, one, other) for key, one, other in pairs if one != other]


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _value(config: ConfigDict, dotted: str) -> Any:
    for key in dotted.split("."):
        config = config[key]
    return config
