"""A probe finds what is in a layer, and does not take memory for knowledge."""

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.labelled.examples import TaggedExample
from bert_jax.lab.inspect import probes
from bert_jax.lab.inspect.probes import probe_layers


def tagged(count, tag, seed=0, size=8):
    random = np.random.default_rng(seed)
    words = [random.choice([*"abcdefghijklmnop"], size).tolist() for _ in range(count)]
    return [TaggedExample(f"x:{i}", tuple(row), tuple(map(tag, row))) for i, row in enumerate(words)]


def test_a_planted_tag_is_found_in_its_layer_alone(masked, monkeypatch):
    """The tags are drawn for each occurrence of a word; the vectors of layer 1 alone hold them."""
    random = np.random.default_rng(1)
    sentences = tagged(120, lambda word: str(random.choice(["N", "V", "A"])))
    tags = {"N": 0, "V": 1, "A": 2}
    order = iter([])

    def vectors(model, parts):
        for part in parts:
            state = random.normal(size=(3, len(part.ids), 16)).astype(np.float32)
            for place, tag in enumerate(next(order), 1):
                state[1, place, tags[tag]] += 8
            yield state

    generator = np.random.default_rng(0)
    order = iter([sentences[i].tags for i in generator.permutation(len(sentences))])
    monkeypatch.setattr(probes, "hidden_states", vectors)
    found = probe_layers(masked, sentences)
    assert found.accuracy[1] > 0.95 and max(found.accuracy[0], found.accuracy[2]) < 0.5
    assert found.selectivity[1] > 0.4
    assert max(found.control) < 0.6 and found.majority < 0.5 and found.memory < 0.5
    assert (found.train_words, found.test_words, found.tags) == (720, 240, ("A", "N", "V"))


def test_what_the_words_alone_tell_is_no_knowledge(masked):
    """A tag that each word always has can be remembered, and so can a random one: nothing is left of the accuracy."""
    found = probe_layers(masked, tagged(80, lambda word: "early" if word < "h" else "late"))
    assert found.accuracy.shape == found.control.shape == (3,)
    assert found.memory == 1 and found.accuracy[0] > 0.95 and found.control[0] > 0.8
    assert abs(found.selectivity[0]) < 0.2


def test_the_same_seed_gives_the_same_probes(masked):
    sentences = tagged(30, lambda word: "early" if word < "h" else "late")
    one, other = (probe_layers(masked, sentences, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.accuracy, other.accuracy)
    np.testing.assert_array_equal(one.control, other.control)


def test_words_past_the_end_are_left_out_and_counted(masked, caplog):
    found = probe_layers(masked, tagged(24, lambda word: "x" if word < "h" else "y", size=40))
    assert "240 of 960 words are past the end" in caplog.text
    assert found.train_words + found.test_words == 24 * 30


@pytest.mark.parametrize(
    ("sentences", "problem"),
    [
        (tagged(40, lambda word: "N"), "has one tag only, N"),
        (tagged(5, lambda word: word), "5 tagged sentences are too few for a probe"),
        ([TaggedExample(f"x:{i}", ("a",), None) for i in range(30)], r"x:\d+: no tags; name"),
    ],
)
def test_what_cannot_be_probed(masked, sentences, problem):
    with pytest.raises(UserError, match=problem):
        probe_layers(masked, sentences)
