"""What all fine-tuning tasks share: examples → items → batches, evaluation, what is saved with a model.

A family defines how examples are read and encoded, what the head computes, the loss, predictions and scores.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from bert_jax import backend
from bert_jax.config import UserError, result_or_error, row_parts
from bert_jax.data.batching.batch_order import steps_per_epoch
from bert_jax.data.batching.batch_plan import BatchPlan
from bert_jax.data.batching.batches import by_item, collate, ordered_batches, train_batches
from bert_jax.data.batching.items import Item, fingerprint
from bert_jax.data.batching.reader import TrainBatches
from bert_jax.data.batching.shapes import Limits, Shape
from bert_jax.data.labelled.examples import as_record, check_labelled
from bert_jax.data.labelled.languages import ByLanguage
from bert_jax.data.labelled.tables import Row
from bert_jax.data.media.source import vector_source
from bert_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from bert_jax.models.attention import use_cudnn
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import bert_config, check_length
from bert_jax.models.cost import tokens_while_compiling, training_bytes, training_flops
from bert_jax.models.encoder import is_scanned
from bert_jax.models.features import FeatureConfig, feature_head
from bert_jax.models.patches import vector_embedding
from bert_jax.tasks import sections
from bert_jax.tasks.losses import Logits
from bert_jax.tasks.sections import Prediction, Report, Section
from bert_jax.tasks.task import Batch, Constants, Description, Evaluation, Example, Source, Sums, Task, shapes_of

Outputs = dict[str, Array]


class FineTuning(Task, ABC):
    """A task over labelled examples in memory."""

    objectives: Mapping[str, float] = {"loss": 1.0}
    makes_predictions = True
    head: ClassVar[str]  # regular expression of the head's parameters
    described: ClassVar[tuple[str, ...]] = ()  # attributes that a checkpoint keeps, such as names of labels
    has_classes = True  # whether train.class_weights and train.label_smoothing mean something
    reads_features = False  # whether `heads` and `outputs` follow the options head.*
    reads_vectors = False  # whether `outputs` are made of `sequence_vectors`
    reads_media = False  # whether examples may have a picture, a sound or features beside their text
    shares_rows = False  # whether `outputs` and `losses` know of several items in a row (data.packing)

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, description: Description | None):
        self.config = config
        self.tokenizer = tokenizer
        self.bert_config = bert_config(config.model, tokenizer.vocab_size)
        check_length(self.bert_config, config.data.sequence_length)
        self.head_features = FeatureConfig.from_options(config.head, self.bert_config.hidden_size)
        head = self.head if self.head_features.is_default else f"{self.head}|heads/features/"
        self.source = vector_source(config)
        self.blank_columns = {} if self.source is None else {self.source.column: self.source.blank()}
        self.new_parameters = f"{head}|pooler/|heads/vectors/"
        self.dropped_parameters = "heads/"
        self.renewed_parameters = head if description is None else ""
        self.examples: dict[str, list] = {}
        self.items: dict[str, list[Item]] = {}
        self.languages = ByLanguage(config.data)
        self.check()
        if description is not None:
            self.restore(description)

    @classmethod
    def with_data(cls, config: ConfigDict, source: Source | None) -> Self:
        tokenizer = cls.new_tokenizer(config) if source is None else source.tokenizer
        keeps_head = source is not None and source.task == config.task and not config.train.new_head
        task = cls(config, tokenizer, source.description if source is not None and keeps_head else None)
        task.load()
        return task

    @classmethod
    def without_data(cls, config: ConfigDict, tokenizer: Tokenizer, description: Description | None) -> Self:
        if description is None:
            size = bert_config(config.model, tokenizer.vocab_size).hidden_size
            description = cls.assumed(config) | FeatureConfig.from_options(config.head, size).description()
        task = cls(config, tokenizer, description)
        shapes = task.batch_shapes(training=True)
        (rows, length), targets = shapes["input_ids"].shape, shapes.get("target_ids")
        task.count_step(rows, length, targets.shape[1] if targets is not None else 0)
        return task

    @classmethod
    def splits(cls, config: ConfigDict) -> tuple[str, ...]:
        return tuple(split for split in ("validation", "test") if config.data[split])

    # What a family defines, besides `encode` and `predict`

    def check(self) -> None:
        """Raises UserError for options that the family cannot follow."""
        config = self.config
        for group, key in (("eval", "blimp"), ("train", "z_loss"), ("train", "sampled_softmax")):
            if config[group][key]:
                raise UserError(f"{group}.{key} needs the MLM head, which task={config.task} lacks: leave it out")
        if self.source is not None and not self.reads_media:
            raise UserError(f"data.{self.source.kind}: task={config.task} reads text alone; leave it out")
        if config.eval.retrieval:
            raise UserError("eval.retrieval is for pretraining: leave it out; --mode=retrieve measures any model")
        if not config.data.isolated:
            raise UserError(f"data.isolated=False is an ablation of pretraining; with task={config.task} leave it True")
        self.head_features.check(self.bert_config.num_hidden_layers, config.task, self.reads_features)
        for key, off in (("class_weights", "none"), ("label_smoothing", 0.0)):
            if not self.has_classes and config.train[key] != off:
                raise UserError(
                    f"train.{key} is {config.train[key]}; task={config.task} has no classes: leave it {off}"
                )

    @classmethod
    def new_tokenizer(cls, config: ConfigDict) -> Tokenizer:
        """Returns the tokenizer of a model from scratch."""
        if not config.data.vocab_file:
            raise UserError("fine-tuning needs a checkpoint (init_from), or for a model from scratch data.vocab_file")
        return load_tokenizer(config.data.vocab_file, config.data)

    @abstractmethod
    def read(self, spec: str) -> Iterator[Example]:
        """Yields the examples of a file, a glob or a TFDS split."""

    @abstractmethod
    def example(self, row: Row) -> Example:
        """Returns the example of a row to predict, without label. Raises UserError for what is wrong with the row."""

    @classmethod
    def assumed(cls, config: ConfigDict) -> Description:
        """Returns a description for a task without data: of what the config leaves open, something usual."""
        return {}

    def stand_in(self, text: str) -> Example:
        """Returns an example without label that is made of one text, to see which arrays a batch has."""
        raise UserError(f"task={self.config.task} cannot be compiled without data; define its method stand_in")

    def unlabelled(self, example: Example) -> str:
        """Returns what a labelled example lacks, as a part of a message; "" if it lacks nothing."""
        return f"no label in column '{self.config.data.label}'" if example.label is None else ""

    def of_language(self, example: Example, language: str) -> Example:
        """Returns an example as one of a language among examples of others."""
        return example

    @abstractmethod
    def learn(self) -> None:
        """Takes names of labels from the training examples, unless a checkpoint gave them; checks; logs the data."""

    @abstractmethod
    def heads(self, rngs: nnx.Rngs) -> Mapping[str, nnx.Module]: ...

    @abstractmethod
    def outputs(self, model: Model, batch: Batch, key: Key[Array, ""] | None) -> Outputs:
        """Returns what the head computes without labels: [G, S, …] for items or, of `token_outputs`, [B, L, …]."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> Sums:
        """Returns `loss` and other metrics that are means, as (weighted sum, weight)."""

    def soft(self, outputs: Outputs, batch: Batch) -> Mapping[str, Sequence[Logits]]:
        """Returns by objective the logits, whose losses are averaged, that a student learns from a teacher's."""
        raise UserError(f"distillation.soft: task={self.config.task} has no soft targets; set it to 0")

    @abstractmethod
    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], description) -> dict[str, float]:
        """Returns the metrics of the field, by their usual names."""

    @abstractmethod
    def score_names(self, split: str) -> tuple[str, ...]:
        """Returns the names of the metrics that `losses` and `score` give for a split, `loss` left out."""

    def tune(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Description:
        """Returns what validation teaches beyond the parameters, such as thresholds: entries of the description."""
        return {}

    def decide(self, predictions: Sequence[Prediction], description: Description) -> Sequence[Prediction]:
        """Returns the predictions under the thresholds of `description`; `predict` follows the constructor's."""
        return predictions

    def report_sections(self, evaluation: Evaluation) -> list[Section]:
        """Returns the family's sections of the report page."""
        return []

    def not_portable(self) -> str:
        """Returns why `outputs` cannot be computed of rows of tokens alone, one for an example; "" if they can."""
        return f"the head of task={self.config.task} reads more than one row of tokens"

    def completed(self, outputs: Outputs) -> Outputs:
        """Returns what `outputs` gives, made of its logits alone, which are what an exported program has."""
        return outputs

    # What follows from these

    def description(self) -> Description:
        return {name: getattr(self, name) for name in self.described} | self.head_features.description()

    def restore(self, description: Description) -> None:
        """Sets what a checkpoint has kept. Raises UserError for what it lacks, and for a head of other features."""
        self.head_features.check_known(description)
        for name in self.described:
            if name not in description:
                raise UserError(
                    f"the checkpoint does not say the {name} of its task, {self.config.task}; convert it or train it "
                    "again, or start a head of its own with --config.train.new_head=True"
                )
            setattr(self, name, description[name])

    def init(self, rngs: nnx.Rngs) -> Model:
        trunk, heads = Bert(self.bert_config, rngs=rngs), self.heads(rngs)
        heads = {**heads, **feature_head(self.bert_config, self.head_features, rngs=rngs)}
        return Model(trunk, {**heads, **vector_embedding(self.bert_config, self.source, rngs=rngs)})

    def prediction_examples(self, rows) -> Iterator[Example]:
        return result_or_error(self.example, rows)

    def load(self) -> None:
        """Reads and encodes every split that the config names. Raises UserError for anything wrong with the data."""
        data = self.config.data
        if not data.train:
            raise UserError("data.train is empty: name the file with the labelled examples (--config.data.train=…)")
        if data.read_workers:
            raise UserError("data.read_workers: fine-tuning reads its examples from memory; set it to 0")
        splits = ("train", "validation", "test")
        self.examples = {s: self.languages.read(s, self.read, self.of_language) for s in splits if data[s]}
        check_labelled(self.examples, data, self.unlabelled)
        self.learn()
        for split, examples in self.examples.items():
            if not examples:
                raise UserError(f"data.{split}={data[split]}: none of its examples can be used; see the warnings above")
        self.items = {split: self.encode(examples) for split, examples in self.examples.items()}
        self.final_splits = ("test",) if "test" in self.items else ()
        self.plan = self.make_plan()
        self.steps_per_epoch = self.plan.steps_per_epoch
        self.count_step(*self.plan.mean_shape())
        self.plan.log(self.tokens_per_step)

    def batch_shapes(self, *, training: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of batches whose rows are as long as data.sequence_length and not shared. A text that
        may have several windows has one."""
        config = self.config
        items = self.encode([self.stand_in("a")])
        groups = (config.train if training else config.eval).batch_size
        targets = 0 if items[0].target is None else config.data.target_length
        shape = Shape(groups, len(items[0].parts), config.data.sequence_length, targets=targets)
        return shapes_of(collate(items, [[0], *([] for _ in range(groups - 1))], shape))

    def fingerprints(self) -> dict[str, str]:
        return {
            f"examples of {split}": fingerprint(items, is_packed=self.plan.is_packed)
            for split, items in self.items.items()
        }

    def train_batches(self, start_step, process_index, process_count) -> TrainBatches:
        data = self.items["train"], self.plan.shapes, self.plan.order(self.config.seed), self.config
        position = {"start_step": start_step, "process_index": process_index, "process_count": process_count}
        return train_batches(*data, fingerprint=fingerprint(data[0], is_packed=self.plan.is_packed), **position)

    def eval_batches(self, split, process_index, process_count) -> Iterator[dict[str, np.ndarray]]:
        if split not in self.items:
            return iter(())
        data = self.items[split], self.plan.eval_shapes[split], self.plan.eval_order(split), self.config
        return ordered_batches(*data, process_index=process_index, process_count=process_count)

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Gives all examples the same weight; a family whose loss is a mean over something else overrides this."""
        return {"loss": jnp.maximum(jnp.sum(batch["item_weights"]), 1.0)}

    def sums(self, model, batch, key, constants) -> Sums:
        return self.sums_of(self.outputs(model, batch, key), batch, key, constants)

    def evaluate(self, model, batch, constants):
        outputs = self.outputs(model, batch, None)
        return self.sums_of(outputs, batch, None, constants), outputs | {
            name: batch[name] for name in ("item_ids", "first_tokens")
        }

    def evaluation(self, split, sums, rows, description) -> Evaluation:
        examples, items = self.examples[split], self.items[split]
        predictions = self.predict(examples, items, by_item(rows, items, self.token_outputs))
        learned = self.tune(examples, predictions) if split == "validation" else {}
        predictions = self.decide(predictions, description | learned)
        score = partial(self.score, description=description | learned)
        metrics = self.means(sums) | self.languages.scores(split, examples, predictions, score)
        return Evaluation(split, metrics, predictions, learned)

    def report(self, evaluation: Evaluation) -> Report:
        examples = self.examples[evaluation.split][: len(evaluation.predictions)]
        pairs = zip(examples, evaluation.predictions, strict=True)
        records = [as_record(e) | {"prediction": p} for e, p in pairs]
        of_languages = sections.by_language(evaluation.metrics, self.languages.counts(evaluation.split))
        return Report(records, [*of_languages, *self.report_sections(evaluation)])

    def metric_names(self, split: str) -> tuple[str, ...]:
        scores = self.score_names(split) if self.items.get(split) else ()
        return ("loss", *scores, "real_tokens", *self.languages.names(split, scores)) if self.items.get(split) else ()

    def sums_of(self, outputs: Outputs, batch: Batch, key: Key[Array, ""] | None, constants: Constants) -> Sums:
        """Returns what `sums` does, of known outputs."""
        real = jnp.sum(batch["sequence_ids"] > 0).astype(jnp.float32)
        return self.losses(outputs, batch) | {"real_tokens": (real, jnp.float32(batch["sequence_ids"].size))}

    def make_plan(self) -> BatchPlan:
        """Returns the plan of the batches of all `items`."""
        config, data = self.config, self.config.data
        can_pack = self.shares_rows and all(len(item.parts) == 1 for item in self.items["train"])
        if data.packing and not self.shares_rows:
            raise UserError(f"data.packing: task={config.task} needs rows of their own for its texts; leave it out")
        if data.packing and not can_pack:
            raise UserError(
                "data.packing: texts of several windows need rows of their own; leave it out, or choose "
                "data.long_texts=head, tail or head+tail"
            )
        devices, model = backend.current(), self.bert_config
        crossover_length = devices.crossover_length(model.hidden_size, model.num_attention_heads)
        return BatchPlan(
            self.items,
            config.train.batch_size,
            config.eval.batch_size,
            Limits(data.buckets, data.sequence_length, crossover_length, self._break_even_tokens(devices)),
            is_packed=data.packing if can_pack else False,
            devices=row_parts(config, jax.device_count()),
            accumulation=config.train.accumulation,
            break_even_tokens_on_cpu=self._break_even_tokens(backend.CPU),
        )

    def count_step(self, rows: float, length: float, targets: float) -> None:
        """Sets tokens, operations and bytes of a step of so many rows, and tokens of a row and of its target."""
        model = self.bert_config
        self.tokens_per_step = round(rows * (length + targets))
        reads_firsts = self.reads_vectors and model.pooling == "cls" and not is_scanned(model)
        reads_firsts &= self.head_features.is_default
        positions = max(1.0, self.config.train.batch_size / rows) if reads_firsts else None
        self.flops_per_step = training_flops(model, rows, length, 0, positions)
        self.flops_per_step += self.head_features.training_flops(rows * length)
        self.bytes_per_step = training_bytes(model, rows, length, fused_attention=use_cudnn(model, training=True))

    def _break_even_tokens(self, devices: backend.Backend) -> float:
        """Returns how many tokens are trained on while one more program is compiled, by the number of epochs."""
        train, count = self.config.train, len(self.items["train"])
        epochs = train.epochs or train.steps / steps_per_epoch(count, train.batch_size)
        return tokens_while_compiling(self.bert_config, self.config.data.sequence_length, devices) / epochs
