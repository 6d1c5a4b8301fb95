"""Files that are replaced whole or not at all, and the lock that makes one process the only writer of a folder."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Makes `path` a file with this content (text as UTF-8). If that fails, the file is as it was before.

    A symbolic link stays, and its target is replaced. Raises OSError.
    """
    path = Path(os.path.realpath(path))
    if path.is_symlink():  # what realpath leaves of a link that leads back to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else a crash of the machine may leave the new name with no content
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


LOCK = "lock"  # its name in the folder that it locks


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder. The system releases it when the process ends, however it ends.

    Raises BlockingIOError that says who holds it, and OSError if the lock's file cannot be opened. Where the file
    system has no locks, a warning is all.
    """
    path = folder / LOCK
    # Closing it releases the lock. It is emptied, so it must not be a link to another file in a folder from elsewhere.
    with open(path, "a+", errors="replace", opener=_open_no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            file.seek(0)
            raise BlockingIOError(problem.errno, f"in use by {_holder(file.read())}", str(folder)) from None
        except OSError as problem:
            logging.warning("%s cannot be locked (%s): start no second run in this workdir", path, problem.strerror)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, without a name
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
            file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def is_locked(folder: Path) -> bool:
    """Returns whether a process holds the lock of a folder, on this machine or, where the file system can tell, on
    another one."""
    try:
        with open(folder / LOCK, opener=_open_existing) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody has locked it yet, or there are no locks
        return False
    return False


def _open_existing(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _holder(content: str) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']:d} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # written by a full disk, or by somebody else
        return "another process"
