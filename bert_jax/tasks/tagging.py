"""Tags of words: entities (NER), chunks, parts of speech (Devlin et al. 2018, section 5.3).

The first piece of a word carries its tag; other pieces and special tokens have weight 0. A sentence longer than the
model becomes several items, windows of whole words that overlap, and each word counts in the window that shows most
context around it. So every word is learned once, predicted once and scored once, even a word without any token.

Entities are read and predicted as BIO. A predicted I- that continues no entity of its type begins one, as in conlleval
and in seqeval's default, so that scores are comparable with published ones and every prediction is valid BIO.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.columns import names_of, text_in, texts_in, value_in
from bert_jax.data.labelled.conll import (
    detect_scheme,
    entities_of,
    repair,
    tagged_examples,
    text_and_spans,
    text_to_tag,
    to_bio,
)
from bert_jax.data.labelled.examples import TaggedExample
from bert_jax.data.labelled.tables import Row, suffix_of
from bert_jax.data.labelled.windows import align_words, chunks_of_words, scored_words
from bert_jax.models.bert import Model
from bert_jax.models.features import token_vectors
from bert_jax.models.heads import Classifier
from bert_jax.tasks import scores, sections
from bert_jax.tasks.finetuning import FineTuning, Outputs
from bert_jax.tasks.losses import Logits, balanced_weights, check_finite, cross_entropy_sums
from bert_jax.tasks.task import Batch, Description, Evaluation, Sums
from bert_jax.tasks.texts import agreed_labels, listed, log_tags


class Tagging(FineTuning):
    """Words with tags. `labels` are "O" and the B-TYPE and I-TYPE of every type; tags without this form, such as parts
    of speech, are used as they are."""

    head = "heads/classifier/"
    described = "labels", "characters"
    shares_rows = True
    reads_features = True
    token_outputs = ("logits", "tag_ids", "tag_probabilities")
    labels: list[str]
    characters: bool  # words are single characters, as in Chinese; texts to predict are then split in the same way

    def read(self, spec: str) -> Iterator[TaggedExample]:
        data = self.config.data
        return tagged_examples(spec, text=data.text, label=data.label, names=self._named())

    def example(self, row: Row) -> TaggedExample:
        """Returns an example of the text or the list of words in column data.text."""
        column = self.config.data.text
        if isinstance(value_in(row, column), str):
            return text_to_tag(row.origin, text_in(row, column), self.characters)
        return TaggedExample(row.origin, tuple(texts_in(row, column)), spaces_between=not self.characters)

    @classmethod
    def assumed(cls, config: ConfigDict) -> Description:
        """The entities of data.labels, else four types of them, as in CoNLL-2003."""
        named = dict.fromkeys(_kind(name, False) for name in names_of("data.labels", config.data.labels))
        kinds = [kind for kind in named if kind != "O"] or ["LOC", "MISC", "ORG", "PER"]
        return {"labels": ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in kinds)], "characters": False}

    def stand_in(self, text: str) -> TaggedExample:
        return TaggedExample("stand-in", (text,))

    def unlabelled(self, example: TaggedExample) -> str:
        return "no tags; data.label names their column" if example.tags is None else ""

    def learn(self) -> None:
        """Finds the labels. A type of entity that the training examples lack is an error, unless data.labels names it:
        then it counts as missed. An I- of which training has only the B-, or the reverse, is not an error."""
        if self.config.data.long_texts not in ("windows", "error"):
            raise UserError(
                f"data.long_texts is '{self.config.data.long_texts}': every word has to get a tag; "
                "choose windows, or error for sentences that are too long"
            )
        characters = _are_characters(self.examples["train"])
        if getattr(self, "characters", characters) != characters:
            kinds = ("words", "single characters")
            raise UserError(
                f"the checkpoint of init_from tags {kinds[self.characters]}, the data has {kinds[characters]}; "
                "train a head of its own with --config.train.new_head=True"
            )
        self.characters = characters
        for split, examples in self.examples.items():
            self.examples[split] = self._in_bio(split, examples)
        train = {tag for example in self.examples["train"] for tag in _tags(example)}
        is_plain = not any(tag.startswith("B-") for tag in train)
        named = dict.fromkeys(_kind(name, is_plain) for name in self._named())  # PER or its tags: O, B-PER, I-PER
        kinds = [kind for kind in named if kind != "O"] or sorted({_kind(tag, is_plain) for tag in train} - {"O"})
        outside = ["O"] if "O" in train or not is_plain else []
        found = kinds if is_plain else [f"{prefix}-{kind}" for prefix in "BI" for kind in kinds]
        self.labels = agreed_labels(getattr(self, "labels", None), [*outside, *found], "tags")
        if len(self.labels) < 2:
            raise UserError(f"data.train has one tag only, {self.labels[0]}: there is nothing to learn")
        metric = self.config.checkpoint.best_metric
        if not self.has_entities and metric.startswith("entity_"):
            raise UserError(
                f"the tags of data.train ({listed(self.labels)}) are no entities, of which checkpoint.best_metric="
                f"{metric} is: choose accuracy or macro_f1"
            )
        self._check_tags(train)
        log_tags(self.examples, self.has_entities)

    @property
    def has_entities(self) -> bool:
        return any(label.startswith("B-") for label in self.labels)

    def encode(self, examples: Sequence[TaggedExample]) -> list[Item]:
        length = self.config.data.sequence_length
        room = length - 2
        number = {label: i for i, label in enumerate(self.labels)}
        weights = np.ones(len(number), np.float32)
        if self.config.train.class_weights == "balanced" and "train" in self.examples:
            train = [number[tag] for example in self.examples["train"] for tag in _tags(example)]
            weights = balanced_weights(train, len(number))
        items, long = [], 0
        pieces_of = align_words([example.words for example in examples], self.tokenizer)
        for place, (example, pieces) in enumerate(zip(examples, pieces_of, strict=True)):
            sizes = [len(ids) for ids in pieces]
            if sum(sizes) > room and self.config.data.long_texts == "error":
                count = f"{sum(sizes) + 2} tokens, over data.sequence_length {length}"
                raise UserError(f"{example.origin}: {count}; set data.long_texts=windows")
            long += sum(sizes) > room
            # A text to predict has no tags, and its loss is not used.
            tags = _tags(example) or self.labels[:1] * len(sizes)
            labels = np.asarray([number[tag] for tag in tags], np.int32)
            # A sentence without words is an item too, because it gets a prediction.
            chunks = chunks_of_words(sizes, room) or [(0, -1)]
            for (first, last), scored in zip(chunks, scored_words(chunks), strict=True):
                kept = [word[:room] for word in pieces[first : last + 1]]
                begins = np.asarray([1, *(len(word) for word in kept)], np.int64).cumsum()[:-1]
                words, at = first + np.flatnonzero(scored), begins[scored]
                items.append(self._item(place, kept, words, at, labels[words], weights[labels[words]]))
        if long:
            logging.info("%d of %d sentences are over %d tokens: windows", long, len(examples), length)
        return items

    def heads(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"classifier": Classifier(self.bert_config, len(self.labels), rngs=rngs, inputs=self.head_features.size)}

    def not_portable(self) -> str:
        return ""

    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        return self.completed(
            {"logits": model.heads["classifier"].logits(token_vectors(model, batch, trunk_key), key=head_key)}
        )

    def completed(self, outputs: Outputs) -> Outputs:
        logits = outputs["logits"]
        largest = jnp.max(logits, axis=-1)
        return {
            "logits": logits,
            "tag_ids": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "tag_probabilities": jnp.exp(largest - jax.nn.logsumexp(logits, axis=-1)),
        }

    def evaluate(self, model, batch, constants):
        """Leaves the logits out of the rows: the host does not need them, and those of a large set fill its memory."""
        sums, rows = super().evaluate(model, batch, constants)
        return sums, {name: value for name, value in rows.items() if name != "logits"}

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Gives all words the same weight, whatever the length of their sentence."""
        return {"loss": jnp.maximum(jnp.sum(batch["label_weights"]), 1e-6)}

    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        logits, weights = outputs["logits"], batch["label_weights"]
        smoothing = self.config.train.label_smoothing
        sums = cross_entropy_sums("label", logits, batch["labels"], weights, smoothing=smoothing)
        return {"loss": sums["label_loss"]}

    def soft(self, outputs, batch) -> dict[str, list[Logits]]:
        return {"loss": [Logits(outputs["logits"], batch["label_weights"])]}

    def predict(self, examples, items, outputs) -> list[Json]:
        """Returns for each example its words, their tags and the probabilities of the tags.

        For entities also: type, text, start and end (characters of the text, or of the joined words), word_start and
        word_end (ends are not included), and the probability: the product over the words, since the model predicts tags
        independently of each other.
        """
        check_finite({"probabilities": outputs["tag_probabilities"]})
        ids = [np.full(len(example.words), -1) for example in examples]
        sure = [np.zeros(len(example.words)) for example in examples]
        for item, tags, probabilities in zip(items, outputs["tag_ids"], outputs["tag_probabilities"], strict=True):
            place, numbers = int(item.values["example"]), item.token_values["word_numbers"]
            at = np.flatnonzero(numbers)
            ids[place][numbers[at] - 1] = tags[at]
            sure[place][numbers[at] - 1] = probabilities[at]
        if any((numbers < 0).any() for numbers in ids):
            raise AssertionError("a word was in no item")
        found = [[self.labels[i] for i in numbers] for numbers in ids]
        return [self._prediction(*of_one) for of_one in zip(examples, found, sure, strict=True)]

    def score(self, examples, predictions, description) -> dict[str, float]:
        gold = [list(_tags(example)) for example in examples]
        given = [prediction["tags"] for prediction in predictions]
        if self.has_entities:
            return scores.entity_scores(gold, given)
        number = {label: i for i, label in enumerate(self.labels)}
        flat = [np.asarray([number[tag] for tags in lists for tag in tags]) for lists in (gold, given)]
        return scores.classification_scores(flat[0], flat[1], self.labels)

    def score_names(self, split: str) -> tuple[str, ...]:
        if self.has_entities:
            return "entity_precision", "entity_recall", "entity_f1", "accuracy"
        return scores.names_of_classification(self.labels)

    def report_sections(self, evaluation: Evaluation) -> list[sections.Section]:
        return sections.tags(self.labels, self.examples[evaluation.split], evaluation.predictions, self.has_entities)

    def _named(self) -> list[str]:
        return names_of("data.labels", self.config.data.labels)

    def _in_bio(self, split: str, examples: Sequence[TaggedExample]) -> list[TaggedExample]:
        try:
            scheme = detect_scheme(map(_tags, examples))
        except UserError as error:
            raise UserError(f"data.{split}={self.config.data[split]}: {error}") from error
        logging.info("%s: tags are %s", split, scheme)
        repaired, first, converted = 0, "", []
        for example in examples:
            before = to_bio(_tags(example), scheme)
            tags, count = (before, 0) if scheme == "plain" else repair(before)
            if count:
                word = next(i for i, (old, new) in enumerate(zip(before, tags, strict=True)) if old != new)
                place = f"{_place(example, word)}: {_tags(example)[word]} ('{example.words[word]}')"
                if not self.config.data.repair_tags:
                    raise UserError(f"{place} continues no entity; correct the tag, or set data.repair_tags=True")
                repaired, first = repaired + count, first or place
            spaces = example.spaces_between and not self.characters
            converted.append(replace(example, tags=tuple(tags), spaces_between=spaces))
        if repaired:
            logging.warning("%s: %d tags continue no entity and now begin one (first: %s)", split, repaired, first)
        return converted

    def _check_tags(self, train: set[str]) -> None:
        plain, known, warned = not self.has_entities, set(self.labels), set()
        learned = {_kind(tag, plain) for tag in train}
        for split, examples in self.examples.items():
            for example in examples:
                for word, tag in enumerate(_tags(example)):
                    kind = _kind(tag, plain)
                    if tag not in known:
                        kinds = sorted({_kind(label, plain) for label in known} - {"O"})
                        raise UserError(
                            f"{_place(example, word)}: '{kind}' is not among {listed(kinds)}; correct the tag, or name "
                            "all kinds in data.labels, to have those counted as missed that training lacks"
                        )
                    if kind not in learned and kind not in warned:
                        warned.add(kind)
                        logging.warning("%s has '%s', which data.train lacks: the model will miss it", split, kind)

    def _item(self, place, pieces, words, at, labels, label_weights) -> Item:
        """Returns a window as an item. `word_numbers` count from 1 and stand at the first piece of each word that is
        scored in this window; 0 elsewhere."""
        part = self.tokenizer.row([i for word in pieces for i in word])
        numbers, targets, weights = (np.zeros(len(part.ids), dtype) for dtype in (np.int32, np.int32, np.float32))
        numbers[at], targets[at], weights[at] = words + 1, labels, label_weights
        return Item(
            (part,),
            {"example": np.asarray(place, np.int32)},
            {"labels": targets, "label_weights": weights, "word_numbers": numbers},
        )

    def _prediction(self, example: TaggedExample, tags: list[str], sure: Float[np.ndarray, " n"]) -> Json:
        words, probabilities = list(example.words), sure.tolist()
        if not self.has_entities:
            return {"words": words, "tags": tags, "probabilities": probabilities}
        tags = repair(tags)[0]
        text, spans = text_and_spans(example)
        entities = []
        for kind, first, end in entities_of(tags):
            start, stop = spans[first][0], spans[end - 1][1]
            entity = {"type": kind, "text": text[start:stop], "start": start, "end": stop}
            entity |= {"word_start": first, "word_end": end, "probability": float(sure[first:end].prod())}
            entities.append(entity)
        return {"words": words, "tags": tags, "probabilities": probabilities, "entities": entities}


def _are_characters(examples: Sequence[TaggedExample]) -> bool:
    """Returns True if every word is one character, and not only ASCII letters. CoNLL columns, too, may have one
    character per line."""
    if not any(example.spaces_between for example in examples):
        return True
    words = {word for example in examples for word in example.words}
    return all(len(word) == 1 for word in words) and not all(map(str.isascii, words))


def _kind(tag: str, is_plain: bool) -> str:
    return tag[2:] if not is_plain and tag.startswith(("B-", "I-")) else tag


def _tags(example: TaggedExample) -> tuple[str, ...]:
    return example.tags or ()


def _place(example: TaggedExample, word: int) -> str:
    """Returns where a word is. In CoNLL columns each word has a line of its own; elsewhere only the row is known."""
    path, _, line = example.origin.rpartition(":")
    if path.startswith("tfds:") or suffix_of(Path(path)) in (".jsonl", ".json", ".parquet"):
        return f"{example.origin}, word {word + 1}"
    return f"{path}:{int(line) + word}"
