"""A corpus in parts, which many machines prepare; together they give what one process gives, bit for bit.

1. `IndexPart` stores the hashes of a part's documents.
2. `plan_parts` derives from the hashes with which state of the splitter, and with which document number, a part begins.
3. `PreparePart` stores the records of a part.

Between them lie files in one folder, which may be in a bucket. Each file appears whole or not at all, so a part that
has its last file is finished and never done again.
"""

import contextlib
import copy
import io
import json
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from etils import epath

from bert_jax.config import UserError
from bert_jax.data.pretraining.chunks import BlockResult, BlockWork, blocks
from bert_jax.data.pretraining.cleaning import Duplicates, count_duplicate, line_hashes
from bert_jax.data.pretraining.report import Statistics
from bert_jax.data.pretraining.splits import SPLITS, Splitter, hash_of
from bert_jax.data.text.corpus import Corpus, Document, Source

_PART_BYTES = (1 << 20, 1 << 26)  # the least and the most of a part, unless one file is larger
_PARTS = 256  # of a corpus between these sizes
_READ_RECORDS = 1 << 12  # at a time
_ERROR = "error"  # suffix of the file with a part's message

Ref = tuple[int, int]  # a document: number of its part, position in that part


@dataclass(frozen=True)
class Part:
    """Consecutive files of a corpus. `number` counts the parts from 0."""

    number: int
    sources: tuple[Source, ...]

    def documents(self) -> Iterator[Document]:
        return chain.from_iterable(source.documents() for source in self.sources)


@dataclass(frozen=True)
class PlannedPart:
    """A part with what comes from the parts before it."""

    part: Part
    splitter: Splitter[Document]  # its state where the part begins
    first_document: int
    num_documents: int
    is_last: bool
    # Where data.deduplicate: of a document, by its position, the lines that occurred before; None: the whole document.
    duplicates: Mapping[int, tuple[int, ...] | None]


def cut_parts(corpus: Corpus) -> list[Part]:
    """Returns the parts, which depend on the corpus alone: a later start finds what an earlier one finished."""
    least, most = _PART_BYTES
    limit = min(max(sum(source.num_bytes for source in corpus.sources) // _PARTS, least), most)
    parts: list[Part] = []
    sources: list[Source] = []
    size = 0
    for source in corpus.sources:
        if sources and size + source.num_bytes > limit:
            parts.append(Part(len(parts), tuple(sources)))
            sources, size = [], 0
        sources.append(source)
        size += source.num_bytes
    return [*parts, Part(len(parts), tuple(sources))]


def unfinished(folder: epath.Path, numbers: Sequence[int], suffix: str) -> list[int]:
    """Returns the parts that have no file with this suffix, and removes the messages of earlier starts."""
    found = {path.name for path in folder.iterdir()}
    for name in found:
        if name.endswith(f".{_ERROR}"):
            (folder / name).unlink()
    return [number for number in numbers if f"{number:06d}.{suffix}" not in found]


def raise_error(folder: epath.Path) -> None:
    """Raises UserError with the message of the first part that has left one."""
    if messages := sorted(path for path in folder.iterdir() if path.name.endswith(f".{_ERROR}")):
        raise UserError(messages[0].read_text())


@dataclass(frozen=True)
class IndexPart:
    """Stores the hash of each document of a part, its bytes in the sample that a vocabulary is learned from, and with
    `deduplicates` the hashes of its lines."""

    folder: str
    seed: int
    sample_limit: int  # bytes; 0 = no vocabulary is learned
    deduplicates: bool = False

    def __call__(self, part: Part) -> None:
        with _message_kept(self.folder, part):
            hashes, sizes, lines, counts = [], [], [], []
            for document in part.documents():
                hashes.append(hash_of(document, self.seed))
                sizes.append(len(document.text[: self.sample_limit].encode("utf-8", "replace")))
                found = line_hashes(document) if self.deduplicates else []
                lines += found
                counts.append(len(found))
            arrays = {"hashes": np.asarray(hashes, np.uint64), "sizes": np.asarray(sizes, np.uint32)}
            if self.deduplicates:
                arrays |= {"lines": np.asarray(lines, np.uint64), "counts": np.asarray(counts, np.uint32)}
            store(_file(self.folder, part.number, "index"), arrays)


@dataclass(frozen=True)
class SamplePart:
    """Gives the texts of every `stride`-th document of the corpus, which begins a part at number `first`."""

    stride: int
    limit: int  # characters of a text

    def __call__(self, part: Part, first: int) -> Iterator[str]:
        for document in islice(part.documents(), -first % self.stride, None, self.stride):
            yield document.text[: self.limit]


@dataclass(frozen=True)
class PreparePart:
    """Stores the records and the statistics of a part."""

    folder: str
    seed: int
    work: BlockWork

    def __call__(self, planned: PlannedPart) -> None:
        part = planned.part
        with _message_kept(self.folder, part), contextlib.ExitStack() as files:
            written = {split: _Whole(_file(self.folder, part.number, split)) for split in SPLITS}
            streams = {split: files.enter_context(whole) for split, whole in written.items()}
            sizes: dict[str, list[int]] = {split: [] for split in SPLITS}
            statistics = {split: Statistics() for split in SPLITS}
            size = 0
            for block in blocks(self._split(planned, statistics["train"].removed), planned.first_document):
                result = self.work(block)
                size += result.num_bytes
                for split, records in result.records.items():
                    streams[split].write(b"".join(records))
                    sizes[split] += map(len, records)
                for split, found in result.statistics.items():
                    statistics[split].merge(found)
        if any(whole.failed for whole in written.values()):
            return
        arrays = {split: np.asarray(lengths, np.uint32) for split, lengths in sizes.items()}
        content = json.dumps({split: found.to_json() for split, found in statistics.items()}).encode()
        arrays |= {"statistics": np.frombuffer(content, np.uint8), "num_bytes": np.asarray(size)}
        store(_file(self.folder, part.number, "done"), arrays)

    def _split(self, planned: PlannedPart, removed: Counter[str]) -> Iterator[tuple[str, Document]]:
        splitter, count = copy.deepcopy(planned.splitter), 0  # the runner may call again with the same part
        for count, document in enumerate(planned.part.documents(), 1):
            lines = planned.duplicates.get(count - 1, ())
            if lines is None:
                count_duplicate(removed, document)
            else:
                yield from splitter.add(hash_of(document, self.seed), replace(document, duplicates=lines))
        if count != planned.num_documents:
            raise UserError(f"{_names(planned.part)}: changed during preparation: start again")
        if planned.is_last:
            yield from splitter.finish()


def sample_stride(folder: epath.Path, parts: Sequence[Part], limit: int) -> tuple[int, list[int]]:
    """Returns which documents a vocabulary is learned from (every how many), and the number of each part's first.

    It is the smallest power of two whose documents have at most `limit` bytes together, as in the local sample.
    """
    sizes = [load(_file(folder, part.number, "index"))["sizes"] for part in parts]
    firsts = [0, *np.cumsum([len(size) for size in sizes]).tolist()]
    joined, stride = np.concatenate(sizes).astype(np.int64), 1
    while len(kept := joined[::stride]) > 1 and kept.sum() > limit:
        stride *= 2
    return stride, firsts[:-1]


def plan_parts(folder: epath.Path, parts: Sequence[Part], splitter: Splitter[Ref]) -> list[PlannedPart]:
    """Returns the parts as `PreparePart` takes them. All must be indexed."""
    starts: list[tuple[Splitter[Ref], int, int]] = []
    before = Duplicates()
    duplicates: list[dict[int, tuple[int, ...] | None]] = []
    carried: list[set[Ref]] = []  # documents of earlier parts that come out in this one
    number = 0
    for part in parts:
        found = load(_file(folder, part.number, "index"))
        hashes = found["hashes"].tolist()
        duplicates.append(_duplicates(before, found) if "lines" in found else {})
        starts.append((copy.deepcopy(splitter), number, len(hashes)))
        carried.append(set())
        for index, value in enumerate(hashes):
            if duplicates[-1].get(index, ()) is None:
                continue
            for _, ref in splitter.add(value, (part.number, index)):
                number += 1
                if ref[0] != part.number:
                    carried[-1].add(ref)
    carried[-1] |= {ref for ref, _ in splitter.reserve.values() if ref[0] != parts[-1].number}
    texts = {
        (part, index): replace(document, duplicates=duplicates[part].get(index) or ())
        for (part, index), document in _fetched(parts, set().union(*carried)).items()
    }
    return [
        PlannedPart(part, _with_texts(state, texts, wanted), first, count, part is parts[-1], lines)
        for part, (state, first, count), wanted, lines in zip(parts, starts, carried, duplicates, strict=True)
    ]


def _duplicates(before: Duplicates, index: Mapping[str, np.ndarray]) -> dict[int, tuple[int, ...] | None]:
    """Returns what occurred before of a part, by the position of the document, and adds the part to `before`."""
    lines = np.split(index["lines"], np.cumsum(index["counts"].astype(np.int64)))[:-1]
    found = {}
    for position, (value, own) in enumerate(zip(index["hashes"].tolist(), lines, strict=True)):
        if (numbers := before.add(value, own.tolist())) != ():
            found[position] = numbers
    return found


def read_results(folder: epath.Path, parts: Sequence[Part]) -> Iterator[BlockResult]:
    """Yields the records in order, and the statistics of each part after its records."""
    for part in parts:
        done = load(_file(folder, part.number, "done"))
        for split in SPLITS:
            yield from _read_records(_file(folder, part.number, split), split, done[split])
        found = json.loads(done["statistics"].tobytes())
        statistics = {split: Statistics.from_json(found[split]) for split in SPLITS}
        yield BlockResult(int(done["num_bytes"]), {}, statistics)


def store(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to a file that appears whole or not at all."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    with _Whole(path) as stream:
        stream.write(content.getvalue())


def load(path: epath.Path) -> Mapping[str, np.ndarray]:
    """Returns what `store` has written. Raises UserError."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(path, f"cannot be read ({error})") from error


def _read_records(path: epath.Path, split: str, sizes: np.ndarray) -> Iterator[BlockResult]:
    try:
        with path.open("rb") as stream:
            for start in range(0, len(sizes), _READ_RECORDS):
                wanted = sizes[start : start + _READ_RECORDS].tolist()
                content = io.BytesIO(stream.read(sum(wanted)))
                records = [content.read(size) for size in wanted]
                if [len(record) for record in records] != wanted:
                    raise _damaged(path, "is cut")
                yield BlockResult(0, {split: records}, {})
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error})") from error


def _fetched(parts: Sequence[Part], refs: set[Ref]) -> dict[Ref, Document]:
    """Returns a few documents, some for each doubling of the corpus."""
    wanted: dict[int, set[int]] = {}
    for number, index in refs:
        wanted.setdefault(number, set()).add(index)
    found = {}
    for number, indices in wanted.items():
        for index, document in enumerate(islice(parts[number].documents(), max(indices) + 1)):
            if index in indices:
                found[number, index] = document
    return found


def _with_texts(state: Splitter[Ref], texts: Mapping[Ref, Document], wanted: set[Ref]) -> Splitter[Document]:
    """Returns the same state. A document that a part does not give out only holds its place there, without text."""
    place = Document("", "", True)
    reserve = {hash: (texts[ref] if ref in wanted else place, n) for hash, (ref, n) in state.reserve.items()}
    return Splitter(state.validation_share, state.test_share, state.found, reserve)


def _names(part: Part) -> str:
    return f"part {part.number} of the corpus ({len(part.sources)} files)"


def _file(folder: str | epath.Path, number: int, suffix: str) -> epath.Path:
    return epath.Path(folder) / f"{number:06d}.{suffix}"


@contextlib.contextmanager
def _message_kept(folder: str, part: Part) -> Iterator[None]:
    """Stores the message of a UserError, for the process that started all: a runner would try the part again, and show
    a traceback."""
    try:
        yield
    except UserError as error:
        _file(folder, part.number, _ERROR).write_text(str(error))


class _Whole:
    """A file that appears under its name when the block has ended without an exception."""

    def __init__(self, path: epath.Path):
        self._path, self._temporary = path, path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        self.failed = False

    def __enter__(self) -> Any:
        self._stream = self._temporary.open("wb")
        return self._stream

    def __exit__(self, kind: object, *_: object) -> None:
        self._stream.close()
        self.failed = kind is not None
        if self.failed:
            self._temporary.unlink(missing_ok=True)
        else:
            self._temporary.replace(self._path)


def _damaged(path: epath.Path, wrong: str) -> UserError:
    return UserError(f"{path}: {wrong}: delete {path.parent} and prepare again")
