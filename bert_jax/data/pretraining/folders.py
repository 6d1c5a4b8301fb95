"""Folders that appear whole or not at all, whatever is killed, and that one process of a machine makes at a time."""

import contextlib
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from bert_jax.config import UserError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_preparer(directory: Path) -> Iterator[None]:
    """Waits until no other process of this machine prepares the same dataset, as another run of a study may."""
    path = directory.parent / f".{directory.name}.preparing"
    with contextlib.ExitStack() as held:
        # What goes wrong here, such as permissions, is reported where the dataset is written.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            is_held = False
            while not is_held:  # whoever held it before has removed it
                file = held.enter_context(open(path, "a"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log.info("waiting for another process that prepares %s", directory)
                    fcntl.flock(file, fcntl.LOCK_EX)
                is_held = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def temporary_sibling(directory: Path) -> Iterator[Path]:
    """Gives a locked folder beside `directory`, and removes it at the end, and those of killed processes at once."""
    prefix = f".{directory.name}.partial-"
    temporary = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        for stale in directory.parent.glob(f"{prefix}*"):
            with contextlib.suppress(OSError), open(stale / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its owner lives
                shutil.rmtree(stale)
        with contextlib.ExitStack() as locks:
            # Before it is locked, another process may take the folder for one of a killed process and remove it.
            while temporary is None or not (temporary / "lock").exists():
                temporary = directory.parent / f"{prefix}{uuid.uuid4().hex}"
                temporary.mkdir()
                fcntl.flock(locks.enter_context(open(temporary / "lock", "w")), fcntl.LOCK_EX)
            yield temporary
    except OSError as error:
        reason = (error.strerror or str(error)).replace(str(temporary), str(directory))
        raise UserError(f"{directory}: cannot be written ({reason}): free the disk or set data.prepared") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def move_into_place(temporary: Path, directory: Path, is_whole: Callable[[Path], bool]) -> None:
    """Makes the files durable, then renames the folder once, so that no moment shows half a dataset under its name.
    Another process may have prepared the same dataset meanwhile, and use it: a whole one is never replaced."""
    for path in [*temporary.rglob("*"), temporary]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if directory.exists() and not is_whole(directory):
        os.replace(directory, temporary / "damaged")  # goes when the temporary folder goes
    (temporary / "lock").unlink()
    try:
        os.replace(temporary, directory)
    except OSError:  # a folder that is not empty cannot be replaced
        if not is_whole(directory):
            raise
    shutil.rmtree(directory / "damaged", ignore_errors=True)
