"""What single tokens contribute to an output of the model, and how hard they are to predict."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from bert_jax.config import Json, UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.columns import names_of
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.encoding import Part
from bert_jax.data.tokenizers.rows import row_length
from bert_jax.inference.fill_mask import ids_with_masks
from bert_jax.inference.loaded import LoadedModel
from bert_jax.lab.inspect.reading import STEP, Insides, Reading, batch_of, id_of, insides, read_text, reading_of
from bert_jax.tasks.finetuning import FineTuning
from bert_jax.tasks.texts import listed


class Attribution(NamedTuple):
    """How much each token's word embedding adds to a logit, by a method's own measure.

    `place` is the token whose tag or word the logit is of; None for a class of the whole text. `baseline` is the logit
    that the scores start from: they add up to `logit − baseline`, except for gradient × input, which has none.
    """

    reading: Reading
    target: str
    place: int | None
    logit: float
    scores: Float64[np.ndarray, " L"]
    baseline: float | None = None


class TokenLosses(NamedTuple):
    """The loss of each token in nats when it alone is masked: −log p(token | the others); nan for [CLS], [SEP] and
    [MASK]. `guesses` has the likeliest tokens in its place, with their probabilities."""

    reading: Reading
    losses: Float64[np.ndarray, " L"]
    guesses: tuple[tuple[tuple[str, float], ...], ...]

    @property
    def pseudo_log_likelihood(self) -> float:
        """The sum of the log-probabilities (Salazar et al. 2020)."""
        return -float(np.nansum(self.losses))


def token_losses(
    model: LoadedModel, text: str, pair: str | None = None, *, max_length: int | None = None
) -> TokenLosses:
    """Returns the loss of each token of a text or pair. Raises UserError if the model has no MLM head."""
    inside = insides(model)
    inside.need_mlm_head()
    reading = read_text(model, text, pair, max_length=max_length)
    places = np.flatnonzero(reading.is_word)
    losses = np.full(len(reading.tokens), np.nan)
    guesses: list[tuple[tuple[str, float], ...]] = [()] * len(reading.tokens)
    if len(places):
        own, best, tokens = inside.masked(reading.part, places)
        losses[places] = -own
        for place, ids, logs in zip(places, tokens.tolist(), best, strict=True):
            names = map(model.tokenizer.token, ids)
            guesses[place] = tuple(zip(names, np.exp(logs).tolist(), strict=True))
    return TokenLosses(reading, losses, tuple(guesses))


def gradient_times_input(model: LoadedModel, text: str, pair: str | None = None, *, target: str = "") -> Attribution:
    """Returns for each token the dot product of its word embedding with the gradient of a logit.

    Of a fine-tuned model the logit is that of the class `target`, or of this tag at the word where it is highest. If
    the model chooses, `pair` has the choices with | between them, and `target` is one of them. If it answers questions,
    `pair` is the context, and the logit is that of an answer that starts at the token `target` of it. Of a model with
    an MLM head the logit is that of the token `target` at the first [MASK] of the text. By default it is the highest.
    Raises UserError for an unknown target, a text without [MASK], and a model without such a head.
    """
    logit = _chosen_logit(model, text, pair, target)
    value, gradient = logit.at(logit.words)
    return logit.attribution(value, gradient * logit.words, None)


def integrated_gradients(
    model: LoadedModel, text: str, pair: str | None = None, *, target: str = "", steps: int = 64
) -> Attribution:
    """Returns the integral of the gradient along the straight line from the text with every word masked to the text
    itself, times the difference of the word embeddings (Sundararajan et al. 2017).

    The scores add up to the difference of the two logits, but for the error of the sum over `steps` points. Otherwise
    as `gradient_times_input`.
    """
    logit = _chosen_logit(model, text, pair, target)
    start, change = logit.masked_words, logit.words - logit.masked_words
    total = np.zeros(change.shape)
    for step in range(steps):
        total += logit.at(start + (step + 0.5) / steps * change)[1]
    return logit.attribution(logit.at(logit.words)[0], total / steps * change, logit.at(start)[0])


class _Logit:
    """A logit of a text as a function of the word embeddings of its tokens, [R, L, E] in the rows of `batch`.

    `words` are those of the text, `masked_words` those with [MASK] in the place of every word.
    """

    def __init__(self, inside: Insides, reading: Reading, batch: dict[str, np.ndarray], program: Callable[..., Any]):
        tokenizer, ids = inside.opened.tokenizer, batch["input_ids"]
        kept = np.isin(ids, (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id))
        self.words = np.asarray(inside.word_vectors(ids), np.float64)
        masked = np.where(kept, ids, tokenizer.mask_id).astype(np.int32)
        self.masked_words = np.asarray(inside.word_vectors(masked), np.float64)
        self.reading, self._batch, self._program = reading, batch, program
        self._row, self._number, self._target = 0, 0, ""
        self._place: int | None = None

    def choose(self, target: str, number: int, row: int = 0, place: int | None = None) -> None:
        """Makes it the logit `number` of a row of logits: of a token at `place`, or of the text."""
        self._target, self._number, self._row, self._place = target, number, row, place

    def all(self) -> Float32[np.ndarray, "P C"]:
        """Returns the logits that there are to choose from."""
        return np.asarray(self._run(self.words)[2])

    def at(self, x: Float64[np.ndarray, "R L E"]) -> tuple[float, Float64[np.ndarray, "R L E"]]:
        """Returns the logit and its gradient."""
        value, gradient, _ = self._run(x)
        return float(value), np.asarray(gradient, np.float64)

    def attribution(self, value: float, products: Float64[np.ndarray, "R L E"], baseline: float | None) -> Attribution:
        scores = products.sum(axis=-1)[self._batch["sequence_ids"] > 0]
        return Attribution(self.reading, self._target, self._place, value, scores, baseline)

    def _run(self, x: Float64[np.ndarray, "R L E"]) -> tuple[Any, Any, Any]:
        return self._program(self._batch, x.astype(np.float32), np.int32(self._row), np.int32(self._number))


def _chosen_logit(model: LoadedModel, text: str, pair: str | None, target: str) -> _Logit:
    inside = insides(model)
    task = inside.opened.task
    if isinstance(task, FineTuning):
        return _logit_of_class(inside, task, text, pair, target)
    return _logit_of_word(model, text, pair, target)


def _logit_of_class(inside: Insides, task: FineTuning, text: str, pair: str | None, target: str) -> _Logit:
    values, names = _asked(inside, task, text, pair)
    if names is not None and target and target not in names:
        known = f"is not among {listed(names)}" if names else "names a class; this model predicts a number"
        raise UserError(f"the target '{target}' {known}; correct it, or leave it out")
    example = next(task.prediction_examples([Row("the text", values)]))
    if isinstance(example, UserError):
        raise example
    [item, *_] = task.encode([example])
    length = max(len(part.ids) for part in item.parts)
    length = min(-(-length // STEP) * STEP, task.config.data.sequence_length)
    batch = collate([item], [[0]], Shape(1, len(item.parts), length))
    whole = Part(*(np.concatenate(arrays) for arrays in zip(*item.parts, strict=True)))
    tokenizer, total = inside.opened.tokenizer, None
    if len(item.parts) == 1 and len(whole.ids) == task.config.data.sequence_length:  # it may have been cut
        ids = [ids_with_masks(tokenizer, one) for one in (text, pair) if one is not None]
        total = row_length(len(ids[0]), None if pair is None else len(ids[1]))
    logit = _Logit(inside, reading_of(whole, tokenizer, total), batch, inside.class_gradient)
    if names is None:
        _choose_token(logit, target)
        return logit
    logits, names = logit.all(), names or ["the number"]
    if "logits" in task.token_outputs:
        words = np.flatnonzero(logit.reading.is_word)
        columns = [names.index(target)] if target else [i for i, name in enumerate(names) if name != "O"]
        place, column = np.unravel_index(int(np.argmax(logits[words][:, columns])), (len(words), len(columns)))
        number, row = columns[int(column)], int(words[place])
        logit.choose(names[number], number, row, row)
    else:
        number = names.index(target) if target else int(np.argmax(logits[0]))
        logit.choose(names[number], number)
    return logit


def _asked(inside: Insides, task: FineTuning, text: str, pair: str | None) -> tuple[Json, list[str] | None]:
    """Returns the row of the text, and the names of the classes, tags or choices whose logits there are; [] for a
    number, None for the tokens of a context, at which an answer may start."""
    path, data, labels = inside.opened.path, task.config.data, task.description().get("labels")
    if task.makes_answers:
        if pair is None:
            raise UserError(f"{path} answers questions: give the context as --text_pair")
        return {"question": text, "context": pair}, None
    if labels is None and data.choices:
        choices = [choice.strip() for choice in (pair or "").split("|")]
        columns = names_of("data.choices", data.choices)
        if len(choices) < 2 or not all(choices) or len(columns) not in (1, len(choices)):
            count = len(columns) if len(columns) > 1 else "the"
            raise UserError(f"{path} chooses: give {count} choices as --text_pair='first | second'")
        given = {columns[0]: choices} if len(columns) == 1 else dict(zip(columns, choices, strict=True))
        return {data.text: text, **({data.text_pair: ""} if data.text_pair else {}), **given}, choices
    if labels is None:
        raise UserError(f"{path}: task={task.config.task} has neither classes, tags, choices nor answers to explain")
    if (pair is None) != (not data.text_pair):
        wrong = "pairs: give --text_pair" if data.text_pair else "single texts: leave out --text_pair"
        raise UserError(f"{path} was trained on {wrong}")
    return {data.text: text} | ({data.text_pair: pair} if pair is not None else {}), labels


def _choose_token(logit: _Logit, target: str) -> None:
    """Makes it the logit of an answer's start at the token `target` of the context, or at the likeliest one there."""
    reading = logit.reading
    of_context = np.asarray(reading.is_word) & (reading.part.type_ids == 1)
    if target:
        of_context &= np.asarray([token == target for token in reading.tokens])
    places = np.flatnonzero(of_context)
    if not len(places):
        what = f"token '{target}'" if target else "token"
        raise UserError(
            f"the context has no {what} that the model reads; name one of them as --target, or another text"
        )
    place = int(places[np.argmax(logit.all()[0, places])])
    logit.choose(f"answer from {reading.tokens[place]}", place, 0, place)


def _logit_of_word(model: LoadedModel, text: str, pair: str | None, target: str) -> _Logit:
    inside, tokenizer = insides(model), model.tokenizer
    inside.need_mlm_head("nor was it fine-tuned on classes: there is no output to explain")
    reading = read_text(model, text, pair)
    places = np.flatnonzero(reading.part.ids == tokenizer.mask_id)
    if not len(places):
        raise UserError("the text has no [MASK]; write it where the word stands whose prediction is to be explained")
    batch = batch_of([reading.part], inside.opened.bert_config.max_position_embeddings)
    logit = _Logit(inside, reading, batch, inside.word_gradient)
    place = int(places[0])
    logit.choose("", 0, place, place)
    number = id_of(tokenizer, target) if target else int(np.argmax(logit.all()[0]))
    logit.choose(tokenizer.token(number), number, place, place)
    return logit
