"""The content of a checkpoint: its items, their checksums, the format's version, checks of all that is read, and what
tells damage from trouble.

`run` and `tokenizer` are JSON; `parameters` and `optimizer` are arrays. Nothing that is read names a file to write or
code to import.
"""

import base64
import contextlib
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.config import UserError, from_json_dict
from bert_jax.data.tokenizers.tokenizer import FILES, Tokenizer, tokenizer_from_files

FORMAT = 2  # 1: no `format` key, no checksums of `run` and `tokenizer`
Json = dict[str, Any]


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
        if is_trouble(problem):
            raise Trouble(
                f"checkpoint {directory} cannot be read now ({first_line(problem)}); it was left as it is: "
                "remove the cause and start the same command again"
            ) from problem
        raise Damaged(f"checkpoint {directory} is damaged ({first_line(problem)})") from problem


def is_trouble(problem: BaseException) -> bool:
    """Returns True unless the exception, or one that it came from, says that the files do not hold what was written.

    What is unknown counts as trouble, because trouble changes nothing on disk.
    """
    if is_outside(problem):
        return True
    chain = _chain(problem)
    text = "\n".join(map(str, chain))
    return not any(isinstance(one, (*_ABSENT, *_DAMAGE)) for one in chain) and not any(s in text for s in _DAMAGE_SIGNS)


def is_outside(problem: BaseException) -> bool:
    """Returns True if storage, permission, memory or network is at fault, which the user can put right."""
    chain = _chain(problem)
    text = "\n".join(map(str, chain))
    system = any(isinstance(one, OSError | MemoryError) and not isinstance(one, _ABSENT) for one in chain)
    return system or any(sign in text for sign in _TROUBLE)


def _chain(problem: BaseException) -> list[BaseException]:
    """Returns the exception and those that it came from."""
    chain, cause = [problem], problem.__cause__ or problem.__context__
    while cause is not None and len(chain) < 20:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# TensorStore raises ValueError and RuntimeError with a status code, the error of the system, or both in the text.
_TROUBLE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")
_TROUBLE += ("Permission denied", "Operation not permitted", "Too many open files", "Input/output error", "Stale file")
_TROUBLE += ("No space left", "Disk quota", "Cannot allocate memory", "out of memory", "Connection", "timed out")
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError, NotImplementedError)
_DAMAGE_SIGNS = ("NOT_FOUND", "DATA_LOSS", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE")


def first_line(problem: BaseException) -> str:
    """Returns what an exception says, for a message of one line: the system's error if it is in it, else its start."""
    text = str(problem).strip() or type(problem).__name__
    found = _SYSTEM.search(text)
    if found and not isinstance(problem, OSError):  # TensorStore puts it behind paths and hundreds of other characters
        return found.group()
    return text.splitlines()[0].partition(" See full TensorStore details")[0][:200]


_SYSTEM = re.compile(
    "No space left on device|Disk quota exceeded|Permission denied|Operation not permitted|Read-only file system|"
    "Too many open files|Input/output error|Stale file handle|Cannot allocate memory"
)


def seal(run: Json, arrays: Mapping[str, Mapping[str, int]], tokenizer: Json) -> Json:
    """Returns the `run` item with format, version and the checksums of every item, its own included.

    `arrays` is {item: {name: checksum}}, `tokenizer` the result of `pack`.
    """
    run = json.loads(json.dumps(run))  # as it will be read: the checksum must not depend on tuples
    run |= {"format": FORMAT, "written_by": _version()}
    run["checksums"] = {**arrays, "tokenizer": _digest(tokenizer)}
    run["checksums"]["run"] = _digest(run)
    return run


def check_run(run: Any, directory: Path) -> Json:
    """Returns the `run` item with its config over today's defaults. Raises Damaged naming the first field that is not
    as it was written, and UserError if a newer version wrote it."""
    if not isinstance(run, dict):
        raise Damaged(f"checkpoint {directory}: run is not a JSON object")
    written, run = run, {"format": 1, "task": {}, "history": []} | run  # the first versions had none of these
    version = run["format"]
    if isinstance(version, int) and version > FORMAT:
        raise UserError(
            f"checkpoint {directory} has format {version}, written by bert_jax {run.get('written_by', '?')}; this is "
            f"bert_jax {_version()}, which reads formats up to {FORMAT}: install a newer one"
        )
    for name, expected, is_good in _FIELDS:
        if not is_good(run.get(name)):
            found = repr(run.get(name)) if name in run else "missing"
            raise Damaged(f"checkpoint {directory}: run.{name} is {found[:60]}; it must be {expected}")
    if version >= 2:
        sums = run["checksums"]
        rest = {name: value for name, value in sums.items() if name != "run"}
        if sums.get("run") != _digest(written | {"checksums": rest}):
            raise Damaged(f"checkpoint {directory}: run differs from what was saved")
    try:
        config = from_json_dict(run["config"])
    except UserError as problem:
        raise Damaged(f"checkpoint {directory}: {problem}") from None
    return run | {"config": config.to_dict()}


def pack(tokenizer: Tokenizer) -> Json:
    """Returns the tokenizer's files as JSON: {name: base64}."""
    return {name: base64.b64encode(content).decode() for name, content in sorted(tokenizer.files().items())}


def unpack(files: Any, run: Json, directory: Path) -> Tokenizer:
    """Returns the tokenizer of the JSON that `pack` made. Raises Damaged; writes nothing, whatever the names are."""
    saved = run["checksums"].get("tokenizer")
    if not isinstance(files, dict) or not all(name in FILES and isinstance(x, str) for name, x in files.items()):
        raise Damaged(f"checkpoint {directory}: tokenizer must hold {', '.join(FILES)} and no other file")
    if saved is not None and saved != _digest(files):
        raise Damaged(f"checkpoint {directory}: tokenizer differs from what was saved")
    try:
        contents = {name: base64.b64decode(content, validate=True) for name, content in files.items()}
        return tokenizer_from_files(contents, f"the tokenizer of {directory}")
    except (UserError, ValueError) as problem:
        raise Damaged(f"checkpoint {directory}: tokenizer cannot be decoded ({problem})") from None


def checksums(tree: Any) -> dict[str, int]:
    """Returns a sum modulo 2³² over the bits of each array: the same on any mesh, at the speed of memory."""
    return _of_each(tree, _numpy_sum_of_bits, _sums_of_bits)


def not_finite(tree: Any) -> list[str]:
    """Returns the names of the arrays that contain NaN or infinity."""
    finite = _of_each(tree, lambda x: int(np.isfinite(x).all()), _are_finite)
    return [name for name, is_finite in finite.items() if not is_finite]


def key(name: str) -> str:
    """Returns the key of a parameter in `checksums`."""
    return jax.tree_util.keystr((jax.tree_util.DictKey(name),))


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _are_checksums(x: Any) -> bool:
    """Checks {item: {name: number}} of the arrays; the two of JSON items are strings."""
    if not isinstance(x, dict) or "parameters" not in x:
        return False
    return all(
        isinstance(value, str)
        if item in ("run", "tokenizer")
        else isinstance(value, dict) and all(isinstance(number, int) for number in value.values())
        for item, value in x.items()
    )


_FIELDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("format", "a whole number from 1", lambda x: type(x) is int and x >= 1),
    ("step", "a whole number from 0", lambda x: type(x) is int and 0 <= x < 2**31),
    (
        "config",
        "a JSON object with the group model",
        lambda x: isinstance(x, dict) and isinstance(x.get("model"), dict),
    ),
    ("task", "a JSON object", lambda x: isinstance(x, dict)),
    ("checksums", "the checksums of every item", _are_checksums),
    ("history", "a list of numbers", lambda x: isinstance(x, list) and all(map(_is_number, x))),
    ("score", "numbers by name", lambda x: x is None or (isinstance(x, dict) and all(map(_is_number, x.values())))),
    ("data", "a JSON object", lambda x: x is None or isinstance(x, dict)),
)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version("bert_jax")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


def _of_each(tree: Any, on_host: Callable[[np.ndarray], int], on_device: Callable[[Any], Any]) -> dict[str, int]:
    arrays = jax.tree.leaves(tree)
    if all(isinstance(x, np.ndarray) or (x.is_fully_addressable and _is_on_cpu(x)) for x in arrays):
        found = jax.tree.map(lambda x: on_host(np.asarray(x)), tree)  # as fast as compiled, and nothing to compile
    else:
        found = on_device(tree)
    leaves = jax.tree_util.tree_flatten_with_path(found)[0]
    return {jax.tree_util.keystr(path): int(np.asarray(value)) for path, value in leaves}


def _is_on_cpu(x: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in x.devices())


@jax.jit
def _sums_of_bits(tree):
    def of(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 4 else x.astype(jnp.uint32)
        bits = bits.reshape(-1)
        positions = jax.lax.iota(jnp.uint32, bits.size)  # weighted by odd numbers, so that exchanged values show
        return jnp.sum(bits * (2 * positions + 1), dtype=jnp.uint32)

    return jax.tree.map(of, tree)


@jax.jit
def _are_finite(tree):
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def _numpy_sum_of_bits(x: np.ndarray) -> int:
    """Returns the same sum as `_sums_of_bits` without a compiler, piece by piece so that nothing large is copied."""
    bits = x.reshape(-1).view(np.uint32) if x.dtype.itemsize == 4 else x.reshape(-1).astype(np.uint32)
    total, piece = 0, 1 << 20
    for start in range(0, bits.size, piece):
        part = bits[start : start + piece]
        positions = np.arange(start, start + part.size).astype(np.uint32)
        total += int(np.sum(part * (2 * positions + 1), dtype=np.uint32))
    return total % 2**32
