"""The declaration of the options: ranges, types and docs that follow from it."""

import importlib
import re
from pathlib import Path

import pytest

from bert_jax.config import UserError, check_option, check_options, from_json_dict, pattern
from bert_jax.options import INFERENCE, OPTIONS, RESTART, SHAPE, default_config, nearest
from bert_jax.options_page import table
from experiments import glue
from experiments.base import get_config

ROOT = Path(__file__).resolve().parents[1]
NUMERIC = [name for name, option in OPTIONS.items() if option.type in (int, float)]
SENSELESS = (0, -1, float("nan"), float("inf"), 2**63, float("1e400"))
# Where 0 and -1 have a meaning of their own.
ZERO = {"seed", "data.seed", "eval.seed", "data.random_next_rate", "data.short_sequence_rate", "data.mask_share"} | {
    *("data.random_share", "data.keep_share", "data.validation_share", "data.test_share", "data.read_workers"),
    *("optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.warmup_share", "optimizer.decay_steps"),
    *("optimizer.b1", "optimizer.b2", "optimizer.weight_decay", "optimizer.clip_norm", "optimizer.layer_decay"),
    *("data.corpora_exponent", "optimizer.muon_momentum", "train.ema_decay", "train.z_loss", "train.sampled_softmax"),
    *("train.max_rollbacks", "train.spike_factor", "checkpoint.minutes"),
    *(
        "train.watchdog_seconds",
        "train.patience",
        "train.reinitialise_layers",
        "train.label_smoothing",
        "train.peak_tflops",
    ),
    *(
        "eval.max_examples",
        "eval.blimp_pairs",
        "head.lstm_layers",
        "extractive.layers",
        "model.hidden_dropout",
        "model.attention_dropout",
        "model.initializer_range",
    ),
    *("seq2seq.mask_rate", "seq2seq.eval_examples", "generate.length_penalty", "generate.temperature"),
    *("multitask.last_exponent", "generate.top_k", "generate.no_repeat_ngram", "generate.min_length", "generate.seed"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.smallest", "vectors.mismatch_rate", "extend.words"),
    *("distillation.relations", "distillation.soft", "distillation.hidden", "distillation.hard"),
    *("energy.watts", "energy.grams_per_kwh"),
}


@pytest.mark.parametrize("name", NUMERIC)
def test_every_number_has_a_range(name):
    option = OPTIONS[name]
    accepted = set()
    for value in SENSELESS:
        value = value if option.type is float or value != value or abs(value) == float("inf") else int(value)
        try:
            check_option(name, value)
            accepted.add(value)
        except UserError as error:
            assert str(error).startswith(f"{name} is ") and option.allowed in str(error)
    assert accepted == ({0} if name in ZERO else set()) | (
        {-1} if name in ("mesh.data", "mesh.fsdp", "mesh.tensor") else set()
    )
    for text in ("abc", "", "1e400", "nan", str(2**63)):
        with pytest.raises(ValueError, match=f"^{re.escape(name)} is "):
            option.parse(text)
    if option.type is int:
        with pytest.raises(ValueError, match="whole number"):
            option.parse("1.5")


def test_a_default_is_accepted_and_belongs_to_its_key():
    config = default_config()
    check_options(config)
    assert config.is_locked and config.train.steps == 900_000 and config.model.hidden_size is None
    assert len(SHAPE) == 17 and "data.workers" in RESTART and "model.dtype" in INFERENCE
    assert config.to_dict() == get_config().to_dict()


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("train.stepz", "train.steps"),
        ("optimiser.name", "optimizer.name"),
        ("train.batchsize", "train.batch_size"),
        ("hidden_sizes", "model.hidden_size"),
        ("model.learning_rate", "optimizer.learning_rate"),
    ],
)
def test_the_nearest_option(name, closest):
    assert nearest(name) == closest


def test_a_misspelt_key_in_an_experiment_is_an_error():
    for config in (get_config(), glue.get_config("rte")):
        with pytest.raises(AttributeError, match='Did you mean "steps"'):
            config.train.stepz = 5


def test_unknown_and_missing_options_are_named():
    config = default_config()
    with config.unlocked():
        config.train.stepz = 5
    with pytest.raises(UserError, match=r"^train.stepz is not an option; the nearest is train.steps$"):
        check_options(config)
    config.task = "my_task.MyTask"  # may have options of its own
    check_options(config)
    with config.unlocked():
        del config["mesh"]
    with pytest.raises(UserError, match=r"mesh.preset is missing"):
        check_options(config)


@pytest.mark.parametrize("name", ["optimizer.freeze", "optimizer.no_decay"])
def test_a_malformed_pattern_is_one_line(name):
    with pytest.raises(UserError, match=rf"^{name} is '\(', which is not a regular expression: missing \)"):
        check_option(name, "(")
    assert pattern("--allow", "bias").search("encoder/bias")


@pytest.mark.parametrize("name", ["data.label_separator", "data.text_field", "data.prepared", "data.text", "task"])
def test_what_needs_a_value(name):
    with pytest.raises(UserError, match=f"{name} is empty"):
        check_option(name, "")


def test_a_saved_config_gets_todays_defaults():
    saved = default_config().to_dict()
    del saved["mesh"], saved["train"]["new_head"]
    saved["train"]["steps"] = 7
    config = from_json_dict(saved)
    assert (config.train.steps, config.train.new_head, config.mesh.preset) == (7, False, "data")
    saved["train"]["steps"] = "7"
    with pytest.raises(UserError, match=r"train.steps is '7' in the saved config; it must be a whole number"):
        from_json_dict(saved)
    for foreign in ([], {"train": 3}, {"model": {"size": {"a": 1}}}):
        with pytest.raises(UserError, match="saved config"):
            from_json_dict(foreign)


@pytest.mark.parametrize(
    ("file", "arguments"),
    {
        "base": ("", "tiny", "mini", "small", "medium", "base", "large"),
        "large": ("", "base"),
        "phase2_512": ("", "small"),
        "small_en": ("", "mini"),
        "tiny": ("", "small"),
        "classify": ("", "single", "multi", "regression"),
        "glue": ("", *glue.TASKS),
        "multiple_choice": ("",),
        "multitask": ("",),
        "ner": ("", "entities", "plain"),
        "squad": ("", "v1", "v2"),
        "summarize": ("", "abstractive", "extractive"),
        "translate": ("", "warm", "scratch"),
        "dialogue": ("",),
    }.items(),
)
def test_every_experiment_with_every_argument(file, arguments):
    module = importlib.import_module(f"experiments.{file}")
    for argument in arguments:
        config = module.get_config(argument) if argument else module.get_config()
        assert config.is_locked
        check_options(config)


def test_docs_are_the_declaration():
    assert (ROOT / "docs" / "options.md").read_text() == table()
    for line in (ROOT / "README.md").read_text().partition("## Main options")[2].partition("\n## ")[0].splitlines():
        for name in re.findall(r"`([\w.]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            assert name in OPTIONS, name
