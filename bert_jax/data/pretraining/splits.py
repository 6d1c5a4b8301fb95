"""Which documents train, validate and test: a function of their text and of the seed."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bert_jax.data.text.corpus import Document

SPLITS = ("train", "validation", "test")
_MIN_DOCUMENTS = 2  # per split: nsp draws from another document
_log = logging.getLogger(__name__)
Item = TypeVar("Item")


def split_documents(
    documents: Iterable[Document], seed: int, validation_share: float, test_share: float
) -> Iterator[tuple[str, Document]]:
    """Yields each document with its split, in the order of a `Splitter`."""
    splitter = Splitter[Document](validation_share, test_share)
    for document in documents:
        yield from splitter.add(hash_of(document, seed), document)
    yield from splitter.finish()


def hash_of(document: Document, seed: int) -> int:
    """Returns the 64 bits of text and seed that decide about the split."""
    digest = hashlib.blake2b(document.text.encode("utf-8", "surrogatepass"), digest_size=8, key=b"%d" % seed)
    return int.from_bytes(digest.digest(), "big")


@dataclass
class Splitter(Generic[Item]):
    """Assigns splits to a stream of documents, or of what stands for them, by their hashes: equal texts share a split.

    The shares are probabilities, so a small corpus could leave a split empty. Therefore the first two texts always
    train, and of the other training texts the four with the smallest hashes are held back to the end, where they fill a
    held-out split that has fewer than two.
    """

    validation_share: float
    test_share: float
    found: dict[str, set[int]] = field(default_factory=lambda: {split: set() for split in SPLITS})  # first two hashes
    # The training texts with the smallest hashes, and how often each occurred; equal ones stay together.
    reserve: dict[int, tuple[Item, int]] = field(default_factory=dict)

    def add(self, value: int, item: Item) -> list[tuple[str, Item]]:
        """Takes the next document by its hash. Returns the documents whose split is now certain, in their order."""
        position = value / 2.0**64
        split = "validation" if position < self.validation_share else "test"
        if position >= self.validation_share + self.test_share:
            split = "train"
        train = self.found["train"]
        if value in train or len(train) < _MIN_DOCUMENTS:
            split = "train"
        # The reserve takes texts of the training split only, and only whole sets of equal texts.
        if len(self.found[split]) < _MIN_DOCUMENTS:
            self.found[split].add(value)
        elif split == "train" and value not in train:
            first, count = self.reserve.get(value, (item, 0))
            self.reserve[value] = first, count + 1  # one copy of a text that occurs a million times
            if len(self.reserve) <= _MIN_DOCUMENTS * sum(
                share > 0 for share in (self.validation_share, self.test_share)
            ):
                return []
            released, count = self.reserve.pop(max(self.reserve))
            return [("train", released)] * count
        return [(split, item)]

    def finish(self) -> Iterator[tuple[str, Item]]:
        """Yields the documents that were held back."""
        for split, share in (("validation", self.validation_share), ("test", self.test_share)):
            missing = _MIN_DOCUMENTS - len(self.found[split]) if share > 0 else 0
            if missing > len(self.reserve):
                _log.warning("the corpus is too small for a %s split of two documents", split)
                continue
            for value in sorted(self.reserve)[: max(0, missing)]:
                item, count = self.reserve.pop(value)
                yield from [(split, item)] * count
        for value in sorted(self.reserve):
            item, count = self.reserve[value]
            yield from [("train", item)] * count
