"""[CLS] a [SEP] and [CLS] a [SEP] b [SEP]: the one builder of rows, and the one rule for what is cut off.

`Tokenizer.row` is what most callers want; `write_row` is for arrays of the caller.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Shaped

from bert_jax.config import UserError

Span = tuple[int, int]  # (start, end), end not included

TRUNCATIONS = ("head", "tail", "head+tail")


def row_length(length_a: int, length_b: int | None) -> int:
    """Returns the number of tokens of a row, its special tokens included; `length_b` is None for a row without b."""
    return length_a + 2 if length_b is None else length_a + length_b + 3


def write_row(
    row: Shaped[np.ndarray, "L ..."], a: Sequence | np.ndarray, b: Sequence | np.ndarray | None, begin: int, end: int
) -> None:
    """Fills an array of `row_length` entries with begin, a, end, or with begin, a, end, b, end.

    For token ids, `begin` and `end` are [CLS] and [SEP]; what describes tokens, such as offsets, has the same order.
    """
    middle = len(a) + 1
    row[0], row[1:middle], row[middle] = begin, a, end
    if b is not None:
        row[middle + 1 : -1], row[-1] = b, end


def write_types(type_ids: Int32[np.ndarray, " L"], length_a: int) -> None:
    """Sets the token types of a row: zeros, which the array must hold already, for [CLS] a [SEP], ones for b [SEP]."""
    type_ids[length_a + 2 :] = 1


def pair_lengths(length_a: int, length_b: int, room: int, *, original: bool) -> tuple[int, int]:
    """Returns how many tokens of a and b remain when both must fit into `room`: the longer one is cut first.

    Where both are cut and `room` is odd, one of them keeps a token more. Hugging Face's tokenizers give it to the
    longer part (b if they are equal), the scripts of google-research/bert (`original`) to a.
    """
    if length_a + length_b <= room:
        return length_a, length_b
    if original:
        kept_b = min(length_b, max(room - length_a, room // 2))
        return room - kept_b, kept_b
    kept = min(length_a, length_b, room // 2)
    return (kept, room - kept) if length_a <= length_b else (room - kept, kept)


def kept_ranges(length: int, room: int, how: str) -> list[Span]:
    """Returns the ranges `(start, end)`, end not included, that remain of `length` tokens: at most `room` tokens.

    "head+tail" is the split of Sun et al. (2019, arXiv:1905.05583, section 5.3.1), 128 + 382 of 510 tokens, in
    proportion. Raises UserError for another `how`.
    """
    if how not in TRUNCATIONS:
        raise UserError(f"truncation {how!r} is unknown: choose {', '.join(TRUNCATIONS)}")
    head = {"head": room, "tail": 0, "head+tail": 128 * room // 510}[how]
    ranges = [(0, length)] if length <= room else [(0, head), (length - (room - head), length)]
    return [(start, end) for start, end in ranges if start < end]


def kept(tokens: Sequence[int], room: int, how: str) -> Sequence[int]:
    """Returns what remains of the tokens themselves; see `kept_ranges`."""
    if len(tokens) <= room:
        return tokens
    return [token for start, end in kept_ranges(len(tokens), room, how) for token in tokens[start:end]]
