"""Encoded examples: what the model sees of one example, before it is in a batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32

from bert_jax.data.tokenizers.encoding import Part


@dataclass(frozen=True, slots=True)
class Item:
    """An encoded example: one part (a text, a pair, a window with a question) or several (the windows of a long text,
    the choices of a question).

    `values` are arrays of one shape for all items; `token_values` have one entry per token of the only part. `target`
    are tokens to be written for the only part: of all items of a list, or of none.
    """

    parts: tuple[Part, ...]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    token_values: dict[str, np.ndarray] = field(default_factory=dict)
    target: Int32[np.ndarray, " T"] | None = None

    @property
    def length(self) -> int:
        return max(len(part.ids) for part in self.parts)

    @property
    def target_length(self) -> int:
        return 0 if self.target is None else len(self.target)


def fingerprint(items: Sequence[Item], *, is_packed: bool) -> str:
    """Returns a digest of everything that batches of the items are made of: a resumed run must find the same for
    training."""
    digest = hashlib.blake2b(b"packed" if is_packed else b"", digest_size=8)
    for item in items:
        arrays = [x for part in item.parts for x in (part.ids, part.type_ids)]
        arrays += [] if item.target is None else [item.target]
        for array in (*arrays, *item.values.values(), *item.token_values.values()):
            digest.update(array.tobytes())
        digest.update(b"|")
    return digest.hexdigest()
