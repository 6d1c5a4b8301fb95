"""Neighbours against a loop over the vocabulary, projections against known planes."""

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.lab.inspect.reading import insides, read_text
from bert_jax.lab.inspect.vectors import context_neighbours, layer_number, neighbours, project


def test_neighbours_in_the_table(masked):
    table = np.asarray(insides(masked).table())
    [found, other] = neighbours(masked, ["good", "a"], count=3)
    tokenizer, own = masked.tokenizer, table[masked.tokenizer.id("good")]
    cosines = {
        tokenizer.token(i): float(row @ own / np.linalg.norm(row) / np.linalg.norm(own)) for i, row in enumerate(table)
    }
    expected = sorted(cosines, key=cosines.__getitem__, reverse=True)[1:4]
    assert [token for token, _ in found] == expected and len(other) == 3
    assert [cosine for _, cosine in found] == pytest.approx([cosines[token] for token in expected], abs=1e-5)
    with pytest.raises(UserError, match="'zoo' is not a token of the model's vocabulary"):
        neighbours(masked, ["zoo"])


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_same_token_in_the_same_context_is_nearest(masked, layer):
    sentences = ["b c good", "a good d e", "good", "f bad"]
    reading = read_text(masked, "a good d e")
    found = context_neighbours(masked, reading, sentences, layer=layer, count=2)
    assert len(found) == len(reading.tokens)
    for place in range(1, 5):
        nearest = found[place][0]
        assert (nearest.sentence, nearest.place, nearest.tokens) == (1, place, reading.tokens)
        assert nearest.cosine == pytest.approx(1, abs=1e-5) and found[place][1].cosine < 1


def test_layers_count_from_the_embeddings(masked):
    assert [layer_number(masked, layer) for layer in (0, 1, 2, -1, -2)] == [0, 1, 2, 2, 1]
    for layer in (3, -3):
        with pytest.raises(UserError, match=f"layer {layer} does not exist"):
            layer_number(masked, layer)


def test_pca_keeps_a_plane():
    random = np.random.default_rng(0)
    plane = random.normal(size=(40, 2)) * [3, 1]
    axes, _ = np.linalg.qr(random.normal(size=(6, 2)))
    found = project((plane @ axes.T).astype(np.float32))
    assert found.shares is not None and sum(found.shares) == pytest.approx(1) and found.shares[0] > 0.7
    distances = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(distances(found.points), distances(plane), atol=1e-4)


def test_tsne_keeps_two_groups_apart():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(24, 5)) * 0.1
    vectors[12:] += 5
    found = project(vectors, "tsne", seed=1)
    first, second = found.points[:12], found.points[12:]
    spread = max(np.ptp(first, axis=0).max(), np.ptp(second, axis=0).max())
    assert found.shares is None and np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) > spread


def test_what_cannot_be_projected():
    with pytest.raises(UserError, match="2 vectors are too few"):
        project(np.zeros((2, 4)))
    with pytest.raises(UserError, match="'umap' is unknown; choose pca or tsne"):
        project(np.zeros((9, 4)), "umap")
    assert project(np.ones((4, 3))).shares == (0, 0)
