"""The likeliest tokens for every [MASK] in a text."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Int32, Int64

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.tables import Row
from bert_jax.data.text.text_files import is_unicode
from bert_jax.data.tokenizers.encoding import Part, Tokenizer
from bert_jax.inference.batching import Batching
from bert_jax.inference.open import Opened, opened_of
from bert_jax.inference.predictor import all_good, each_good, in_place_of_good, windows
from bert_jax.models.attention import take_places
from bert_jax.models.bert import Model, TrunkInputs

_MASKS = 4  # of one row; a text with more is run again for the rest

Candidates = list[tuple[str, float]]  # of one mask: tokens and their probabilities, the likeliest first


class FillMask:
    """Fills the masks of texts: for each [MASK] [(token, probability), …]. `checkpoint` is one that is opened, or what
    `open_model` takes with its `options`. Threads may share it."""

    def __init__(self, checkpoint: str | Path | Opened, batch_size: int = 32, **options: object):
        opened = opened_of(checkpoint, **options)
        self.tokenizer, self.config = opened.tokenizer, opened.bert_config
        opened.check_mlm_head("fills masks")
        # Neither the pooler nor the head of sentence pairs takes part: a saved BertForMaskedLM has none.
        self._program, any_shape = opened.at_work.program(_probabilities), opened.at_work.takes_any_shape
        self._batching = Batching(self.config.max_position_embeddings, batch_size, any_shape=any_shape)

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles for texts of up to these numbers of tokens, which are declared as in `Batching.warm_up`."""
        nothing = np.zeros(1, np.int32)
        self._batching.warm_up(self._program, lengths, _item(Part(nothing, nothing), nothing))

    def __call__(self, text: str, top_k: int = 5) -> list[Candidates]:
        """Raises UserError if the text has no [MASK] or is longer than the model's positions."""
        [found] = all_good(self.stream([Row("", {"text": text})], "text", top_k))
        return found

    def stream(
        self, rows: Iterable[Row | UserError], column: str, top_k: int
    ) -> Iterator[list[Candidates] | UserError]:
        """Yields for each row, in order, the likeliest tokens for each of its masks, or the UserError that says what is
        wrong with it."""
        if not isinstance(top_k, Integral) or top_k < 1:
            raise UserError(f"top_k is {top_k!r}; it must be a whole number over 0")
        for window in windows(rows):
            parts = each_good(window, lambda row: self._encoded(text_in(row, column), row.origin))
            yield from in_place_of_good(parts, partial(self._fill, top_k=top_k))

    def records(self, rows: Iterable[Row | UserError], column: str, top_k: int) -> Iterator[Json | UserError]:
        """Yields the same as objects whose `masks` have names for what is in them."""
        for found in self.stream(rows, column, top_k):
            is_error = isinstance(found, UserError)
            yield found if is_error else {"masks": [[{"token": t, "probability": p} for t, p in one] for one in found]}

    def lines(self, text: str, top_k: int) -> list[str]:
        """Returns a line for each [MASK] of the text, for people."""
        return [
            f"mask {number}: " + "  ".join(f"{token} {probability:.3f}" for token, probability in candidates)
            for number, candidates in enumerate(self(text, top_k), start=1)
        ]

    def _encoded(self, text: str, origin: str) -> Part:
        where = f"{origin}: " if origin else ""
        if "[MASK]" not in text:
            raise UserError(f"{where}no [MASK] in '{text}'; put one where a token is missing")
        if not is_unicode(text):
            raise UserError(f"{where}the text is not Unicode: remove its half of a surrogate pair")
        part = self.tokenizer.row(ids_with_masks(self.tokenizer, text))
        count, most = len(part.ids), self.config.max_position_embeddings
        if count > most:
            raise UserError(f"{where}the text has {count} tokens; the model takes {most}")
        return part

    def _fill(self, parts: Sequence[Part], top_k: int) -> Iterator[list[Candidates]]:
        places = [np.flatnonzero(part.ids == self.tokenizer.mask_id) for part in parts]
        starts = [range(0, len(own), _MASKS) for own in places]
        chunks = zip(parts, places, starts, strict=True)
        items = [_item(part, own[start : start + _MASKS]) for part, own, all_starts in chunks for start in all_starts]
        rows = iter(self._batching.run(self._program, items)["probabilities"])
        for own, all_starts in zip(places, starts, strict=True):
            probabilities = np.concatenate([next(rows) for _ in all_starts])[: len(own)]
            yield [self._likeliest(x, top_k) for x in probabilities]

    def _likeliest(self, probabilities: Float[np.ndarray, " V"], top_k: int) -> list[tuple[str, float]]:
        best = np.arange(len(probabilities))
        if top_k < len(best):  # sorting the whole vocabulary takes longer than a short text
            best = np.sort(np.argpartition(-probabilities, top_k)[:top_k])
        best = best[np.argsort(-probabilities[best], kind="stable")]
        return [(self.tokenizer.token(int(i)), float(probabilities[i])) for i in best]


def ids_with_masks(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of the text without [CLS] and [SEP], with the masks put between the tokens of what is around
    them: the original's tokenizer would split the word [MASK], and SentencePiece does not know it."""
    ids: list[int] = []
    for part in tokenizer.encode_words(text.split("[MASK]")):
        ids += [*part, tokenizer.mask_id]
    return ids[:-1]


def _item(part: Part, places: Int32[np.ndarray, " P"] | Int64[np.ndarray, " P"]) -> Item:
    """Returns a text with up to `_MASKS` of its masks; further places are of no use."""
    masks = np.zeros(_MASKS, np.int32)
    masks[: len(places)] = places
    return Item((part,), {"mask_places": masks})


def _probabilities(model: Model, batch: dict[str, Array]) -> dict[str, Float[Array, "B P V"]]:
    places = batch["mask_places"][:, 0]
    hidden = take_places(model.trunk.encode(TrunkInputs.from_batch(batch)).hidden, places)
    logits = model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])
    return {"probabilities": jax.nn.softmax(logits, axis=-1)}
