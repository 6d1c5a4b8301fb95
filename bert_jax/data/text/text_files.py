"""Files into lines: names and globs, their hash, decompression by suffix, strict UTF-8; one-line errors throughout.

Files are streamed in blocks of 1 MiB, so memory does not grow with the corpus.
"""

import glob
import gzip
import hashlib
import json
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import zstandard

from bert_jax.config import UserError
from bert_jax.data.text.buckets import find_remote, is_url

_BLOCK = 1 << 20  # bytes
_LONGEST_LINE = 1 << 30  # bytes; whole corpora on one line exist (100 MB)
_ZST_BLOCK = 1 << 12  # bytes, of which a crafted frame makes 128 MiB at most
_KINDS = {"d": "a folder", "p": "a FIFO", "c": "a device", "b": "a device", "s": "a socket"}  # by stat.filemode
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def find_files(files: str, option: str = "data.files") -> list[Path]:
    """Returns the files that a path, or comma-separated paths and globs, names: sorted, each file once.

    Those in buckets (gs://, s3://) come after local ones. `option` is what messages call the place where the user wrote
    it.
    """
    if not files.strip():
        raise UserError(f"{option} is empty: name the files, e.g. --config.{option}='corpus/*.txt.gz'")
    whole = os.path.isfile(files)  # a file name may hold a comma
    found: set[str] = set()
    remote: set[Path] = set()
    for part in [files] if whole else filter(None, map(str.strip, files.split(","))):
        if is_url(part):
            remote.update(find_remote(part, option))
            continue
        name = os.path.expanduser(part)
        if os.path.isdir(name):
            raise UserError(f"{option}: {part} is a folder: name its files, e.g. '{part.rstrip('/')}/*'")
        matches = [name] if os.path.lexists(name) else glob.glob(name, recursive=True)
        matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            wrong = f"no file matches {part}" if glob.has_magic(name) else f"{part} does not exist"
            raise UserError(f"{option}: {wrong} (from {os.getcwd()}): correct the path or pattern")
        found.update(matches)
    return [*map(Path, sorted(found)), *sorted(remote)]


def fingerprint_of(paths: list[Path], options: list[str]) -> str:
    """Returns a hash of every byte (0.3 s for 200 MB): modification times change with a copy or a checkout."""

    def blocks() -> Iterator[bytes]:
        for path in paths:
            check_regular(path)
            size = 0
            for block in _readable(path, lambda path: _blocks_of(path.open("rb"))):
                size += len(block)
                yield block
            if not size:
                raise UserError(f"{path} is empty (0 bytes): fill or leave out this file")
            yield f"\0{size}\0".encode()

    return digest_of(options, blocks())


def digest_of(options: list[str], blocks: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(json.dumps(options).encode(), digest_size=16)
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def read_lines(path: Path) -> Iterator[str]:
    """Yields lines without their ends. Raises UserError for bytes that are not UTF-8, and for zero bytes."""
    return split_lines(str(path), _without_zeros(path), _LONGEST_LINE, partial(_decode, path))


def split_lines(
    name: str, blocks: Iterable[bytes], longest: int, decode: Callable[[bytes, int, int], str]
) -> Iterator[str]:
    """Yields lines without their ends. `decode` gets whole lines, their position in the stream, and the number of lines
    before them. Raises UserError for a line of over `longest` bytes."""
    position = lines = size = 0
    carry: list[bytes] = []  # of a line that has not ended
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if not cut:
            carry.append(block)
            size += len(block)
            if size > longest:
                long = f"a line of over {longest >> 20} MiB"
                raise UserError(f"{name}:{lines + 1}: {long}: put documents on lines of their own")
            continue
        whole = b"".join([*carry, block[:cut]])
        carry, size = [block[cut:]], len(block) - cut
        found = decode(whole, position, lines)[:-1].replace("\r\n", "\n").split("\n")
        found[-1] = found[-1].removesuffix("\r")
        yield from found
        position += len(whole)
        lines += len(found)
    if rest := b"".join(carry):
        yield decode(rest, position, lines).removesuffix("\r")


def check_regular(path: Path, remedy: str = "correct the path") -> None:
    """Raises UserError for what is no regular file: reading a FIFO, a device or a socket may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}): {remedy}") from None
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.filemode(mode)[0], "something else")
        raise UserError(f"{path}: is {kind}, not a regular file: {remedy}")


def read_bytes(path: Path, remedy: str = "correct the path") -> bytes:
    """Returns the content of a regular file. Raises UserError, ending with `remedy`."""
    check_regular(path, remedy)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}): {remedy}") from None


def is_unicode(text: str) -> bool:
    """Returns whether UTF-8 can hold the text, which it cannot if there is half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_value(text: str) -> Any:
    """Returns the value of a JSON text. Halves of surrogate pairs, which escapes can write, become U+FFFD.

    Raises ValueError for what is no JSON, for numbers of over 4,300 digits and for deep nesting.
    """
    try:
        value = json.loads(text)
        if _SURROGATE_ESCAPE.search(text):
            whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            value = json.loads(whole)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    return value


def _open_zst(path: Path) -> Iterator[bytes]:
    """Yields the content frame by frame: the library's stream reader takes a cut file for a finished one."""
    with path.open("rb") as stream:
        frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
        while block := stream.read(_ZST_BLOCK):
            while block:
                begun = True
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
        if begun:
            raise EOFError("ends in the middle of a frame")


def _decompressed(path: Path, opener: Callable[[Any], Any]) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from _blocks_of(opener(stream))


def _blocks_of(stream: Any) -> Iterator[bytes]:
    with stream:
        while block := stream.read(_BLOCK):
            yield block


OPENERS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    ".gz": lambda path: _decompressed(path, gzip.open),
    ".xz": lambda path: _decompressed(path, lzma.open),
    ".zst": _open_zst,
}


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yields the content of a file, decompressed by its suffix."""
    return _readable(path, OPENERS.get(path.suffix, lambda path: _blocks_of(path.open("rb"))))


def _readable(path: Path, opener: Callable[[Path], Iterator[bytes]]) -> Iterator[bytes]:
    try:
        yield from opener(path)
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: corrupt or cut {path.suffix} file ({error}): get it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}): fix or leave out this file") from error


def reason_of(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _without_zeros(path: Path) -> Iterator[bytes]:
    """Yields the blocks of a file of text. Zeros are refused at once: a bomb of them must not fill the memory first."""
    position = 0
    for block in read_blocks(path):
        if (null := block.find(b"\0")) >= 0:
            raise UserError(f"{path}: binary data (a zero byte) at byte {position + null}: leave out this file")
        position += len(block)
        yield block


def _decode(path: Path, block: bytes, position: int, lines: int) -> str:
    """`position` is that of the block in the (uncompressed) file, after so many `lines`."""
    try:
        return block.decode("utf-8-sig" if position == 0 else "utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (3 if position == 0 and block.startswith(b"\xef\xbb\xbf") else 0)
        number = lines + block.count(b"\n", 0, at) + 1
        wrong = f"not UTF-8 at byte {position + at} (0x{block[at]:02x})"
        raise UserError(f"{path}:{number}: {wrong}: convert it, e.g. with iconv -f LATIN1 -t UTF-8") from error
