"""Small models with random, large parameters: whatever is asked of them has an answer of its own."""

import jax
import pytest
from flax import nnx

import bert_jax
from bert_jax.tasks import task_class
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import classify, ner
from tests.inference.conftest import TOKENIZER
from tests.inference.test_open import pretrained


def fine_tuned(folder, config, description, change=lambda parameters: parameters, step=5, **shape):
    """Writes a checkpoint of a task, with its parameters changed, and loads it."""
    config.model.update(size="tiny", hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
    config.model.update(dtype="float32", max_position_embeddings=32, initializer_range=0.5)
    config.model.update(shape)
    config.data.update(sequence_length=24, buckets=1)
    task = task_class(config.task)(config, TOKENIZER, description)
    parameters = change(dict(jax.device_get(flatten(task.init(nnx.Rngs(params=3))))))
    run = {"step": step, "config": config.to_dict(), "task": description}
    write_checkpoint(folder, parameters, run, TOKENIZER)
    return bert_jax.load(folder)


CLASSES = {"labels": ["bad", "fair", "good"], "thresholds": [], "label_kind": "single"}


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    return fine_tuned(tmp_path_factory.mktemp("classifier") / "5", classify.get_config(), CLASSES)


@pytest.fixture(scope="session")
def tagger(tmp_path_factory):
    description = {"labels": ["O", "B-X", "I-X"], "characters": False}
    return fine_tuned(tmp_path_factory.mktemp("tagger") / "5", ner.get_config(), description)


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    """A model of pretraining with its MLM head, 2 layers of 2 heads and 32 positions."""
    return bert_jax.load(pretrained(tmp_path_factory.mktemp("masked") / "3"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """The same without heads."""
    return bert_jax.load(pretrained(tmp_path_factory.mktemp("encoder") / "3", "heads/"))
