"""The one door: whichever way a model is asked for, the same checkpoint, the same checks."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax import modes
from bert_jax.config import UserError
from bert_jax.inference.embeddings import Embedder
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.open import meant, open_model
from bert_jax.inference.predictor import Predictor
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training import checkpoint
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import base

from .conftest import TOKENIZER


def pretrained(folder, without="(none)", change=None):
    """Writes a tiny checkpoint of pretraining without the parameters whose names start with `without`."""
    config = base.get_config()
    config.model.update(size=None, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
    config.data.sequence_length = 32
    config.model.update(max_position_embeddings=32, embedding_size=16, initializer_range=0.5, dtype="float32")
    parameters = jax.device_get(flatten(Pretraining(config, TOKENIZER, None).init(nnx.Rngs(params=0))))
    parameters = {name: x for name, x in parameters.items() if not name.startswith(without)}
    run = {"step": 3, "config": config.to_dict(), "task": {}}
    write_checkpoint(folder, parameters | (change or {}), run, TOKENIZER)
    return str(folder)


def test_fill_mask_needs_neither_pooler_nor_sentence_pairs(tmp_path):
    """What a saved BertForMaskedLM lacks does not change an answer."""
    whole = FillMask(pretrained(tmp_path / "whole"))("a [MASK] good")
    assert FillMask(pretrained(tmp_path / "bare", ("heads/nsp/", "pooler/")))("a [MASK] good") == whole
    with pytest.raises(UserError, match="has no MLM head"):
        FillMask(pretrained(tmp_path / "headless", "heads/mlm/"))


@pytest.mark.parametrize("tool", [FillMask, Embedder])
def test_shapes_are_those_of_the_config(tool, tmp_path):
    path = pretrained(tmp_path / "x", change={"embeddings/position/embedding": np.zeros((64, 16), np.float32)})
    with pytest.raises(UserError, match=r"embeddings/position/embedding is \(64, 16\) there, \(32, 16\) here"):
        tool(path)


def test_the_workdir_goes_before_what_it_started_from(tuned, tmp_path):
    workdir = str(tuned[1])
    assert meant(workdir, "elsewhere") == workdir
    assert meant(tmp_path, "elsewhere") == "elsewhere"
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path}"):
        meant(tmp_path)
    opened = open_model(workdir)
    assert (opened.path.name, opened.step, opened.config.task) == ("7", 7, "classification")


def test_every_mode_says_when_another_model_is_asked_for(tuned):
    config, workdir, _, _ = tuned
    for changed in ({"model.dtype": "bfloat16"}, {"model.hidden_dropout": 0.3, "model.layers": "scan"}):
        assert open_model(str(workdir), overrides=changed).config.model[next(iter(changed)).partition(".")[2]]
    message = r"holds another model \(model.hidden_size was 32, is 48\)"
    with pytest.raises(UserError, match=message):
        Predictor(str(workdir), overrides={"model.hidden_size": 48})
    config = config.copy_and_resolve_references()
    config.init_from = str(workdir)
    config.model.update(dtype="bfloat16", hidden_dropout=0.3, layers="scan")
    assert modes.evaluate(config, workdir) == 0
    config.model.hidden_size = 48
    with pytest.raises(UserError, match=message):
        modes.evaluate(config, workdir)


def test_a_checkpoint_that_its_run_deletes_meanwhile_is_replaced_by_the_next(tmp_path, monkeypatch):
    older, newer = (pretrained(tmp_path / "checkpoints" / step) for step in ("1", "2"))
    read, asked = checkpoint.read_checkpoint, []

    def read_while_training(folder, **options):
        asked.append(folder.name)
        if len(asked) == 1:
            shutil.rmtree(newer)
        return read(folder, **options)

    monkeypatch.setattr(checkpoint, "read_checkpoint", read_while_training)
    assert str(open_model(tmp_path).path) == older and asked == ["2", "1"]


def test_a_damaged_checkpoint_is_not_replaced_by_another(tmp_path):
    for step in ("1", "2"):
        pretrained(tmp_path / "checkpoints" / step)
    next((tmp_path / "checkpoints" / "2" / "parameters" / "d").iterdir()).write_bytes(b"")
    with pytest.raises(UserError, match="2 is damaged"):
        open_model(tmp_path)
