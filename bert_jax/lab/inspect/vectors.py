"""Word embeddings, contextual vectors and vectors of sentences: what lies near what."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64

from bert_jax.config import UserError
from bert_jax.inference.loaded import LoadedModel
from bert_jax.lab.inspect.reading import Reading, hidden_states, id_of, insides, read_text, states_of

PROJECTIONS = ("pca", "tsne")
_TINY = float(np.finfo(np.float32).tiny)


class ContextNeighbour(NamedTuple):
    """A token of one of the sentences, whose vector lies near that of a token of the text."""

    sentence: int
    place: int
    tokens: tuple[str, ...]  # of the sentence
    cosine: float


class Projection(NamedTuple):
    """Points of a plane; `shares` are the parts of the variance that its two axes hold, of PCA alone."""

    points: Float64[np.ndarray, "N 2"]
    shares: tuple[float, float] | None


def neighbours(model: LoadedModel, tokens: Sequence[str], count: int = 8) -> list[list[tuple[str, float]]]:
    """Returns for each token the nearest others by the cosine of the word embeddings, the nearest first. Raises
    UserError for a token that the vocabulary lacks."""
    tokenizer = model.tokenizer
    ids = [id_of(tokenizer, token) for token in tokens]
    table = _unit(np.asarray(insides(model).table(), np.float32)[: tokenizer.vocab_size])
    found = []
    for number in ids:
        cosines = table @ table[number]
        best = [i for i in np.argsort(-cosines, kind="stable")[: count + 1].tolist() if i != number]
        found.append([(tokenizer.token(i), float(cosines[i])) for i in best[:count]])
    return found


def context_neighbours(
    model: LoadedModel, reading: Reading, sentences: Sequence[str], *, layer: int = -1, count: int = 3
) -> list[list[ContextNeighbour]]:
    """Returns for each token of a text, as `read_text` read it, the nearest tokens of the sentences by the cosine of
    their hidden states at `layer` (0 the embeddings, −1 the last).

    The mean over the sentences' tokens is subtracted first: contextual vectors have much in common, so that their
    plain cosines hardly differ (Ethayarajh 2019).
    """
    layer = layer_number(model, layer)
    rows = [read_text(model, text) for text in sentences]
    places = [(number, place) for number, row in enumerate(rows) for place in np.flatnonzero(row.is_word).tolist()]
    if not places:
        raise UserError("the sentences have no tokens; name a file with texts")
    states = hidden_states(model, [row.part for row in rows])
    table = np.concatenate([state[layer][list(row.is_word)] for row, state in zip(rows, states, strict=True)])
    mean = table.mean(axis=0, keepdims=True)
    table, own = _unit(table - mean), _unit(states_of(model, reading)[0][layer] - mean)
    found = []
    for cosines in own @ table.T:
        best = np.argsort(-cosines, kind="stable")[:count].tolist()
        of_token = ((*places[i], float(cosines[i])) for i in best)
        found.append(
            [ContextNeighbour(number, place, rows[number].tokens, cosine) for number, place, cosine in of_token]
        )
    return found


def layer_number(model: LoadedModel, layer: int) -> int:
    """Returns the number of a layer from 0, the embeddings, to N. Raises UserError for one that is not there."""
    count = insides(model).opened.bert_config.num_hidden_layers
    if not -count <= layer <= count:
        raise UserError(
            f"layer {layer} does not exist; this model has 1 to {count}, or −1 to −{count}; 0 is the embeddings"
        )
    return layer if layer >= 0 else count + 1 + layer


def project(vectors: Float[np.ndarray, "N D"], method: str = "pca", seed: int = 0) -> Projection:
    """Returns the vectors as points of a plane, by PCA or by t-SNE (van der Maaten & Hinton 2008), which shows
    neighbours but neither distances nor sizes of clusters. Raises UserError for fewer than 3 vectors."""
    if method not in PROJECTIONS:
        raise UserError(f"projection '{method}' is unknown; choose {' or '.join(PROJECTIONS)}")
    if len(vectors) < 3:
        raise UserError(f"{len(vectors)} vectors are too few to project; give 3 or more texts")
    exact = np.asarray(vectors, np.float64)
    if method == "tsne":
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        made = TSNE(perplexity=min(30.0, (len(exact) - 1) / 3), init="pca", random_state=seed)
        with threadpool_limits(1):
            points = made.fit_transform(exact)
        return Projection(np.asarray(points, np.float64), None)
    left, sizes, _ = np.linalg.svd(exact - exact.mean(axis=0, keepdims=True), full_matrices=False)
    variances = np.square(sizes)
    first, second = (variances[:2] / max(float(variances.sum()), _TINY)).tolist()
    return Projection(left[:, :2] * sizes[None, :2], (first, second))


def _unit(vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)
