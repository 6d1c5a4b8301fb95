"""What the makers of data share: their command line, and archives → a folder that is there whole or not at all."""

import argparse
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_jax.config import UserError


def run(description: str | None, make: Callable[[Path, Path], None], *, from_archives: bool = True) -> None:
    """Calls `make` with the folders that the command line names: that of the archives, if there are some, and that to
    make."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if from_archives:
        parser.add_argument("--archives", required=True, help="folder of the .tar.xz files")
    parser.add_argument("--to", required=True, help="folder to make")
    options = parser.parse_args()
    try:
        make(Path(options.archives if from_archives else ""), Path(options.to))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def make_folder(archives: Path, names: Sequence[str], to: Path, write: Callable[[Path, Path], None]) -> None:
    """Unpacks the archives of these names and makes the folder `to` by `write(unpacked, made)`. Raises UserError for a
    missing archive, and if the folder is there."""
    paths = [archives / f"{name}.tar.xz" for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]} does not exist; --archives is the folder of {', '.join(names)}.tar.xz")
    if to.exists():
        raise UserError(f"{to} is there already; remove it, or choose another --to")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as temporary:
        data, made = Path(temporary) / "unpacked", Path(temporary) / "made"
        for path in paths:
            with tarfile.open(path) as file:
                file.extractall(data, filter="data")
        made.mkdir()
        write(data, made)
        made.rename(to)
