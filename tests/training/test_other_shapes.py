"""A model with every option of its shape, from pretraining to predictions, and what it is not taken for."""

import json

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import modes
from bert_jax.config import UserError, read_config, write_or_compare
from bert_jax.convert.conversion import convert
from bert_jax.run import run, start_run
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint, write_checkpoint
from bert_jax.training.parameters import structure
from experiments import classify
from tests.inference.conftest import TOKENIZER

OTHER = {"position_embedding": "rotary", "gated": True, "use_bias": False, "tie_embeddings": False}
BERT = {"position_embedding": "learned", "gated": False, "use_bias": True, "tie_embeddings": True}
WORDS = ["the", "object", "name", "class", "value"]


def parameters(workdir):
    return jax.device_get(read_checkpoint(find_checkpoint(str(workdir))).parameters)


def labelled(folder, init_from):
    """A classifier of pairs of words, with the shape of what it starts from."""
    rows = [{"text": f"{a} {b}", "label": "yes" if a == "the" else "no"} for a in WORDS for b in WORDS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = classify.get_config()
    config.init_from = str(init_from)
    config.data.update(train=str(folder / "rows.jsonl"), validation=str(folder / "rows.jsonl"), sequence_length=16)
    config.data.update(buckets=1, packing=False)
    config.train.update(epochs=1.0, batch_size=8, peak_tflops=1.0)
    config.eval.batch_size, config.mesh.data = 8, 1
    return config


@pytest.mark.slow
def test_pretrained_resumed_fine_tuned_and_used(small_config, tmp_path):
    small_config.model.update(OTHER | {"initializer": "width_depth"})
    for steps, name in ((4, "whole"), (2, "parts"), (4, "parts")):
        small_config.train.steps = steps
        small_config.eval.every = small_config.checkpoint.every = 2
        run(small_config, tmp_path / name)
    expected = parameters(tmp_path / "whole")
    assert "embeddings/position/embedding" not in expected and "heads/mlm/decoder/embedding" in expected
    for name, value in parameters(tmp_path / "parts").items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert len(bert_jax.load(tmp_path / "whole").fill_mask("the [MASK] is")) == 1

    assert modes.train(labelled(tmp_path, tmp_path / "whole"), tmp_path / "tuned") == 0
    saved = read_config(tmp_path / "tuned" / "config.json").model
    assert {key: saved[key] for key in OTHER} == OTHER
    (prediction,) = bert_jax.load(tmp_path / "tuned").predict(["the class"])
    assert prediction["label"] in ("yes", "no")


def test_another_shape_is_inherited_and_never_mistaken(small_config, tmp_path):
    """By a start from a checkpoint, by a run that continues, and by an export."""
    workdir = tmp_path / "run"
    small_config.model.update(OTHER)
    shapes = structure(Pretraining(small_config, TOKENIZER, None).init)[1]
    zeros = {name: np.zeros(x.shape, np.float32) for name, x in shapes.items()}
    saved = {"step": 3, "config": small_config.to_dict(), "task": {}}
    write_checkpoint(workdir / "checkpoints" / "3", zeros, saved, TOKENIZER)
    (workdir / "config.json").write_text(small_config.to_json())

    config = labelled(tmp_path, workdir)
    start_run(config, tmp_path / "tuned")
    assert {key: config.model[key] for key in OTHER} == OTHER
    for key, value in BERT.items():
        config = labelled(tmp_path, workdir)
        config.model[key] = value
        with pytest.raises(UserError, match=rf"model\.{key} is {value}, and .*run was trained with {OTHER[key]}: "):
            start_run(config, tmp_path / "other")
    small_config.model.gated = False
    with pytest.raises(UserError, match=r"model\.gated is False, and .*run was trained with True"):
        start_run(small_config, workdir)
    with pytest.raises(UserError, match=r"model\.position_embedding is rotary, model\.gated is True, .* has learned"):
        convert(str(workdir), str(tmp_path / "theirs"), format="huggingface")


def test_a_run_from_before_there_was_an_option_is_continued(small_config, tmp_path):
    """Its config.json lacks the option, which has the value that all models had then."""
    small_config.model.update(BERT)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    saved = small_config.to_dict()
    for key in ("gated", "use_bias", "tie_embeddings"):
        del saved["model"][key]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    write_or_compare(small_config, tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["model"]["gated"] is False
