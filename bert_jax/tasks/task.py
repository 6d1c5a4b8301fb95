"""The interface between what is learned and the one training loop."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.config import BertConfig

Batch = dict[str, Array]
Sums = dict[str, tuple[Array, Array]]  # metric name → (weighted sum, weight); both are added up before they are divided
Rows = dict[str, Array]  # what evaluation keeps of every row of a batch


class TrainBatches(Protocol):
    """An endless iterator that knows where it is."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def state(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Task(Protocol):
    """All that `training/` knows about what it trains.

    A loss is never a mean of means: `sums` gives sums, `weights` what they are divided by, and the loop divides
    once, after all devices, micro-batches and processes have been added up.
    """

    tokenizer: Tokenizer
    bert_config: BertConfig
    steps_per_epoch: int
    final_splits: tuple[str, ...]  # evaluated with the best checkpoint when training ends
    tokens_per_step: int  # places in a global batch, padding included
    flops_per_step: float  # of forward and backward passes over it
    bytes_per_step: float  # of activations that they read and write at the least
    objectives: tuple[str, ...]  # the names in `sums` whose means add up to the loss
    new_parameters: str  # regular expression: names that a warm start may leave as initialised
    dropped_parameters: str  # regular expression: names of the source that a warm start may leave behind
    renewed_parameters: str  # regular expression: names that a warm start leaves as initialised whatever the source has

    def description(self) -> dict[str, Any]:
        """What prediction needs besides config and tokenizer, such as names of labels; saved with every checkpoint."""
        ...

    def describe(self, description: dict[str, Any]) -> None:
        """Takes over what `description()` gave when a checkpoint of this task was saved."""
        ...

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """A freshly initialised model."""
        ...

    def train_batches(self, start_step: int, process_index: int, process_count: int) -> TrainBatches:
        """This process's part of every global batch from `start_step` on."""
        ...

    def eval_batches(self, split: str, process_index: int, process_count: int) -> Iterator[dict[str, np.ndarray]]:
        """Every example of a split once; rows that fill up the last batch weigh nothing."""
        ...

    def features(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        """What is done to a whole batch on the device before the model sees it; `key` is made of (seed, step)."""
        ...

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """For each objective, what the batch's sum is divided by."""
        ...

    def sums(self, model: Any, batch: Batch, key: Key[Array, ""] | None) -> Sums:
        """Runs the model. `key` is for dropout; None means evaluation."""
        ...

    def evaluate(self, model: Any, batch: Batch) -> tuple[Sums, Rows]:
        """The sums without dropout, and for metrics that are no sums what they need of each row; {} if none are."""
        ...

    def metrics(self, sums: dict[str, tuple[Any, Any]], rows: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Divides: the sums of many batches → the figures that are reported, `loss` among them.

        `rows` has one entry for each batch of an evaluation, and none while training.
        """
        ...
