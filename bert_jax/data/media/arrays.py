"""Files that a column of a table names, and arrays in them.

A name is a path inside one folder, never out of it: tables come from anywhere. Arrays are NumPy's .npy and .npz without
pickled objects; `FILE.npy#NUMBER` is one entry of an array whose first axis counts the rows of a table.
"""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import value_in
from bert_jax.data.labelled.tables import Row

ARRAYS = (".npy", ".npz")
_MOST_BYTES = 1 << 30  # of one array, unpacked: a row that has more is a mistake or an attack
_LARGEST = np.finfo(np.float32).max
_ENTRY = re.compile(r"(?P<file>.+\.npy)#(?P<number>\d{1,12})")


def file_in(row: Row, column: str, folder: str) -> tuple[Path, int | None]:
    """Returns the file that a column names, and the number of the entry in it, if it names one.

    `folder` is where the files lie; "" is the folder of the row's own table, or the current one if it has none. Raises
    UserError for a name that leads out of the folder and for a file that is not there.
    """
    name = value_in(row, column)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UserError(f"{row.origin}: column {column!r} holds {_short(name)}, no name of a file: correct this row")
    entry = _ENTRY.fullmatch(name)
    table = Path(row.origin.rpartition(":")[0])
    base = Path(folder).expanduser() if folder else table.parent if table.is_file() else Path()
    base = base.resolve()
    try:
        path = (base / (entry["file"] if entry else name)).resolve()
        is_there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, links in a circle
        raise UserError(f"{row.origin}: column {column!r} names no possible file ({error}): correct this row") from None
    if not path.is_relative_to(base):
        raise UserError(f"{row.origin}: {_short(name)} leads out of the folder {base}: move the file into it")
    if not is_there:
        raise UserError(
            f"{row.origin}: {path} is not there: correct column {column!r}, or name its folder by data.media"
        )
    return path, int(entry["number"]) if entry else None


def read_array(path: Path, number: int | None, name: str, origin: str) -> np.ndarray:
    """Returns the array of a .npy file, or its entry `number`; of an .npz file the one called `name`, or the only one.

    Raises UserError, which names `origin` and the file, for one that is damaged, too large or holds objects.
    """
    where = f"{origin}: {path}"
    try:
        if path.suffix.lower() == ".npz":
            return _unpacked(path, name, where)
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a false size in its header costs nothing
        if number is not None:
            if not mapped.ndim or number >= len(mapped):
                raise UserError(f"{where} has {len(mapped) if mapped.ndim else 0} entries, none of number {number}")
            mapped = mapped[number]
        if mapped.nbytes > _MOST_BYTES:
            raise UserError(f"{where} has {mapped.nbytes:,} bytes, over the {_MOST_BYTES:,} that one row may have")
        return np.array(mapped)
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile trust their file: zlib.error, TokenError and others
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{where} is no whole array ({reason[:120]}): write it with numpy.save, without objects"
        ) from None


def check_numbers(array: np.ndarray, where: str) -> None:
    """Raises UserError for an array of anything but numbers, and for one that is not finite in float32."""
    if array.dtype.kind not in "uif":
        raise UserError(f"{where} holds {array.dtype}, no numbers: write whole or floating-point numbers")
    if array.dtype.kind == "f" and not (fits := np.abs(array) <= _LARGEST).all():  # nor does NaN
        at = tuple(np.argwhere(~fits)[0].tolist())
        raise UserError(f"{where} holds {array[at]} at {at}: correct or leave out this row")


def array_of(value: object, where: str) -> np.ndarray:
    """Returns lists of numbers, as JSON has them, as an array. Raises UserError for anything else."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise UserError(f"{where} holds lists of unequal lengths: give each the same") from None
    if array.dtype.kind not in "uif":
        raise UserError(f"{where} holds {_short(value)}, no numbers: give a file, or lists of numbers")
    return array


def _unpacked(path: Path, name: str, where: str) -> np.ndarray:
    with zipfile.ZipFile(path) as packed:
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in packed.infolist()}
    chosen = name if name in sizes else _only(sizes, name, where)
    if sizes[chosen] > _MOST_BYTES:
        raise UserError(f"{where}: {chosen} unpacks to {sizes[chosen]:,} bytes, over the {_MOST_BYTES:,} of one row")
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays[chosen])


def _only(names: Sequence[str] | dict[str, int], name: str, where: str) -> str:
    if len(names) != 1:
        listed = ", ".join(sorted(names)[:5])
        raise UserError(f"{where} has the arrays {listed or '(none)'}: call the one to read {name!r}")
    return next(iter(names))


def _short(value: object) -> str:
    text = repr(value) if value is not None else "null"
    return text if len(text) <= 60 else f"{text[:60]}…"
