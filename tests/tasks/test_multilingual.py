"""Pretraining on several languages: figures by corpus, language embeddings, random words of the language, resuming."""

import json
from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepared import open_prepared
from bert_jax.entries import add_entry
from bert_jax.models.bert import Bert, TrunkInputs
from bert_jax.models.config import bert_config
from bert_jax.run import run
from bert_jax.tasks.masking import mask_tokens
from bert_jax.tasks.pretraining import Pretraining

WORDS = {"en": ["sun", "moon", "star", "rain", "snow"], "de": ["sonne", "mond", "stern", "regen", "schnee"]}


@pytest.fixture
def texts(tmp_path):
    random = Random(0)
    for language, words in WORDS.items():
        lines = [" ".join(random.choices(words, k=5)).capitalize() + "." for _ in range(600)]
        (tmp_path / f"pairs.{language}").write_text("\n".join(lines[:200]) + "\n")
        documents = ["\n".join(lines[start : start + 6]) for start in range(0, 600, 6)]
        (tmp_path / f"{language}.txt").write_text("\n\n".join(documents) + "\n")
    return tmp_path


@pytest.fixture
def config(small_config, texts):
    small_config.data.update(corpus="sample", files="", prepared=str(texts / "prepared"), pairing="none")
    small_config.data.update(vocab_size=120)
    small_config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32")
    for language in WORDS:
        add_entry(small_config, f"corpora.{language}", files=f"{texts}/{language}.txt")
    pairs = {"files": f"{texts}/pairs.en+{texts}/pairs.de", "corpus": "parallel", "language": "en+de"}
    add_entry(small_config, "corpora.en_de", **pairs)
    return small_config


def evaluated(task: Pretraining, model) -> dict[str, float]:
    evaluate = jax.jit(lambda batch: task.evaluate(model, task.features(batch, jax.random.key(3)), ()))
    batches = task.eval_batches("validation", 0, 1)
    found = [evaluate(jax.tree.map(jnp.asarray, batch))[0] for batch in batches]
    return task.means(jax.tree.map(lambda *x: np.sum(x, axis=0), *found))


def test_the_figures_of_a_corpus_are_those_of_an_evaluation_of_it_alone(config):
    task = Pretraining.with_data(config, None)
    model = task.init(nnx.Rngs(0))
    metrics = evaluated(task, model)
    assert {f"{name}/mlm_loss" for name in ("de", "en", "en_de")} <= metrics.keys()
    assert set(task.metric_names("validation")) >= metrics.keys()
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.corpora = {}
    number = [one.name for one in task.prepared.members].index("de")
    german = Pretraining.over(alone, open_prepared(task.prepared.members[number].prepared.directory))
    expected = evaluated(german, model)
    assert metrics["de/mlm_loss"] == pytest.approx(expected["mlm_loss"], rel=1e-6)
    assert metrics["de/mlm_accuracy"] == pytest.approx(expected["mlm_accuracy"], rel=1e-6)


def test_both_sides_of_a_translation_are_masked(config):
    with config.unlocked():
        config.corpora = {"en_de": config.corpora.en_de}
    config.train.batch_size = 64
    task = Pretraining.with_data(config, None)
    batches = task.train_batches(0, 0, 1)
    batch = next(batches)
    batches.close()
    masked = task.features(jax.tree.map(jnp.asarray, batch), jax.random.key(0))
    types = np.take_along_axis(batch["token_type_ids"], np.asarray(masked["masked_positions"]), axis=1)
    chosen = np.asarray(masked["masked_weights"]) > 0
    share = types[chosen].mean()
    assert 0.35 < share < 0.65 and chosen.sum() > 200


def test_random_words_are_those_of_the_language(config):
    config.data.update(random_words="language", mask_share=0.0, random_share=1.0, keep_share=0.0)
    task = Pretraining.with_data(config, None)
    table, counts = task.words
    words = [set(row[:count].tolist()) for row, count in zip(table, counts, strict=True)]  # German, English
    assert words[0] != words[1] and not (words[0] | words[1]) & set(task.tokenizer.special_ids)
    batches = task.train_batches(0, 0, 1)
    for _ in range(3):
        batch = next(batches)
        masked = jax.tree.map(np.asarray, task.features(jax.tree.map(jnp.asarray, batch), jax.random.key(1)))
        rows, places = np.nonzero(masked["masked_weights"])
        positions = masked["masked_positions"][rows, places]
        shown = masked["input_ids"][rows, positions]
        for token, language in zip(shown.tolist(), batch["language_ids"][rows, positions].tolist(), strict=True):
            assert token in words[language]
    batches.close()
    with config.unlocked():
        config.corpora = {}
    with pytest.raises(UserError, match=r"data.random_words=language needs the languages of corpora"):
        Pretraining(config, task.tokenizer)


def test_masks_are_the_same_whatever_random_words_are_drawn_from(config):
    task = Pretraining.with_data(config, None)
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 60, (4, 32)), jnp.int32)
    rows, key = (ids, jnp.ones_like(ids)), jax.random.key(5)
    words = np.asarray([[7, 8], [9, 9]], np.int32), np.asarray([2, 1], np.int32)
    plain = mask_tokens(*rows, config.data, task.tokenizer, key)
    own = mask_tokens(*rows, config.data, task.tokenizer, key, languages=(jnp.ones_like(ids), words))
    for name in ("masked_positions", "masked_labels", "masked_weights"):
        np.testing.assert_array_equal(plain[name], own[name])
    changed = np.asarray(plain["input_ids"] != own["input_ids"])
    assert set(np.asarray(own["input_ids"])[changed].tolist()) <= {9}


def test_language_embeddings_equal_a_sum_in_numpy():
    from bert_jax.options import default_config

    options = default_config().model
    options.update(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, dtype="float32")
    plain = Bert(bert_config(options, 20), rngs=nnx.Rngs(0))
    options.languages = "de,en,fr"
    with_languages = Bert(bert_config(options, 20), rngs=nnx.Rngs(0))
    names = lambda module: {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module))}  # noqa: E731
    assert names(with_languages) - names(plain) == {"embeddings/language/embedding"}
    ids = jnp.asarray([[1, 2, 3]])
    rows = {"input_ids": ids, "token_type_ids": ids * 0, "position_ids": ids - 1, "sequence_ids": ids * 0 + 1}
    languages = jnp.asarray([[0, 2, 2]])
    table = np.asarray(with_languages.embeddings.language.embedding[...])
    words = np.asarray(with_languages.embeddings.word.embedding[...])[np.asarray(ids)]
    parts = words + np.asarray(with_languages.embeddings.position.embedding[...])[:3][None]
    parts = parts + np.asarray(with_languages.embeddings.token_type.embedding[...])[0]
    for given, added in ((languages, table[np.asarray(languages)]), (None, table.mean(axis=0))):
        x = parts + added
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        words_of_model = with_languages.embeddings.word(ids)
        found = with_languages.embeddings(words_of_model, ids * 0, ids - 1, language_ids=given)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    inputs = TrunkInputs.from_batch(rows | {"language_ids": languages})
    assert not np.allclose(
        with_languages.encode(inputs).hidden, with_languages.encode(TrunkInputs.from_batch(rows)).hidden
    )
    np.testing.assert_array_equal(plain.encode(inputs).hidden, plain.encode(TrunkInputs.from_batch(rows)).hidden)


@pytest.mark.slow
def test_a_run_is_resumed_in_mid_epoch_to_the_bit(config, tmp_path):
    """Three corpora, language embeddings, words of the language, one run in two halves and one in one piece."""
    config.model.languages, config.data.random_words = "auto", "language"
    config.train.update(steps=4, log_every=1)
    config.checkpoint.every = config.eval.every = 2
    whole = config.copy_and_resolve_references()
    run(whole, tmp_path / "whole")
    half = config.copy_and_resolve_references()
    half.train.steps = 2
    run(half, tmp_path / "halves")
    run(config.copy_and_resolve_references(), tmp_path / "halves")
    lines = {}
    for name in ("whole", "halves"):
        records = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        keys = ("mlm_loss", "de/mlm_loss", "en/mlm_loss", "en_de/mlm_loss")
        lines[name] = [[one.get(key) for key in keys] for one in records if one["split"] in ("train", "eval")]
    assert lines["whole"] == lines["halves"] and len(lines["whole"]) > 5
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model"]["languages"] == "de,en"
