"""Extractive summaries: rows by hand, windows, learning, what a sentence sees, predictions, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import UserError
from bert_jax.data.batching.batches import by_item, collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.examples import DocumentExample
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.inference.predictor import Predictor
from bert_jax.models.sentences import sentence_places
from bert_jax.sharding import make_mesh
from bert_jax.tasks.extractive import Extractive
from bert_jax.training.loop import train
from bert_jax.training.parameters import unflatten
from bert_jax.training.step import abstract_state, init_state
from experiments import summarize

pytest.importorskip("rouge_score", reason="pip install -e '.[generate]'")

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS], "test", True, None, True)


def make_config(**data):
    config = summarize.get_config("extractive")
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=64)
    config.data.update({"sequence_length": 24, "buckets": 2, "prefetch": 2} | data)
    config.extractive.update(layers=1, sentences=2)
    config.optimizer.update(learning_rate=5e-3)
    config.train.update(epochs=40.0, batch_size=8, log_every=60, peak_tflops=1.0)
    config.eval.update(batch_size=8, every=300)
    config.mesh.data = 1
    return config


def load(config):
    task = Extractive(config, TOKENIZER, None)
    task.load()
    return task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(count, seed=0):
    """The sentences with a z are the summary: two of 3 to 8."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        sentences = [random.choice(LETTERS[:25], random.integers(1, 5)).tolist() for _ in range(random.integers(3, 9))]
        chosen = sorted(random.choice(len(sentences), 2, replace=False).tolist())
        for number in chosen:
            sentences[number].append("z")
        yield {"document": [" ".join(words) for words in sentences], "summary": chosen}


def test_a_row_has_a_cls_and_a_sep_for_each_sentence_and_types_in_turns():
    task = Extractive(make_config(), TOKENIZER, None)
    [item] = task.encode([DocumentExample("x", ("a b", "\u200b", "c"), ("c",), (2,))])
    [part] = item.parts
    shown = " ".join(map(TOKENIZER.token, part.ids))
    assert shown == "[CLS] a b [SEP] [CLS] [UNK] [SEP] [CLS] c [SEP]"
    assert part.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert item.token_values["sentence_numbers"].tolist() == [1, 0, 0, 0, 2, 0, 0, 3, 0, 0]
    assert item.token_values["labels"].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert item.token_values["label_weights"].tolist() == [1, 0, 0, 0, 1, 0, 0, 1, 0, 0]
    places, own = sentence_places(jnp.asarray([item.token_values["sentence_numbers"], [0] * 10]))
    assert places.tolist() == [[0, 4, 7], [0, 0, 0]] and own[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_each_sentence_of_a_long_document_is_scored_once(caplog):
    long = DocumentExample("x", tuple(" ".join(LETTERS[: 1 + i % 4]) for i in range(20)), ("a",), (0,))
    huge = DocumentExample("y", ("a " * 40, "b"), ("b",), (1,))
    for long_texts, scored in (("windows", range(1, 21)), ("head", range(1, 6))):
        task = Extractive(make_config(long_texts=long_texts), TOKENIZER, None)
        items = task.encode([long])
        assert all(item.length <= 24 and item.parts[0].type_ids[0] == 0 for item in items)
        found = [item.token_values["sentence_numbers"][item.token_values["label_weights"] > 0] for item in items]
        assert sorted(np.concatenate(found).tolist()) == list(scored)
        assert next(item.length for item in task.encode([huge])) == 24, "a sentence over the row is cut"
    assert len(items) == 1
    task.config.data.long_texts = "error"
    with pytest.raises(UserError, match=r"x: 90 tokens, over data\.sequence_length 24; set data\.long_texts=windows"):
        task.encode([long])


def test_overfits_32_documents_and_beats_the_first_sentences(tmp_path):
    path = write(tmp_path / "train.jsonl", rows_of(32))
    config = make_config(train=path, validation=path)
    task = load(config)
    finished = train(task, config, tmp_path / "run")
    metrics = finished.evaluation.metrics
    assert metrics["rouge1"] == pytest.approx(100) and metrics["oracle_rouge1"] == pytest.approx(100)
    assert metrics["lead_rouge1"] < 80 > metrics["random_rouge1"]
    scores, shown = task.report_sections(finished.evaluation)
    assert (
        scores.body.rows[0] == ["the model", "100.000", "100.000", "100.000"] == ["the model", *scores.body.rows[3][1:]]
    )
    assert scores.body.rows[1][:2] == ["first sentences", f"{metrics['lead_rouge1']:.3f}"]
    assert "On average 100.0 % of the chosen sentences are labelled" in shown.note and len(shown.body.rows) == 20

    predictor = Predictor(tmp_path / "run", batch_size=4)
    rows = list(rows_of(32))
    for row, found in zip(rows, predictor([{"document": row["document"]} for row in rows]), strict=True):
        assert [sentence["number"] for sentence in found["sentences"]] == row["summary"]
        assert [sentence["text"] for sentence in found["sentences"]] == [row["document"][i] for i in row["summary"]]
        assert len(found["probabilities"]) == len(row["document"]) and json.dumps(found)
    changed = Predictor(tmp_path / "run", overrides={"extractive.sentences": 1, "data.long_texts": "head"})
    long = {"document": ["a b z"] * 12}
    [found] = changed([long])
    assert len(found["sentences"]) == 1 and found["probabilities"][5:] == [None] * 7
    blocked = predictor([long])[0]["sentences"]
    assert len(blocked) == 1, "the others repeat three of its tokens"
    stream = predictor.stream([Row("in:1", {"document": ""}), Row("in:2", {"document": "a. b"})])
    wrong, right = list(stream)
    assert isinstance(wrong, UserError) and "in:1: column 'document' has no sentence" in str(wrong)
    assert right["sentences"]


@pytest.mark.slow
@pytest.mark.optimized
def test_learns_which_sentences_are_the_longest_of_their_document(tmp_path):
    """On documents that it has not seen. What is asked for is in no single sentence."""
    paths = []
    for name, count, seed in (("train", 600, 1), ("dev", 100, 2)):
        random, rows = np.random.default_rng(seed), []
        for _ in range(count):
            sizes = random.permutation(np.arange(2, 9))[:6]
            document = [" ".join(random.choice(LETTERS, size)) for size in sizes]
            rows.append({"document": document, "summary": sorted(np.argsort(-sizes)[:2].tolist())})
        paths.append(write(tmp_path / f"{name}.jsonl", rows))
    config = make_config(train=paths[0], validation=paths[1], sequence_length=64, packing=False)
    config.model.update(hidden_size=64, num_hidden_layers=2, intermediate_size=128)
    config.extractive.layers = 2
    config.optimizer.learning_rate = 2e-3
    config.train.update(epochs=10.0, batch_size=32)
    config.eval.update(every=1000, batch_size=32)
    metrics = train(load(config), config, tmp_path / "run").evaluation.metrics
    assert metrics["rouge1"] > 80 and max(metrics["lead_rouge1"], metrics["random_rouge1"]) < 60


@pytest.fixture(scope="module")
def random_model():
    """(function from a task, items, groups and shape to the logits of each item, task)"""
    task = Extractive(make_config(), TOKENIZER, None)
    task.config.model.initializer_range = 0.5
    task = Extractive(task.config, TOKENIZER, None)
    graphdef, _ = abstract_state(task, optax.sgd(0.1))
    state = init_state(task, optax.sgd(0.1), 0, make_mesh(task.config.mesh))
    run = jax.jit(lambda batch: task.evaluate(unflatten(graphdef, state.parameters), batch, {})[1])

    def logits(items, groups, shape):
        rows = jax.device_get(run(collate(items, groups, shape)))
        return by_item([rows], items, ("logits",))["logits"]

    return logits, task


def test_documents_that_share_a_row_do_not_see_each_other(random_model):
    logits, task = random_model
    items = task.encode([DocumentExample("", ("a b", "c"), None), DocumentExample("", ("d", "e f", "g"), None)])
    alone = logits(items, [[0], [1]], Shape(2, 1, 24))
    shared = logits(items, [[0, 1], []], Shape(2, 1, 24, 2))
    for one, other, item in zip(alone, shared, items, strict=True):
        at = item.token_values["sentence_numbers"] > 0
        np.testing.assert_allclose(one[at], other[at], atol=1e-5)
        assert np.std(one[at]) > 1e-3 and not one[~at].any()


def test_a_sentence_sees_the_others_and_its_place_in_the_document(random_model):
    logits, task = random_model
    documents = [("a", "b", "c"), ("a", "b", "d"), ("a", "b", "c")]
    items = task.encode([DocumentExample("", sentences, None) for sentences in documents])
    later = items[2].token_values["sentence_numbers"]
    later[later > 0] += 4
    found = [x[items[0].token_values["sentence_numbers"] > 0] for x in logits(items, [[0], [1], [2]], Shape(3, 1, 24))]
    assert abs(found[0][0] - found[1][0]) > 1e-4, "another sentence changed"
    assert np.abs(found[0] - found[2]).max() > 1e-3, "the same sentences later in a document"


def test_without_layers_the_head_is_linear():
    config = make_config()
    config.extractive.layers = 0
    task = Extractive(config, TOKENIZER, None)
    names = abstract_state(task, optax.sgd(0.1))[1].parameters
    assert {name for name in names if name.startswith("heads/")} == {
        "heads/sentences/classifier/kernel",
        "heads/sentences/classifier/bias",
    }


GOOD = next(rows_of(1))


@pytest.mark.parametrize(
    ("rows", "data", "options", "message"),
    [
        ([GOOD, GOOD | {"summary": None}], {}, {}, r"train.jsonl:2: no summary in column 'summary' \(data.train\)"),
        ([GOOD, GOOD | {"document": []}], {}, {}, r"train.jsonl:2: column 'document' has no sentence"),
        ([GOOD | {"summary": "股票大涨"}], {}, {}, r"train.jsonl:1: the summary has no word of the letters a-z"),
        ([GOOD], {"long_texts": "tail"}, {}, "data.long_texts is 'tail': rows hold whole sentences; choose windows"),
        ([GOOD], {}, {"share": 0.5, "words": 9}, "extractive.share and extractive.words both say how long"),
    ],
)
def test_what_is_refused(tmp_path, rows, data, options, message):
    config = make_config(train=write(tmp_path / "train.jsonl", rows), **data)
    config.extractive.update(options)
    with pytest.raises(UserError, match=message):
        load(config)
