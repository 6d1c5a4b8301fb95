"""Gaps in texts, filled by a masked language model under constraints, and the choice among lengths of a gap.

Candidates (`gaps.py`) are filled (`filling.py`), and the one with the highest pseudo-log-likelihood per token of the
whole text is chosen (`tasks/likelihood.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.encoding import Part
from bert_jax.inference import filling
from bert_jax.inference.batching import Batching
from bert_jax.inference.filling import Blank, Filled, Query
from bert_jax.inference.gaps import Grammar, Infilling, Template
from bert_jax.inference.open import Opened, opened_of
from bert_jax.inference.predictor import all_good, each_good, in_place_of_good, windows
from bert_jax.inference.score import Scorer
from bert_jax.models.bert import Model, TrunkInputs

_FIRST_WINDOW = 16  # rows: each may have many candidates
_OTHERS = 3  # that are shown beside the best
_LOWEST = -1e30


class Infiller:
    """Fills gaps. `checkpoint` is one that is opened, or what `open_model` takes with its `options`. Threads may share
    it."""

    def __init__(self, checkpoint: str | Path | Opened, batch_size: int = 32, **options: object):
        opened = opened_of(checkpoint, **options)
        opened.check_mlm_head("fills gaps")
        self._scorer = Scorer(opened, batch_size)
        self.tokenizer, self.max_length = opened.tokenizer, opened.bert_config.max_position_embeddings
        self._batching = Batching(self.max_length, batch_size, any_shape=opened.at_work.takes_any_shape)
        self._likeliest, self._distribution = map(opened.at_work.program, (_likeliest, _distribution))

    def __call__(self, texts: Sequence[str], how: Infilling | None = None) -> list[Json]:
        """Returns the records of `stream`. Raises UserError for the first text that is wrong."""
        rows = (Row(f"input {number}", {"text": text}) for number, text in enumerate(texts))
        return all_good(self.stream(rows, "text", how or Infilling()))

    def stream(self, rows: Iterable[Row | UserError], column: str, how: Infilling) -> Iterator[Json | UserError]:
        """Yields for each row, in order, a record or the UserError that says what is wrong with it. Raises UserError
        for options that the vocabulary cannot follow.

        A record has the `text`; its `fillings`, one per run of marks; their `tokens`, each with the probability that it
        had when it was chosen; and `score`, the sum of their log-probabilities. With several candidates also their
        `likelihood`, the pseudo-log-likelihood per token of the whole text; `others` are the next best ones, of several
        candidates or of a beam.
        """
        grammar = Grammar(self.tokenizer, how)

        def candidates(row: Row) -> tuple[Template, list[tuple[Blank, list[int]]]]:
            template = Template.of_row(row, column, grammar)
            return template, template.candidates(self.max_length)

        for window in windows(rows, _FIRST_WINDOW):
            found = each_good(window, candidates)
            yield from in_place_of_good(found, partial(self._records, grammar))

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Declares the lengths as in `Batching.warm_up`, and compiles for one place in a row."""
        like = _items([Query(np.zeros(1, np.int32), [0], [0])])[0]
        tables = Grammar(self.tokenizer, Infilling()).tables
        for program in (self._likeliest, self._distribution):
            self._batching.warm_up(partial(_with_tables, program, tables), lengths, like)
        self._scorer.warm_up(lengths)

    def _records(
        self, grammar: Grammar, parsed: Sequence[tuple[Template, list[tuple[Blank, list[int]]]]]
    ) -> list[Json]:
        """Returns a record for each text: the best of the fillings of its candidates."""
        found = iter(self._fill([blank for _, candidates in parsed for blank, _ in candidates], grammar))
        of_texts = [[(blank, sizes, next(found)) for blank, sizes in candidates] for _, candidates in parsed]
        compared = [filled.ids for own in of_texts if len(own) > 1 for *_, best in own for filled in best]
        likelihoods = iter(self._scorer.score(compared))
        records = []
        for (template, candidates), own in zip(parsed, of_texts, strict=True):
            made = []
            for blank, sizes, filled in ((blank, sizes, one) for blank, sizes, best in own for one in best):
                record = template.record(filled, blank, sizes)
                if len(candidates) > 1:
                    record["likelihood"] = float(next(likelihoods)) / (len(filled.ids) - 2)
                made.append(record)
            first, *others = sorted(made, key=lambda record: -record.get("likelihood", record["score"]))
            shown = [{name: other[name] for name in other if name != "tokens"} for other in others[:_OTHERS]]
            records.append(first | ({"others": shown} if shown else {}))
        return records

    def _fill(self, blanks: Sequence[Blank], grammar: Grammar) -> list[list[Filled]]:
        """Returns the fillings of each row, the best first; only a beam gives several."""
        how, mask_id = grammar.how, self.tokenizer.mask_id
        likeliest = partial(self._tokens, grammar.tables)
        distribution = partial(self._log_probabilities, grammar.tables)
        if how.strategy == "beam":
            return filling.beam(blanks, distribution, how.beams)
        if how.strategy == "gibbs":
            found = filling.gibbs(
                blanks, distribution, how.iterations, mask_id, temperature=how.temperature, seed=how.seed
            )
        elif how.strategy == "mask_predict":
            found = filling.mask_predict(blanks, likeliest, how.iterations, mask_id)
        elif how.strategy == "confidence":
            found = filling.confidence(blanks, likeliest)
        else:
            found = filling.left_to_right(blanks, likeliest)
        return [[one] for one in found]

    def _tokens(self, tables: Bool[np.ndarray, "K V"], queries: Sequence[Query]) -> list[tuple[np.ndarray, np.ndarray]]:
        found = self._batching.run(partial(_with_tables, self._likeliest, tables), _items(queries))
        pairs = zip(queries, found["tokens"], found["log_probabilities"], strict=True)
        return [(tokens[: len(query.places)], log_p[: len(query.places)]) for query, tokens, log_p in pairs]

    def _log_probabilities(self, tables: Bool[np.ndarray, "K V"], queries: Sequence[Query]) -> list[np.ndarray]:
        found = self._batching.run(partial(_with_tables, self._distribution, tables), _items(queries))
        return [log_p[0] for log_p in found["log_probabilities"]]


def _items(queries: Sequence[Query]) -> list[Item]:
    """Returns the queries as items with as many places each, a power of two: few numbers of places need few programs.
    Places that nobody asked for are those of [CLS]."""
    count = 1 << (max(len(query.places) for query in queries) - 1).bit_length()
    items = []
    for query in queries:
        values = np.zeros((2, count), np.int32)
        values[:, : len(query.places)] = query.places, query.kinds
        part = Part(query.ids, np.zeros_like(query.ids))
        items.append(Item((part,), {"masked_positions": values[0], "masked_kinds": values[1]}))
    return items


def _with_tables(program, tables: Bool[np.ndarray, "K V"], batch: dict[str, np.ndarray]) -> dict[str, Array]:
    """Runs a program on a batch with the tables, whose number is made a power of two too."""
    more = (1 << (len(tables) - 1).bit_length()) - len(tables)
    names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids", "masked_positions", "masked_kinds")
    needed = {name: batch[name].reshape(len(batch["input_ids"]), -1) for name in names}
    return program(needed | {"constant_allowed": np.pad(tables, ((0, more), (0, 0)))})


def _likeliest(model: Model, batch: dict[str, Array]) -> dict[str, Array]:
    log_p = _allowed_log_probabilities(model, batch)
    return {"tokens": jnp.argmax(log_p, axis=-1), "log_probabilities": jnp.max(log_p, axis=-1)}


def _distribution(model: Model, batch: dict[str, Array]) -> dict[str, Array]:
    log_p = _allowed_log_probabilities(model, batch)
    return {"log_probabilities": jnp.where(log_p > _LOWEST, log_p, -jnp.inf)}


def _allowed_log_probabilities(model: Model, batch: dict[str, Array]) -> Float[Array, "B P V"]:
    """Returns the log-probabilities, among all tokens, of those that each place allows; `_LOWEST` of the others."""
    hidden = model.trunk.encode(TrunkInputs.from_batch(batch), places=batch["masked_positions"]).hidden
    logits = model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return jnp.where(jnp.take(batch["constant_allowed"], batch["masked_kinds"], axis=0), log_p, _LOWEST)
