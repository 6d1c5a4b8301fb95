"""What all commands of this package share: flags, help, exit statuses, and one line for an error.

Exit status: 0 done; 2 a mistake that the user can correct, in one line; 75 another process, a device or a disk no
longer answers, in one line (`training/processes.py`); 128 + n stopped by signal n; 1 a bug of this code, with its
traceback.
"""

import argparse
import contextlib
import difflib
import inspect
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bert_jax.config import UserError
from bert_jax.option import Option, Value
from bert_jax.terminal import bold, in_columns, wrapped

Flags = dict[str, Any]  # the value of every flag by its name

# Terminals obey control characters, escape sequences and marks of the writing direction; no terminal can show a
# surrogate, which stands for an undecodable byte.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# What begins the lines of a process other than the first of its run.
_PROCESS: list[str] = []

# SIGINTs received. An extension module that is interrupted while it is imported raises ImportError instead.
_INTERRUPTS: list[int] = []


class Parser(argparse.ArgumentParser):
    """Flags, of all modes or of some; a mistake is a UserError, and help names every default.

    `page` makes the help about a topic, "" for `--help` without one.
    """

    def __init__(self, module: str, description: str, page: "Callable[[Parser, str], str] | None" = None):
        super().__init__(
            usage=f"python -m {module} --NAME=VALUE …", description=description, allow_abbrev=False, add_help=False
        )
        self.modes: dict[str, tuple[str, ...]] = {}  # of the flags that belong to some modes only
        self.defaults: Flags = {}
        self._page = page
        self._rows = {"help": ("--help[=TOPIC]" if page else "--help", "show this and end")}

    def flag(
        self,
        name: str,
        default: Any,
        help: str,
        *modes: str,
        choices: Iterable[str] = (),
        least: int = 0,
        **more: Any,
    ) -> None:
        """Adds `--name`, which only `modes` accept (all, if none is given). Its type is the default's; `least` is the
        lowest whole number."""
        names = tuple(choices)
        if isinstance(default, bool):
            more |= {"nargs": "?", "const": True, "metavar": "BOOL"}
        elif isinstance(default, int):
            more |= {"metavar": "N"}
        elif names:
            more |= {"metavar": " | ".join(filter(None, names))}
        if names or isinstance(default, int):
            numbers = f"[{least}, 2^31)" if type(default) is int else ""
            more |= {"type": partial(_parsed, Option(f"--{name}", type(default), default, help, names, numbers))}
        more = {"metavar": name.upper()} | more
        # A flag that was not given has no value.
        action = self.add_argument(f"--{name}", default=argparse.SUPPRESS, **more)
        if names:
            suggest(action, names)
        shown = f" [{default}]" if default not in ("", None, []) else ""
        self._rows[name] = (f"--{name} {more['metavar']}", f"{help}{shown}")
        self.defaults[name] = default
        if modes:
            self.modes[name] = modes

    def flag_rows(self, mode: str | None = None) -> list[tuple[str, str]]:
        """Returns flags and what they mean: those of one mode, those of all modes (""), or those of some (None)."""
        if mode is None:
            its = {name: f" ({', '.join(modes)})" for name, modes in self.modes.items()}
            return [(self._rows[name][0], self._rows[name][1] + behind) for name, behind in its.items()]
        chosen = {name for name in self._rows if mode in self.modes.get(name, ("",))}
        return [row for name, row in self._rows.items() if name in chosen]

    def format_help(self) -> str:
        if self._page:
            return self._page(self, "") + "\n"
        lines = [f"{bold('usage:')} {self.usage}", "", wrapped(self.description or ""), "", bold("Flags"), ""]
        return "\n".join([*lines, in_columns(self.flag_rows("")), ""])

    def parse(self, argv: list[str]) -> tuple[Flags, list[str]]:
        """Returns the values of all flags, and the words that are no flag. Raises UserError for a flag that the mode
        does not have; exits with status 0 after `--help`."""
        complete(self)
        for word in argv:
            if any("\udc80" <= character <= "\udcff" for character in word):
                raise UserError(f"{word} contains bytes that are not UTF-8; rename the file, or write it in UTF-8")
            if word in ("-h", "--help") or word.startswith("--help="):
                self._help(argv, word.partition("=")[2])
        known, rest = self.parse_known_args(argv)
        given = vars(known)
        mode = given.get("mode", self.defaults.get("mode"))
        for name in given:
            if mode not in self.modes.get(name, (mode,)):
                raise UserError(f"--{name} belongs to --mode={' and '.join(self.modes[name])}, not to --mode={mode}")
        return self.defaults | given, rest

    def _help(self, argv: list[str], topic: str) -> NoReturn:
        """Prints the help and ends. The topic is by default the mode that the command names."""
        if topic and not self._page:
            raise UserError(f"--help={topic}: this command has one page of help, --help")
        topic = topic or next((word.partition("=")[2] for word in argv if word.startswith("--mode=")), "")
        say(self._page(self, topic) if self._page else self.format_help().rstrip("\n"), styled=True)
        sys.exit(0)

    def parse_with_names(self, argv: list[str]) -> tuple[Flags, list[str]]:
        """Returns the values of all flags, and the names that are given without one. Raises UserError as `parse`, and
        for a flag that there is not."""
        flags, words = self.parse(argv)
        for word in words:
            if word.startswith("-"):
                self.refuse(word)
        return flags, words

    def refuse(self, word: str) -> NoReturn:
        """Raises UserError for a word of the command line that is no flag, naming the flag most like it."""
        if not word.startswith("-"):
            raise UserError(f"'{word}' is not a flag; flags look like --name=value")
        name = word.partition("=")[0]
        near = difflib.get_close_matches(name.lstrip("-"), self.defaults, 1)
        raise UserError(f"{name} is not a flag; " + (f"did you mean --{near[0]}?" if near else "--help lists them"))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; --help lists the flags")


def suggest(action: argparse.Action, words: Iterable[str]) -> None:
    """Lets a shell complete the value of a flag to one of these words."""
    action.completer = lambda **_: [*filter(None, words)]  # pyright: ignore[reportAttributeAccessIssue] # argcomplete's


def complete(parser: argparse.ArgumentParser) -> None:
    """Prints completions and ends, if a shell asks for them in the way of argcomplete: docs/command.md."""
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete  # pyright: ignore[reportMissingImports] # of the user's shell

            argcomplete.autocomplete(parser, always_complete_options="long")
        sys.exit(1)


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Calls `main` with the words of the command line and exits with its status, or that of its exception. Logs go to
    standard error."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    log_to_stderr()
    _hide_late_callbacks()
    signal.signal(signal.SIGINT, _interrupt)
    status = exit_status(main, sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _leave_to_nobody(1)
    except OSError as problem:
        _leave_to_nobody(1)
        status = complain(f"standard output cannot be written ({problem.strerror})")
    try:
        sys.stderr.flush()
    except OSError:
        _leave_to_nobody(2)
    sys.exit(status)


def exit_status(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Returns the status that `main` returns or that follows from its exception, which is printed."""
    try:
        return main(argv)
    except UserError as error:
        return _interrupted() if _INTERRUPTS else _explain(error, argv, error)
    except BrokenPipeError:  # whoever reads standard output has seen enough, as in `… | head`
        return _leave_to_nobody(1)
    except KeyboardInterrupt:
        return _interrupted()
    except MemoryError as error:
        return _explain(error, argv, "there is not enough memory; lower the sizes, or free some")
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        return _explain(error, argv, f"{name}{error.strerror or error or type(error).__name__}")
    except Exception as error:
        if _INTERRUPTS:
            return _interrupted()
        if _is_of_devices(error):
            asked, reason = os.environ.get("JAX_PLATFORMS", ""), str(error).partition(" (set JAX_PLATFORMS")[0]
            remedy = f"JAX_PLATFORMS is '{asked}'; unset it, or set it to cpu"
            return _explain(error, argv, f"jax finds no device ({reason or 'there is no such device'}): {remedy}")
        # A bug of this code or of a library: its traceback is what a report needs.
        complain(f"this is a bug, please report it with the traceback below ({type(error).__name__}: {error})")
        _print_traceback(error)
        return 1


def log_to_stderr() -> None:
    """Sends logs to standard error, with the time; libraries report errors only."""
    handler = logging.StreamHandler()
    handler.setFormatter(_VisibleFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("jax").setLevel(logging.ERROR)
    # Orbax warns, through absl, of files that no one has promised, and logs the traceback of every error that it raises
    # besides; asyncio those of its tasks that nobody waits for after one of them has failed.
    for noisy in ("absl", "orbax", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def _hide_late_callbacks() -> None:
    """Hides what is printed of reads and writes that fail after the first has failed: when TensorStore finds Orbax's
    event loop closed, and when Python removes a coroutine of Orbax's that nobody waits for. The first failure is raised
    in the main thread; bert_jax has no coroutines of its own."""

    report_others = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed" and not inspect.iscoroutine(unraisable.object):
            report_others(unraisable)

    sys.unraisablehook = report


def report_as_process(number: int) -> None:
    """Lets lines on standard error begin with the process's number, unless it is the first of its run, and drops those
    that are neither warnings nor errors: the first writes them."""
    if number == 0:
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _VisibleFormatter):
            handler.setLevel(logging.WARNING)
    _PROCESS.append(f"process {number}: ")


def say(text: str, styled: bool = False) -> None:
    """Prints to standard output, with what a terminal would obey spelled out, unless the text is `styled` for one.
    Raises UserError if that is full."""
    try:
        print(text if styled else _visible_lines(text))
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise UserError(f"standard output cannot be written ({problem.strerror})") from problem


def complain(message: object) -> int:
    """Prints one line to standard error and returns the exit status 2."""
    with contextlib.suppress(OSError):  # nobody reads it
        print("error:", _process() + visible(" ".join(str(message).split())), file=sys.stderr, flush=True)
    return 2


def visible(text: str) -> str:
    """Returns the text with control characters, escape sequences and undecodable bytes spelled out, as in \\x1b."""
    return _INVISIBLE.sub(lambda match: _spelled(match[0]), text)


def _visible_lines(text: str) -> str:
    return "\n".join(visible(line.expandtabs()) for line in text.split("\n"))


def _spelled(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for the byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _INTERRUPTS.append(number)
    raise KeyboardInterrupt


def _interrupted() -> int:
    complain("interrupted")
    return 128 + signal.SIGINT


def _explain(error: BaseException, argv: list[str], message: object) -> int:
    if any(word.partition("=")[0] == "--debug" for word in argv):
        _print_traceback(error)
    return complain(message)


def _is_of_devices(error: Exception) -> bool:
    """Returns whether jax failed to set up its devices, for which it has no exception of its own."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and Path(frames[-1][0].f_code.co_filename).name == "xla_bridge.py"


def _print_traceback(error: BaseException) -> None:
    with contextlib.suppress(OSError):
        print(_visible_lines("".join(traceback.format_exception(error))), file=sys.stderr, end="")


def _leave_to_nobody(stream: int) -> int:
    """Lets a stream that cannot be written to end in the null device: Python writes what is left in its buffer when it
    ends, and would fail with status 120. Returns the exit status of a command whose reader left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    return 128 + signal.SIGPIPE


class _VisibleFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _process() + record.message
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return _visible_lines(super().format(record))


def _process() -> str:
    return "".join(_PROCESS[-1:])


def _open_closed_streams() -> None:
    """Opens the null device for standard streams that are closed (`>&-`): the next file that is opened would take their
    place. Reading from the input and writing to the output stay errors; what is written to standard error is lost."""
    for number, (name, access) in enumerate((("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_RDWR))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, access)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _parsed(option: Option, text: str) -> Value:
    try:
        return option.parse(text)
    except ValueError as problem:
        raise UserError(problem) from None
