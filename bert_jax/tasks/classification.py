"""Texts and pairs of texts: one class, several classes, or a number each (Devlin et al. 2018, sections 3.2 and 4.1)."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.columns import names_of, text_examples
from bert_jax.data.labelled.examples import TextExample
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.bert import Model
from bert_jax.models.features import sequence_vectors
from bert_jax.models.heads import Classifier, LinearHead, pool_windows
from bert_jax.tasks import scores, sections
from bert_jax.tasks.finetuning import FineTuning, Outputs
from bert_jax.tasks.losses import Logits, balanced_weights, check_finite, cross_entropy_sums, softmax
from bert_jax.tasks.task import Batch, Description, Evaluation, Sums
from bert_jax.tasks.texts import (
    agreed_labels,
    blank_example,
    encode_texts,
    listed,
    log_splits,
    text_columns,
    text_example,
)


class Classification(FineTuning):
    """Texts or pairs of texts with labels of the kind data.label_kind.

    single: one of several classes, by a softmax. multi: any number of labels, each by a sigmoid of its own.
    regression: a number, by the squared error of one output.
    """

    head = "heads/classifier/|heads/window_query/"
    described = "labels", "thresholds", "label_kind"
    reads_features = True
    reads_vectors = True
    reads_media = True
    shares_rows = True
    labels: list[str]
    thresholds: list[float]  # only of kind multi: the probability from which a label is given; 0.5 until it is tuned

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, description: Description | None):
        self.label_kind: str = config.data.label_kind
        super().__init__(config, tokenizer, description)

    def read(self, spec: str) -> Iterator[TextExample]:
        data = self.config.data
        columns = text_columns(data) | {"label": data.label, "separator": data.label_separator}
        examples = text_examples(spec, **columns, kind=data.label_kind, vectors=self.source and self.source.read)
        return map(self._with_named_label, examples) if data.labels and self.label_kind == "single" else examples

    def example(self, row: Row) -> TextExample:
        return text_example(row, self.config.data, self.source)

    @classmethod
    def assumed(cls, config: ConfigDict) -> Description:
        """Two labels, unless data.labels names them."""
        data = config.data
        labels = names_of("data.labels", data.labels) or ["no", "yes"]
        labels = [] if data.label_kind == "regression" else labels
        thresholds = [0.5] * len(labels) if data.label_kind == "multi" else []
        return {"labels": labels, "thresholds": thresholds, "label_kind": data.label_kind}

    def stand_in(self, text: str) -> TextExample:
        return blank_example(text, self.config.data, self.source)

    def learn(self) -> None:
        log_splits(self.examples)
        if self.label_kind == "regression":
            self.labels, self.thresholds = [], []
            return
        train = {label for example in self.examples["train"] for label in _names(example)}
        found = self._given_labels() or sorted(train, key=_numbers_first)
        known = getattr(self, "labels", None)
        self.labels = agreed_labels(known, found, "labels")
        if len(self.labels) < 2 and self.label_kind == "single":
            raise UserError(f"data.train has one label only, {listed(self.labels)}: there is nothing to learn")
        for example in itertools.chain.from_iterable(self.examples.values()):
            if unknown := set(_names(example)).difference(self.labels):
                raise UserError(f"{example.origin}: label '{min(unknown)}' is not among {listed(self.labels)}")
        if known is None:
            self.thresholds = [0.5] * len(self.labels) if self.label_kind == "multi" else []

    def restore(self, description: Description) -> None:
        super().restore(description)
        kind, wanted = self.label_kind, self.config.data.label_kind
        if kind != wanted:
            raise UserError(
                f"data.label_kind is {wanted}, the checkpoint's head was trained with {kind}: "
                f"set --config.data.label_kind={kind}, or train a head of its own with --config.train.new_head=True"
            )
        if kind == "multi" and len(self.thresholds) != len(self.labels):
            known = f"{len(self.thresholds)} thresholds for {len(self.labels)} labels"
            raise UserError(f"the checkpoint has {known}: it is damaged; use another")

    def encode(self, examples: Sequence[TextExample]) -> list[Item]:
        values = self._values(examples)
        rows = encode_texts(self.tokenizer, examples, self.config.data)
        return [Item(parts, {name: x[i] for name, x in values.items()}, own) for i, (parts, own) in enumerate(rows)]

    def heads(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        heads: dict[str, nnx.Module] = {"classifier": self.classifier(rngs)}
        if self.window_pooling == "attention":
            heads["window_query"] = LinearHead(self.bert_config, 1, rngs=rngs, inputs=self.head_features.size)
        return heads

    def classifier(self, rngs: nnx.Rngs) -> LinearHead:
        """Returns the head that turns the vector of a text into logits."""
        outputs = 1 if self.label_kind == "regression" else len(self.labels)
        classifier = Classifier(self.bert_config, outputs, rngs=rngs, inputs=self.head_features.size)
        if self.label_kind != "single" and "train" in self.examples:
            classifier.bias = nnx.Param(jnp.asarray(self._first_bias()))
        return classifier

    @property
    def window_pooling(self) -> str:
        return self.config.data.window_pooling if self.config.data.long_texts == "windows" else "mean"

    def not_portable(self) -> str:
        if self.source is not None:
            return f"data.{self.source.kind} gives it vectors beside the text, and a program reads rows of tokens alone"
        several = self.config.data.long_texts == "windows"
        return "data.long_texts=windows joins several rows; set another that cuts long texts" if several else ""

    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        vectors, weights = sequence_vectors(model, batch, trunk_key), batch["part_weights"]
        if weights.shape[1] > 1:
            query = model.heads.get("window_query")
            vectors = pool_windows(vectors, weights, self.window_pooling, query)[:, None]
        return {"logits": model.heads["classifier"].logits(vectors, key=head_key)}

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        return {"loss": jnp.maximum(jnp.sum(batch["item_weights"] * batch["label_weights"]), 1e-6)}

    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        logits, labels = outputs["logits"], batch["labels"]
        weights = batch["item_weights"] * batch["label_weights"]
        if self.label_kind == "regression":
            return {"loss": (jnp.sum(jnp.square(logits[:, :, 0] - labels) * weights), jnp.sum(weights))}
        if self.label_kind == "multi":
            # log(1 + e^x) − y·x is the binary cross-entropy from logits. The mean over the labels, and not their sum,
            # keeps the loss on one scale whatever their number.
            loss = jnp.mean(jax.nn.softplus(logits) - labels * logits, axis=-1)
            return {"loss": (jnp.sum(loss * weights), jnp.sum(weights))}
        smoothing = self.config.train.label_smoothing
        return {"loss": cross_entropy_sums("label", logits, labels, weights, smoothing=smoothing)["label_loss"]}

    def soft(self, outputs, batch) -> dict[str, list[Logits]]:
        kind = {"single": "softmax", "multi": "sigmoid", "regression": "value"}[self.label_kind]
        return {"loss": [Logits(outputs["logits"], batch["item_weights"] * batch["label_weights"], kind)]}

    def predict(self, examples, items, outputs) -> list[Json]:
        check_finite(outputs)
        logits = np.asarray(outputs["logits"], np.float64)
        if self.label_kind == "regression":
            return [{"value": float(value)} for value in logits[:, 0]]
        if self.label_kind == "multi":
            probabilities = 1 / (1 + np.exp(-logits))
            decisions = [{"labels": self._given(row, self.thresholds)} for row in probabilities]
        else:
            probabilities = softmax(logits)
            best = [(self.labels[int(row.argmax())], float(row.max())) for row in probabilities]
            decisions = [{"label": label, "probability": probability} for label, probability in best]
        named = (dict(zip(self.labels, row.tolist(), strict=True)) for row in probabilities)
        return [decision | {"probabilities": row} for decision, row in zip(decisions, named, strict=True)]

    def score(self, examples, predictions, description) -> dict[str, float]:
        if self.label_kind == "regression":
            gold = np.asarray([example.label for example in examples], np.float64)
            return scores.regression_scores(gold, np.asarray([prediction["value"] for prediction in predictions]))
        if self.label_kind == "multi":
            gold, given = self._gold_sets(examples), _probabilities(predictions)
            half = scores.multilabel_scores(gold, given, np.full(len(self.labels), 0.5), self.labels)
            tuned = scores.multilabel_scores(gold, given, np.asarray(description["thresholds"]), self.labels)
            return half | {f"tuned_{name}": value for name, value in tuned.items()}
        gold, given = self.numbers(examples, predictions)
        found = scores.classification_scores(gold, given, self.labels)
        return found | {"majority_accuracy": scores.majority_baseline(gold)}

    def score_names(self, split: str) -> tuple[str, ...]:
        if self.label_kind == "regression":
            return "pearson", "spearman", "mse"
        if self.label_kind == "multi":
            names = "micro_f1", "macro_f1", "subset_accuracy"
            return *names, *(f"tuned_{name}" for name in names)
        return *scores.names_of_classification(self.labels), "majority_accuracy"

    def tune(self, examples, predictions) -> Description:
        if self.label_kind != "multi":
            return {}
        return {"thresholds": scores.tune_thresholds(self._gold_sets(examples), _probabilities(predictions)).tolist()}

    def decide(self, predictions, description) -> Sequence[Json]:
        if self.label_kind != "multi":
            return predictions
        rows, thresholds = _probabilities(predictions), description["thresholds"]
        return [p | {"labels": self._given(row, thresholds)} for p, row in zip(predictions, rows, strict=True)]

    def report_sections(self, evaluation: Evaluation) -> list[sections.Section]:
        examples, predictions = self.examples[evaluation.split], evaluation.predictions
        if self.label_kind == "regression":
            return sections.numbers(examples, predictions)
        if self.label_kind == "single":
            return sections.classes(self.labels, examples, predictions)
        thresholds = (self.description() | evaluation.learned)["thresholds"]
        gold, given = self._gold_sets(examples), _probabilities(predictions)
        return sections.label_sets(self.labels, thresholds, examples, gold, given)

    def numbers(self, examples, predictions) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """Returns the right and the predicted classes, counted from 0."""
        number = {label: i for i, label in enumerate(self.labels)}
        gold = np.asarray([number[str(example.label)] for example in examples])
        return gold, np.asarray([number[prediction["label"]] for prediction in predictions])

    def _first_bias(self) -> Float[np.ndarray, " C"]:
        """Returns the bias that predicts the labels without reading a text: the mean of the numbers, or the log-odds of
        each label, with one text added to either side. From a bias of 0 the model would need hundreds of steps to learn
        that labels are rare (Lin et al. 2017, section 4.1) or that numbers are far from 0."""
        train = self.examples["train"]
        if self.label_kind == "regression":
            return np.asarray([np.mean([float(example.label) for example in train])], np.float32)
        count = Counter(itertools.chain.from_iterable(map(_names, train)))
        having = np.asarray([count[label] for label in self.labels], np.float32)
        return np.log((having + 1) / (len(train) - having + 1))

    def _given_labels(self) -> list[str]:
        return names_of("data.labels", self.config.data.labels)

    def _with_named_label(self, example: TextExample) -> TextExample:
        """Replaces the number of a label by its name in data.labels: files have numbers where TFDS has names."""
        names, label = self._given_labels(), str(example.label)
        if label not in names and label.isdigit() and int(label) < len(names):
            return replace(example, label=names[int(label)])
        return example

    def _given(self, probabilities: Float[np.ndarray, " C"], thresholds: Sequence[float]) -> list[str]:
        return [label for label, p, t in zip(self.labels, probabilities, thresholds, strict=True) if p >= t]

    def _gold_sets(self, examples: Sequence[TextExample]) -> Bool[np.ndarray, "N C"]:
        return np.asarray([[label in given for label in self.labels] for given in map(_names, examples)])

    def _values(self, examples: Sequence[TextExample]) -> dict[str, np.ndarray]:
        """Returns the labels as arrays; zeros for examples without label, which are only predicted."""
        weights = np.ones(len(examples), np.float32)
        if self.label_kind == "regression":
            labels = np.asarray([float(example.label or 0) for example in examples], np.float32)  # type: ignore[arg-type]
        elif self.label_kind == "multi":
            labels = self._gold_sets(examples).astype(np.float32)
        else:
            number = {label: i for i, label in enumerate(self.labels)}
            labels = np.asarray([0 if e.label is None else number[str(e.label)] for e in examples], np.int32)
            if self.config.train.class_weights == "balanced" and "train" in self.examples:
                train = [number[str(example.label)] for example in self.examples["train"]]
                weights = balanced_weights(train, len(self.labels))[labels]
        return {"labels": labels, "label_weights": weights}


def _probabilities(predictions: Sequence[Json]) -> Float[np.ndarray, "N C"]:
    return np.asarray([list(prediction["probabilities"].values()) for prediction in predictions])


def _names(example: TextExample) -> tuple[str, ...]:
    if isinstance(example.label, tuple):
        return example.label
    return () if example.label is None else (str(example.label),)


def _numbers_first(label: str) -> tuple[bool, float, str]:
    is_number = label.lstrip("-").isdigit()
    return not is_number, float(label) if is_number else 0.0, label
