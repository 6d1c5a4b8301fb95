"""The content of a checkpoint: its items, their checksums, the format's version, checks of all that is read, and what
tells damage from trouble.

`run` and `tokenizer` are JSON; `parameters` and `optimizer` are arrays. Nothing that is read names a file to write or
code to import.
"""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bert_jax import __version__
from bert_jax.config import Json, UserError, from_json_dict
from bert_jax.data.tokenizers.tokenizer import FILES, Tokenizer, tokenizer_from_files

FORMAT = 2  # 1: no `format` key, no checksums of `run` and `tokenizer`

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# TensorStore raises ValueError and RuntimeError with a status code, the error of the system, or both in the text.
_TROUBLE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")
_TROUBLE += ("Permission denied", "Operation not permitted", "Too many open files", "Input/output error", "Stale file")
_TROUBLE += (
    "No space left",
    "Disk quota",
    "File too large",
    "Cannot allocate memory",
    "out of memory",
    "Connection",
    "timed out",
)
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError, NotImplementedError, *_ABSENT)
_DAMAGE_SIGNS = ("NOT_FOUND", "DATA_LOSS", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE")
_SYSTEM = re.compile(
    "No space left on device|Disk quota exceeded|Permission denied|Operation not permitted|Read-only file system|"
    "Too many open files|Input/output error|Stale file handle|Cannot allocate memory|File too large"
)


class Damaged(UserError):
    """A checkpoint that does not hold what was written: a file is missing, cut off, or has other bytes."""


class Trouble(UserError):
    """A checkpoint that cannot be read for a reason outside it: storage, permission, memory or network."""


@contextlib.contextmanager
def guarded(directory: Path) -> Iterator[None]:
    """Turns whatever reading raises into Damaged or Trouble."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # Orbax and TensorStore raise many kinds for one cause
        if not is_trouble(problem):
            raise Damaged(f"checkpoint {directory} is damaged ({first_line(problem)})") from problem
        raise Trouble(
            f"checkpoint {directory} cannot be read now ({first_line(problem)}); it was left as it is: "
            "remove the cause and start the same command again"
        ) from problem


def is_trouble(problem: BaseException) -> bool:
    """Returns True unless the exception, or one that it came from, says that the files do not hold what was written:
    what is unknown counts as trouble, because trouble changes nothing on disk."""
    return is_outside(problem) or not _says(problem, _DAMAGE, _DAMAGE_SIGNS)


def is_outside(problem: BaseException) -> bool:
    """Returns True if storage, permission, memory or network is at fault, which the user can put right."""
    return _says(problem, (OSError, MemoryError), _TROUBLE, but_not=_ABSENT)


def _says(problem: BaseException | None, kinds: tuple, signs: tuple[str, ...], but_not: tuple = ()) -> bool:
    """Returns True if the exception, or one that it came from, is of one of the kinds or has a sign in its text."""
    for _ in range(20):  # a chain of causes may be a ring
        if problem is None:
            break
        if isinstance(problem, kinds) and not isinstance(problem, but_not):
            return True
        if any(sign in str(problem) for sign in signs):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def first_line(problem: BaseException) -> str:
    """Returns what an exception says, for a message of one line: the system's error if it is in it, else its start."""
    text = str(problem).strip() or type(problem).__name__
    found = _SYSTEM.search(text)
    if found and not isinstance(problem, OSError):  # TensorStore puts it behind paths and hundreds of other characters
        return found.group()
    return text.splitlines()[0].partition(" See full TensorStore details")[0][:200]


def seal(run: Json, arrays: Mapping[str, Mapping[str, int]], tokenizer: Json) -> Json:
    """Returns the `run` item with format, version and the checksums of every item, its own included. `arrays` is {item:
    {name: checksum}}, `tokenizer` the result of `pack`."""
    run = json.loads(json.dumps(run))  # as it will be read: the checksum must not depend on tuples
    run |= {"format": FORMAT, "written_by": __version__}
    run["checksums"] = {**arrays, "tokenizer": _digest(tokenizer)}
    run["checksums"]["run"] = _digest(run)
    return run


def check_run(run: object, directory: Path) -> Json:
    """Returns the `run` item with its config over today's defaults. Raises Damaged naming the first field that is not
    as it was written, and UserError if a newer version wrote it."""
    if not isinstance(run, dict):
        raise Damaged(f"checkpoint {directory}: run is not a JSON object")
    written, run = run, _LATER_FIELDS | run
    version = run["format"]
    if isinstance(version, int) and version > FORMAT:
        raise UserError(
            f"checkpoint {directory} has format {version}, written by bert_jax {run.get('written_by', '?')}; this is "
            f"bert_jax {__version__}, which reads formats up to {FORMAT}: install a newer one"
        )
    for name, (expected, is_good) in _FIELDS.items():
        if not is_good(run.get(name)):
            found = repr(run.get(name)) if name in run else "missing"
            raise Damaged(f"checkpoint {directory}: run.{name} is {found[:60]}; it must be {expected}")
    if version >= 2:
        sums = run["checksums"]
        rest = {name: value for name, value in sums.items() if name != "run"}
        if sums.get("run") != _digest(written | {"checksums": rest}):
            raise Damaged(f"checkpoint {directory}: run differs from what was saved")
    try:
        return run | {"config": from_json_dict(run["config"]).to_dict()}
    except UserError as problem:
        raise Damaged(f"checkpoint {directory}: {problem}") from None


def pack(tokenizer: Tokenizer) -> Json:
    """Returns the tokenizer's files as JSON: {name: base64}."""
    return {name: base64.b64encode(content).decode() for name, content in sorted(tokenizer.files().items())}


def unpack(files: object, run: Json, directory: Path) -> Tokenizer:
    """Returns the tokenizer of the JSON that `pack` made. Raises Damaged; writes nothing, whatever the names are."""
    if not isinstance(files, dict) or not all(name in FILES and isinstance(x, str) for name, x in files.items()):
        raise Damaged(f"checkpoint {directory}: tokenizer must hold {', '.join(FILES)} and no other file")
    if "tokenizer" in run["checksums"] and run["checksums"]["tokenizer"] != _digest(files):
        raise Damaged(f"checkpoint {directory}: tokenizer differs from what was saved")
    try:
        contents = {name: base64.b64decode(content, validate=True) for name, content in files.items()}
        return tokenizer_from_files(contents, f"the tokenizer of {directory}")
    except (UserError, ValueError) as problem:
        raise Damaged(f"checkpoint {directory}: tokenizer cannot be decoded ({problem})") from None


def checksums(tree: PyTree) -> dict[str, int]:
    """Returns a sum modulo 2³² over the bits of each array: the same on any mesh, at the speed of memory."""
    return _of_each(tree, _numpy_sum_of_bits, _sums_of_bits)


def not_finite(tree: PyTree) -> list[str]:
    """Returns the names of the arrays that contain NaN or infinity."""
    finite = _of_each(tree, lambda x: int(np.isfinite(x).all()), _are_finite)
    return [name for name, is_finite in finite.items() if not is_finite]


def _is_object(x: object, is_value: Callable[[Any], bool] = lambda _: True) -> bool:
    return isinstance(x, dict) and all(map(is_value, x.values()))


def _is_number(x: object) -> bool:
    return type(x) in (int, float)


def _are_checksums(x: Any) -> bool:
    """Checks {item: {name: number}} of the arrays; the two of JSON items are strings."""
    return (
        _is_object(x)
        and "parameters" in x
        and all(
            isinstance(sums, str) if item in ("run", "tokenizer") else _is_object(sums, _is_number)
            for item, sums in x.items()
        )
    )


def _are_sums(x: object) -> bool:
    """Checks {metric: [sum, weight]}, each a number or a list of numbers."""

    def is_number_or_list(x: object) -> bool:
        return all(map(is_number_or_list, x)) if isinstance(x, list) else _is_number(x)

    return _is_object(x, lambda pair: isinstance(pair, list) and len(pair) == 2 and all(map(is_number_or_list, pair)))


def _is_guard(left_out: object = (), recent: object = None, **others: object) -> bool:
    """Checks the record of `guard.Guard`: {} or {"left_out": numbers, "recent": {metric: numbers}}."""
    numbers = isinstance(left_out, list | tuple) and all(type(x) is int and x >= 0 for x in left_out)
    lists = recent is None or _is_object(recent, lambda x: isinstance(x, list) and all(map(_is_number, x)))
    return numbers and lists and not others


# Fields that the first versions did not write, and what their absence means.
_LATER_FIELDS: Json = {"format": 1, "task": {}, "history": [], "pending": [], "guard": {}, "temporary": False}
# Field of `run` → what it must be, and whether it is.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": ("a whole number from 1", lambda x: type(x) is int and x >= 1),
    "step": ("a whole number from 0", lambda x: type(x) is int and 0 <= x < 2**31),
    "config": ("a JSON object with the group model", lambda x: _is_object(x) and _is_object(x.get("model"))),
    "task": ("a JSON object", _is_object),
    "checksums": ("the checksums of every item", _are_checksums),
    "history": ("a list of numbers", lambda x: isinstance(x, list) and all(map(_is_number, x))),
    "score": ("numbers by name", lambda x: x is None or _is_object(x, _is_number)),
    "data": ("a JSON object", lambda x: x is None or _is_object(x)),
    "pending": ("a list of sums by name", lambda x: isinstance(x, list) and all(map(_are_sums, x))),
    "guard": ("the numbers of batches that were left out, and metrics", lambda x: _is_object(x) and _is_guard(**x)),
    "temporary": ("true or false", lambda x: isinstance(x, bool)),
}


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _of_each(tree: PyTree, on_host: Callable[[np.ndarray], int], on_device: Callable[[Any], Any]) -> dict[str, int]:
    def is_here(x: Any) -> bool:
        return isinstance(x, np.ndarray) or (x.is_fully_addressable and all(d.platform == "cpu" for d in x.devices()))

    if all(map(is_here, jax.tree.leaves(tree))):  # as fast as compiled, and nothing to compile
        found = jax.tree.map(lambda x: on_host(np.asarray(x)), tree)
    else:
        found = on_device(tree)
    leaves = jax.tree_util.tree_flatten_with_path(found)[0]
    return {jax.tree_util.keystr(path): int(np.asarray(value)) for path, value in leaves}


@jax.jit
def _are_finite(tree):
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


_BITS = {4: np.uint32, 2: np.uint16}  # by the bytes of a number


@jax.jit
def _sums_of_bits(tree):
    def of(x):
        kind = _BITS.get(x.dtype.itemsize)
        bits = (x if kind is None else jax.lax.bitcast_convert_type(x, kind)).astype(jnp.uint32).reshape(-1)
        positions = jax.lax.iota(jnp.uint32, bits.size)  # weighted by odd numbers, so that exchanged values show
        return jnp.sum(bits * (2 * positions + 1), dtype=jnp.uint32)

    return jax.tree.map(of, tree)


def _numpy_sum_of_bits(x: np.ndarray) -> int:
    """Returns the same sum as `_sums_of_bits` without a compiler, piece by piece so that nothing large is copied."""
    bits, kind = x.reshape(-1), _BITS.get(x.dtype.itemsize)
    bits = bits.astype(np.uint32) if kind is None else bits.view(kind).astype(np.uint32, copy=False)
    total, piece = 0, 1 << 20
    for start in range(0, bits.size, piece):
        part = bits[start : start + piece]
        positions = np.arange(start, start + part.size).astype(np.uint32)
        total += int(np.sum(part * (2 * positions + 1), dtype=np.uint32))
    return total % 2**32
