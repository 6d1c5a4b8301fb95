"""Which documents train, validate and test: a function of their text and of the seed."""

import hashlib
import heapq
import logging
from collections.abc import Iterable, Iterator

from bert_jax.data.text.corpus import Document

SPLITS = ("train", "validation", "test")
_MIN_DOCUMENTS = 2  # per split: nsp draws from another document
_log = logging.getLogger(__name__)


def split_documents(
    documents: Iterable[Document], seed: int, validation_share: float, test_share: float
) -> Iterator[tuple[str, Document]]:
    """Yields each document with its split, which a hash of text and seed decides: equal texts share a split.

    The shares are probabilities, so a small corpus could leave a split empty. Therefore the first two texts always
    train, and of the other training texts the four with the smallest hashes are held back to the end, where they fill a
    held-out split that has fewer than two.
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
        # The reserve takes texts of the training split only, and only whole sets of equal texts.
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


class _Reserve:
    """The few training texts with the smallest hashes. Equal texts stay together: each is stored once, with a count."""

    def __init__(self, size: int):
        self._size = size
        self._heap: list[int] = []  # negative hashes: the largest hash on top
        self._texts: dict[int, tuple[Document, int]] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def offer(self, value: int, document: Document) -> Iterator[Document]:
        """Keeps the document, or lets it go; yields what is not kept, which may be documents offered earlier."""
        if value in self._texts:
            kept, number = self._texts[value]
            self._texts[value] = kept, number + 1
            return
        if self._size == 0:
            yield document
            return
        self._texts[value] = document, 1
        heapq.heappush(self._heap, -value)
        if len(self._heap) > self._size:
            released, number = self._texts.pop(-heapq.heappop(self._heap))
            yield from [released] * number

    def take(self, count: int) -> Iterator[Document]:
        """Removes the `count` texts with the smallest hashes and yields their documents."""
        for value in sorted(self._texts)[:count]:
            self._heap.remove(-value)
            document, number = self._texts.pop(value)
            yield from [document] * number
