"""Documents → blocks → chunks → records: the part of preparation that runs in many processes.

The process that reads the corpus assigns each document to a split and sends blocks of documents, one at a
time, to whichever worker is free, so memory stays flat. It gets their records back and puts them in the order of the
blocks: what is written depends on the corpus alone, never on the number of workers.
"""

import hashlib
import heapq
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from bert_jax.config import UserError
from bert_jax.data.pretraining.records import encode_record
from bert_jax.data.pretraining.report import Statistics
from bert_jax.data.text.corpus import Document, split_sentences
from bert_jax.data.tokenizers.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")
_MIN_DOCUMENTS = 2  # of a split: nsp draws from another document
_BLOCK = 1 << 20  # bytes of text
_BATCH_CHARACTERS = 1 << 18  # of text tokenised at a time
_log = logging.getLogger(__name__)


@dataclass
class Block:
    """Neighbouring documents of the corpus, each with its split."""

    index: int
    first_document: int
    documents: list[tuple[str, Document]] = field(default_factory=list)
    num_bytes: int = 0


@dataclass(frozen=True)
class BlockResult:
    """What a block became, by split."""

    index: int
    num_bytes: int
    records: dict[str, list[bytes]]
    statistics: dict[str, Statistics]


@dataclass(frozen=True)
class BlockWork:
    """What a worker needs to turn blocks into records; called with a block, it returns the result."""

    tokenizer: Tokenizer
    sequence_length: int
    token_dtype: np.dtype

    def __call__(self, block: Block) -> BlockResult:
        records: dict[str, list[bytes]] = {}
        statistics: dict[str, Statistics] = {}
        for number, split, ids, lengths in self._tokenized(block, statistics):
            records.setdefault(split, []).extend(self._records(number, ids, lengths, statistics[split]))
        return BlockResult(block.index, block.num_bytes, records, statistics)

    def _tokenized(
        self, block: Block, statistics: dict[str, Statistics]
    ) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
        """(document number, split, ids, sentence lengths); the tokenizer gets many sentences at a time."""
        waiting: list[tuple[int, str, list[str]]] = []
        characters = 0
        last = len(block.documents) - 1
        for offset, (split, document) in enumerate(block.documents):
            sentences = split_sentences(document)
            statistics.setdefault(split, Statistics()).add_lines(sentences)
            waiting.append((block.first_document + offset, split, sentences))
            characters += len(document.text)
            if characters >= _BATCH_CHARACTERS or offset == last:
                ids, lengths = self._encoded(list(chain.from_iterable(s for _, _, s in waiting)))
                token = sentence = 0
                for number, split_name, sentences in waiting:
                    document = lengths[sentence : sentence + len(sentences)]
                    size = int(document.sum())
                    yield number, split_name, ids[token : token + size], document
                    token, sentence = token + size, sentence + len(sentences)
                waiting, characters = [], 0

    def _encoded(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `encode_flat`, but memory does not grow with what is given: a book is one document."""
        parts, first, characters = [], 0, 0
        for index, sentence in enumerate(sentences, 1):
            characters += len(sentence)
            if characters >= _BATCH_CHARACTERS or index == len(sentences):
                ids, lengths = self.tokenizer.encode_flat(sentences[first:index])
                parts.append((ids.astype(self.token_dtype), lengths))
                first, characters = index, 0
        if not parts:
            return np.zeros(0, self.token_dtype), np.zeros(0, np.int64)
        ids, lengths = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def _records(self, number: int, tokens: np.ndarray, sentences: np.ndarray, statistics: Statistics) -> list[bytes]:
        lengths, chunks = cut_chunks(sentences.tolist(), self.sequence_length - 3)
        if not lengths:
            return []
        ends = [0, *accumulate(lengths)]
        unknown = int(np.count_nonzero(tokens == self.tokenizer.unk_id))
        bounds = [(ends[first], ends[last]) for first, last in chunks]
        statistics.add_document(lengths, [stop - start for start, stop in bounds], unknown)
        sizes = np.asarray(lengths, np.dtype("<u2"))
        return [
            encode_record(
                {
                    "tokens": tokens[start:stop],
                    "sentence_lengths": sizes[first:last],
                    "document": number,
                    "chunk_index": index,
                    "num_chunks": len(chunks),
                }
            )
            for index, ((first, last), (start, stop)) in enumerate(zip(chunks, bounds, strict=True))
        ]


def cut_chunks(sentence_lengths: Iterable[int], target: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Sentence lengths with none over `target` tokens, and the chunks as ranges (first, last + 1) of them.

    A chunk takes whole sentences until it has `target` tokens or the document ends. A longer sentence is
    cut into pieces of `target` tokens, so no token is lost; empty ones vanish.
    """
    lengths: list[int] = []
    chunks: list[tuple[int, int]] = []
    first = size = 0
    for length in sentence_lengths:
        while length > 0:
            piece = min(length, target)
            length -= piece
            lengths.append(piece)
            size += piece
            if size >= target:
                chunks.append((first, len(lengths)))
                first, size = len(lengths), 0
    if size:
        chunks.append((first, len(lengths)))
    return lengths, chunks


def split_documents(
    documents: Iterable[Document], seed: int, validation_share: float, test_share: float
) -> Iterator[tuple[str, Document]]:
    """Each document with its split, by a hash of text and seed: equal texts share a split.

    The shares are probabilities, so a small corpus could leave a split empty. Therefore the first two texts
    always train, and the four with the smallest hashes of the other training texts are held back to the
    end, where they fill a held-out split that has fewer than two.
    """
    shares = {"validation": validation_share, "test": test_share}
    found: dict[str, set[int]] = {split: set() for split in SPLITS}  # hashes of the first two texts
    reserve = _Reserve(_MIN_DOCUMENTS * sum(share > 0 for share in shares.values()))
    for document in documents:
        digest = hashlib.blake2b(document.text.encode("utf-8", "surrogatepass"), digest_size=8, key=b"%d" % seed)
        value = int.from_bytes(digest.digest(), "big")
        position = value / 2.0**64
        split = "validation" if position < validation_share else "test"
        if position >= validation_share + test_share:
            split = "train"
        if value in found["train"] or len(found["train"]) < _MIN_DOCUMENTS:
            split = "train"
        if len(found[split]) < _MIN_DOCUMENTS:
            found[split].add(value)
        elif split == "train" and value not in found["train"]:
            yield from (("train", released) for released in reserve.offer(value, document))
            continue
        yield split, document
    for split, share in shares.items():
        missing = _MIN_DOCUMENTS - len(found[split]) if share > 0 else 0
        if missing > len(reserve):
            _log.warning("the corpus is too small for a %s split of two documents", split)
        elif missing:
            yield from ((split, document) for document in reserve.take(missing))
    yield from (("train", document) for document in reserve.take(len(reserve)))


def blocks(split: Iterable[tuple[str, Document]]) -> Iterator[Block]:
    """Blocks of about 1 MB of text."""
    block = Block(0, 0)
    for name, document in split:
        block.documents.append((name, document))
        block.num_bytes += len(document.text.encode("utf-8", "surrogatepass"))
        if block.num_bytes >= _BLOCK:
            yield block
            block = Block(block.index + 1, block.first_document + len(block.documents))
    if block.documents:
        yield block


def run_blocks(source: Iterator[Block], work: BlockWork, workers: int) -> Iterator[BlockResult]:
    """The results in block order, from `workers` processes (1: from this one)."""
    if workers == 1:
        yield from map(work, source)
        return
    expected, ready = 0, {}
    for result in _parallel(source, work, workers):
        ready[result.index] = result
        while expected in ready:
            yield ready.pop(expected)
            expected += 1


class _Reserve:
    """The few training texts with the smallest hashes; equal texts stay together, stored once with their number."""

    def __init__(self, size: int):
        self._size = size
        self._heap: list[int] = []  # negative hashes: the largest hash on top
        self._texts: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def offer(self, value: int, document: Document) -> Iterator[Document]:
        """Keeps the document or another instead; yields what is not kept."""
        if value in self._texts:
            self._texts[value][1] += 1
            return
        if self._size == 0:
            yield document
            return
        self._texts[value] = [document, 1]
        heapq.heappush(self._heap, -value)
        if len(self._heap) > self._size:
            released, number = self._texts.pop(-heapq.heappop(self._heap))
            yield from [released] * number

    def take(self, count: int) -> Iterator[Document]:
        """Removes the `count` texts with the smallest hashes."""
        for value in sorted(self._texts)[:count]:
            self._heap.remove(-value)
            document, number = self._texts.pop(value)
            yield from [document] * number


def _parallel(source: Iterator[Block], work: BlockWork, workers: int) -> Iterator[BlockResult]:
    """Results as they come. A worker has one block at a time, so neither side ever blocks the other's pipe."""
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    processes: dict[Any, Any] = {}
    busy: dict[Any, int] = {}
    try:
        for block in source:
            if len(processes) < workers:
                connection, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                processes[connection] = process
                # Not as an argument: `start` would wait for good to hand over as much to a process that has died.
                _send(work, connection, process, block.index)
            else:
                connection: Any = next(iter(set(processes) - set(busy)), None)
                if connection is None:
                    connection = wait(list(busy))[0]
                    yield _receive(connection, processes, busy)
            busy[connection] = block.index
            _send(block, connection, processes[connection], block.index)
        while busy:
            for connection in wait(list(busy)):
                yield _receive(connection, processes, busy)
    finally:
        for connection, process in processes.items():
            connection.close()  # the worker sees the end of its pipe, also when this process is killed
            process.join(timeout=5)
            process.kill()


def _send(what: Any, connection: Any, process: Any, index: int) -> None:
    try:
        connection.send(what)
    except ConnectionError:
        raise _died(process, index) from None


def _receive(connection: Any, processes: dict[Any, Any], busy: dict[Any, int]) -> BlockResult:
    index = busy.pop(connection)
    try:
        result = connection.recv()
    except (EOFError, ConnectionError):
        raise _died(processes[connection], index) from None
    if isinstance(result, BaseException):
        raise result
    return result


def _died(process: Any, index: int) -> UserError:
    process.join(timeout=5)
    message = f"a worker died while preparing block {index} (exit code {process.exitcode}): "
    if process.exitcode == 1:  # Python's for an exception: it never came as far as serving
        return UserError(message + 'its error is above; a script needs `if __name__ == "__main__":` around this call')
    return UserError(message + "most likely out of memory; lower data.workers")


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    try:
        work = connection.recv()
        while True:
            block = connection.recv()
            try:
                result: Any = work(block)
            except Exception as error:
                result = error
            connection.send(result)
    except (EOFError, ConnectionError):
        return
