"""The likeliest tokens for every [MASK] in a text."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int32

from bert_jax.config import UserError, result_or_error
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.encoding import Tokenizer
from bert_jax.inference.open import Opened, opened_of
from bert_jax.models.attention import take_places
from bert_jax.models.bert import Model, TrunkInputs


class FillMask:
    """Fills the masks of texts: for each [MASK] [(token, probability), …]. `checkpoint` is one that is opened, or what
    `open_model` takes with its `options`."""

    def __init__(self, checkpoint: str | Path | Opened, **options: Any):
        opened = opened_of(checkpoint, **options)
        self.tokenizer, self.config = opened.tokenizer, opened.bert_config
        opened.check_mlm_head("fills masks")
        # Neither the pooler nor the head of sentence pairs takes part: a saved BertForMaskedLM has none.
        self._logits, self._any_shape = opened.at_work.program(_logits), opened.at_work.takes_any_shape
        self._lengths = list(range(64, self.config.max_position_embeddings, 64))

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Declares the lengths of rows, besides the longest that is allowed, and compiles for one [MASK] in a row."""
        self._lengths = sorted({*lengths})
        for length in self._lengths:
            ids, real = np.zeros((2, 1, length), np.int32)
            self._probabilities(_batch(ids, real, np.zeros((1, 1), np.int32)), 1)

    def __call__(self, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """Raises UserError if the text has no [MASK] or is longer than the model's positions."""
        if "[MASK]" not in text:
            raise UserError(f"no [MASK] in '{text}'; put one where a token is missing")
        try:
            ids = self.tokenizer.row(ids_with_masks(self.tokenizer, text)).ids
        except UnicodeEncodeError as error:  # a lone surrogate, which no UTF-8 holds
            raise UserError(f"the text has a lone surrogate ({error.object[error.start]!r}): remove it") from None
        positions = np.flatnonzero(ids == self.tokenizer.mask_id)
        if len(ids) > self.config.max_position_embeddings:
            raise UserError(f"the text has {len(ids)} tokens; the model takes {self.config.max_position_embeddings}")
        length, count = len(ids), len(positions)
        if not self._any_shape:  # one compiled program serves texts of like length and like number of masks
            length = next((x for x in self._lengths if x >= length), self.config.max_position_embeddings)
            count = 1 << (count - 1).bit_length()
        masks = np.zeros(count, np.int32)
        masks[: len(positions)] = positions
        row = np.zeros((1, length), np.int32)
        row[0, : len(ids)] = ids
        real = (np.arange(length)[None] < len(ids)).astype(np.int32)
        probabilities = self._probabilities(_batch(row, real, masks[None]), len(positions))
        best = np.argsort(-probabilities, axis=-1)[:, :top_k]
        return [
            [(self.tokenizer.token(int(i)), float(p[i])) for i in row]
            for row, p in zip(best, probabilities, strict=True)
        ]

    def lines(self, text: str, top_k: int) -> list[str]:
        """Returns a line for each [MASK] of the text, for people."""
        return [
            f"mask {number}: " + "  ".join(f"{token} {probability:.3f}" for token, probability in candidates)
            for number, candidates in enumerate(self(text, top_k), start=1)
        ]

    def stream(self, rows: Iterable[Row | UserError], column: str, top_k: int) -> Iterator[Any]:
        """Yields for each row, in order, the likeliest tokens for each of its `masks`, or the UserError that says what
        is wrong with it."""

        def record(row: Row) -> dict[str, Any]:
            try:
                found = self(text_in(row, column), top_k)
            except UserError as error:
                raise UserError(f"{row.origin}: {error}") from None
            return {"masks": [[{"token": token, "probability": p} for token, p in one] for one in found]}

        for row in rows:
            yield from [row] if isinstance(row, UserError) else result_or_error(record, [row])

    def _probabilities(self, batch: dict[str, np.ndarray], count: int) -> Float[np.ndarray, "M V"]:
        """Returns the distributions of the first `count` masks."""
        logits = self._logits(batch)["logits"][:, :count]
        return np.asarray(jax.nn.softmax(logits[0], axis=-1))


def ids_with_masks(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of the text without [CLS] and [SEP], with the masks put between the tokens of what is around
    them: the original's tokenizer would split the word [MASK], and SentencePiece does not know it."""
    ids: list[int] = []
    for part in tokenizer.encode_words(text.split("[MASK]")):
        ids += [*part, tokenizer.mask_id]
    return ids[:-1]


def _batch(
    input_ids: Int32[np.ndarray, "1 L"], sequence_ids: Int32[np.ndarray, "1 L"], positions: Int32[np.ndarray, "1 P"]
) -> dict[str, np.ndarray]:
    places = np.arange(input_ids.shape[1], dtype=np.int32)[None]
    row = {"input_ids": input_ids, "token_type_ids": np.zeros_like(input_ids), "position_ids": places}
    return row | {"sequence_ids": sequence_ids, "masked_positions": positions}


def _logits(model: Model, batch: dict[str, Array]) -> dict[str, Float[Array, "B P V"]]:
    hidden = take_places(model.trunk.encode(TrunkInputs.from_batch(batch)).hidden, batch["masked_positions"])
    return {"logits": model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])}
