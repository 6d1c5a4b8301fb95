"""Retrieval of translations by vectors, Tatoeba's way (Artetxe and Schwenk 2019): the nearest text of the other side.

Of N texts and their translations, in files whose lines belong together, each text is compared with all N on the other
side by the cosine of their vectors. The accuracy is the share of texts whose nearest one is their translation, in both
directions; a text that equals the translation counts as it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bert_jax.config import UserError
from bert_jax.data.labelled.languages import named_parts
from bert_jax.data.labelled.parallel import aligned_lines, file_pairs
from bert_jax.data.labelled.tables import find_data_files, read_rows, suffix_of
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.bert import Model, TrunkInputs
from bert_jax.models.heads import pool_tokens
from bert_jax.tasks.likelihood import HostBatch, row_lengths

_NEIGHBOURS = 4  # that `ratio` compares with, as in the paper
_AT_A_TIME = 1024  # texts whose cosines with all others are held in memory

Vectors = Float[np.ndarray, "N D"]


class Translations(NamedTuple):
    """Texts and, at the same places, their translations."""

    name: str
    texts: list[str]
    translations: list[str]


class Accuracy(NamedTuple):
    """The shares of texts whose translation is found, and of translations whose text is found."""

    forward: float
    backward: float

    @property
    def mean(self) -> float:
        return (self.forward + self.backward) / 2


def read_translations(spec: str, option: str) -> list[Translations]:
    """Returns the pairs of `spec`: NAME=one+other for each pair of languages, or one+other alone, whose name is "".
    In place of two files it may name a .tsv of two columns without header.

    Raises UserError for files of unequal length, with the first line that lacks its partner, and for an empty text.
    """
    parts = named_parts(spec, option) or {"": spec}
    return [_read(name, files, option) for name, files in parts.items()]


def accuracy(found: Translations, vectors: tuple[Vectors, Vectors], score: str = "cosine") -> Accuracy:
    """Returns the accuracy of the vectors of both sides. With the score `ratio` a cosine is divided by the mean of
    those of both texts with their four nearest, so that no text is the nearest of many (the paper's margin)."""
    one, other = map(_normalized, vectors)
    means = (_mean_of_nearest(one, other), _mean_of_nearest(other, one)) if score == "ratio" else None
    forward = _share(one, other, found.translations, means)
    return Accuracy(forward, _share(other, one, found.texts, means and (means[1], means[0])))


class RetrievalProbe:
    """The translations of `eval.retrieval` as rows of an evaluation: what `vectors` makes of a text is its mean."""

    def __init__(self, spec: str, tokenizer: Tokenizer, most: int, layer: int | None, num_layers: int):
        if layer is not None and layer > num_layers:
            raise UserError(f"eval.retrieval_layer is {layer}; the model has {num_layers} layers")
        self.sets, self._tokenizer, self._most = read_translations(spec, "eval.retrieval"), tokenizer, most
        self._layer = num_layers if layer is None else layer
        texts = [text for found in self.sets for text in (*found.texts, *found.translations)]
        self._rows = [tokenizer.row(ids, max_length=most).ids for ids in tokenizer.encode_words(texts)]

    def batches(self, rows: int) -> Iterator[HostBatch]:
        """Yields batches of about equally long texts; `vector_ids` are their numbers, −1 of rows that fill up."""
        order = sorted(range(len(self._rows)), key=lambda number: len(self._rows[number]))
        lengths = row_lengths(self._most)
        for start in range(0, len(order), rows):
            numbers = order[start : start + rows]
            length = next(length for length in lengths if length >= len(self._rows[numbers[-1]]))
            ids = np.full((rows, length), self._tokenizer.pad_id, np.int32)
            real = np.zeros((rows, length), np.int32)
            for row, number in enumerate(numbers):
                ids[row, : len(self._rows[number])] = self._rows[number]
                real[row, : len(self._rows[number])] = 1
            yield {
                "input_ids": ids,
                "sequence_ids": real,
                "token_type_ids": np.zeros_like(ids),
                "position_ids": np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape),
                "vector_ids": np.asarray(numbers + [-1] * (rows - len(numbers)), np.int32),
            }

    def vectors(self, model: Model, batch: Mapping[str, Array]) -> Float[Array, "B D"]:
        """Returns the mean of the layer's vectors of each row's tokens, [CLS] and [SEP] included."""
        encoded = model.trunk.encode(TrunkInputs.from_batch(batch), all_layers=True)
        assert encoded.layers is not None
        is_last = self._layer == len(encoded.layers)
        hidden = encoded.hidden if is_last else encoded.layers[self._layer - 1]
        return pool_tokens(hidden.astype(jnp.float32), batch["sequence_ids"], "mean")

    def metrics(self, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
        """Returns `retrieval`, the mean of all accuracies, and those of each set that has a name."""
        ids = np.concatenate([batch["vector_ids"] for batch in rows])
        found = np.concatenate([batch["vectors"] for batch in rows])[ids >= 0]
        vectors = np.zeros((len(self._rows), found.shape[1]), np.float32)
        vectors[ids[ids >= 0]] = found
        metrics, means, start = {}, [], 0
        for one in self.sets:
            count = len(one.texts)
            both = vectors[start : start + count], vectors[start + count : start + 2 * count]
            scores, start = accuracy(one, both), start + 2 * count
            means.append(scores.mean)
            if one.name:
                forward = {f"{one.name}/retrieval_forward": scores.forward}
                metrics |= forward | {f"{one.name}/retrieval_backward": scores.backward}
                metrics[f"{one.name}/retrieval"] = scores.mean
        return {"retrieval": float(np.mean(means))} | metrics

    def metric_names(self) -> tuple[str, ...]:
        kinds = ("retrieval", "retrieval_forward", "retrieval_backward")
        return ("retrieval", *(f"{one.name}/{kind}" for one in self.sets if one.name for kind in kinds))


def _read(name: str, files: str, option: str) -> Translations:
    pairs: list[tuple[str, str, str]] = []
    for one, other in file_pairs(files):
        if jsonl := [path for path in map(Path, (one, other)) if suffix_of(path) in (".jsonl", ".json")]:
            raise UserError(f"{option}: {jsonl[0]} is JSONL: give two files with a text per line, or a .tsv file")
        pairs += [(a.origin, a.values["text"], b.values["text"]) for a, b in aligned_lines(one, other)]
    if not pairs:
        if not all(suffix_of(path) in (".tsv", ".csv") for path in find_data_files(files)):
            raise UserError(f"{option}: {files} is one file: name two, one+other, or a .tsv of two columns")
        for row in read_rows(files, header=False):
            if len(row.values) != 2:
                raise UserError(f"{row.origin}: {len(row.values)} columns, where a text and its translation should be")
            pairs.append((row.origin, row.values["0"], row.values["1"]))
    for origin, *both in pairs:
        if not all(text.strip() for text in both):
            raise UserError(f"{origin}: a text or its translation is empty: leave out both")
    return Translations(name, [text for _, text, _ in pairs], [text for *_, text in pairs])


def _share(
    queries: Vectors, others: Vectors, texts: Sequence[str], means: tuple[np.ndarray, np.ndarray] | None
) -> float:
    right = 0
    for start in range(0, len(queries), _AT_A_TIME):
        cosines = queries[start : start + _AT_A_TIME] @ others.T
        if means is not None:
            own, of_others = means
            cosines = cosines / ((own[start : start + _AT_A_TIME, None] + of_others[None]) / 2)
        nearest = cosines.argmax(axis=1)
        right += sum(texts[number] == texts[start + row] for row, number in enumerate(nearest.tolist()))
    return right / len(queries)


def _mean_of_nearest(queries: Vectors, others: Vectors) -> Float[np.ndarray, " N"]:
    count, found = min(_NEIGHBOURS, len(others)), []
    for start in range(0, len(queries), _AT_A_TIME):
        cosines = queries[start : start + _AT_A_TIME] @ others.T
        found.append(np.partition(cosines, -count, axis=1)[:, -count:].mean(axis=1))
    return np.concatenate(found)


def _normalized(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
