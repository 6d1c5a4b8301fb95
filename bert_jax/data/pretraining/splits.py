"""Which documents train, validate and test: a function of their text and of the seed."""

import hashlib
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
    size = _MIN_DOCUMENTS * sum(share > 0 for share in shares.values())
    reserve: dict[int, list[Document]] = {}  # the training texts with the smallest hashes; equal ones stay together
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
            same = reserve.setdefault(value, [])
            same.append(same[0] if same else document)  # one copy of a text that occurs a million times
            if len(reserve) > size:
                yield from (("train", released) for released in reserve.pop(max(reserve)))
            continue
        yield split, document
    for split, share in shares.items():
        missing = _MIN_DOCUMENTS - len(found[split]) if share > 0 else 0
        if missing > len(reserve):
            _log.warning("the corpus is too small for a %s split of two documents", split)
            continue
        for value in sorted(reserve)[: max(0, missing)]:
            yield from ((split, document) for document in reserve.pop(value))
    for value in sorted(reserve):
        yield from (("train", document) for document in reserve[value])
