"""Files in buckets, gs:// and s3://, through fsspec (extra `remote`): found by a glob and read like local ones.

Credentials are those of the vendors' own tools (AWS_* variables, ~/.aws, gcloud, service accounts).
"""

import contextlib
import importlib.util
import io
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from bert_jax.config import UserError

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")
_FIRST_ANSWER = 60.0  # seconds; libraries look for credentials on the network and try again several times
_BLOCK = 1 << 23  # bytes asked for at a time
_Result = TypeVar("_Result")


def is_url(name: str | os.PathLike[str]) -> bool:
    return _SCHEME.match(os.fspath(name)) is not None


def find_remote(pattern: str, option: str) -> list[Path]:
    """Returns the files that a gs:// or s3:// path or glob names. Raises UserError within a minute."""
    scheme = pattern.partition("://")[0]
    if scheme not in _PACKAGES:
        raise UserError(f"{option}: {pattern}: {scheme}:// is not read: use gs://, s3:// or a local path")
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        wrong = f"needs {_PACKAGES[scheme]}, which is not installed"
        raise UserError(f"{option}: {pattern} {wrong}: pip install 'bert_jax[remote]'")
    remedy = "check the name, the network and your credentials"
    try:
        names = _within(_FIRST_ANSWER, lambda: _names(scheme, pattern))
    except TimeoutError:
        raise UserError(f"{option}: {pattern}: no answer for {_FIRST_ANSWER:.0f} s: {remedy}") from None
    except OSError as error:
        raise UserError(f"{option}: {pattern}: cannot be listed ({error.strerror}): {remedy}") from error
    if not names:
        raise UserError(f"{option}: no file matches {pattern}: {remedy}")
    return [BucketFile(f"{scheme}://{name}") for name in names]


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

    def open(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        """Opens the file for reading bytes. Raises OSError, also while it is read."""
        if mode not in ("rb", "r"):
            raise OSError(f"{self}: files in buckets are only read")
        with _as_os_error(str(self)):
            stream = _file_system(self.parts[0][:-1]).open(str(self), "rb", block_size=_BLOCK)
        return io.BufferedReader(_Stream(stream, str(self)))

    def stat(self, **_: Any) -> os.stat_result:
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
        found: dict[str, dict[str, Any]] = files.glob(pattern, detail=True)
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
