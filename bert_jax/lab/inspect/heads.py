"""What heads of attention do: their weights, what can flow through these, and which heads the model needs."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Float64
from tqdm import tqdm

from bert_jax import backend
from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.reader import Batch
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.languages import files_of
from bert_jax.data.text.text_files import find_files
from bert_jax.inference.loaded import LoadedModel
from bert_jax.inference.open import Opened
from bert_jax.lab.inspect.reading import STEP, Reading, insides, masked_guesses, power_of_two, read_text, states_of
from bert_jax.models.bert import Model
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Layer
from bert_jax.models.layers import Linear
from bert_jax.tasks.finetuning import FineTuning
from bert_jax.tasks.task import Source


class Attention(NamedTuple):
    """The weights of every layer and head for one text: `weights[layer, head, token]` sums to 1 over the tokens that
    it looks at."""

    reading: Reading
    weights: Float32[np.ndarray, "N H L L"]


class HeadImportance(NamedTuple):
    """What changes when the output of one head is zeroed (Michel et al. 2019).

    `loss` rises where a head is needed. `metric` is that of the task, as it changes; None for a text.
    """

    examples: str
    whole_loss: float
    loss: Float64[np.ndarray, "N H"]
    metric_name: str = ""
    whole_metric: float = 0.0
    metric: Float64[np.ndarray, "N H"] | None = None


def attention(model: LoadedModel, text: str, pair: str | None = None, *, max_length: int | None = None) -> Attention:
    """Returns the attention weights of a text or pair. Raises UserError for a text without tokens."""
    reading = read_text(model, text, pair, max_length=max_length)
    return Attention(reading, states_of(model, reading)[1])


def rollout(weights: Float[np.ndarray, "N H L L"]) -> Float64[np.ndarray, "N L L"]:
    """Returns attention rollout up to each layer (Abnar & Zuidema 2020): the product of the layers' mean weights, each
    averaged with the identity for the residual connection. Rows sum to 1."""
    mean = np.asarray(weights, np.float64).mean(axis=1)
    mean = 0.5 * mean / mean.sum(axis=-1, keepdims=True) + 0.5 * np.eye(mean.shape[-1])
    flow = [mean[0]]
    for layer in mean[1:]:
        flow.append(layer @ flow[-1])
    return np.stack(flow)


def head_importance(
    model: LoadedModel, *, examples: str = "", texts: Sequence[str] = (), limit: int = 256, progress: bool = False
) -> HeadImportance:
    """Zeroes the output of one head after the other and returns what that changes.

    Of a fine-tuned model on labelled `examples`, a file like that of the run, by default its data.validation; of a
    model with an MLM head by the mean loss of the tokens of `texts`, each masked in turn. The first `limit` examples
    are used, or texts until they have so many tokens. Raises UserError if the model has neither head or the file is
    wrong.
    """
    opened = insides(model).opened
    if isinstance(opened.task, FineTuning):
        return _on_examples(model, examples, limit, progress)
    if not texts:
        raise UserError("there is no text to measure the loss of; give one")
    return _on_texts(model, texts, limit, progress)


def ablated(model: Model, kept: Float[Array, "N H"]) -> Model:
    """Returns the model, changed in place, with the output of each head multiplied by its entry of `kept`.

    The output of a head meets K rows of its layer's output kernel: to multiply these costs attention nothing.
    """
    encoder = model.trunk.encoder
    factors = jnp.repeat(kept, encoder.config.head_width, axis=1)[:, :, None]  # [N, D, 1]
    if isinstance(encoder.layers, Layer):
        _multiply(encoder.layers.attention.output, factors)
    else:
        for layer, factor in zip(encoder.layers, factors, strict=True):
            _multiply(layer.attention.output, factor)
    return model


def _multiply(linear: Linear, factor: Float[Array, "... D 1"]) -> None:
    kernel = linear.kernel[...]
    linear.kernel = nnx.Param(kernel * factor.astype(kernel.dtype))


def _on_texts(model: LoadedModel, texts: Sequence[str], limit: int, progress: bool) -> HeadImportance:
    inside = insides(model)
    inside.need_mlm_head()
    program = inside.opened.at_work.program(lambda whole, kept, *batch: masked_guesses(ablated(whole, kept), *batch))
    readings, count = [], 0
    for text in texts:
        if count < limit:
            readings.append(read_text(model, text))
            count += sum(readings[-1].is_word)
    if not count:
        raise UserError("the texts have no tokens whose loss could be measured; give some with words")

    def mean_loss(kept: np.ndarray) -> float:
        run = partial(program, kept)
        places = ((reading.part, np.flatnonzero(reading.is_word)) for reading in readings if any(reading.is_word))
        losses = (inside.masked(part, of_words, run)[0] for part, of_words in places)
        return -float(sum(np.sum(found, dtype=np.float64) for found in losses)) / count

    whole, without = _one_by_one(inside.opened.bert_config, mean_loss, progress)
    return HeadImportance(f"{count:,} tokens, each masked in turn", whole, np.asarray(without) - whole)


class LabelledExamples:
    """Labelled examples that a fine-tuned model is measured on, whatever is left of it."""

    def __init__(self, model: LoadedModel, spec: str, limit: int):
        """`spec` is a file like those of the run, by default its data.validation, of which the first `limit` examples
        are used. Raises UserError for a model that is not fine-tuned, and for what is wrong with the file."""
        self.opened = opened = insides(model).opened
        opened.check_single()
        if not isinstance(opened.task, FineTuning):
            task = opened.config.task
            raise UserError(f"{opened.path}: task={task} has no labelled examples to measure it on; fine-tune it first")
        self.spec = spec = spec or ",".join(files_of(opened.config.data.validation, "data.validation"))
        self.task = task = _with_examples(opened, spec)
        examples = task.examples["train"] = task.examples["train"][:limit]
        items = task.items["train"] = task.encode(examples)
        self.batches = list(_batches(items, insides(model).batch_size, opened.config.data.sequence_length))
        self.name = f"{len(examples):,} examples of {Path(spec).name}"
        self.description = task.description() | opened.run["task"]
        self._ablated = opened.at_work.program(lambda whole, kept, batch: self.evaluate(ablated(whole, kept), batch))

    def evaluate(self, model: Any, batch: Any) -> Any:
        """Returns the sums and rows of a batch; to be traced."""
        return self.task.evaluate(model, batch, {})

    def metrics(self, program: Callable[[Batch], Any]) -> dict[str, float]:
        """Returns the metrics of a model, whose `program` returns what `evaluate` does."""
        found = [jax.device_get(program(batch)) for batch in self.batches]
        sums = jax.tree.map(lambda *parts: np.sum(np.asarray(parts, np.float64), axis=0), *(sums for sums, _ in found))
        return self.task.evaluation("train", sums, [rows for _, rows in found], self.description).metrics

    def with_heads(self, kept: Float32[np.ndarray, "N H"]) -> dict[str, float]:
        """Returns the metrics of the model with the output of each head multiplied by its entry of `kept`."""
        return self.metrics(partial(self._ablated, kept))

    def metric(self, found: Mapping[str, float]) -> str:
        """Returns the name of the metric that says how good the model is."""
        name = self.opened.config.checkpoint.best_metric
        return name if name in found else next(iter(self.task.score_names("train")))


def head_gradients(on: LabelledExamples) -> Float64[np.ndarray, "N H"]:
    """Returns the importance of each head by one backward pass over the examples: the mean over rows of the absolute
    derivative of a row's loss by a factor of the head's output (Michel et al. 2019, equation 2)."""

    def of_batch(model, batch):
        groups = batch["item_weights"].shape[0]

        def of_group(_, one):
            def loss(kept):
                # The model is taken apart and put together again: `ablated` changes what it is given.
                graphdef, state = nnx.split(model)
                return on.evaluate(ablated(nnx.merge(graphdef, state), kept), one)[0]["loss"][0]

            return None, jnp.abs(jax.grad(loss)(jnp.ones(shape, jnp.float32)))

        single = {name: x.reshape(groups, -1, *x.shape[1:]) for name, x in batch.items()}
        gradients = jax.lax.scan(of_group, None, single)[1]
        return jnp.sum(gradients, axis=0), jnp.sum(jnp.any(batch["item_weights"] > 0, axis=1).astype(jnp.float32))

    config = on.opened.bert_config
    shape = config.num_hidden_layers, config.num_attention_heads
    program = on.opened.at_work.program(of_batch)
    found = [jax.device_get(program(batch)) for batch in on.batches]
    return np.sum([np.asarray(total, np.float64) for total, _ in found], axis=0) / sum(float(n) for _, n in found)


def _on_examples(model: LoadedModel, spec: str, limit: int, progress: bool) -> HeadImportance:
    on = LabelledExamples(model, spec, limit)
    whole, without = _one_by_one(on.opened.bert_config, on.with_heads, progress)
    name = on.metric(whole)
    differences = {
        key: np.asarray([[one[key] - whole[key] for one in row] for row in without]) for key in ("loss", name)
    }
    return HeadImportance(on.name, whole["loss"], differences["loss"], name, whole[name], differences[name])


def _with_examples(opened: Opened, spec: str) -> FineTuning:
    """Returns the model's task with the file as its data."""
    if not spec:
        raise UserError("this run had no validation data; name a file with labelled examples (--examples)")
    if not spec.startswith("tfds:"):
        find_files(spec, "--examples")
    config, description = copy.deepcopy(opened.config), opened.run["task"]
    config.data.update(train=spec, validation="", test="", read_workers=0)
    config.train.update(new_head=False, class_weights="none", label_smoothing=0.0)
    labels = description.get("labels", ())
    if labels and not any("," in label for label in labels):  # the file may lack some of them
        config.data.labels = ",".join(labels)
    task = type(opened.task).with_data(config, Source(opened.tokenizer, config.task, description))
    assert isinstance(task, FineTuning)
    return task


def _batches(items: Sequence[Item], batch_size: int, most_tokens: int) -> Iterator[Batch]:
    """Yields all items in batches of like length, whose shapes are few."""
    parts, left = max(len(item.parts) for item in items), sorted(range(len(items)), key=lambda i: -items[i].length)
    while left:
        length = min(max(STEP, power_of_two(items[left[0]].length)), most_tokens)
        rows = max(1, min(batch_size, len(items), (backend.current().tokens_per_batch or 1 << 15) // (parts * length)))
        groups = [*([i] for i in left[:rows]), *([] for _ in range(rows - len(left)))]
        yield collate(items, groups, Shape(rows, parts, length))
        left = left[rows:]


def _one_by_one(
    config: BertConfig, measure: Callable[[Float32[np.ndarray, "N H"]], Any], progress: bool
) -> tuple[Any, list[list[Any]]]:
    """Returns what is measured with all heads, and without each of them by layer and head."""
    every = np.ones((config.num_hidden_layers, config.num_attention_heads), np.float32)
    bar = tqdm(total=every.size, desc="heads", disable=not progress, file=sys.stderr)
    found: list[list[Any]] = []
    with bar:
        for layer in range(every.shape[0]):
            found.append([])
            for head in range(every.shape[1]):
                kept = every.copy()
                kept[layer, head] = 0
                found[-1].append(measure(kept))
                bar.update()
    return measure(every), found
