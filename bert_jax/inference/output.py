"""Predictions into a file, in the order of the input.

A regular file appears under its name when it is whole: it is written under a unique name beside it, which then replaces
what was there before. A symbolic link stays, and the file that it points to is replaced. Devices, FIFOs and standard
output are written in place.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bert_jax.config import Json, UserError
from bert_jax.data.labelled.tables import InputRow, Row

Stream = Callable[[Iterable[Row | UserError]], Iterator[Any]]


def check_output(output: str, suffixes: Collection[str], inputs: Iterable[str | Path]) -> None:
    """Raises UserError for an output that cannot be written, or that is one of the `inputs`; makes its folder.

    Called before anything is predicted. "-" is standard output; a device or FIFO needs no suffix.
    """
    path = Path(output)
    found = _status(path) if output != "-" else sys.stdout and _status(1)
    for source in inputs:
        status = _status(0) if source == "-" else _status(Path(source))
        # Character devices such as /dev/null may be both.
        if found and status and os.path.samestat(found, status) and not stat.S_ISCHR(found.st_mode):
            raise UserError(f"--output {output} is the same file as {source}, which it would destroy; choose another")
    if output == "-":
        if found is None:
            raise UserError("standard output is closed; give --output=<name>")
        return
    if found and stat.S_ISDIR(found.st_mode):
        raise UserError(f"--output {output} is a folder; give the name of a file in it")
    if not _is_replaced(found):
        return
    if path.suffix not in suffixes:
        raise UserError(f"--output {output}: unknown suffix '{path.suffix}'; it can be {', '.join(suffixes)}")
    if found and not os.access(path, os.W_OK):
        raise UserError(f"--output {output} is protected against writing; choose another file")
    file, partial = _create(path)
    file.close()
    partial.unlink()


def results(rows: Iterable[InputRow], stream: Stream, *, skip_bad: bool) -> Iterator[tuple[InputRow, Any]]:
    """Yields each row with what `stream` makes of it. The UserError of a bad row is raised, or with `skip_bad` logged
    and yielded in place of the result."""
    start, count, bad = time.perf_counter(), 0, 0
    ahead, behind = itertools.tee(rows)  # holds the rows between the two: no more than `stream` reads ahead
    for row, result in zip(behind, stream(row.row for row in ahead), strict=True):
        count += 1
        if isinstance(result, UserError):
            if not skip_bad:
                raise UserError(f"{result} (--bad_lines=skip continues without this one)") from result
            bad += 1
            logging.warning("%s", result)
        yield row, result
    seconds = time.perf_counter() - start
    logging.info("%d rows in %.1f s (%.0f per second), %d of them bad", count, seconds, count / seconds, bad)


def write_jsonl(rows: Iterable[InputRow], stream: Stream, output: str, *, skip_bad: bool) -> None:
    """Writes one line per row: "line", its number in the input; "id", if the row has one; the prediction, or "error".

    `output` is a file, or "-" for standard output.
    """
    with _standard_output() if output == "-" else whole_file(Path(output), keeps_partial=True) as file:
        for row, result in results(rows, stream, skip_bad=skip_bad):
            record = {"line": row.line} | identity(row)
            file.write(json_line(record | ({"error": str(result)} if isinstance(result, UserError) else result)))


def write_answers(rows: Iterable[InputRow], stream: Stream, output: str, *, skip_bad: bool) -> None:
    """Writes one JSON object {id: answer}, as the scorer of SQuAD reads it; bad rows are left out."""
    answers: dict[str, str] = {}
    with whole_file(Path(output)) as file:
        for row, result in results(rows, stream, skip_bad=skip_bad):
            if isinstance(result, UserError):
                continue
            if result["id"] in answers:
                raise UserError(f"row {row.line}: id {result['id']!r} for the second time; make ids unique")
            answers[result["id"]] = result["answer"]
        file.write(json_line(answers))


def identity(row: InputRow) -> Json:
    """Returns {"id": …} if the row has a column of that name. A missing number is NaN in tables: it becomes None."""
    return {"id": _json_value(row.row.values["id"])} if isinstance(row.row, Row) and "id" in row.row.values else {}


def json_line(record: Json) -> bytes:
    """Returns one line of valid JSON in UTF-8, whatever the record holds: NaN and infinity become null."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError):
        text = json.dumps(_json_value(record), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold: JSON's escapes can
        return json.dumps(_json_value(record)).encode() + b"\n"


@contextlib.contextmanager
def whole_file(path: Path, *, keeps_partial: bool = False) -> Iterator[IO[bytes]]:
    """Opens a file that will be at `path` once the block ends; its content can be sought and rewritten until then.

    If the block raises, what was at `path` before stays. With `keeps_partial`, what was written before a UserError
    stays under the unique name that the error mentions.
    """
    if not _is_replaced(_status(path)):
        with _in_place(path, seekable=not keeps_partial) as file:
            yield file
        return
    file, partial = _create(path)
    try:
        with _explained(path), file:
            yield file
        with _explained(path):
            os.replace(partial, _target(path))
    except UserError as error:
        if not keeps_partial or isinstance(error.__cause__, OSError):
            raise
        kept, partial = partial, None
        raise UserError(f"{error}; what came before it is in {kept}") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _create(path: Path) -> tuple[IO[bytes], Path]:
    """Opens a new file in the folder of `path`, with the permissions that a new file has there."""
    target = _target(path)
    partial = target.with_name(f"{target.name[:200]}.{secrets.token_hex(4)}.partial")
    with _explained(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        return partial.open("x+b"), partial


@contextlib.contextmanager
def _in_place(path: Path, *, seekable: bool) -> Iterator[IO[bytes]]:
    """Opens a device or a FIFO. Formats that seek are written to a temporary file first."""
    with _explained(path), path.open("wb") as file:
        if not seekable:
            yield file
            return
        with tempfile.TemporaryFile() as whole:
            yield whole
            whole.seek(0)
            shutil.copyfileobj(whole, file)


@contextlib.contextmanager
def _standard_output() -> Iterator[IO[bytes]]:
    with _explained("-"):
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError:  # what is still in the buffer would fail again when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


@contextlib.contextmanager
def _explained(output: Path | str) -> Iterator[None]:
    """Turns an error of the operating system into one line. A closed pipe is no error: its reader has seen enough."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output {output} cannot be written ({reason}); choose another place") from error


def _status(file: Path | int) -> os.stat_result | None:
    """Returns the status of a file or of an open descriptor; None if there is no such file."""
    try:
        return os.stat(file)
    except OSError:
        return None


def _is_replaced(found: os.stat_result | None) -> bool:
    """Returns whether an output is replaced as a whole, which only a regular file or a new one can be."""
    return found is None or stat.S_ISREG(found.st_mode)


def _target(path: Path) -> Path:
    """Returns the file that a chain of symbolic links ends in, so that replacing it keeps the links."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _json_value(value: object) -> Any:
    """Returns a value that JSON can hold: None for NaN and infinity, text for what JSON has no type for."""
    if isinstance(value, dict):
        return {str(key): _json_value(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(x) for x in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
