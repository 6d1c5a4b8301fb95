"""Documents → blocks → chunks → records: the part of preparation that runs in many processes (`workers.py`).

A block is about 1 MB of neighbouring documents. What becomes of it is a function of the block alone, so what is written
depends on the corpus and never on the number of workers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np
from jaxtyping import Integer

from bert_jax.data.pretraining.cleaning import Cleaning
from bert_jax.data.pretraining.records import encode_record
from bert_jax.data.pretraining.report import Statistics
from bert_jax.data.text.corpus import Document, split_sentences
from bert_jax.data.tokenizers.tokenizer import Tokenizer

_BLOCK = 1 << 20  # bytes of text
_BATCH_CHARACTERS = 1 << 18  # of text tokenised at a time

Ids = Integer[np.ndarray, " T"]
Lengths = Integer[np.ndarray, " N"]  # of sentences, in tokens


@dataclass
class Block:
    """Neighbouring documents of the corpus, each with its split; `first_document` is the number of the first."""

    first_document: int
    documents: list[tuple[str, Document]] = field(default_factory=list)
    num_bytes: int = 0


@dataclass(frozen=True)
class BlockResult:
    """The records and the statistics of a block, by split."""

    num_bytes: int
    records: dict[str, list[bytes]]
    statistics: dict[str, Statistics]


@dataclass(frozen=True)
class BlockWork:
    """A picklable function from a block to its result."""

    tokenizer: Tokenizer
    sequence_length: int
    token_dtype: np.dtype
    cleaning: Cleaning = field(default_factory=Cleaning)

    def __call__(self, block: Block) -> BlockResult:
        result = BlockResult(block.num_bytes, {}, {})
        for number, split, ids, lengths in self._tokenized(block, result.statistics):
            records = self._records(number, ids, lengths, result.statistics[split])
            result.records.setdefault(split, []).extend(records)
        return result

    def _tokenized(self, block: Block, statistics: dict[str, Statistics]) -> Iterator[tuple[int, str, Ids, Lengths]]:
        """Yields (document number, split, ids, sentence lengths)."""
        # The tokenizer gets the sentences of many documents at a time: a call costs as much as a short document.
        waiting: list[tuple[int, str, list[str]]] = []
        characters = 0
        last = block.first_document + len(block.documents) - 1
        for number, (split, document) in enumerate(block.documents, block.first_document):
            document, removed = self.cleaning(document)
            sentences = split_sentences(document)
            own_statistics = statistics.setdefault(split, Statistics())
            own_statistics.add_lines(sentences)
            own_statistics.removed.update(removed)
            waiting.append((number, split, sentences))
            characters += len(document.text)
            if characters >= _BATCH_CHARACTERS or number == last:
                ids, lengths = self._encoded(list(chain.from_iterable(s for _, _, s in waiting)))
                token = sentence = 0
                for waiting_number, waiting_split, sentences in waiting:
                    own = lengths[sentence : sentence + len(sentences)]
                    size = int(own.sum())
                    yield waiting_number, waiting_split, ids[token : token + size], own
                    token, sentence = token + size, sentence + len(sentences)
                waiting, characters = [], 0

    def _encoded(self, sentences: list[str]) -> tuple[Ids, Lengths]:
        """Returns what `encode_flat` does, in parts, so that memory stays flat: a book is one document."""
        parts, first, characters = [(np.zeros(0, self.token_dtype), np.zeros(0, np.int64))], 0, 0
        for index, sentence in enumerate(sentences, 1):
            characters += len(sentence)
            if characters >= _BATCH_CHARACTERS or index == len(sentences):
                ids, lengths = self.tokenizer.encode_flat(sentences[first:index])
                parts.append((ids.astype(self.token_dtype), lengths))
                first, characters = index, 0
        ids, lengths = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def _records(self, number: int, tokens: Ids, sentences: Lengths, statistics: Statistics) -> list[bytes]:
        lengths, chunks = cut_chunks(sentences.tolist(), self.sequence_length - 3)
        if not lengths:
            return []
        ends = [0, *accumulate(lengths)]
        unknown = int(np.count_nonzero(tokens == self.tokenizer.unk_id))
        bounds = [(ends[first], ends[last]) for first, last in chunks]
        statistics.add_document(lengths, [stop - start for start, stop in bounds], unknown)
        sizes, count = np.asarray(lengths, np.dtype("<u2")), len(chunks)
        records = []
        for index, ((first, last), (start, stop)) in enumerate(zip(chunks, bounds, strict=True)):
            arrays = {"tokens": tokens[start:stop], "sentence_lengths": sizes[first:last]}
            records.append(encode_record(arrays | {"document": number, "chunk_index": index, "num_chunks": count}))
        return records


def cut_chunks(sentence_lengths: Iterable[int], target: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns sentence lengths of at most `target` tokens, and the chunks as ranges (first, last + 1) of them.

    A chunk takes whole sentences until it has `target` tokens or the document ends, as the original's instances do, so
    it may be longer than a row: which end is cut is drawn again in each epoch. A longer sentence is cut into pieces of
    `target` tokens, so no token is lost; empty ones vanish.
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


def blocks(split: Iterable[tuple[str, Document]], first_document: int = 0) -> Iterator[Block]:
    """Yields blocks of about 1 MB of text. `first_document` is the number of the first one."""
    block = Block(first_document)
    for name, document in split:
        block.documents.append((name, document))
        block.num_bytes += num_bytes(document)
        if block.num_bytes >= _BLOCK:
            yield block
            block = Block(block.first_document + len(block.documents))
    if block.documents:
        yield block


def num_bytes(document: Document) -> int:
    return len(document.text.encode("utf-8", "surrogatepass"))
