"""Text classification: learns, scores as scikit-learn does, reads long texts, refuses what it cannot mean."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.data.batching.batches import by_item
from bert_jax.data.batching.items import Item, Part
from bert_jax.data.labelled.examples import TextExample
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.models.heads import LinearHead, pool_windows
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.task import Source
from bert_jax.tasks.texts import encode_long
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.loop import train
from experiments import classify

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "good", "bad", "odd"]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], "test", True, None, True)


def make_config(kind="single", **data):
    config = classify.get_config(kind)
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=64)
    config.data.update(sequence_length=32, buckets=2, prefetch=2, **data)
    config.optimizer.update(learning_rate=3e-3)
    config.train.update(epochs=40.0, batch_size=8, log_every=20, peak_tflops=1.0)
    config.eval.update(batch_size=8, every=40)
    config.mesh.data = 1
    return config


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sentences(count, seed=0, labels=("bad", "good")):
    """Letters with one telling word among them; the label is that word."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = random.choice(WORDS[:26], random.integers(2, 20)).tolist()
        words.insert(int(random.integers(len(words))), labels[i % len(labels)])
        rows.append({"text": " ".join(words), "label": labels[i % len(labels)]})
    return rows


def load(config, description=None):
    task = Classification(config, TOKENIZER, description)
    task.load()
    return task


def described(labels, thresholds=(), kind="single"):
    return {"labels": labels, "thresholds": [*thresholds], "label_kind": kind}


def run(config, workdir):
    task = load(config)
    return task, train(task, config, workdir)


def test_overfits_32_examples_and_scores_every_one_of_the_others(tmp_path):
    config = make_config(
        train=write(tmp_path / "train.jsonl", sentences(32)),
        validation=write(tmp_path / "dev.jsonl", sentences(32)),
        test=write(tmp_path / "test.jsonl", sentences(11, seed=2)),
    )
    _, finished = run(config, tmp_path / "run")
    assert finished.evaluation.metrics["accuracy"] == 1.0 == finished.evaluation.metrics["macro_f1"]
    assert len(finished.final["test"].predictions) == 11 and len(finished.evaluation.predictions) == 32
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines][-2:] == ["eval", "test"] and 0 < lines[-1]["accuracy"] < 1
    saved = read_checkpoint(find_checkpoint(str(tmp_path / "run")))
    assert saved.run["task"] == {"labels": ["bad", "good"], "thresholds": [], "label_kind": "single"}


def test_shuffled_labels_teach_nothing(tmp_path):
    rows = sentences(64)
    labels = np.random.default_rng(3).permutation([row["label"] for row in rows])
    rows = [row | {"label": label} for row, label in zip(rows, labels.tolist(), strict=True)]
    config = make_config(
        train=write(tmp_path / "train.jsonl", rows), validation=write(tmp_path / "dev.jsonl", sentences(200, seed=1))
    )
    config.train.epochs = 5.0
    _, finished = run(config, tmp_path / "run")
    assert 0.3 < finished.evaluation.metrics["accuracy"] < 0.7


def test_several_labels_with_thresholds_of_their_own(tmp_path):
    def rows(count, seed):
        random = np.random.default_rng(seed)
        for _ in range(count):
            given = [word for word in ("good", "bad", "odd") if random.random() < 0.4]
            yield {
                "text": " ".join(random.permutation([*given, *random.choice(WORDS[:26], 5)])),
                "label": "|".join(given),
            }

    config = make_config(
        "multi",
        train=write(tmp_path / "train.jsonl", rows(32, 0)),
        validation=write(tmp_path / "dev.jsonl", rows(32, 0)),
    )
    config.model.pooling = "mean"
    task, finished = run(config, tmp_path / "run")
    assert finished.evaluation.metrics["micro_f1"] == 1.0 and finished.evaluation.metrics["tuned_micro_f1"] == 1.0
    assert set(finished.evaluation.metrics) == set(task.metric_names("validation"))
    assert len(finished.evaluation.predictions[0]["probabilities"]) == 3
    saved = read_checkpoint(find_checkpoint(str(tmp_path / "run"))).run["task"]
    assert saved["thresholds"] == finished.evaluation.learned["thresholds"] != [0.5] * 3
    assert task.description()["thresholds"] == [0.5] * 3  # a task does not change


def test_a_new_head_of_several_labels_starts_at_their_shares(tmp_path):
    """With 1 text added on either side, so that a label that training lacks is rare, not impossible."""
    rows = [{"text": "a", "label": label} for label in ("common", "common|rare", "common", "")]
    config = make_config("multi", train=write(tmp_path / "train.jsonl", rows), labels="common,rare,never")
    bias = load(config).init(nnx.Rngs(params=0)).heads["classifier"].bias[...]
    np.testing.assert_allclose(jax.nn.sigmoid(bias), [4 / 6, 2 / 6, 1 / 6], rtol=1e-6)
    of_a_checkpoint = Classification(config, TOKENIZER, described(["a", "b"], [0.5, 0.5], "multi"))
    assert not of_a_checkpoint.init(nnx.Rngs(params=0)).heads["classifier"].bias[...].any()


def test_a_new_head_of_numbers_starts_at_their_mean(tmp_path):
    rows = [{"text": "a", "label": label} for label in (1.0, 2.5, 4.0, 4.5)]
    config = make_config("regression", train=write(tmp_path / "train.jsonl", rows))
    np.testing.assert_array_equal(load(config).init(nnx.Rngs(params=0)).heads["classifier"].bias[...], [3.0])


def test_regression_of_the_number_of_good_words(tmp_path):
    def rows(count, seed):
        random = np.random.default_rng(seed)
        for _ in range(count):
            number = int(random.integers(0, 4))
            yield {"text": " ".join([*["good"] * number, *random.choice(WORDS[:26], 3)]), "label": number}

    config = make_config(
        "regression",
        train=write(tmp_path / "train.jsonl", rows(64, 0)),
        validation=write(tmp_path / "dev.jsonl", rows(30, 1)),
    )
    _, finished = run(config, tmp_path / "run")
    assert finished.evaluation.metrics["pearson"] > 0.95


def test_the_last_of_three_windows_decides(tmp_path):
    """The telling word stands where only the last window can see it; heads alone could only guess."""

    def rows(count, seed):
        random = np.random.default_rng(seed)
        for i in range(count):
            label = ("bad", "good")[i % 2]
            yield {"text": " ".join([*random.choice(WORDS[:26], 60), label]), "label": label}

    config = make_config(
        train=write(tmp_path / "train.jsonl", rows(128, 0)),
        validation=write(tmp_path / "dev.jsonl", rows(24, 1)),
        long_texts="windows",
        window_stride=20,
        window_pooling="max",
    )
    config.train.epochs = 15.0
    config.optimizer.learning_rate = 2e-3  # with 32 examples and 3e-3 it hangs on the seed
    task, finished = run(config, tmp_path / "run")
    assert {len(item.parts) for item in task.items["train"]} == {3}
    assert finished.evaluation.metrics["accuracy"] == 1.0


@pytest.mark.parametrize(("how", "kept"), [("head", "abcdef"), ("tail", "vwxyz_"), ("head+tail", "awxyz_")])
def test_what_is_kept_of_a_long_text(how, kept):
    config = make_config(long_texts=how)
    config.data.sequence_length = 8
    letters = [TOKENIZER.id(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    ids = [*letters, TOKENIZER.unk_id]
    (part,), dropped = encode_long(TOKENIZER, ids, None, config.data, "x:1")
    assert dropped and part.ids[0] == TOKENIZER.cls_id and part.ids[-1] == TOKENIZER.sep_id
    assert part.ids[1:-1].tolist() == [TOKENIZER.unk_id if c == "_" else TOKENIZER.id(c) for c in kept]


def test_windows_of_a_pair_keep_the_shorter_text_whole_and_drop_nothing():
    config = make_config(long_texts="windows", window_stride=3)
    config.data.sequence_length = 10
    a, b = list(range(10, 22)), [5, 6]
    parts, dropped = encode_long(TOKENIZER, a, b, config.data, "x:1")  # room 7: five of a beside two of b
    assert not dropped and {*np.concatenate([part.ids for part in parts])} >= {*a}
    for part in parts:
        assert part.ids[part.type_ids == 1].tolist() == [5, 6, TOKENIZER.sep_id]
        assert len(part.ids) <= 10


@pytest.mark.parametrize(("lengths", "longer"), [((12, 12), 0), ((12, 11), 0), ((11, 12), 1)])
def test_windows_of_a_pair_show_both_texts(lengths, longer):
    """Of two equally long texts the second was lost, and the start of the first stood in its place."""
    config = make_config(long_texts="windows", window_stride=3)
    config.data.sequence_length = 13
    pair = list(range(5, 5 + lengths[0])), list(range(20, 20 + lengths[1]))
    parts, dropped = encode_long(TOKENIZER, *pair, config.data, "x:1")
    texts = [[part.ids[part.type_ids == k] for part in parts] for k in (0, 1)]
    assert dropped and {TOKENIZER.cls_id, *pair[longer]} <= {TOKENIZER.cls_id, *np.concatenate(texts[longer])}
    for shown in texts[1 - longer]:  # half of the room of ten
        assert [i for i in shown if i >= 5] == pair[1 - longer][:5]


def test_pooling_of_windows_against_numpy():
    config = Classification(make_config(), TOKENIZER, described(["a", "b"])).bert_config
    vectors = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    weights = np.asarray([[1, 1, 0], [0, 0, 0]], np.float32)
    pooled, window_query = {}, LinearHead(config, 1, rngs=nnx.Rngs(0))
    for how in ("mean", "max", "attention"):
        pooled[how] = np.asarray(pool_windows(jnp.asarray(vectors), jnp.asarray(weights), how, window_query))
        assert not pooled[how][1].any()
    np.testing.assert_allclose(pooled["mean"][0], vectors[0, :2].mean(0), rtol=1e-6)
    np.testing.assert_allclose(pooled["max"][0], vectors[0, :2].max(0), rtol=1e-6)
    query, bias = np.asarray(window_query.kernel[...])[:, 0], float(window_query.bias[...][0])
    scores = np.exp(vectors[0, :2] @ query + bias)
    expected = (scores[:, None] * vectors[0, :2]).sum(0) / scores.sum()
    np.testing.assert_allclose(pooled["attention"][0], expected, rtol=1e-5)


def test_evaluation_is_the_same_on_one_and_on_eight_devices(tmp_path):
    rows = sentences(29, seed=1)
    found = []
    for devices in (1, 8):
        config = make_config(
            train=write(tmp_path / "train.jsonl", sentences(16)), validation=write(tmp_path / "dev.jsonl", rows)
        )
        config.mesh.data = devices
        config.train.epochs = 2.0
        _, finished = run(config, tmp_path / f"run{devices}")
        found.append(
            (finished.evaluation.metrics, [p["probabilities"]["good"] for p in finished.evaluation.predictions])
        )
    assert found[0][0]["accuracy"] == found[1][0]["accuracy"]
    np.testing.assert_allclose(found[0][0]["loss"], found[1][0]["loss"], rtol=1e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)


def test_rows_come_back_in_the_order_of_the_items_each_once():
    """Two items share the first row, of which the second begins at its third token."""
    items = [Item((Part(np.zeros(n, np.int32), np.zeros(n, np.int32)),)) for n in (2, 4, 3, 1)]
    rows = [
        {
            "item_ids": np.asarray([[2, 0], [1, -1]]),
            "first_tokens": np.asarray([[0, 3], [0, 0]]),
            "logits": np.asarray([[[2.0], [0.0]], [[1.0], [9.0]]]),
            "tags": np.asarray([[20, 21, 22, 0, 1, -1], [10, 11, 12, 13, -1, -1]]),
        }
    ]
    found = by_item(rows, items[:3], ["tags"])
    assert np.concatenate(found["logits"]).tolist() == [0, 1, 2]
    assert [tags.tolist() for tags in found["tags"]] == [[0, 1], [10, 11, 12, 13], [20, 21, 22]]
    for wrong in (rows * 2, rows):
        with pytest.raises(AssertionError, match="were not evaluated once"):
            by_item(wrong, items[: 3 if len(wrong) == 2 else 4], ["tags"])


def test_class_weights_and_label_smoothing_against_numpy(tmp_path):
    rows = [{"text": "a b", "label": label} for label in ["x"] * 6 + ["y"] * 2]
    config = make_config(train=write(tmp_path / "train.jsonl", rows))
    config.train.update(class_weights="balanced", label_smoothing=0.1)
    task = load(config)
    weights = [float(item.values["label_weights"]) for item in task.items["train"]]
    np.testing.assert_allclose(weights, [8 / 12] * 6 + [8 / 4] * 2, rtol=1e-6)
    logits = np.asarray([[0.3, -1.2], [0.5, 2.0]], np.float32)
    batch = {"labels": np.asarray([[0, 1]]), "item_weights": np.ones((1, 2), np.float32)}
    batch["label_weights"] = np.asarray([weights[5:7]], np.float32)
    outputs = {"logits": jax.numpy.asarray(logits[None])}
    loss, weight = task.losses(outputs, jax.tree.map(jax.numpy.asarray, batch))["loss"]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    each = -(0.9 * log_p[[0, 1], [0, 1]] + 0.1 * log_p.mean(1))
    np.testing.assert_allclose(float(loss), each @ batch["label_weights"][0], rtol=1e-5)
    np.testing.assert_allclose(float(weight), 8 / 12 + 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("train_rows", "dev_rows", "change", "message"),
    [
        ([{"text": "a", "label": "x"}] * 2, [{"text": "a", "label": "x"}], {}, "one label only, x"),
        (sentences(4), [{"text": "a", "label": "new"}], {}, r"dev.jsonl:1: label 'new' is not among bad, good"),
        (sentences(4), [{"text": "a"}], {}, "label"),
        (sentences(4), [], {}, "dev.jsonl"),
        (
            sentences(4),
            [{"text": "a " * 40, "label": "bad"}],
            {"long_texts": "error"},
            r"dev.jsonl:1: 42 tokens, over .* 32",
        ),
        (sentences(4), sentences(2), {"text": "review"}, "review"),
        (sentences(4), sentences(2), {"read_workers": 2}, "read_workers"),
    ],
)
def test_bad_data(tmp_path, train_rows, dev_rows, change, message):
    config = make_config(
        train=write(tmp_path / "train.jsonl", train_rows), validation=write(tmp_path / "dev.jsonl", dev_rows)
    )
    config.data.update(change)
    with pytest.raises(UserError, match=message):
        load(config)


def test_classes_that_differ_from_those_of_the_checkpoint(tmp_path):
    config = make_config(train=write(tmp_path / "train.jsonl", sentences(4)))
    description = {"labels": ["no", "yes"], "thresholds": [], "label_kind": "single"}
    with pytest.raises(UserError, match=r"knows the labels no, yes, the data has bad, good; .*new_head=True"):
        load(config, description)
    config.train.new_head = True
    task = Classification.with_data(config, Source(TOKENIZER, "classification", description))
    assert task.labels == ["bad", "good"] and task.renewed_parameters == task.head


@pytest.mark.parametrize(("was", "now"), [("single", "multi"), ("multi", "regression"), ("regression", "single")])
def test_a_head_is_not_continued_as_another_kind(was, now):
    """A softmax that continues as sigmoids would give wrong probabilities without a word."""
    description = described(["a", "b"] if was != "regression" else [], [0.5, 0.5] if was == "multi" else [], was)
    with pytest.raises(UserError, match=rf"data.label_kind is {now}, .* trained with {was}: .*new_head=True"):
        Classification(make_config(now), TOKENIZER, description)
    assert Classification(make_config(was), TOKENIZER, description).description()["label_kind"] == was


@pytest.mark.parametrize("name", ["labels", "thresholds", "label_kind"])
def test_what_a_checkpoint_does_not_say_of_its_head_is_not_guessed(name):
    """A head of sigmoids whose kind is not said was taken for what the config names."""
    description = described(["a", "b"])
    del description[name]
    with pytest.raises(UserError, match=f"does not say the {name} of its task, classification; convert"):
        Classification(make_config(), TOKENIZER, description)
    with pytest.raises(UserError, match="1 thresholds for 2 labels"):
        Classification(make_config("multi"), TOKENIZER, described(["a", "b"], [0.5], "multi"))


def test_files_may_number_the_labels_that_the_config_names(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}, {"text": "c", "label": 1}]
    config = make_config(train=write(tmp_path / "train.jsonl", rows), labels="not_equivalent,equivalent")
    task = load(config)
    assert task.labels == ["not_equivalent", "equivalent"]
    assert [int(item.values["labels"]) for item in task.items["train"]] == [0, 1, 1]


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_logits_that_are_no_numbers_end_in_one_line_and_not_in_json(kind):
    labels = [] if kind == "regression" else ["a", "b"]
    description = {"labels": labels, "thresholds": [0.5, 0.5], "label_kind": kind}
    task = Classification(make_config(kind), TOKENIZER, description)
    logits = [np.asarray([1.0, 2.0]), np.asarray([np.nan, 2.0])]
    with pytest.raises(UserError, match=r"logits of 1 examples are NaN or infinite.*lower optimizer.learning_rate"):
        task.predict([], [], {"logits": logits})


def test_labels_follow_the_thresholds_that_validation_finds():
    """As a prediction from the checkpoint will: its description has these thresholds."""
    task = Classification(make_config("multi"), TOKENIZER, described(["a", "b"], [0.5, 0.5], "multi"))
    examples = [TextExample("x:1", "", label=("a",)), TextExample("x:2", "", label=("b",))]
    predictions = task.predict(examples, [], {"logits": [np.asarray([-1.0, -2.0]), np.asarray([-2.0, 3.0])]})
    assert [prediction["labels"] for prediction in predictions] == [[], ["b"]]
    learned = task.tune(examples, predictions)
    assert [prediction["labels"] for prediction in task.decide(predictions, learned)] == [["a"], ["b"]]
    assert task.score(examples, predictions, learned)["tuned_micro_f1"] == 1.0
    assert task.score(examples, predictions, task.description())["tuned_micro_f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("option", "value"), [("train.z_loss", 1e-4), ("train.sampled_softmax", 8), ("eval.blimp", "x")]
)
def test_what_belongs_to_pretraining_is_refused(option, value):
    config = make_config()
    config.update_from_flattened_dict({option: value})
    with pytest.raises(UserError, match=f"{option} needs the MLM head, which task=classification lacks: leave it out"):
        Classification(config, TOKENIZER, None)
