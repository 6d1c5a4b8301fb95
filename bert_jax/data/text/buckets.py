"""Files in buckets, gs:// and s3://, through fsspec (extra `remote`): found by a glob and read like local ones, or
copied whole.

Credentials are those of the vendors' own tools (AWS_* variables, ~/.aws, gcloud, service accounts).
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from bert_jax.config import Json, UserError
from bert_jax.extras import install

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")
_FIRST_ANSWER = 60.0  # seconds; libraries look for credentials on the network and try again several times
_BLOCK = 1 << 23  # bytes asked for at a time
_REMEDY = "check the name, the network and your credentials"
_Result = TypeVar("_Result")


def is_url(name: str | os.PathLike[str]) -> bool:
    return _SCHEME.match(os.fspath(name)) is not None


def find_remote(pattern: str, option: str) -> list[Path]:
    """Returns the files that a gs:// or s3:// path or glob names. Raises UserError within a minute."""
    scheme = _checked_scheme(pattern, option)
    names = _first_answer(f"{option}: {pattern}", lambda: _names(scheme, pattern))
    if not names:
        raise UserError(f"{option}: no file matches {pattern}: {_REMEDY}")
    return [BucketFile(f"{scheme}://{name}") for name in names]


class Bucket:
    """A folder in a bucket, whose files are written and read whole. All methods raise OSError."""

    def __init__(self, url: str, option: str):
        """Asks for an answer of the bucket. Raises UserError that names the option, within a minute."""
        self.url, self.option = url.rstrip("/"), option
        self._scheme = _checked_scheme(url, option)
        _first_answer(f"{option}: {url}", self.names)

    def names(self) -> dict[str, int]:
        """Returns the size of every file below the folder, by its name relative to it."""
        return {name: size for name, (size, _) in self.listing().items()}

    def listing(self) -> dict[str, tuple[int, str]]:
        """Returns size and version of every file below the folder."""
        root = self.url.partition("://")[2]
        with _as_os_error(self.url):
            found: dict[str, dict[str, Any]] = _file_system(self._scheme).find(root, detail=True)
        version = lambda info: str(info.get("ETag") or info.get("etag") or info.get("generation"))  # noqa: E731
        return {name.removeprefix(f"{root}/"): (info["size"], version(info)) for name, info in found.items()}

    def read(self, name: str) -> bytes:
        with _as_os_error(f"{self.url}/{name}"):
            return _file_system(self._scheme).cat_file(f"{self.url}/{name}")

    def write(self, name: str, content: bytes) -> None:
        with _as_os_error(f"{self.url}/{name}"):
            _file_system(self._scheme).pipe_file(f"{self.url}/{name}", content)

    def put(self, files: Mapping[str, Path]) -> None:
        """Writes local files by their names in the bucket, several at a time."""
        with _as_os_error(self.url):
            paths = [str(path) for path in files.values()]
            _file_system(self._scheme).put(paths, [f"{self.url}/{name}" for name in files])

    def get(self, files: Mapping[str, Path]) -> None:
        """Reads files into local ones, several at a time, whose folders are made."""
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        with _as_os_error(self.url):
            paths = [str(path) for path in files.values()]
            _file_system(self._scheme).get([f"{self.url}/{name}" for name in files], paths)

    def remove(self, names: Iterable[str]) -> None:
        if paths := [f"{self.url}/{name}" for name in names]:
            with _as_os_error(self.url):
                _file_system(self._scheme).rm(paths)


@cache
def local(path: str) -> str:
    """Returns the local path of a folder: that of a whole copy if it is in a bucket, else `path` itself.

    Copies are kept in ~/.cache/bert_jax (XDG_CACHE_HOME), each under a name made of what the bucket says of its files:
    a folder that has changed is copied again. Of the copy of a run (`training/mirror.py`) only whole checkpoints count.
    Raises UserError.
    """
    if not is_url(path):
        return path
    bucket = Bucket(path, "the folder")
    try:
        listed = bucket.listing()
        names = [name for name in listed if is_whole(name, listed)]
        if not names:
            raise UserError(f"{path} is empty or not there: {_REMEDY}")
        if wrong := next((name for name in names if not is_inside(name)), None):
            raise UserError(f"{path} has a file '{wrong}', which is no name of a local file; remove it")
        facts = json.dumps([path, *((name, listed[name]) for name in sorted(names))], default=str)
        cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert_jax"
        folder = cached / hashlib.sha256(facts.encode()).hexdigest()[:24]
        if not folder.is_dir():
            logging.info("copying %s to %s", path, folder)
            cached.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cached, prefix=".copying-") as scratch:
                target = Path(scratch, "copy")
                bucket.get({name: target / name for name in names})
                with contextlib.suppress(OSError):  # another process was first
                    target.rename(folder)
        return str(folder)
    except OSError as error:
        raise UserError(f"{path} cannot be copied ({error.strerror}): {_REMEDY}") from error


_CHECKPOINT = re.compile(r"checkpoints/(\d+)/")


def is_whole(name: str, names: Container[str]) -> bool:
    """Returns False for a file of a checkpoint in the copy of a run that is not whole, or is being deleted."""
    match = _CHECKPOINT.match(name)
    return match is None or "owner.json" not in names or f"checkpoints/{match[1]}.json" in names


def is_inside(name: str) -> bool:
    """Returns whether a name from elsewhere stays in the folder that it is relative to."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and "\0" not in name


def list_afresh() -> None:
    """Makes fsspec ask for the files of a folder each time, since other processes write them."""
    from fsspec.config import conf

    for scheme in _PACKAGES:
        conf.setdefault(scheme, {})["use_listings_cache"] = False


class BucketFile(type(Path())):
    """A path whose file is in a bucket. It is written with its scheme, and can be opened for reading."""

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")  # the path has one slash of the scheme's two
        return f"{scheme}://{rest.lstrip('/')}"

    def open(self, mode: str = "rb", *_: object, **__: object) -> Any:
        """Opens the file for reading bytes. Raises OSError, also while it is read."""
        if mode not in ("rb", "r"):
            raise OSError(f"{self}: files in buckets are only read")
        with _as_os_error(str(self)):
            stream = _file_system(self.parts[0][:-1]).open(str(self), "rb", block_size=_BLOCK)
        return io.BufferedReader(_Stream(stream, str(self)))

    def stat(self, **_: object) -> os.stat_result:
        with _as_os_error(str(self)):
            size = _file_system(self.parts[0][:-1]).size(str(self))
        return os.stat_result((stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, size or 0, 0, 0, 0))


class _Stream(io.RawIOBase):
    """A file of fsspec whose errors are OSErrors, of whatever class the vendor's library raises them."""

    def __init__(self, stream: Any, url: str):
        self._stream, self._url = stream, url

    def readinto(self, buffer: Any) -> int:
        with _as_os_error(self._url):
            content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()


def _checked_scheme(url: str, option: str) -> str:
    scheme = url.partition("://")[0]
    if scheme not in _PACKAGES:
        raise UserError(f"{option}: {url}: {scheme}:// is not read: use gs://, s3:// or a local path")
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        wrong = f"needs {_PACKAGES[scheme]}, which is not installed"
        raise UserError(f"{option}: {url} {wrong}: {install('remote')}")
    return scheme


def _first_answer(what: str, call: Callable[[], _Result]) -> _Result:
    try:
        return _within(_FIRST_ANSWER, call)
    except TimeoutError:
        raise UserError(f"{what}: no answer for {_FIRST_ANSWER:.0f} s: {_REMEDY}") from None
    except OSError as error:
        raise UserError(f"{what}: cannot be listed ({error.strerror}): {_REMEDY}") from error


def _file_system(scheme: str) -> Any:
    import fsspec  # only these paths need it

    if scheme == "s3":
        times = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}}
        return fsspec.filesystem("s3", config_kwargs=times, use_listings_cache=False)
    return fsspec.filesystem(scheme, use_listings_cache=False)


def _names(scheme: str, pattern: str) -> list[str]:
    with _as_os_error(pattern):
        files = _file_system(scheme)
        if not any(mark in pattern for mark in "*?["):
            return [pattern.partition("://")[2]] if files.isfile(pattern) else []
        found: dict[str, Json] = files.glob(pattern, detail=True)
        return [name for name, info in found.items() if info["type"] == "file"]


@contextlib.contextmanager
def _as_os_error(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(getattr(error, "errno", None) or 0, reason, url) from error


def _within(seconds: float, call: Callable[[], _Result]) -> _Result:
    """Returns what `call` does. Raises TimeoutError if it takes longer; its thread ends with the process."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.extend((call(), None))
        except BaseException as error:
            outcome.extend((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
