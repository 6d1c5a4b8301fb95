"""What the words of a row look at in its picture, sound or features."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.loaded import LoadedModel
from bert_jax.lab.inspect.reading import STEP, insides
from bert_jax.tasks.finetuning import FineTuning
from bert_jax.tasks.texts import text_columns


class WordsAndPatches(NamedTuple):
    """The T tokens of a text, [CLS] and [SEP] included, before a grid of R × C vectors."""

    tokens: tuple[str, ...]
    weights: Float[np.ndarray, "N T R C"]  # of each layer, the mean over its heads; 0 where the grid has no vector
    picture: Float[np.ndarray, "H W"] | None  # in grey, from 0 to 1; of a sound its spectrogram, low notes below
    kind: str  # image, sound or features

    @property
    def shares(self) -> Float[np.ndarray, "N T"]:
        """The part of each token's attention that goes to vectors; the rest goes to the text."""
        return self.weights.sum(axis=(2, 3))


def words_and_patches(model: LoadedModel, text: str, pair: str | None, media: str) -> WordsAndPatches:
    """Returns where each token of a text looks in the file `media`. Raises UserError for a model that reads text alone,
    and for what is wrong with the file."""
    inside, task = insides(model), insides(model).opened.task
    source = task.source if isinstance(task, FineTuning) else None
    if source is None:
        inside.opened.check_single()
        raise UserError(f"{inside.opened.path} reads text alone; leave --media out")
    first, second = text_columns(task.config.data).values()
    if second and pair is None:
        raise UserError(f"{inside.opened.path} was trained on pairs: give --text_pair")
    path = Path(media).expanduser()
    values = {name: x for name, x in ((first, text), (second, pair)) if name} | {source.column: path.name}
    vectors = source.read(Row("--media", values), folder=str(path.parent))
    [example] = task.prediction_examples([Row("the text", values | {source.column: task.blank_columns[source.column]})])
    if isinstance(example, UserError):
        raise example
    [item] = task.encode([replace(example, vectors=vectors)])
    length = min(-(-item.length // STEP) * STEP, inside.opened.bert_config.max_position_embeddings)
    outputs = jax.device_get(inside.states(collate([item], [[0]], Shape(1, 1, length))))
    count = len(vectors.values)
    words = item.length - count
    layers = [outputs[f"attention {i}"][0].mean(axis=0) for i in range(inside.opened.bert_config.num_hidden_layers)]
    rows, columns = vectors.grid.max(axis=0)
    weights = np.zeros((len(layers), words, rows, columns))
    at = vectors.grid - 1
    for number, layer in enumerate(layers):
        weights[number][:, at[:, 0], at[:, 1]] = layer[:words, words : words + count]
    tokens = tuple(model.tokenizer.token(i) for i in item.parts[0].ids[:words].tolist())
    picture = source.picture(vectors)
    if source.kind == "sound":  # time runs to the right
        weights = weights.swapaxes(2, 3)[:, :, ::-1]
    return WordsAndPatches(tokens, weights, picture, source.kind)
