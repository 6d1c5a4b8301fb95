"""What a written text needs of its source: differences of log-probabilities, by another way."""

import jax
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.examples import WritingExample
from bert_jax.inference.fill_mask import FillMask
from bert_jax.lab.inspect.__main__ import main
from bert_jax.lab.inspect.reading import insides
from bert_jax.lab.inspect.sources import dependence
from bert_jax.lab.inspect.tokens import token_losses
from experiments import translate

from .conftest import fine_tuned
from .test_page import parsed


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    config = translate.get_config()
    config.data.target_length = 8
    return fine_tuned(tmp_path_factory.mktemp("writer") / "5", config, {})


def log_probabilities(model, source, target):
    """Returns those of the target's tokens by the task's own logits."""
    task = insides(model).opened.task
    items = task.encode([WritingExample("", (source,), target)])
    batch = collate(items, [[0]], Shape(1, 1, 16, targets=items[0].target_length))
    logits = insides(model).opened.at_work.program(lambda whole, batch: task.outputs(whole, batch, None)["logits"])
    found = np.asarray(jax.nn.log_softmax(logits(batch), axis=-1))[0]
    return found[np.arange(len(found)), items[0].target]


def test_what_is_hidden_is_missed(writer):
    found = dependence(writer, "a good c", "b d")
    assert found.source == ("a", "good", "c") and found.target == ("b", "d", "[SEP]")
    np.testing.assert_allclose(found.log_probabilities, log_probabilities(writer, "a good c", "b d"), atol=1e-4)
    for place, text in enumerate(("[MASK] good c", "a [MASK] c", "a good [MASK]")):
        without = log_probabilities(writer, text, "b d")
        np.testing.assert_allclose(found.losses[:, place], found.log_probabilities - without, atol=1e-4)
    assert np.ptp(found.losses) > 0.1
    assert found.attention.shape == (3, 3) and (found.attention > 0).all() and (found.attention.sum(axis=1) < 1).all()


def test_the_head_of_a_decoder_fills_no_masks(writer, tmp_path):
    assert token_losses(writer, "a good").losses.shape == (4,)  # of a UniLM the trunk itself writes
    config = translate.get_config()
    config.seq2seq.model, config.data.target_length = "encoder_decoder", 8
    model = fine_tuned(tmp_path / "5", config, {})
    with pytest.raises(UserError, match="has no MLM head"):
        token_losses(model, "a good")
    with pytest.raises(UserError, match="has no MLM head, which fills masks"):
        FillMask(model.path)


def test_the_page_shows_what_the_model_writes(writer, classifier, tmp_path):
    output = tmp_path / "page.html"
    assert main([str(writer.path), "--text=a good c", "--what=sources", f"--output={output}"]) == 0
    page = parsed(output.read_text(encoding="utf-8"))
    assert page.titles == ["What the written text needs and reads of its source"]
    written = dependence(writer, "a good c").target
    assert len(written) > 1 and all(token in page.text for token in written)
    with pytest.raises(UserError, match="was trained for task=classification and cannot write"):
        dependence(classifier, "a good c")
