"""The config of a run: checks of its values, comparison with an earlier one, JSON and back.

`UserError` is how every room reports what a user can correct; a command prints it as one line and ends with status 2.
The options themselves are declared in `options.py`.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from bert_jax.files import write_atomically
from bert_jax.option import Option, can_be
from bert_jax.options import NAMED, OPTIONS, default_config, default_entry, find_option, is_entry_name, nearest

Json = dict[str, Any]  # an object of JSON: a line of metrics, a prediction, what a file says of a run
Input = TypeVar("Input")
Result = TypeVar("Result")


class UserError(Exception):
    """A mistake that a user can correct: what is wrong, where, and what to do, in one line."""


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts before every UserError what it is about, e.g. "tasks.sst2", whose options it then names."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {str(error).replace('--config.data.', f'--config.{what}.data.')}") from error


def result_or_error(function: Callable[[Input], Result], inputs: Iterable[Input]) -> Iterator[Result | UserError]:
    """Yields for each input what `function` returns for it, or the UserError that it raises."""
    for one in inputs:
        try:
            yield function(one)
        except UserError as error:
            yield error


def check_option(name: str, value: Any) -> None:
    """Raises UserError unless the option `name` accepts the value."""
    option = find_option(name)
    assert option is not None, name
    if problem := option.problem(value):
        raise UserError(problem)
    if "pattern" in option.marks:
        pattern(name, value)


def check_options(config: ConfigDict) -> None:
    """Raises UserError for a key that is not declared, for one that is missing, and for a value that is not accepted.

    A task of the user's own (`module.Class`) may have keys of its own.
    """
    given = flatten(config.to_dict())
    named = {f"{group}.{name}": group for group in NAMED for name in config.get(group, {})}
    own = [f"{entry}.{key}" for entry, group in named.items() for key in NAMED[group]]
    for name in (*OPTIONS, *own):
        if name not in given:
            begin = "bert_jax.entries.add_entry" if name in own else "bert_jax.options.default_config()"
            raise UserError(f"{name} is missing; begin with {begin}, which has every option")
    for name, value in given.items():
        if find_option(name):
            check_option(name, value)
        elif "." not in given.get(".".join([*name.split(".")[:2], "task"]), given["task"]):
            raise UserError(f"{name} is not an option; the nearest is {nearest(name)}")


def pattern(name: str, text: str) -> re.Pattern[str]:
    """Returns the compiled regular expression, whose `search` says whether it matches. Raises UserError naming it.

    This is the one rule for patterns: they match anywhere in a name; `^` and `$` anchor them.
    """
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{name} is {text!r}, which is not a regular expression: {error}") from None


def choose(argument: str | None, choices: Iterable[str], experiment: str) -> str:
    """Returns the text behind the colon of `--config=FILE:argument`, or the first choice if there is none.

    Raises UserError naming the choices for any other text.
    """
    names = list(choices)
    if not argument:
        return names[0]
    if argument not in names:
        raise UserError(f"{experiment}.py:{argument} is not known; {can_be(argument, names)}")
    return argument


def validate(config: ConfigDict, num_devices: int) -> None:
    """Raises UserError for any value that could only fail later, with the numbers in the message."""
    check_options(config)
    data, optimizer = config.data, config.optimizer
    shares = data.mask_share + data.random_share + data.keep_share
    if abs(shares - 1) > 1e-6:
        raise UserError(f"data.mask_share + data.random_share + data.keep_share is {shares:g}; it must be 1")
    if data.validation_share + data.test_share >= 1:
        raise UserError("data.validation_share + data.test_share leaves no documents to train on")
    if data.masking == "static" and (data.pairing != "nsp" or data.mask_unit == "span"):
        raise UserError("data.masking=static is the original script: data.pairing=nsp, data.mask_unit=token or word")
    if data.masking == "static" and data.packing:
        raise UserError("data.packing packs pairs made while training: it needs data.masking=dynamic")
    if not data.isolated and not data.packing:
        raise UserError("data.isolated=False is for sequences that share rows: it needs data.packing=True")
    for key in ("muon_learning_rate", "head_learning_rate"):
        is_used = optimizer[key] and (key == "head_learning_rate" or optimizer.name == "muon")
        if is_used and not optimizer.learning_rate:
            raise UserError(
                f"optimizer.learning_rate is 0, of which optimizer.{key} is a multiple: set it above 0, and freeze "
                "what must not change by optimizer.freeze"
            )
    if config.train.take_layers and not config.init_from:
        raise UserError("train.take_layers is for a warm start: name the model by init_from, or leave it out")
    distillation = config.distillation
    for part in ("relations", "hidden"):
        if distillation[part] and not distillation.teacher:
            raise UserError(
                f"distillation.{part} is {distillation[part]}: name the model to learn from by distillation.teacher"
            )
    _check_labels(data.labels)
    check_batch("train.batch_size", config.train.batch_size, num_devices, config)
    check_batch("eval.batch_size", config.eval.batch_size, num_devices, config)
    if optimizer.decay_steps or config.train.epochs is None:  # else the steps are known once the data has been read
        _check_warmup(config)


def _check_warmup(config: ConfigDict) -> None:
    optimizer = config.optimizer
    steps = optimizer.decay_steps or config.train.steps
    if optimizer.warmup_share is None and optimizer.warmup_steps >= steps and optimizer.schedule != "constant":
        raise UserError(
            f"optimizer.warmup_steps is {optimizer.warmup_steps}, which leaves nothing of the {steps} steps for the "
            "decay; lower it"
        )


def _check_labels(labels: str) -> None:
    names = [name.strip() for name in labels.split(",")] if labels else []
    for name in names:
        if not name:
            raise UserError(f"data.labels is {labels!r}; it contains an empty name between two commas")
        if names.count(name) > 1:
            raise UserError(f"data.labels contains {name!r} twice; each label needs a name of its own")


def resolve_steps(config: ConfigDict, steps_per_epoch: int) -> None:
    """Sets the steps of training, evaluation, checkpoints and warm-up that are given in epochs or as a share."""
    train, optimizer = config.train, config.optimizer
    if train.epochs is not None:
        steps = max(1, round(train.epochs * steps_per_epoch))
        if steps >= 1 << 31:
            raise UserError(
                f"train.epochs is {train.epochs}, which makes {steps} steps; at most {(1 << 31) - 1} can be"
            )
        train.steps = steps
        _check_warmup(config)
    if config.eval.every is None:
        config.eval.every = steps_per_epoch
    if config.checkpoint.every is None:
        config.checkpoint.every = config.eval.every
    if optimizer.warmup_share is not None:
        optimizer.warmup_steps = int(optimizer.warmup_share * (optimizer.decay_steps or train.steps))


# Sizes of the axes data, fsdp and tensor where the config leaves them open; -1 = the devices that are left.
PRESETS = {"data": (-1, 1, 1), "fsdp": (1, -1, 1), "fsdp_tensor": (1, -1, 2)}


def axis_sizes(mesh: ConfigDict, num_devices: int) -> tuple[int, int, int]:
    """Returns the sizes of the axes data, fsdp and tensor of a mesh of so many devices. Raises UserError if they do not
    fit."""
    given = {name: mesh[name] for name in ("data", "fsdp", "tensor")}
    sizes = dict(zip(given, PRESETS[mesh.preset], strict=True))
    if -1 in given.values():  # the config's -1 takes the place of the preset's
        sizes = {name: 1 if size == -1 else size for name, size in sizes.items()}
    sizes |= {name: size for name, size in given.items() if size is not None}
    shown = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(f"{shown}: only one axis can be -1, the devices that are left; give the others a number")
    product = math.prod(size for size in sizes.values() if size != -1)
    if 0 in sizes.values() or num_devices % product:
        raise UserError(f"{shown}: the axes must multiply to the {num_devices} devices or a divisor; -1 takes the rest")
    sizes |= {name: num_devices // product for name in open_axes}
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def row_parts(config: ConfigDict, num_devices: int) -> int:
    """Returns the number of parts into which the devices of a mesh split the rows of a batch."""
    data, fsdp, _ = axis_sizes(config.mesh, num_devices)
    return data * fsdp


def check_batch(name: str, size: int, num_devices: int, config: ConfigDict) -> None:
    """Raises UserError unless the devices, and in training the micro-batches, divide a batch of so many rows."""
    devices, parts = row_parts(config, num_devices), config.train.accumulation if name.startswith("train.") else 1
    if size % (devices * parts):
        micro_batches = f" × {parts} micro-batches (train.accumulation)" if parts > 1 else ""
        raise UserError(f"{name} {size} is not a multiple of {devices} devices{micro_batches}")


def from_json_dict(saved: object) -> ConfigDict:
    """Returns the config that a checkpoint or `config.json` holds, over today's defaults for keys added since.

    Raises UserError naming the key whose value has another type.
    """
    if not isinstance(saved, dict):
        raise UserError("the saved config is not a JSON object")
    for name, value in flatten(saved).items():
        option = find_option(name)
        if option and value is not None and not option.has_type(value):
            raise UserError(f"{name} is {value!r} in the saved config; it must be {option.allowed}")
    config = default_config()
    try:
        with config.unlocked():  # tasks of the user's own have keys of their own
            for group in NAMED:
                names = list(saved.get(group, {}))
                if wrong := [name for name in names if not is_entry_name(name)]:
                    raise UserError(f"{group} has an entry {wrong[0][:40]!r} in the saved config, which is no name")
                config[group].update({name: default_entry(group) for name in names})
            config.update(saved)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the saved config has another structure than today's: {error}") from None
    return config


def read_config(path: Path) -> ConfigDict:
    """Returns the config in a workdir's `config.json`, over today's defaults."""
    if not path.is_file():  # reading a FIFO or a device may never end
        raise UserError(f"{path} is not a regular file; restore it, or choose another --workdir")
    try:
        return from_json_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON; restore it, or choose another --workdir") from None
    except UserError as error:
        raise UserError(f"{path}: {error}; restore it, or choose another --workdir") from None


def write_or_compare(config: ConfigDict, path: Path) -> None:
    """Writes a workdir's `config.json`; if the workdir has checkpoints, raises UserError naming every key that differs.

    `train.steps` may grow if `optimizer.decay_steps` is given and `train.phases` is not: the steps already taken stay
    the same then.
    """
    kept = (path.parent / name for name in ("checkpoints", "damaged"))
    if path.exists() and any(child.name[0].isdigit() for folder in kept for child in folder.glob("*")):
        saved = read_config(path).to_dict()
        may_grow = config.optimizer.decay_steps and not config.train.phases
        differing = [
            f"{key} was {old!r}, is {new!r}"
            for key, old, new in differences(saved, config.to_dict())
            if not (key == "train.steps" and may_grow) and not _may_differ(find_option(key), old)
        ]
        if differing:
            raise UserError(
                f"{path.parent} holds a run with another config ({'; '.join(differing)}); restore these keys, or "
                f"choose another --workdir, where --config.init_from={path.parent} starts from its parameters"
            )
    try:
        write_atomically(path, config.to_json(indent=2))
    except OSError as problem:
        raise UserError(f"{path} cannot be written ({problem.strerror}); remove the cause and start again") from problem


def _may_differ(option: Option | None, old: object) -> bool:
    """Returns whether a continued run may have another value of an option than the `old` one."""
    # A shape is written in full: what is open was added since. `run.inherit` has filled it in and checked it.
    return option is not None and ("restart" in option.marks or (old is None and "shape" in option.marks))


def differences(old: dict, new: dict) -> list[tuple[str, object, object]]:
    """Returns (key, old value, new value) for every dotted key in which two nested dicts differ."""
    before, after = flatten(old), flatten(new)
    absent = "(absent)"
    pairs = ((key, before.get(key, absent), after.get(key, absent)) for key in sorted({*before, *after}))
    return [(key, one, other) for key, one, other in pairs if one != other]


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dict as one of dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
