"""From `--config=FILE[:argument]` and `--config.NAME=VALUE` to a checked config.

FILE can be the name of an experiment that comes with the package: `base` is `experiments/base.py`.
"""

import difflib
import inspect
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from bert_jax.config import UserError, check_options
from bert_jax.entries import set_option
from bert_jax.option import Option, Value
from bert_jax.options import NAMED, find_option, nearest

_MAX_BYTES = 1 << 20  # an experiment is a page of Python; anything longer is another kind of file
_MAX_CAUSE = 300  # characters
_EXAMPLES = {"config": "experiments/base.py", "study": "experiments/studies/objectives.py"}
_EXAMPLES |= {"entry": "experiments/speedrun/small_en.py"}

# Beside the package, in a checkout and where a wheel is installed.
_INSTALLED = Path(__file__).resolve().parents[1] / "experiments"

Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


def split_argument(text: str) -> tuple[Path, str | None]:
    """Returns file and argument of FILE[:argument].

    The file is 1. FILE as it is, 2. the experiment of that name in the folder `experiments` here, 3. in the package's.
    """
    file, colon, argument = text.rpartition(":")
    return (_found(text), None) if not colon or os.path.exists(text) else (_found(file), argument)


def experiment_names() -> list[str]:
    """Returns the names by which `--config` finds the experiments that come with the package."""
    return sorted(path.stem for path in _INSTALLED.glob("*.py") if "def get_config" in path.read_text("utf-8"))


def load_experiment(text: str) -> ConfigDict:
    """Returns what `get_config` of FILE[:argument] returns, checked and locked.

    Raises UserError, which begins with FILE or FILE:LINE, for whatever goes wrong in the file. Its module is not kept.
    """

    def check(config: ConfigDict) -> ConfigDict:
        check_options(config)
        return config.lock()

    return load_from_file(text, "config", ConfigDict, check)


def load_from_file(text: str, name: str, kind: type[Loaded], check: Callable[[Loaded], Result]) -> Result:
    """Returns what `check` makes of the object of this kind that `get_<name>` of FILE[:argument] returns.

    Raises UserError, which begins with FILE or FILE:LINE, for whatever goes wrong in the file or the check.
    """
    path, argument = split_argument(text)
    source = _read(path, name)
    module = ModuleType(f"experiment_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look up the module of their class
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
        loaded = _call(module, f"get_{name}", argument)
        if type(loaded) is not kind:
            if inspect.iscoroutine(loaded):
                loaded.close()  # else Python warns, later, that nobody awaited it
            raise UserError(f"get_{name}() returns {type(loaded).__name__}; it must return a {kind.__name__}")
        return check(loaded)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the code is the user's: it may raise anything, SystemExit too
        raise UserError(f"{_place(error, path)}: {_cause(error, name)}") from error
    finally:
        sys.modules.pop(module.__name__, None)


def override(config: ConfigDict, words: list[str]) -> dict[str, Value]:
    """Sets what `--config.NAME=VALUE` asks for, and returns {NAME: value}. `--config.NAME VALUE` is accepted too.

    Raises UserError for an unknown name, naming the nearest, and for a value that the option does not accept.
    """
    given, words = {}, list(words)
    while words:
        name, equals, text = words.pop(0).removeprefix("--config.").partition("=")
        option = _find(config, name)
        if not equals and words and not words[0].startswith("--"):
            text = words.pop(0)
        elif not equals and option.type is bool:
            text = "True"
        elif not equals:
            raise UserError(f"--config.{name} has no value; write --config.{name}=VALUE")
        try:
            given[name] = option.parse(text)
        except ValueError as error:
            raise UserError(f"--config.{error}") from None
        set_option(config, name, given[name])
    check_options(config)
    return given


def set_options(config: ConfigDict, overrides: Mapping[str, Value]) -> None:
    """Sets options by name, e.g. {"data.pairing": "none"}. Raises UserError for an unknown name, naming the nearest,
    and for a value that the option does not accept."""
    for name, value in overrides.items():
        if problem := _find(config, name, "").problem(value):
            raise UserError(problem)
        set_option(config, name, value)
    check_options(config)


def _found(text: str) -> Path:
    path = Path(text)
    if os.path.isfile(path):
        return path
    name = path if path.suffix else path.with_name(f"{path.name}.py") if path.name else path
    inside = Path(*name.parts[1:]) if name.parts[:1] == ("experiments",) else name
    places = (Path("experiments") / inside, _INSTALLED / inside)
    return next((place for place in places if not path.is_absolute() and os.path.isfile(place)), path)


def _read(path: Path, name: str) -> bytes:
    example = _EXAMPLES[name]
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"--{name}={path} is a folder; give a file in it, e.g. {example}")
        if not stat.S_ISREG(status.st_mode):  # reading from a pipe would wait for its writer
            raise UserError(f"--{name}={path} is not a regular file; give a Python file, e.g. {example}")
        if status.st_size > _MAX_BYTES:
            raise UserError(f"--{name}={path} has {status.st_size} bytes; an experiment is a short Python file")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{name} file {path} does not exist{_similar(path, Path(example))}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--{name}={path} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _similar(path: Path, example: Path) -> str:
    installed = (_INSTALLED / example.relative_to("experiments").parent, _INSTALLED / path.parent)
    folders = dict.fromkeys((path.parent, example.parent, *installed))
    stems: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.py")):
            stems.setdefault(file.stem, _name(file))
    stems.pop("__init__", None)
    close = difflib.get_close_matches(path.name.partition(".")[0], stems, 1)
    return f"; did you mean {stems[close[0]]}?" if close else f"; give one such as {example}"


def _name(file: Path) -> Path:
    return file.relative_to(_INSTALLED).with_suffix("") if file.is_relative_to(_INSTALLED) else file


def _call(module: ModuleType, name: str, argument: str | None) -> object:
    function = getattr(module, name, None)
    if not callable(function):
        example = _EXAMPLES[name.removeprefix("get_")]
        raise UserError(f"it defines no function {name}(); {example} is an example")
    arguments = () if argument is None else (argument,)
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        if arguments:
            raise UserError(f"its {name}() takes no argument; leave ':{argument}' out") from error
        raise UserError(f"{name}() cannot be called without arguments ({error})") from error
    return function(*arguments)


def _place(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}"
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _cause(error: BaseException, name: str) -> str:
    while error.args and isinstance(error.args[0], BaseException):  # ml_collections wraps one in another
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if unknown := re.match(r'Key "(.+?)" does not exist and cannot be added', text):
        return f"{unknown[1]} is not an option; the nearest is {nearest(unknown[1])}"
    if isinstance(error, SyntaxError):
        return f"{error.msg}; it must be a Python file with a function get_{name}()"
    if isinstance(error, SystemExit):
        return "the file ends the program (SystemExit)"
    text = " ".join(text.split())
    return f"{type(error).__name__}: {text[:_MAX_CAUSE]}" if text else type(error).__name__


def _find(config: ConfigDict, name: str, prefix: str = "--config.") -> Option:
    if option := find_option(name):
        return option
    value: Any = config
    for key in name.split("."):
        if not isinstance(value, ConfigDict) or key not in value:
            raise UserError(f"{prefix}{name} is not an option; the nearest is {prefix}{nearest(name)}")
        value = value[key]
    if isinstance(value, ConfigDict):
        one = ".NAME.KEY" if name in NAMED else ".KEY"
        raise UserError(f"{prefix}{name} is a group of options; set one of them, as {prefix}{name}{one}=VALUE")
    # A task of the user's own may have options that are declared nowhere: they keep their type.
    return Option(name, str if value is None else type(value), value, "")
