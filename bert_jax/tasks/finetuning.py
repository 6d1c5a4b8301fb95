"""What all fine-tuning tasks share: examples → items → batches, evaluation, what is saved with a model.

A family (classification.py, tagging.py, span_qa.py, multiple_choice.py) says how its examples are read and encoded,
what its head gives for a batch, its loss, and how the head's output becomes predictions and scores.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data import batches
from bert_jax.data.batches import Item, Shape
from bert_jax.data.tables import Row
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models.attention import use_cudnn
from bert_jax.models.config import bert_config, check_length, training_bytes, training_flops
from bert_jax.tasks.task import Batch, Rows, Sums

Outputs = dict[str, Array]
SPLITS = ("train", "validation", "test")


class FineTuning(ABC):
    """A `Task` over labelled examples in memory.

    Made for training by `load()`, which reads the splits; made for prediction from `description` alone, which is what
    the checkpoint says of the task.
    """

    objectives = ("loss",)
    head: ClassVar[str]  # regular expression of the head's parameters
    other_heads = "mlm/|nsp/|classifier/|span/|window_query/"

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, description: dict[str, Any] | None):
        """`description`: of the checkpoint to start or predict from, if it was trained on this kind of task."""
        self.config = config
        self.tokenizer = tokenizer
        self.bert_config = bert_config(config.model, tokenizer.vocab_size)
        check_length(self.bert_config, config.data.sequence_length)
        self.new_parameters = f"{self.head}|pooler/"
        self.dropped_parameters = self.other_heads
        self.renewed_parameters = self.head if config.train.new_head or description is None else ""
        self.examples: dict[str, list] = {}
        self.items: dict[str, list[Item]] = {}
        self.evaluated = ""  # the split that `predictions` are of
        if description is not None and not config.train.new_head:
            self.describe(description)

    # What a family says

    @abstractmethod
    def read(self, spec: str) -> Iterator[Any]:
        """The examples of a file, a glob or a TFDS split."""

    @abstractmethod
    def prediction_examples(self, rows: Iterable[Row]) -> Iterator[Any]:
        """For each row, in order and as they come, an example without label, or the UserError that says what is wrong
        with it."""

    @abstractmethod
    def learn(self) -> None:
        """Takes what prediction needs (names of labels) from the training examples, unless a checkpoint gave it; checks
        the other splits against it; logs the data report."""

    @abstractmethod
    def describe(self, description: dict[str, Any]) -> None:
        """Takes over what `description()` of a trained task gave."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """JSON: what prediction needs besides config and tokenizer."""

    @abstractmethod
    def encode(self, examples: Sequence[Any]) -> list[Item]:
        """In the order of the examples; one may give several items (windows) or one of several parts."""

    @abstractmethod
    def init(self, rngs: nnx.Rngs) -> nnx.Module: ...

    @abstractmethod
    def outputs(self, model: Any, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        """What the head gives; needs no labels."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        """`loss` and other figures that are means, as (weighted sum, weight)."""

    @abstractmethod
    def predict(
        self, examples: Sequence[Any], items: Sequence[Item], outputs: dict[str, list[np.ndarray]]
    ) -> list[Any]:
        """One prediction an example, JSON-able; `outputs` has one array an item, tokens of padding included."""

    @abstractmethod
    def score(self, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """The metrics of the field, by their usual names."""

    # What follows from it

    def load(self) -> None:
        """Reads and encodes every split that the config names. Raises UserError for whatever is wrong with the data."""
        data = self.config.data
        if not data.train:
            raise UserError("data.train is empty: name the file with the labelled examples (--config.data.train=…)")
        if data.read_workers:
            raise UserError("data.read_workers: fine-tuning reads its examples from memory; set it to 0")
        self.examples = {split: list(self.read(data[split])) for split in SPLITS if data[split]}
        for split, examples in self.examples.items():
            if not examples:
                raise UserError(f"data.{split}={data[split]} has no examples")
        self.learn()
        self.items = {split: self.encode(examples) for split, examples in self.examples.items()}
        self.final_splits = tuple(split for split in ("test",) if split in self.items)
        everything = [item for items in self.items.values() for item in items]
        size = self.config.train.batch_size
        worth = self._tokens_worth_a_program() / self._epochs(size)
        self.shapes = batches.choose_shapes(everything, size, data.buckets, data.sequence_length, worth=worth)
        self.eval_shapes = {
            split: batches.shapes_worth_their_programs(self.shapes, items, self.config.eval.batch_size, worth=worth)
            for split, items in self.items.items()
        }
        self.steps_per_epoch = batches.steps_per_epoch(len(self.items["train"]), size)
        rows, length = batches.mean_shape(self.items["train"], self.shapes, size)
        tokens = sum(len(part.ids) for item in self.items["train"] for part in item.parts)
        self.tokens_per_step = round(rows * length)
        self.flops_per_step = training_flops(self.bert_config, rows, length, predictions=0)
        self.bytes_per_step = training_bytes(
            self.bert_config, rows, length, fused_attention=use_cudnn(self.bert_config, training=True)
        )
        shapes = ", ".join(f"{parts}×{length}" if parts > 1 else str(length) for parts, length in self.shapes)
        real = tokens / (self.steps_per_epoch * self.tokens_per_step)
        logging.info(
            "%d steps an epoch of %d examples; rows of %s tokens, %.0f %% of them real",
            *(self.steps_per_epoch, len(self.items["train"]), shapes, 100 * real),
        )

    def train_batches(self, start_step: int, process_index: int, process_count: int) -> batches.TrainBatches:
        return batches.TrainBatches(
            self.items["train"],
            self.shapes,
            self.config,
            fingerprint=self._fingerprint(),
            start_step=start_step,
            process_index=process_index,
            process_count=process_count,
        )

    def eval_batches(self, split: str, process_index: int, process_count: int) -> Iterator[dict[str, np.ndarray]]:
        self.evaluated = split
        if split not in self.items:
            return iter(())
        return self.batches_of(self.items[split], self.eval_shapes[split], process_index, process_count)

    def batches_of(
        self, items: Sequence[Item], shapes: Sequence[Shape], process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        return batches.ordered_batches(
            items,
            shapes,
            self.config.eval.batch_size,
            self.config.data,
            process_index=process_index,
            process_count=process_count,
        )

    def features(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        return batch

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Examples weigh alike, whatever the micro-batch; a family whose loss counts otherwise says so here."""
        return {"loss": jnp.maximum(jnp.sum(batch["item_weights"]), 1.0)}

    def sums(self, model: Any, batch: Batch, key: Key[Array, ""] | None) -> Sums:
        return self._sums(self.outputs(model, batch, key), batch)

    def evaluate(self, model: Any, batch: Batch) -> tuple[Sums, Rows]:
        outputs = self.outputs(model, batch, None)
        return self._sums(outputs, batch), outputs | {"item_ids": batch["item_ids"]}

    def metrics(self, sums: dict[str, tuple[Any, Any]], rows: list[dict[str, np.ndarray]]) -> dict[str, float]:
        metrics = {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}
        if rows:
            examples, items = self.examples[self.evaluated], self.items[self.evaluated]
            self.predictions = self.predict(examples, items, by_item(rows, len(items)))
            metrics |= self.score(examples, self.predictions)
        return metrics

    def _sums(self, outputs: Outputs, batch: Batch) -> Sums:
        real = jnp.sum(batch["sequence_ids"] > 0).astype(jnp.float32)
        return self.losses(outputs, batch) | {"real_tokens": (real, jnp.float32(batch["sequence_ids"].size))}

    def _epochs(self, batch_size: int) -> float:
        train = self.config.train
        return train.epochs or train.steps / batches.steps_per_epoch(len(self.items["train"]), batch_size)

    def _tokens_worth_a_program(self) -> float:
        """How many tokens are trained on in the time that it takes to compile the step for one more shape of a batch: a
        rough figure, from one second a layer and half of what a device reaches at best."""
        length = self.config.data.sequence_length
        seconds = float(self.bert_config.num_hidden_layers)
        flops = 4e11 if jax.default_backend() == "cpu" else 5e13
        return seconds * flops * length / training_flops(self.bert_config, 1, length, predictions=0)

    def _fingerprint(self) -> str:
        """Of everything that a training batch is made of."""
        digest = hashlib.blake2b(digest_size=8)
        for item in self.items["train"]:
            for array in (
                *(x for part in item.parts for x in (part.ids, part.type_ids)),
                *item.values.values(),
                *item.token_values.values(),
            ):
                digest.update(array.tobytes())
            digest.update(b"|")
        return digest.hexdigest()


def trunk_inputs(batch: Batch) -> tuple[Array, Array, Array, Array]:
    """The parts of all items as rows: [B, S, L] → four of [B·S, L]."""
    names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    ids, types, positions, sequences = (batch[name].reshape(-1, batch[name].shape[-1]) for name in names)
    return ids, types, positions, sequences


def refuse_options_of_classes(config: ConfigDict) -> None:
    """For families whose examples have no classes. Raises UserError."""
    for key, off in (("class_weights", "none"), ("label_smoothing", 0.0)):
        if config.train[key] != off:
            raise UserError(f"train.{key} is {config.train[key]}; task={config.task} has no classes: leave it {off}")


def by_item(rows: list[dict[str, np.ndarray]], count: int) -> dict[str, list[np.ndarray]]:
    """Outputs of batches → for each name one array an item, in the items' order, each exactly once."""
    numbers = np.concatenate([row["item_ids"] for row in rows])
    real = np.flatnonzero(numbers >= 0)
    if not np.array_equal(np.sort(numbers[real]), np.arange(count)):
        raise AssertionError(f"{len(real)} evaluated rows for {count} items")
    order = real[np.argsort(numbers[real])]
    found = {}
    for name in rows[0].keys() - {"item_ids"}:
        values = [value for row in rows for value in row[name]]
        found[name] = [values[i] for i in order]
    return found
