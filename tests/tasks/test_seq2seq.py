"""Sequence to sequence: rows by hand, the loss against NumPy, what is refused; copies are learned, resumed to the bit,
and alike on eight devices."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.examples import WritingExample
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.inference.predictor import Predictor
from bert_jax.sharding import make_mesh
from bert_jax.tasks.seq2seq import Seq2Seq
from bert_jax.tasks.task import shapes_of
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.evaluation import make_evaluation
from bert_jax.training.loop import train
from bert_jax.training.parameters import unflatten
from bert_jax.training.step import abstract_state, init_state
from experiments import translate

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS], "test", True, None, True)
CLS, SEP = TOKENIZER.cls_id, TOKENIZER.sep_id


def make_config(**data):
    config = translate.get_config()
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=24)
    config.data.update(sequence_length=12, target_length=12, buckets=2, prefetch=2, **data)
    config.optimizer.update(learning_rate=5e-3)
    config.train.update(epochs=100.0, batch_size=16, log_every=50, peak_tflops=1.0, label_smoothing=0.0)
    config.eval.update(batch_size=16, every=200)
    config.checkpoint.best_metric = "exact_match"
    config.mesh.data = 1
    return config


def pairs(count, seed=0):
    """A target is its source in the other order."""
    random = np.random.default_rng(seed)
    for number in range(count):
        letters = random.choice(LETTERS, 3 + number % 6)
        yield " ".join(letters), " ".join(letters[::-1])


def write(folder, rows, name="train"):
    """Returns the spec of two files with these pairs."""
    paths = [folder / f"{name}.{language}" for language in ("en", "de")]
    for path, column in zip(paths, zip(*rows, strict=True), strict=True):
        path.write_text("".join(f"{text}\n" for text in column))
    return "+".join(map(str, paths))


def load(config):
    task = Seq2Seq(config, TOKENIZER, None)
    task.load()
    return task


def ids(text):
    return [TOKENIZER.id(letter) for letter in text.split()]


def test_rows_by_hand():
    task = Seq2Seq(make_config(), TOKENIZER, None)
    one, two = WritingExample("", ("a b",), "c"), WritingExample("", ("a", "b c", "d"), "e f")
    items = task.encode([one, two])
    assert items[0].parts[0].ids.tolist() == [CLS, *ids("a b"), SEP]
    assert items[1].parts[0].ids.tolist() == [CLS, *ids("a"), SEP, *ids("b c"), SEP, *ids("d"), SEP]
    assert not items[1].parts[0].type_ids.any()
    assert [item.target.tolist() for item in items] == [[*ids("c"), SEP], [*ids("e f"), SEP]]
    batch = collate(items, [[1], [0], []], Shape(3, 1, 8, targets=4))
    assert batch["target_ids"].tolist() == [[*ids("e f"), SEP, 0], [*ids("c"), SEP, 0, 0], [0] * 4]
    assert batch["target_weights"].sum(axis=1).tolist() == [3, 2, 0]
    (item,) = task.encode([WritingExample("", ("a",))])
    assert item.target is None and "target_ids" not in collate([item], [[0]], Shape(1, 1, 8))


def test_long_sources_and_targets_are_cut_and_counted(caplog):
    task = Seq2Seq(make_config(), TOKENIZER, None)
    long = WritingExample("train.en:3", ("a " * 20,), "b " * 12)
    with caplog.at_level(logging.WARNING):
        first, second = task.encode([long, WritingExample("train.en:4", ("a",), "b " * 11)])
    assert "1 of 2 examples (50.0 %) lose tokens to data.long_texts=head" in caplog.text
    assert "1 of 2 targets (50.0 %) lose tokens to data.target_length=12" in caplog.text
    assert first.length == 12 and first.target.tolist() == ids("b " * 12)  # no [SEP]: it does not end there
    assert second.target.tolist() == [*ids("b " * 11), SEP]
    task.config.data.long_texts = "error"
    with pytest.raises(UserError, match=r"train.en:5: a target of 13 tokens, over data.target_length 12; raise it"):
        task.encode([WritingExample("train.en:5", ("a",), "b " * 12)])


def test_the_latest_turns_of_a_long_dialogue_remain():
    task = Seq2Seq(make_config(long_texts="tail"), TOKENIZER, None)
    (item,) = task.encode([WritingExample("", ("a " * 8, "b " * 8), "c")])
    assert item.parts[0].ids.tolist() == [CLS, *ids("a"), SEP, *ids("b " * 8), SEP]


@pytest.fixture(scope="module")
def smoothed():
    """A task with label smoothing, and a function from items to the sums and logits of their batch, without dropout."""
    config = make_config()
    config.train.label_smoothing = 0.1
    task = Seq2Seq(config, TOKENIZER, None)
    graphdef, _ = abstract_state(task, optax.sgd(0.1))
    state = init_state(task, optax.sgd(0.1), 0, make_mesh(config.mesh))

    @jax.jit
    def run(parameters, batch):
        outputs = task.outputs(unflatten(graphdef, parameters), batch, None)
        return task.losses(outputs, batch), outputs["logits"], task.weights(batch)

    def sums(items):
        rows = [[i] for i in range(len(items))] + [[]] * (3 - len(items))
        return jax.device_get(run(state.parameters, collate(items, rows, Shape(3, 1, 8, targets=8))))

    return task, sums


def test_the_loss_is_that_of_numpy_with_and_without_label_smoothing(smoothed):
    task, run = smoothed
    items = task.encode([WritingExample("", ("a b",), "c d e"), WritingExample("", ("f",), "g")])
    sums, logits, weights = run(items)
    log_p = logits - np.log(np.exp(np.asarray(logits, np.float64)).sum(axis=-1, keepdims=True))
    expected = {"loss": 0.0, "nll": 0.0}
    for row, item in enumerate(items):
        for place, token in enumerate(item.target):
            wanted = np.full(TOKENIZER.vocab_size, 0.1 / TOKENIZER.vocab_size)
            wanted[token] += 0.9
            expected["loss"] -= float(wanted @ log_p[row, place])
            expected["nll"] -= float(log_p[row, place, token])
    for name, value in expected.items():
        assert sums[name][0] == pytest.approx(value, rel=1e-5) and sums[name][1] == 6
    means = task.means({name: sums[name] for name in ("loss", "nll", "token_accuracy")})
    assert means["perplexity"] == pytest.approx(np.exp(expected["nll"] / 6), rel=1e-5)
    assert weights["loss"] == 6


def test_a_token_of_the_target_does_not_know_the_next_ones(smoothed):
    task, run = smoothed
    one, other = task.encode([WritingExample("", ("a b",), target) for target in ("c d e f", "c d x y")])
    logits = run([one, other])[1]
    np.testing.assert_allclose(logits[0, :3], logits[1, :3], atol=1e-6)
    assert np.abs(logits[0, 3] - logits[1, 3]).max() > 1e-4


def test_a_share_of_the_targets_may_be_masked():
    config = make_config()
    config.seq2seq.mask_rate = 0.5
    task = Seq2Seq(config, TOKENIZER, None)
    items = task.encode([WritingExample("", ("a",), "b " * 10)] * 40)
    batch = jax.tree.map(jnp.asarray, collate(items, [[i] for i in range(40)], Shape(40, 1, 4, targets=12)))
    masked = task.features(batch, jax.random.key(0))
    assert 180 < float(task.weights(masked)["loss"]) < 260  # of 440
    assert not (masked["masked"] & (batch["target_weights"] == 0)).any()
    logits = jnp.zeros((40, 12, TOKENIZER.vocab_size))
    assert task.losses({"logits": logits}, masked)["loss"][1] == task.weights(masked)["loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.target_length": 13}, "data.sequence_length 12 and data.target_length 13 make rows of 25 tokens"),
        ({"data.long_texts": "windows"}, "data.long_texts=windows is not for task=seq2seq"),
        ({"train.class_weights": "balanced"}, "train.class_weights: the classes of task=seq2seq are tokens"),
        ({"data.packing": True}, "data.packing: task=seq2seq needs rows of their own"),
        ({"train.z_loss": 1e-4}, "train.z_loss needs the MLM head"),
    ],
)
def test_options_that_are_refused(tmp_path, change, message):
    config = make_config(train=write(tmp_path, pairs(4)))
    for key, value in change.items():
        group, _, name = key.partition(".")
        config[group][name] = value
    with pytest.raises(UserError, match=message):
        load(config)


def test_texts_without_a_token_are_refused_with_their_row():
    task = Seq2Seq(make_config(), TOKENIZER, None)
    with pytest.raises(UserError, match=r"train.en:7: the source has no token"):
        task.encode([WritingExample("train.en:7", ("\u200d",), "b")])
    with pytest.raises(UserError, match=r"train.en:8: the target has no token"):
        task.encode([WritingExample("train.en:8", ("b",), "\u200d")])
    rows = [Row("in.jsonl:1", {"source": "a"}), Row("in.jsonl:2", {"source": " "}), Row("in.jsonl:3", {"text": "a"})]
    first, empty, missing = task.prediction_examples(rows)
    assert first == WritingExample("in.jsonl:1", ("a",))
    assert "in.jsonl:2: column 'source' is empty" in str(empty) and "in.jsonl:3: no column 'source'" in str(missing)


def test_what_looks_like_a_mistake_in_the_pairs_is_logged(tmp_path, caplog):
    rows = [("a b", "b a"), ("c", "c"), ("d", "e")]
    config = make_config(train=write(tmp_path, rows), validation=write(tmp_path, [("a b", "x"), ("f", "g")], "val"))
    with caplog.at_level(logging.INFO):
        load(config)
    assert "train: 3 pairs; characters of sources min 1, median 1, max 3" in caplog.text
    assert f"train: 1 pairs have a target that equals the source (first: {tmp_path}/train.en:2)" in caplog.text
    assert f"validation: 1 pairs have a source that training has too (first: {tmp_path}/val.en:1)" in caplog.text


@pytest.mark.parametrize(
    ("letters", "lowercase", "case"),
    [("aA", False, "mixed"), ("aA", True, "lc"), ("дД", False, "mixed"), ("д", True, "lc"), ("我", False, "mixed")],
)
def test_bleu_sees_case_where_the_vocabulary_does(letters, lowercase, case):
    """Also of an alphabet other than the Latin one."""
    pytest.importorskip("sacrebleu", reason="pip install -e '.[generate]'")
    tokenizer = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters], "test", lowercase, None, True)
    signature = Seq2Seq(make_config(), tokenizer, None).scorer(["a"], ["a"]).signature
    assert f"bleu nrefs:1|case:{case}" in signature


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_a_vocabulary_is_learned_from_both_sides(tmp_path, kind):
    config = make_config(
        train=write(tmp_path, [("Hello world äöü", "Grüße der Welt")] * 20), tokenizer=kind, lowercase=False
    )
    config.data.vocab_size = 100
    config.model.max_position_embeddings = 64
    task = Seq2Seq.with_data(config, None)
    for text in ("Hello world äöü", "Grüße der Welt"):
        (row,) = task.tokenizer.encode_words([text])
        assert task.tokenizer.unk_id not in row and task.tokenizer.decode(row) == text
    assert Seq2Seq.with_data(config, None).tokenizer.content_hash == task.tokenizer.content_hash


def test_batches_have_few_shapes_with_two_lengths(tmp_path):
    config = make_config(train=write(tmp_path, [("a " * (1 + i % 8), "b " * (1 + i % 9)) for i in range(200)]))
    config.train.epochs = 1e6  # so many that a second program is worth its compilation
    task = load(config)
    assert len(task.plan.shapes) == 2 and task.plan.shapes[-1][2:] == (10, 1, 10)
    batches = task.train_batches(0, 0, 1)
    seen = [next(batches) for _ in range(26)]
    batches.close()
    shapes = {(batch["input_ids"].shape[1], batch["target_ids"].shape[1]) for batch in seen}
    assert shapes == {(shape.tokens, shape.targets) for shape in task.plan.shapes}
    first = np.concatenate([batch["item_ids"].ravel() for batch in seen[:13]])
    assert sorted(first[first >= 0]) == list(range(200))
    assert task.tokens_per_step == pytest.approx(16 * np.mean([sum(s[2:5:2]) for s in task.plan.shapes]), rel=0.4)


def test_shapes_without_data_are_those_of_real_batches(tmp_path):
    spec = write(tmp_path, [("a " * 20, "b " * 20)] * 20)
    config = make_config(train=spec, validation=spec)
    real, task = load(config), Seq2Seq.without_data(config, TOKENIZER, None)
    batches = real.train_batches(0, 0, 1)
    assert task.batch_shapes(training=True) == shapes_of(next(batches))
    batches.close()
    assert task.batch_shapes(training=False) == shapes_of(next(real.eval_batches("validation", 0, 1)))
    assert (task.tokens_per_step, task.flops_per_step) == (real.tokens_per_step, real.flops_per_step)
    assert task.tokens_per_step == 16 * (12 + 12)


MODELS = {
    "unilm": {},
    "unilm v1": {"mask_rate": 0.7},
    "encoder and decoder": {"model": "encoder_decoder"},
    "shared": {"model": "encoder_decoder", "share": True},
}


@pytest.fixture(scope="module", params=MODELS)
def learned(request, tmp_path_factory):
    """A run that has learned 32 pairs: its task, how it finished, and its folder."""
    folder = tmp_path_factory.mktemp("learned")
    config = make_config(train=write(folder, pairs(32)), validation=write(folder, pairs(32), "val"))
    config.seq2seq.update(MODELS[request.param])
    if config.seq2seq.mask_rate:  # fewer tokens are learned in a step
        config.train.epochs, config.eval.every = 300.0, 600
    task = load(config)
    return task, train(task, config, folder / "run"), folder / "run"


@pytest.mark.slow
def test_overfits_32_pairs_to_exact_copies(learned):
    task, finished, _ = learned
    metrics = finished.evaluation.metrics
    assert metrics["exact_match"] == metrics["token_accuracy"] == 1.0 and metrics["bleu"] == pytest.approx(100)
    assert metrics["perplexity"] < 1.1
    assert set(metrics) == set(task.metric_names("validation"))
    texts = [prediction["text"] for prediction in finished.evaluation.predictions]
    assert texts == [target for _, target in pairs(32)]


def evaluated(run, config):
    """Returns the evaluation of a run's parameters under another config."""
    task = load(config)
    graphdef, _ = abstract_state(task, optax.sgd(0.1))
    saved = read_checkpoint(find_checkpoint(str(run)))
    return make_evaluation(task, graphdef, config, make_mesh(config.mesh), {})(saved.parameters, "validation", {})


@pytest.mark.slow
def test_what_is_written_depends_on_the_source(learned):
    """With each other's sources the same parameters write hardly any of the targets."""
    task, _, run = learned
    rows = list(pairs(32))
    config = task.config.copy_and_resolve_references()
    shuffled = [(rows[(i + 7) % 32][0], target) for i, (_, target) in enumerate(rows)]
    config.data.validation = write(run, shuffled, "shuffled")
    metrics = evaluated(run, config).metrics
    assert metrics["exact_match"] == 0 and metrics["perplexity"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("learned", ["unilm"], indirect=True)
def test_an_evaluation_writes_as_the_options_say(learned):
    task, finished, run = learned
    config = task.config.copy_and_resolve_references()
    config.seq2seq.eval_examples = 20
    config.generate.beams = 4
    found = evaluated(run, config)
    assert found.predictions == finished.evaluation.predictions[:20]  # sure of itself, whatever the search
    assert found.metrics["loss"] == pytest.approx(finished.evaluation.metrics["loss"])  # of all 32
    config.generate.update(beams=1, temperature=9.0)
    drawn = evaluated(run, config)
    assert drawn.metrics["exact_match"] < 0.2 and drawn.predictions == evaluated(run, config).predictions


@pytest.mark.slow
def test_predictions_and_pages_show_what_was_written(learned):
    task, finished, run = learned
    predictor = Predictor(run, batch_size=8)
    rows = list(pairs(9))
    assert predictor([source for source, _ in rows]) == [{"text": target} for _, target in rows]
    report = task.report(finished.evaluation)
    assert report.records[0]["source"] == (rows[0][0],) and report.records[0]["prediction"] == {"text": rows[0][1]}
    json.dumps(report.records)
    shown, by_length = report.sections
    assert len(shown.body.rows) == 20 and shown.body.rows[0][1:4] == [*rows[0], rows[0][1]]
    assert sum(int(row[1]) for row in by_length.body.rows) == 32
    assert by_length.body.header[2:4] == ["bleu", "chrf"] and "tok:13a" in by_length.note


def run_to(config, folder, steps):
    config = config.copy_and_resolve_references()
    config.train.steps = steps
    train(load(config), config, folder)
    return read_checkpoint(find_checkpoint(str(folder)))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["unilm v1", "encoder and decoder"])
def test_resumed_to_the_bit(tmp_path, model):
    config = make_config(train=write(tmp_path, pairs(40)), validation=write(tmp_path, pairs(8, seed=1), "val"))
    config.seq2seq.update(MODELS[model])
    config.model.update(hidden_dropout=0.1, attention_dropout=0.1)
    config.train.epochs = None
    config.train.update(batch_size=8, log_every=2)
    config.optimizer.update(decay_steps=10, warmup_share=None, warmup_steps=2)
    config.eval.every, config.checkpoint.every = 4, 4
    whole = run_to(config, tmp_path / "whole", 8)
    run_to(config, tmp_path / "parts", 4)
    parts = run_to(config, tmp_path / "parts", 8)
    assert whole.run["data"]["step"] == parts.run["data"]["step"] == 8
    for name, value in whole.parameters.items():
        np.testing.assert_array_equal(value, parts.parameters[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["unilm", "encoder and decoder"])
def test_eight_devices_and_micro_batches_learn_like_one(tmp_path, model):
    found = []
    for devices, accumulation in ((1, 1), (8, 2)):
        config = make_config(train=write(tmp_path, pairs(40)), validation=write(tmp_path, pairs(11, seed=1), "val"))
        config.seq2seq.update(MODELS[model])
        config.mesh.data, config.train.accumulation = devices, accumulation
        config.train.epochs, config.eval.every = 2.0, 6
        task = load(config)
        found.append(train(task, config, tmp_path / str(devices)).evaluation)
    assert found[0].metrics == pytest.approx(found[1].metrics, rel=1e-4)
    assert found[0].predictions == found[1].predictions
