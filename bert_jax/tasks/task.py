"""The interface between what is learned and everything that trains, evaluates, reports or serves it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from flax import nnx
from jax import ShapeDtypeStruct
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.reader import TrainBatches
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.bert import Model
from bert_jax.models.config import BertConfig
from bert_jax.models.decoding.options import Decoding
from bert_jax.models.writer import Writer
from bert_jax.tasks.sections import Prediction, Report

Batch = dict[str, Array]
Sums = dict[str, tuple[Array, Array]]  # metric name → (weighted sum, weight); both are added up before they are divided
HostSums = Mapping[str, tuple[Any, Any]]  # the same on the host, in float64
Rows = dict[str, Array]  # what an evaluation keeps of every row of a batch
Description = Json  # JSON: what prediction needs besides config and tokenizer, such as names of labels
Constants = PyTree[Array]
Example = Any  # what a family reads of a row: TextExample, TaggedExample, QuestionExample, …

# Ends of the names of metrics that are better when lower; all others are better when higher.
LOWER_IS_BETTER = ("loss", "perplexity", "entropy", "error", "mse")


class Source(NamedTuple):
    """What a run takes from the checkpoint that it continues or starts from, besides its parameters."""

    tokenizer: Tokenizer
    task: str  # `config.task` of the run that wrote the checkpoint
    description: Description  # of that task
    parameters: str = ""  # hash of those that the run starts from; "" if it continues


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation of a split. It is false if the split has no examples."""

    split: str
    metrics: dict[str, float] = field(default_factory=dict)
    # Of the examples, or the first ones, in their order; JSON; () if the task makes none
    predictions: Sequence[Prediction] = ()
    learned: Description = field(default_factory=dict)  # e.g. thresholds; belongs into the checkpoint's description

    def __bool__(self) -> bool:
        return bool(self.metrics)


class Phase(NamedTuple):
    """Consecutive steps of a run: batches, features and sums of those before step `end` are of `task`."""

    end: int
    task: "Task"


class Task(Protocol):
    """All that the rest of the program knows about what is learned.

    The constructor reads no data: it is enough for a model and for prediction. `with_data` makes a task that can also
    train and evaluate. A task does not change afterwards; what an evaluation learns is in the `Evaluation`.

    A loss is never a mean of means: `sums` gives sums, `weights` gives their divisors, and the loop divides once, after
    all devices, micro-batches and processes have been added up.
    """

    objectives: Mapping[str, float]  # names in `sums` → weights; the weighted means add up to the loss
    makes_predictions: ClassVar[bool]  # whether it has predictions for single examples
    token_outputs: ClassVar[tuple[str, ...]] = ()  # names of those rows of `evaluate` that have one entry per token
    makes_vocabulary: ClassVar[bool] = False  # whether `with_data` learns one from the data where none is given
    makes_answers: ClassVar[bool] = False  # whether these have `id` and `answer`, which SQuAD's form of answers needs
    makes_texts: ClassVar[bool] = False  # whether it has `writer` and `decoding`, for texts of several kinds
    extends_vocabulary: ClassVar[bool] = False  # whether it follows extend.words
    has_phases: ClassVar[bool] = False  # whether `phases` follows train.phases
    percentages: ClassVar[tuple[str, ...]] = ()  # ends of the names of metrics that are out of 100, not of 1
    has_members: ClassVar[bool] = False  # whether it consists of the tasks in config.tasks, its `members`

    config: ConfigDict
    tokenizer: Tokenizer
    bert_config: BertConfig
    new_parameters: str  # regular expression: names that a warm start may leave as initialised
    dropped_parameters: str  # regular expression: names of the source that a warm start may leave behind
    renewed_parameters: str  # regular expression: names that a warm start leaves as initialised whatever the source has
    blank_columns: Mapping[str, Any] = {}  # columns of a row to predict that hold no text → a value for a trial
    members: Mapping[str, "Task"] = {}  # by name; their parameters are the trunk's and those under heads/NAME/
    main_metrics: Mapping[str, str] = {}  # one of each member, by which its evaluations are compared
    copied_parameters: Mapping[str, str] = {}  # begin of names → begin of those that a source without them has instead
    # Only of a task with data, or of one that stands in for it
    steps_per_epoch: int
    final_splits: tuple[str, ...]  # evaluated with the best checkpoint when training ends
    tokens_per_step: int  # positions in a global batch, padding included
    flops_per_step: float  # floating-point operations of its forward and backward passes
    bytes_per_step: float  # a lower bound on the bytes of activations that these passes read and write

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, description: Description | None):
        """`description` is that of the checkpoint to start or predict from if it was trained on this task, else None.

        Raises UserError if the description contradicts the config.
        """
        ...

    @classmethod
    def with_data(cls, config: ConfigDict, source: Source | None) -> Self:
        """Returns the task with its data and tokenizer. Raises UserError for anything that is wrong with the data."""
        ...

    @classmethod
    def without_data(cls, config: ConfigDict, tokenizer: Tokenizer, description: Description | None) -> Self:
        """Returns a task for compiling: it can say what its batches look like and what a step costs, but has none. What
        only data or a checkpoint's description decides, such as the number of labels, is assumed."""
        raise _cannot_compile(config, "without_data")

    def batch_shapes(self, *, training: bool) -> dict[str, ShapeDtypeStruct]:
        """Returns the shapes of a global batch, of training or of an evaluation; the largest if the data decides."""
        raise _cannot_compile(self.config, "batch_shapes")

    @classmethod
    def splits(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns the splits that a run with this config evaluates; all, if only the data can say."""
        return ("validation", "test")

    @classmethod
    def predicted_tokens(cls, config: ConfigDict) -> int:
        """Returns the tokens of a row whose product with the vocabulary a step computes."""
        return 0

    @classmethod
    def prepared_folders(cls, config: ConfigDict, position: Mapping[str, object]) -> list[Path]:
        """Returns the folders of prepared data that a data position of a run belongs to; [] if the task reads the
        user's files themselves."""
        return []

    def description(self) -> Description:
        """Returns what the constructor needs besides config and tokenizer; it is saved with every checkpoint."""
        return {}

    def fingerprints(self) -> dict[str, str]:
        """Returns digests of the examples, by what they are of: all processes of a run must find the same."""
        return {}

    def init(self, rngs: nnx.Rngs) -> nnx.Module: ...

    def constants(self) -> Constants:
        """Returns arrays that `sums` and `evaluate` need but that are not trained, such as a teacher's parameters."""
        return {}

    def phases(self) -> list[Phase]:
        """Returns the phases of training, in order: tasks over the same model that differ in what a step sees. Steps
        are counted through all of them. Evaluation is this task's. train.steps must be known."""
        return [Phase(self.config.train.steps, self)]

    def train_batches(self, start_step: int, process_index: int, process_count: int) -> TrainBatches:
        """Returns this process's part of every global batch from `start_step` on."""
        ...

    def eval_batches(self, split: str, process_index: int, process_count: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields every example of a split once; rows that fill up the last batch have weight 0."""
        ...

    def idle_parameters(self, batch: Batch) -> str:
        """Returns a regular expression of the parameters that a step on this batch leaves as they are, with their
        state of the optimizer."""
        return ""

    def features(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        """Returns the batch as the model sees it; runs on the device, on the whole batch at once.

        `key` is made of (seed, step) in training and of eval.seed in an evaluation.
        """
        return batch

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Returns the divisor of each objective's sum over the whole batch."""
        ...

    def sums(self, model: Model, batch: Batch, key: Key[Array, ""] | None, constants: Constants) -> Sums:
        """Runs the model. `key` is for dropout; None means evaluation."""
        ...

    def evaluate(self, model: Model, batch: Batch, constants: Constants) -> tuple[Sums, Rows]:
        """Returns the sums without dropout and what metrics that are not sums need of each row ({} if none)."""
        ...

    def means(self, sums: HostSums) -> dict[str, float]:
        """Divides the sums of one or more batches into metrics, `loss` among them, leaving out those of weight 0."""
        return mean_of_each(sums)

    def evaluation(
        self, split: str, sums: HostSums, rows: Sequence[dict[str, np.ndarray]], description: Description
    ) -> Evaluation:
        """Returns the evaluation of a split from the sums over its batches and the rows of each batch.

        `description` belongs to the parameters that were evaluated: `description()` merged with what earlier
        evaluations learned.
        """
        ...

    def metric_names(self, split: str) -> tuple[str, ...]:
        """Returns the names of the metrics of `evaluation`; () if the split has no examples."""
        ...

    def report(self, evaluation: Evaluation) -> Report | None:
        """Returns the task's part of the report of an evaluation; None if there is nothing to show."""
        return None

    # Only of a task that makes predictions

    @property
    def input_example(self) -> Json:
        """A row to predict, as short as it can be; its first column is that of a row that is a text alone."""
        data = self.config.data
        return {name: "a" for name in (data.text, data.text_pair) if name}

    def prediction_examples(self, rows: Iterable[Row]) -> Iterator[Example]:
        """Yields for each row, in order, an example without label, or the UserError that says what is wrong with it."""
        ...

    def encode(self, examples: Sequence[Example]) -> list[Item]:
        """Returns the items of the examples, in their order; one example may give several items (windows), or one item
        of several parts."""
        ...

    def predict(
        self, examples: Sequence[Example], items: Sequence[Item], outputs: dict[str, list[np.ndarray]]
    ) -> list[Prediction]:
        """Returns one JSON-able prediction per example from the rows that `evaluate` keeps: one array per item, without
        its leading two axes; arrays with one entry per token may be longer than the item, by padding."""
        ...

    # Only of a task that makes texts; examples without targets are encoded as sources

    def writer(self, model: Any) -> Writer:
        """Returns the writer whose parameters are those of the model."""
        ...

    def decoding(self, **given: object) -> Decoding:
        """Returns how it writes: as the options `generate.*` say, but for those that are `given`. Raises UserError."""
        ...


def description_of(description: Any, name: str) -> Description:
    """Returns what the description of a task with members says of one of them. Raises UserError if it does not."""
    try:
        return dict(description["tasks"][name]["description"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"the checkpoint does not say what its task {name} learned; train it again") from None


def shapes_of(batch: Mapping[str, np.ndarray]) -> dict[str, ShapeDtypeStruct]:
    """Returns the shapes of a batch."""
    return {name: ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}


def mean_of_each(sums: HostSums) -> dict[str, float]:
    """Divides every sum by its weight, where that is not 0."""
    return {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}


def _cannot_compile(config: ConfigDict, method: str) -> UserError:
    return UserError(f"task={config.task} cannot be compiled without data; define its method {method}")
