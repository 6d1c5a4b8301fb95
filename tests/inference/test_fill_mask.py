"""A checkpoint at work, without the corpus it came from."""

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.inference.fill_mask import FillMask
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.loop import train


@pytest.fixture
def fill(small_config, tmp_path):
    small_config.train.steps = 2
    small_config.optimizer.decay_steps = 50
    task = Pretraining.over(small_config, prepare(small_config.data, small_config.data.seed, progress=False))
    train(task, small_config, tmp_path)
    return FillMask(str(tmp_path))


def test_gives_distributions_in_order(fill):
    first, second = fill("the [MASK] of a [MASK]", top_k=fill.tokenizer.vocab_size)
    for candidates in (first, second):
        probabilities = [p for _, p in candidates]
        np.testing.assert_allclose(sum(probabilities), 1, rtol=1e-4)
        assert probabilities == sorted(probabilities, reverse=True)
    assert first != second
    assert fill("the [MASK] of a [MASK]", top_k=3)[0] == first[:3]


def test_refuses_what_it_cannot_answer(fill):
    with pytest.raises(UserError, match=r"no \[MASK\] in 'the value'"):
        fill("the value")
    with pytest.raises(UserError, match=r"the text has 6\d\d tokens; the model takes 512"):
        fill("[MASK] " + "a " * 640)
    for top_k in (0, -1, "5"):
        with pytest.raises(UserError, match=f"top_k is {top_k!r}; it must be a whole number over 0"):
            fill("[MASK]", top_k)
