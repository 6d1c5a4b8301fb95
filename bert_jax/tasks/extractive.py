"""Extractive summaries: sentences of a document that stand for it (Liu and Lapata 2019, BERTSum).

A row is [CLS] sentence [SEP] for each sentence, one after the other; token types are 0 and 1 in turns. The head gives
the [CLS] of each sentence the logit of being part of the summary. A document longer than the model becomes several
items, windows of whole sentences that overlap, and each sentence is scored in the window that shows most around it;
with data.long_texts=head it is one row, and sentences behind it are not chosen.

The labels are the sentences of the document that the given summary copies. If its sentences are not in the document,
the labels are those sentences of the document that a greedy search for the highest ROUGE finds (`summaries.py`).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item, Part
from bert_jax.data.labelled.documents import document_examples, sentences_in
from bert_jax.data.labelled.examples import DocumentExample
from bert_jax.data.labelled.tables import Row
from bert_jax.data.labelled.windows import align_words, chunks_of_words, scored_words
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.sentences import SentenceHead, sentence_places
from bert_jax.tasks import sections
from bert_jax.tasks.finetuning import FineTuning, Outputs
from bert_jax.tasks.losses import Logits, check_finite
from bert_jax.tasks.summaries import Budget, baselines, oracle, select
from bert_jax.tasks.task import Batch, Evaluation, Sums
from bert_jax.tasks.text_scores import check_has_words, rouge

_NAMES = ("rouge1", "rouge2", "rougeLsum")
_METHODS = ("lead", "random", "oracle")  # that the model is compared with
_LEAST_TOKENS = 3  # of a sentence: [CLS], a piece, [SEP]


class Extractive(FineTuning):
    """Documents with summaries. data.text is the document, data.label the summary (`documents.document_examples`)."""

    head = "heads/sentences/"
    has_classes = False
    shares_rows = True
    percentages = _NAMES
    token_outputs = ("logits",)

    def check(self) -> None:
        super().check()
        options, long_texts = self.config.extractive, self.config.data.long_texts
        if options.share is not None and options.words is not None:
            raise UserError("extractive.share and extractive.words both say how long a summary is: set one of them")
        if long_texts not in ("windows", "head", "error"):
            raise UserError(
                f"data.long_texts is '{long_texts}': rows hold whole sentences; choose windows, head or error"
            )

    @property
    def budget(self) -> Budget:
        return Budget.from_options(self.config.extractive)

    def read(self, spec: str) -> Iterator[DocumentExample]:
        return document_examples(spec, text=self.config.data.text, summary=self.config.data.label)

    def example(self, row: Row) -> DocumentExample:
        return DocumentExample(row.origin, sentences_in(row, self.config.data.text))

    def stand_in(self, text: str) -> DocumentExample:
        return DocumentExample("stand-in", (text,))

    def unlabelled(self, example: DocumentExample) -> str:
        return "" if example.summary else f"no summary in column '{self.config.data.label}'"

    def learn(self) -> None:
        """Finds the sentences that are learned. Raises UserError for a summary that ROUGE cannot compare."""
        for split, examples in self.examples.items():
            copied = sum(bool(example.chosen) for example in examples)
            for example in examples:
                check_has_words(" ".join(example.summary or ()), f"{example.origin}: the summary")
            self.examples[split] = [e if e.chosen else replace(e, chosen=self._oracle(e)) for e in examples]
            logging.info(
                "%s: %d documents of %.1f sentences; the summaries of %d consist of sentences of theirs, those of the "
                "others are imitated by an oracle; %.1f sentences are to be chosen",
                *(split, len(examples), np.mean([len(e.sentences) for e in examples]), copied),
                np.mean([len(e.chosen) for e in self.examples[split]]),
            )
        self._compared = {
            split: self._scores_of_baselines(self.examples[split])
            for split in ("validation", "test")
            if split in self.examples
        }

    def encode(self, examples: Sequence[DocumentExample]) -> list[Item]:
        data, items = self.config.data, []
        length, long, left_out = data.sequence_length, 0, 0
        pieces_of = align_words([example.sentences for example in examples], self.tokenizer)
        for place, (example, pieces) in enumerate(zip(examples, pieces_of, strict=True)):
            sizes = [len(ids) + _LEAST_TOKENS - 1 for ids in pieces]
            if sum(sizes) > length and data.long_texts == "error":
                count = f"{sum(sizes)} tokens, over data.sequence_length {length}"
                raise UserError(f"{example.origin}: {count}; set data.long_texts=windows or head")
            chunks = chunks_of_words(sizes, length)
            long += len(chunks) > 1
            chunks = chunks[: 1 if data.long_texts == "head" else data.max_windows]
            left_out += len(sizes) - 1 - chunks[-1][1]
            for (first, last), scored in zip(chunks, scored_words(chunks), strict=True):
                window = [ids[: length - _LEAST_TOKENS + 1] for ids in pieces[first : last + 1]]
                items.append(self._item(place, example, window, first, scored))
        if long:
            logging.info(
                "%d of %d documents are over %d tokens; %d sentences are in no row (data.long_texts=%s)",
                *(long, len(examples), length, left_out, data.long_texts),
            )
        return items

    def heads(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"sentences": SentenceHead(self.bert_config, self.config.extractive.layers, rngs=rngs)}

    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        numbers = batch["sentence_numbers"]
        places, own = sentence_places(numbers)
        hidden = model.trunk.encode(TrunkInputs.from_batch(batch), key=trunk_key, places=places).hidden
        at = jnp.take_along_axis(numbers, places, axis=1)
        is_there = jnp.arange(places.shape[1])[None] < jnp.sum(numbers > 0, axis=1, keepdims=True)
        sequence_ids = jnp.where(is_there, jnp.take_along_axis(batch["sequence_ids"], places, axis=1), 0)
        logits = model.heads["sentences"](hidden, jnp.maximum(at - 1, 0), sequence_ids, key=head_key)
        return {"logits": jnp.where(numbers > 0, jnp.take_along_axis(logits, own, axis=1), 0.0)}

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Gives all sentences the same weight, whatever the length of their document."""
        return {"loss": jnp.maximum(jnp.sum(batch["label_weights"]), 1e-6)}

    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        """Returns the binary cross-entropy of the sentences."""
        logits, weights = outputs["logits"], batch["label_weights"]
        loss = jax.nn.softplus(logits) - batch["labels"] * logits
        return {"loss": (jnp.sum(loss * weights), jnp.sum(weights))}

    def soft(self, outputs, batch) -> dict[str, list[Logits]]:
        return {"loss": [Logits(outputs["logits"][..., None], batch["label_weights"], "sigmoid")]}

    def predict(self, examples, items, outputs) -> list[Json]:
        """Returns for each document its chosen `sentences`, in their order, each with its number, text and probability,
        and the `probabilities` of all; those of sentences in no row are None."""
        check_finite(outputs)
        found = [np.full(len(example.sentences), np.nan) for example in examples]
        for item, logits in zip(items, outputs["logits"], strict=True):
            at = np.flatnonzero(item.token_values["label_weights"])
            numbers = item.token_values["sentence_numbers"][at] - 1
            found[int(item.values["example"])][numbers] = 1 / (1 + np.exp(-logits[at].astype(np.float64)))
        tokens = None
        if self.config.extractive.block_trigrams:
            tokens = iter(self.tokenizer.encode_words([text for example in examples for text in example.sentences]))
        return [self._prediction(example, scores, tokens) for example, scores in zip(examples, found, strict=True)]

    def score(self, examples, predictions, description) -> dict[str, float]:
        splits = [name for name, own in self.examples.items() if own is examples]  # none of those of one language
        chosen = [[sentence["number"] for sentence in prediction["sentences"]] for prediction in predictions]
        found = _rouge(examples, chosen)
        return found | next((self._compared[split] for split in splits if split in self._compared), {})

    def score_names(self, split: str) -> tuple[str, ...]:
        return (*_NAMES, *(f"{method}_{name}" for method in _METHODS for name in _NAMES))

    def report_sections(self, evaluation: Evaluation) -> list[sections.Section]:
        return sections.extracts(self.examples[evaluation.split], evaluation.predictions, evaluation.metrics, _NAMES)

    def _oracle(self, example: DocumentExample) -> tuple[int, ...]:
        return tuple(oracle(example.sentences, example.summary or (), self.budget))

    def _scores_of_baselines(self, examples: Sequence[DocumentExample]) -> dict[str, float]:
        found = baselines(examples, self.budget, self.config.eval.seed)
        scores = {method: _rouge(examples, found[method]) for method in _METHODS}
        return {f"{method}_{name}": value for method, own in scores.items() for name, value in own.items()}

    def _item(self, place: int, example: DocumentExample, pieces, first: int, scored) -> Item:
        """Returns a window as an item. `sentence_numbers` count from 1 and stand at the [CLS] of each sentence; 0
        elsewhere. Only sentences that are scored in this window have a weight."""
        tokenizer, types = self.tokenizer, min(2, self.bert_config.type_vocab_size)
        rows = [tokenizer.row(ids) for ids in pieces]
        sizes = [len(row.ids) for row in rows]
        begins = np.cumsum([0, *sizes[:-1]])
        numbers, labels, weights = (np.zeros(sum(sizes), dtype) for dtype in (np.int32, np.float32, np.float32))
        own = first + np.arange(len(pieces))
        numbers[begins], weights[begins] = own + 1, scored
        labels[begins] = np.isin(own, example.chosen)
        type_ids = np.repeat(np.arange(len(pieces)) % types, sizes).astype(np.int32)
        return Item(
            (Part(np.concatenate([row.ids for row in rows]), type_ids),),
            {"example": np.asarray(place, np.int32)},
            {"sentence_numbers": numbers, "labels": labels, "label_weights": weights},
        )

    def _prediction(self, example: DocumentExample, scores: np.ndarray, tokens: Iterator | None) -> Json:
        own = None if tokens is None else [next(tokens) for _ in example.sentences]
        order = [int(i) for i in np.argsort(-scores, kind="stable") if not np.isnan(scores[i])]
        chosen = select(example.sentences, order, self.budget, own)
        named = [{"number": i, "text": example.sentences[i], "probability": float(scores[i])} for i in chosen]
        return {"sentences": named, "probabilities": [None if np.isnan(x) else float(x) for x in scores]}


def _rouge(examples: Sequence[DocumentExample], chosen: Sequence[Sequence[int]]) -> dict[str, float]:
    """Returns the mean ROUGE of the chosen sentences."""
    texts = ["\n".join(e.sentences[i] for i in numbers) for e, numbers in zip(examples, chosen, strict=True)]
    return rouge(texts, ["\n".join(e.summary or ()) for e in examples], _NAMES)
