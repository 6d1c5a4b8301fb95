"""Validation: every value that could only fail later fails at once, with the numbers."""

import json

import pytest

from bert_jax.config import UserError, differences, validate, write_or_compare
from bert_jax.models.config import bert_config
from experiments.base import get_config

BAD = [
    (
        "data.short_sequence_rate",
        -0.1,
        "data.short_sequence_rate is -0.1; it must be a number from 0 to 1",
    ),
    ("data.pairing", "npp", "data.pairing is 'npp'; it can be nsp, sop, none"),
    ("data.mask_rate", 1.5, "data.mask_rate is 1.5; it must be a number above 0 to 1"),
    ("data.keep_share", 0.2, "mask_share \\+ data.random_share \\+ data.keep_share is 1.1; it must be 1"),
    ("data.masking", "static", None),
    ("train.batch_size", 100, "train.batch_size 100 is not a multiple of 8 devices"),
    ("train.accumulation", 3, "train.batch_size 256 is not a multiple of 8 devices × 3 micro-batches"),
    ("train.batch_size", 0, "train.batch_size is 0; it must be a whole number from 1 to 16777216"),
    ("eval.batch_size", 12, "eval.batch_size 12 is not a multiple of 8 devices"),
    ("mesh.data", 9, "mesh.data=9, mesh.fsdp=1, mesh.tensor=1: the axes must multiply to the 8 devices or a divisor"),
    (
        "optimizer.warmup_steps",
        1_000_000,
        "warmup_steps is 1000000, which leaves nothing of the 1000000 steps",
    ),
    ("optimizer.name", "sgd", "optimizer.name is 'sgd'; it can be adamw, lamb"),
    (
        "optimizer.learning_rate",
        float("nan"),
        "optimizer.learning_rate is nan; it must be a number from 0 to 1000",
    ),
    ("data.validation_share", 0.995, "leaves no documents to train on"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_values(key, value, message):
    config = get_config()
    config.update_from_flattened_dict({key: value})
    if message is None:
        validate(config, 8)  # a value that is fine
        return
    with pytest.raises(UserError, match=message):
        validate(config, 8)


def test_static_masking_needs_nsp():
    config = get_config()
    config.data.update(masking="static", pairing="sop")
    with pytest.raises(UserError, match="static is the original script"):
        validate(config, 1)


@pytest.mark.parametrize("name", ["base", "large", "tiny", "small_en", "phase2_512"])
def test_experiments_are_valid_and_declare_no_new_key(name):
    module = __import__(f"experiments.{name}", fromlist=["get_config"])
    config, base = module.get_config(), get_config()
    validate(config, 1)
    assert {key for key, *_ in differences(config.to_dict(), base.to_dict())} <= {
        key for key, *_ in differences(base.to_dict(), {})
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size", "huge", "model.size is 'huge'; it can be tiny, mini"),
        ("num_attention_heads", 5, "hidden_size 768 is not a multiple of model.num_attention_heads 5"),
        ("hidden_act", "relu", "model.hidden_act is 'relu'; it can be gelu_tanh, gelu"),
        ("hidden_dropout", 1.0, "model.hidden_dropout is 1.0; it must be a number from 0 to below 1"),
        ("vocab_size", 28_996, "model.vocab_size is 28996 but the tokenizer has 30522 pieces"),
        ("num_hidden_layers", 0, "model.num_hidden_layers is 0; it must be a whole number from 1 to 4096"),
    ],
)
def test_bad_models(key, value, message):
    config = get_config()
    config.model[key] = value
    with pytest.raises(UserError, match=message):
        bert_config(config.model, 30_522)


def test_sizes_fill_the_placeholders():
    config = get_config("large").model
    large = bert_config(config, 30_522)
    assert (large.hidden_size, large.num_hidden_layers, large.num_attention_heads) == (1024, 24, 16)
    assert large.intermediate_size == 4096 and large.embedding_size == 1024
    config.hidden_size = 64
    assert bert_config(config, 30_522).intermediate_size == 256


def test_a_workdir_remembers_its_config(tmp_path):
    config, path = get_config(), tmp_path / "config.json"
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    write_or_compare(config, path)
    assert json.loads(path.read_text())["optimizer"]["learning_rate"] == 1e-4
    config.train.log_every = 7
    write_or_compare(config, path)
    config.data.sequence_length, config.seed = 256, 1
    with pytest.raises(UserError, match=r"data.sequence_length was 128, is 256; seed was 0, is 1"):
        write_or_compare(config, path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        write_or_compare(config, path)


def test_more_steps_only_where_the_decay_has_its_own_length(tmp_path):
    config, path = get_config(), tmp_path / "config.json"
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    write_or_compare(config, path)
    config.train.steps += 1
    write_or_compare(config, path)
    config.optimizer.decay_steps = 0
    write_or_compare(config, tmp_path / "other.json")
    config.train.steps += 1
    with pytest.raises(UserError, match=r"train.steps was 900001, is 900002"):
        write_or_compare(config, tmp_path / "other.json")
