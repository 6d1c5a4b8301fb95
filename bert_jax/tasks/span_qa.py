"""Questions whose answer is a span of a context, or that have none: SQuAD 1.1 and 2.0 (Devlin et al. 2018, 4.2, 4.3).

A question and a window of its context make a row, [CLS] question [SEP] window [SEP]. The model gives every token one
logit as the start and one as the end of the answer; those of [CLS] together are the score of "no answer".
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, Key
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.examples import QuestionExample
from bert_jax.data.labelled.squad import check_answers, question_examples
from bert_jax.data.labelled.tables import Row
from bert_jax.data.labelled.windows import char_span_to_tokens, max_context_mask, sliding
from bert_jax.data.tokenizers.rows import Span
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.bert import Model
from bert_jax.models.features import token_vectors
from bert_jax.models.heads import LinearHead
from bert_jax.tasks import sections
from bert_jax.tasks.finetuning import FineTuning, Outputs
from bert_jax.tasks.losses import Logits, check_finite, cross_entropy_sums, softmax
from bert_jax.tasks.squad_scores import best_threshold, squad_scores
from bert_jax.tasks.task import Batch, Description, Evaluation, Sums

# As in google-research/bert, run_squad.py
N_BEST = 20  # starts and ends of a window that are paired, and answers of a question that are kept
MAX_ANSWER_TOKENS = 30

_WINDOWS_TOGETHER = 1024  # in decoding: bounds its memory
_NOTHING_TO_ANSWER_WITH = float(np.finfo(np.float32).max)  # null odds of a context without a token; JSON has no inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextWindow(Item):
    """One window of a context with its question, and what leads from its tokens back to characters of the context."""

    example: int  # number of its question among those encoded together
    first: int  # the row's first token of the context
    offsets: Int32[np.ndarray, "T 2"]  # characters of each of its T tokens of the context
    is_max_context: Bool[np.ndarray, " T"]  # an answer may start here: no other window shows more around it


class Spans(NamedTuple):
    """The K best spans of each of W windows, the best first. Tokens count from `ContextWindow.first`; ends are
    included."""

    scores: Float[np.ndarray, "W K"]  # −inf where there are no more
    starts: Int[np.ndarray, "W K"]
    ends: Int[np.ndarray, "W K"]


class SpanQA(FineTuning):
    """Questions about contexts. "No answer" is predicted where its score exceeds that of the best span by more than
    `threshold` (SQuAD 2.0 only)."""

    head = "heads/span/"
    described = "may_have_no_answer", "threshold"
    has_classes = False
    reads_features = True
    makes_answers = True
    percentages = ("exact_match", "f1", "exact_match_at_0", "f1_at_0")
    may_have_no_answer: bool
    threshold = 0.0

    @property
    def input_example(self) -> Json:
        return {"question": "a", "context": "a"}

    def check(self) -> None:
        super().check()
        length, question = self.config.data.sequence_length, self.config.data.max_query_length
        if length < question + 4:
            raise UserError(
                f"data.sequence_length {length} has no room for a context beside a question of data.max_query_length "
                f"{question} tokens and three special ones: raise or lower one"
            )

    def read(self, spec: str) -> Iterator[QuestionExample]:
        return question_examples(spec)

    def example(self, row: Row) -> QuestionExample:
        name = str(row.values["id"]) if "id" in row.values else row.origin
        return QuestionExample(row.origin, name, text_in(row, "question"), text_in(row, "context"))

    @classmethod
    def assumed(cls, config: ConfigDict) -> Description:
        return {"may_have_no_answer": True, "threshold": 0.0}

    def stand_in(self, text: str) -> QuestionExample:
        return QuestionExample("stand-in", "stand-in", text, text)

    def unlabelled(self, example: QuestionExample) -> str:
        return "" if example.answers or example.is_impossible else "neither answers nor is_impossible: give one of them"

    def learn(self) -> None:
        contexts = {example.context for example in self.examples["train"]}
        for split, examples in self.examples.items():
            report = check_answers(examples)
            logging.info(
                "%s: %d questions, %d of them without answer; %d answers, %d of them not in place",
                *(split, report.num_questions, report.num_impossible, report.num_answers, report.num_misplaced),
            )
            if report.num_misplaced:
                logging.warning("answers not at their answer_start, the first: %s", report.first_misplaced)
            shared = split != "train" and sum(example.context in contexts for example in examples)
            if shared:
                message = "%s: %d questions are about contexts of train: scores on them say little"
                logging.warning(message, split, shared)
        # The questions of this run decide, whatever those of the checkpoint were: the head is the same for both.
        questions = (example for split in ("train", "validation") for example in self.examples.get(split, ()))
        may_have_no_answer = any(example.is_impossible for example in questions)
        if getattr(self, "may_have_no_answer", may_have_no_answer) != may_have_no_answer:
            logging.warning("the checkpoint and data.train differ in whether questions may have no answer")
        self.may_have_no_answer = may_have_no_answer
        usable = [example for example in self.examples["train"] if example.is_impossible or _gold(example)]
        if left_out := len(self.examples["train"]) - len(usable):
            logging.warning("%d questions are not trained on: no answer of theirs is in place", left_out)
        self.examples["train"] = usable

    def encode(self, examples: Sequence[QuestionExample]) -> list[Item]:
        data = self.config.data
        contexts = _encoded_contexts(self.tokenizer, [example.context for example in examples])
        questions = self.tokenizer.encode_words([example.question for example in examples])
        items: list[Item] = []
        too_long = 0
        for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
            ids, offsets = contexts[example.context]
            gold = _gold(example)
            answer = None if gold is None else char_span_to_tokens(offsets.tolist(), *gold)
            too_long += answer is not None and answer[1] - answer[0] >= MAX_ANSWER_TOKENS
            question = question[: data.max_query_length]
            begin = len(question) + 2  # the context's first token in a row
            # A context without any token has a window too, because every question gets a prediction.
            windows = sliding(len(ids), data.sequence_length - begin - 1, data.window_stride) or [(0, 0)]
            for (start, size), trusted in zip(windows, max_context_mask(windows), strict=True):
                shown = slice(start, start + size)
                first, last = (0, 0)  # [CLS]: not here
                if answer is not None and start <= answer[0] and answer[1] < start + size:
                    first, last = (token - start + begin for token in answer)
                values = {
                    "start_positions": np.asarray(first, np.int32),
                    "end_positions": np.asarray(last, np.int32),
                    "label_weights": np.asarray(example.is_impossible or answer is not None, np.float32),
                }
                row = (self.tokenizer.row(question, ids[shown]),)
                at = offsets[shown]
                items.append(
                    ContextWindow(row, values, example=number, first=begin, offsets=at, is_max_context=trusted)
                )
        cut = sum(len(tokens) > data.max_query_length for tokens in questions)
        if cut:
            logging.warning("%d of %d questions lose tokens to data.max_query_length", cut, len(examples))
        if too_long:
            logging.warning("%d answers are longer than the %d tokens that are predicted", too_long, MAX_ANSWER_TOKENS)
        return items

    def heads(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The first logit of a token is that of an answer's start, the second that of its end; no dropout here."""
        return {"span": LinearHead(self.bert_config, 2, rngs=rngs, inputs=self.head_features.size)}

    def not_portable(self) -> str:
        return ""

    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        logits = model.heads["span"].logits(token_vectors(model, batch, key))
        # The original lets padding take part in the softmax. Here the amount of padding depends on the other rows of
        # the batch, which must not change a prediction.
        logits = jnp.where(batch["sequence_ids"][:, :, None] > 0, logits, jnp.finfo(jnp.float32).min)
        return {"start_logits": logits[:, None, :, 0], "end_logits": logits[:, None, :, 1]}

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        return {"loss": jnp.maximum(jnp.sum(batch["item_weights"] * batch["label_weights"]), 1.0)}

    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        weights = batch["item_weights"] * batch["label_weights"]
        sums = cross_entropy_sums("start", outputs["start_logits"], batch["start_positions"], weights)
        sums |= cross_entropy_sums("end", outputs["end_logits"], batch["end_positions"], weights)
        (start_loss, weight), (end_loss, _) = sums.pop("start_loss"), sums.pop("end_loss")
        return {"loss": ((start_loss + end_loss) / 2, weight), **sums}

    def soft(self, outputs, batch) -> dict[str, list[Logits]]:
        weights = batch["item_weights"] * batch["label_weights"]
        return {"loss": [Logits(outputs[name], weights) for name in ("start_logits", "end_logits")]}

    def predict(self, examples, items: Sequence[Any], outputs) -> list[Json]:
        """Returns for each question its `id`; `answer`, a slice of the context ("" = none), with its `probability` and
        its position `start`, `end` in characters; and `n_best` answers, the best first. A model that may predict "no
        answer" adds `null_odds`, by how much the score of no answer exceeds the best answer's, and `null_probability`.
        """
        check_finite(outputs)
        candidates: list[list[tuple[float, Span]]] = [[] for _ in examples]
        null_scores = np.full(len(examples), np.inf)
        for begin in range(0, len(items), _WINDOWS_TOGETHER):
            part = slice(begin, begin + _WINDOWS_TOGETHER)
            starts, ends = outputs["start_logits"][part], outputs["end_logits"][part]
            spans = best_spans(items[part], starts, ends)
            for i, window in enumerate(items[part]):
                null = float(starts[i][0]) + float(ends[i][0])
                null_scores[window.example] = min(null_scores[window.example], null)
                for score, first, last in zip(*(one[i] for one in spans), strict=True):
                    if np.isfinite(score):
                        span = int(window.offsets[first, 0]), int(window.offsets[last, 1])
                        candidates[window.example].append((float(score), span))
        rows = zip(examples, candidates, null_scores.tolist(), strict=True)
        return [self._prediction(example, found, null) for example, found, null in rows]

    def of_language(self, example: QuestionExample, language: str) -> QuestionExample:
        """Returns the question with its language in its id: XQuAD's translations have the ids of SQuAD."""
        return replace(example, id=f"{language}/{example.id}")

    def score(self, examples, predictions, description) -> dict[str, float]:
        """Returns exact_match and f1 of the answers given; of a model that may say "no answer" also those under the
        threshold 0 and the threshold itself."""
        given = squad_scores(examples, {p["id"]: p["answer"] for p in predictions})
        scores = {name: value for name, value in given.items() if not name.endswith("total")}
        if not self.may_have_no_answer:
            return scores
        at_zero = {p["id"]: _best_text(p) if p["null_odds"] <= 0 else "" for p in predictions}
        plain = squad_scores(examples, at_zero)
        scores |= {f"{name}_at_0": plain[name] for name in ("exact_match", "f1")}
        return scores | {"null_threshold": description["threshold"]}

    def score_names(self, split: str) -> tuple[str, ...]:
        has_answer = {bool(example.answers) for example in self.examples[split]}
        names = ["start_accuracy", "end_accuracy", "exact_match", "f1"]
        if False in has_answer:
            kinds = [kind for kind, is_there in (("HasAns", True in has_answer), ("NoAns", True)) if is_there]
            names += [f"{kind}_{name}" for kind in kinds for name in ("exact", "f1")]
        return *names, *(("exact_match_at_0", "f1_at_0", "null_threshold") if self.may_have_no_answer else ())

    def tune(self, examples, predictions) -> Description:
        if not self.may_have_no_answer:
            return {}
        best = {p["id"]: _best_text(p) for p in predictions}
        odds = {p["id"]: p["null_odds"] for p in predictions}
        return {"threshold": best_threshold(examples, best, odds)["best_f1_thresh"]}

    def decide(self, predictions, description) -> Sequence[Json]:
        return [prediction | _decide(prediction, description["threshold"]) for prediction in predictions]

    def report_sections(self, evaluation: Evaluation) -> list[sections.Section]:
        return sections.questions(self.examples[evaluation.split], evaluation.predictions)

    def _prediction(self, example: QuestionExample, found: list[tuple[float, Span]], null: float) -> Json:
        kept: dict[str, tuple[float, Span]] = {}
        for score, (start, end) in sorted(found, key=lambda candidate: -candidate[0]):
            text = example.context[start:end]
            if text.strip() and text not in kept:
                kept[text] = score, (start, end)
            if len(kept) == N_BEST:
                break
        scores = [score for score, _ in kept.values()]
        probabilities = softmax(np.asarray(scores + [null] * (self.may_have_no_answer or not scores))).tolist()
        n_best = [
            {"text": text, "probability": probability, "start": start, "end": end}
            for (text, (_, (start, end))), probability in zip(kept.items(), probabilities, strict=False)
        ]
        prediction = {"id": example.id, "answer": "", "probability": probabilities[-1], "start": None, "end": None}
        if self.may_have_no_answer:
            prediction["null_odds"] = null - scores[0] if scores else _NOTHING_TO_ANSWER_WITH
            prediction["null_probability"] = probabilities[-1]
        prediction["n_best"] = n_best
        return prediction | _decide(prediction, self.threshold)


def best_spans(
    windows: Sequence[ContextWindow],
    start_logits: Sequence[Float[np.ndarray, " _"]],
    end_logits: Sequence[Float[np.ndarray, " _"]],
) -> Spans:
    """Returns the N_BEST spans of each window by the sum of their logits, among the N_BEST most probable starts × ends
    of its context that are no longer than MAX_ANSWER_TOKENS and start where the window has maximum context.

    If none of these pairs is a span, the best single token replaces them, so that a window which may start an answer
    gives one (run_squad.py gives none and fails). Ties go to the earlier start, then the earlier end.
    """
    width = max(len(window.offsets) for window in windows)
    start, end = (np.full((len(windows), width), -np.inf) for _ in range(2))
    for i, window in enumerate(windows):
        shown = slice(window.first, window.first + len(window.offsets))
        start[i, : len(window.offsets)] = np.where(window.is_max_context, start_logits[i][shown], -np.inf)
        end[i, : len(window.offsets)] = end_logits[i][shown]
    starts, ends = (np.sort(np.argsort(-x, axis=1, kind="stable")[:, :N_BEST], axis=1) for x in (start, end))
    take = partial(np.take_along_axis, axis=1)
    length = ends[:, None, :] - starts[:, :, None] + 1
    sums = take(start, starts)[:, :, None] + take(end, ends)[:, None, :]
    sums = np.where((length >= 1) & (length <= MAX_ANSWER_TOKENS), sums, -np.inf).reshape(len(windows), -1)
    order = np.argsort(-sums, axis=1, kind="stable")[:, :N_BEST]
    row, column = np.divmod(order, max(ends.shape[1], 1))
    scores, firsts, lasts = take(sums, order), take(starts, row), take(ends, column)
    single = start + end
    for i in np.flatnonzero(~np.isfinite(scores).any(axis=1) & np.isfinite(single).any(axis=1)):
        token = int(np.argmax(single[i]))
        scores[i, 0], firsts[i, 0], lasts[i, 0] = single[i, token], token, token
    return Spans(scores, firsts, lasts)


def _encoded_contexts(tokenizer: Tokenizer, contexts: Iterable[str]) -> dict[str, tuple[list[int], np.ndarray]]:
    """Returns ids and offsets of each distinct context, which is encoded once for all of its questions."""
    distinct = list(dict.fromkeys(contexts))
    encoded = tokenizer.encode(distinct)
    return {
        context: (encoding.ids[1:-1], np.asarray(encoding.offsets[1:-1], np.int32).reshape(-1, 2))
        for context, encoding in zip(distinct, encoded, strict=True)
    }


def _gold(example: QuestionExample) -> Span | None:
    """Returns the characters of the first answer that the context has at the answer's start; None if it has none."""
    for answer in example.answers:
        end = answer.start + len(answer.text)
        if example.context[answer.start : end] == answer.text:
            return answer.start, end
    return None


def _decide(prediction: Json, threshold: float) -> Json:
    """Returns the fields of a prediction that depend on the threshold."""
    if not prediction["n_best"]:
        return {}
    if "null_odds" in prediction and prediction["null_odds"] > threshold:
        return {"answer": "", "probability": prediction["null_probability"], "start": None, "end": None}
    best = prediction["n_best"][0]
    return {"answer": best["text"], **{name: best[name] for name in ("probability", "start", "end")}}


def _best_text(prediction: Json) -> str:
    return prediction["n_best"][0]["text"] if prediction["n_best"] else ""
