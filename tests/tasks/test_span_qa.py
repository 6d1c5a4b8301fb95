"""Extractive question answering: windows by hand, decoding against the plain loops of the definition, answers that are
slices, the null threshold, and what is refused."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.examples import Answer, QuestionExample
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.tokenizer import load_tokenizer
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.sharding import make_mesh
from bert_jax.tasks.span_qa import SpanQA, best_spans
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.loop import make_evaluation, train
from bert_jax.training.parameters import unflatten
from bert_jax.training.step import abstract_state, init_state
from experiments import squad

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
TOKENIZER = make_wordpiece(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "zoe", "koln", "##s", "."], "test", True, None, True
)


def make_config(version="v1", **data):
    config = squad.get_config(version)
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=64)
    config.data.update(sequence_length=16, max_query_length=3, window_stride=4, buckets=2, prefetch=2, **data)
    config.optimizer.update(learning_rate=5e-3)
    config.train.update(epochs=80.0, batch_size=8, log_every=80, peak_tflops=1.0)
    config.eval.update(batch_size=8, every=160)
    config.mesh.data = 1
    return config


def make_task(description=None, **data):
    return SpanQA(make_config(**data), TOKENIZER, description)


def question(context, answer="", *, at=None, text="a b", name="q", impossible=False):
    answers = (Answer(answer, context.index(answer) if at is None else at),) if answer else ()
    return QuestionExample(f"dev.json:{name}", name, text, context, answers, impossible)


def letters(count, seed=0, impossible_share=0.0, length=9):
    """Contexts of distinct letters; asked is one of them, the answer is the two that follow it."""
    random = np.random.default_rng(seed)
    for i in range(count):
        row = random.permutation(LETTERS[:length]).tolist()
        context = " ".join(row)
        if i < impossible_share * count:
            yield question(context, text=LETTERS[-1], name=f"{seed}-{i}", impossible=True)
        else:
            place = int(random.integers(length - 2))
            answer = " ".join(row[place + 1 : place + 3])
            yield question(context, answer, text=row[place], name=f"{seed}-{i}")


def write(path, examples):
    paragraphs = [
        {
            "context": example.context,
            "qas": [
                {
                    "id": example.id,
                    "question": example.question,
                    "answers": [{"text": answer.text, "answer_start": answer.start} for answer in example.answers],
                    "is_impossible": example.is_impossible,
                }
            ],
        }
        for example in examples
    ]
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    return str(path)


def load(config, description=None):
    task = SpanQA(config, TOKENIZER, description)
    task.load()
    return task


def random_outputs(windows, seed):
    random = np.random.default_rng(seed)
    length = max(len(window.parts[0].ids) for window in windows) + 3  # with padding, as in a batch
    draw = lambda: [random.normal(size=length).astype(np.float32) for _ in windows]  # noqa: E731
    return {"start_logits": draw(), "end_logits": draw()}


def test_overfits_32_questions_and_tests_with_the_others(tmp_path):
    config = make_config(
        train=write(tmp_path / "train.json", letters(32)),
        validation=write(tmp_path / "dev.json", letters(32)),
        test=write(tmp_path / "test.json", letters(5, seed=2)),
    )
    task = load(config)
    finished = train(task, config, tmp_path / "run")
    assert finished.evaluation.metrics["exact_match"] == finished.evaluation.metrics["f1"] == 100
    assert finished.evaluation.metrics["start_accuracy"] == finished.evaluation.metrics["end_accuracy"] == 1
    assert finished.evaluation.metrics.keys() == {
        "exact_match", "f1", "loss", "start_accuracy", "end_accuracy", "real_tokens"
    }  # fmt: skip
    predictions = finished.final["test"].predictions
    assert [p["id"] for p in predictions] == [f"2-{i}" for i in range(5)]
    for example, prediction in zip(letters(5, seed=2), predictions, strict=True):
        assert prediction["answer"] == example.context[prediction["start"] : prediction["end"]]
        assert sum(answer["probability"] for answer in prediction["n_best"]) == pytest.approx(1)
        assert prediction["probability"] == prediction["n_best"][0]["probability"]
        assert "null_odds" not in prediction


def test_questions_without_answer_and_the_threshold_in_the_checkpoint(tmp_path):
    config = make_config(
        "v2",
        train=write(tmp_path / "train.json", letters(32, impossible_share=0.5)),
        validation=write(tmp_path / "dev.json", letters(32, impossible_share=0.5)),
    )
    config.train.batch_size = 8
    task = load(config)
    finished = train(task, config, tmp_path / "run")
    for name in ("exact_match", "f1", "exact_match_at_0", "f1_at_0", "HasAns_f1", "NoAns_exact"):
        assert finished.evaluation.metrics[name] == 100, name
    assert set(finished.evaluation.metrics) == set(task.metric_names("validation"))
    predictions = finished.evaluation.predictions
    assert [p["answer"] == "" for p in predictions] == [True] * 16 + [False] * 16
    assert predictions[0]["start"] is None and predictions[0]["null_probability"] > 0.5
    saved = read_checkpoint(find_checkpoint(str(tmp_path / "run"))).run["task"]
    assert saved == {"may_have_no_answer": True, "threshold": finished.evaluation.metrics["null_threshold"]}
    again = SpanQA(config, TOKENIZER, saved)
    examples = list(letters(32, impossible_share=0.5))
    windows = again.encode(examples)
    outputs = random_outputs(windows, 0)
    expected = task.decide(task.predict(examples, windows, outputs), saved)
    assert again.predict(examples, windows, outputs) == expected
    assert again.description() == saved


def test_the_best_checkpoint_is_tested_with_its_own_threshold(tmp_path):
    path = write(tmp_path / "dev.json", letters(16, impossible_share=0.5))
    config = make_config("v2", train=path, validation=path, test=path)
    config.train.epochs = 30.0
    config.eval.every = 20
    config.checkpoint.update(best_metric="loss", best_mode="max")  # so that the "best" is the first
    train(load(config), config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["split"] == "eval"]
    worst = max(evaluations, key=lambda line: line["loss"])
    assert lines[-1]["split"] == "test" and worst["null_threshold"] != evaluations[-1]["null_threshold"]
    for name in ("null_threshold", "f1", "loss"):
        assert lines[-1][name] == pytest.approx(worst[name], rel=1e-4), name
    again = train(load(config), config, tmp_path / "run")  # has nothing left to do
    assert again.final["test"].metrics["null_threshold"] == pytest.approx(lines[-1]["null_threshold"], abs=1e-6)


def test_windows_and_gold_places_by_hand():
    """[CLS] a b [SEP] leaves 7 of 12 tokens to the context; of 12 letters 5 and 6 (f g) are the answer."""
    task = make_task()
    task.config.data.update(sequence_length=12, max_query_length=2, window_stride=3)
    windows = task.encode([question("a b c d e f g h i j k l", "f g", text="a b c")])
    shown = [TOKENIZER.decode(window.parts[0].ids) for window in windows]
    assert shown == ["a b a b c d e f g", "a b d e f g h i j", "a b g h i j k l"]
    assert windows[2].parts[0].type_ids.tolist() == [0] * 4 + [1] * 7
    assert windows[2].parts[0].ids[[0, 3, -1]].tolist() == [TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.sep_id]
    # min(left, right) + 0.01 · size: position 5 has 1.07 in the first window, 2.07 in the second, and so on.
    assert [np.flatnonzero(w.is_max_context).tolist() for w in windows] == [[0, 1, 2, 3, 4], [2, 3, 4], [2, 3, 4, 5]]
    found = [(int(w.values["start_positions"]), int(w.values["end_positions"])) for w in windows]
    assert found == [(9, 10), (6, 7), (0, 0)]
    assert [w.offsets[0].tolist() for w in windows] == [[0, 1], [6, 7], [12, 13]]


def spans_by_the_definition(window, start, end):
    """The loops of run_squad.py over one window, with the standing-in single token."""
    tokens = range(len(window.offsets))
    at = lambda logits, token: float(logits[window.first + token])  # noqa: E731
    allowed = [t for t in tokens if window.is_max_context[t]]
    starts = sorted(allowed, key=lambda t: -at(start, t))[:20]
    ends = sorted(tokens, key=lambda t: -at(end, t))[:20]
    pairs = [(s, e) for s in starts for e in ends if s <= e < s + 30]
    if not pairs and allowed:
        best = max(allowed, key=lambda t: at(start, t) + at(end, t))
        pairs = [(best, best)]
    found = [(at(start, s) + at(end, e), s, e) for s, e in pairs]
    return sorted(found, key=lambda x: (-x[0], x[1], x[2]))[:20]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=5), st.integers(0, 1000), st.booleans(), st.booleans())
def test_decoding_is_that_of_the_definition(lengths, seed, has_ties, is_reversed):
    task = make_task()
    task.config.data.update(sequence_length=60, window_stride=17)
    task.may_have_no_answer = True
    random = np.random.default_rng(seed)
    examples = [question(" ".join(random.choice(LETTERS, n)), name=str(i)) for i, n in enumerate(lengths)]
    windows = task.encode(examples)
    outputs = random_outputs(windows, seed)
    if is_reversed:  # starts late, ends early: hardly any pair is a span
        outputs["start_logits"] = [np.arange(len(x), dtype=np.float32) for x in outputs["start_logits"]]
        outputs["end_logits"] = [-np.arange(len(x), dtype=np.float32) for x in outputs["end_logits"]]
    if has_ties:
        outputs = {name: [np.round(row) for row in rows] for name, rows in outputs.items()}
    spans = best_spans(windows, outputs["start_logits"], outputs["end_logits"])
    expected = [spans_by_the_definition(*row) for row in zip(windows, *outputs.values(), strict=True)]
    for i, found in enumerate(expected):
        kept = np.isfinite(spans.scores[i])
        rows = zip(spans.scores[i][kept], spans.starts[i][kept], spans.ends[i][kept], strict=True)
        assert [tuple(map(float, row)) for row in rows] == [tuple(map(float, row)) for row in found]
    for number, prediction in enumerate(task.predict(examples, windows, outputs)):
        mine = [i for i, window in enumerate(windows) if window.example == number]
        null = min(float(outputs["start_logits"][i][0]) + float(outputs["end_logits"][i][0]) for i in mine)
        top = max(score for i in mine for score, *_ in expected[i])
        assert prediction["null_odds"] == pytest.approx(null - top, abs=1e-5)
        texts = [answer["text"] for answer in prediction["n_best"]]
        assert len(set(texts)) == len(texts) <= 20
        for answer in prediction["n_best"]:
            assert answer["text"] == examples[number].context[answer["start"] : answer["end"]] != ""
        ranked = [answer["probability"] for answer in prediction["n_best"]]
        assert ranked == sorted(ranked, reverse=True)
        assert sum(ranked) + prediction["null_probability"] == pytest.approx(1)


def test_every_token_of_a_long_context_can_be_the_answer():
    task = make_task()
    task.may_have_no_answer = False
    context = "  ".join(np.random.default_rng(0).permutation(LETTERS).tolist())
    examples = [question(context, name=letter) for letter in LETTERS]
    windows = task.encode(examples)
    assert len(windows) == 26 * 5  # room for 11 of 26, 4 apart: from 0, 4, 8, 12, 16
    outputs = {name: [np.zeros(16, np.float32) for _ in windows] for name in ("start_logits", "end_logits")}
    for i, window in enumerate(windows):
        wanted = np.asarray(TOKENIZER.id(examples[window.example].id))
        places = window.first + np.flatnonzero(window.parts[0].ids[window.first :] == wanted)
        for rows in outputs.values():
            rows[i][places] = 5
    predictions = task.predict(examples, windows, outputs)
    assert [p["answer"] for p in predictions] == LETTERS
    assert [p["start"] for p in predictions] == [context.index(letter) for letter in LETTERS]


def test_answers_keep_the_letters_of_the_source():
    task = make_task()
    task.may_have_no_answer = False
    examples = [question("ZOË's \u3000 Kölns.", "Zoë", at=0), question("ZOË's \u3000 Kölns.", "Köln")]
    windows = task.encode(examples)
    assert TOKENIZER.decode(windows[0].parts[0].ids).startswith("a b zoe")
    # "Köln" is in "Kölns" = koln ##s: the first piece shows it exactly
    assert int(windows[1].values["start_positions"]) == int(windows[1].values["end_positions"])
    outputs = {name: [np.zeros(16, np.float32) for _ in windows] for name in ("start_logits", "end_logits")}
    for i, piece in enumerate(("zoe", "koln")):
        place = windows[i].parts[0].ids.tolist().index(TOKENIZER.id(piece))
        outputs["start_logits"][i][place] = outputs["end_logits"][i][place] = 9
    assert [p["answer"] for p in task.predict(examples, windows, outputs)] == ["ZOË", "Köln"]
    outputs["end_logits"][1][place + 1] = 20
    assert task.predict(examples, windows, outputs)[1]["answer"] == "Kölns"


def prediction(name, text, odds):
    best = {"text": text, "probability": 0.6, "start": 0, "end": len(text)}
    fields = {"id": name, "answer": text, "probability": 0.6, "start": 0, "end": len(text)}
    return fields | {"null_odds": odds, "null_probability": 0.4, "n_best": [best]}


def test_validation_finds_the_threshold_and_test_keeps_it():
    """At 0 the two right answers with positive odds are lost; from 2 on all are given, up to 3 no wrong one is."""
    task = make_task()
    task.may_have_no_answer = True
    examples = [question("c d e", letter, name=letter) for letter in "cde"] + [
        question("c d e", name="none", impossible=True)
    ]
    odds = {"c": -1.0, "d": 1.0, "e": 2.0, "none": 3.0}
    make = lambda: [prediction(name, name if name != "none" else "c", value) for name, value in odds.items()]  # noqa: E731
    learned = task.tune(examples, make())
    predictions = task.decide(make(), learned)
    scores = task.score(examples, predictions, learned)
    assert scores["null_threshold"] == learned["threshold"] == 2.0 and task.threshold == 0.0
    assert scores["exact_match"] == scores["f1"] == scores["NoAns_f1"] == 100
    assert scores["exact_match_at_0"] == scores["f1_at_0"] == 50
    assert [p["answer"] for p in predictions] == ["c", "d", "e", ""]
    assert predictions[3]["probability"] == 0.4 and predictions[3]["end"] is None
    known = {"threshold": 1.0}  # as in the test of a checkpoint
    assert task.score(examples, task.decide(make(), known), known)["exact_match"] == 75


def test_misplaced_answers_are_counted_and_not_trained_on(tmp_path, caplog):
    good = [question("a b c", "c", name=str(i)) for i in range(7)]
    second = QuestionExample("", "second", "a", "a b c", (Answer("c", 1), Answer("b", 2)))
    bad = question("a b c", "c", at=3, name="bad")
    path = write(tmp_path / "train.json", [*good, second, bad])
    with caplog.at_level(logging.INFO):
        task = load(make_config(train=path, validation=path))
    assert "train: 9 questions, 0 of them without answer; 10 answers, 2 of them not in place" in caplog.text
    assert "1 questions are not trained on" in caplog.text and "at character 1 is ' ', not 'c'" in caplog.text
    assert "validation: 9 questions are about contexts of train" in caplog.text
    train_items, items = task.items["train"], task.items["validation"]
    assert len(train_items) == 8 and len(items) == 9
    assert train_items[7].values["start_positions"] == 4  # [CLS] a [SEP] a b: the second answer is in place
    assert [float(item.values["label_weights"]) for item in items] == [1.0] * 8 + [0.0]
    with pytest.raises(UserError, match=r"2 of 9 answers are not in the context at their answer_start"):
        load(make_config(train=write(tmp_path / "worse.json", [*good, bad, question("d", "e", at=0, name="worse")])))


def test_loss_by_hand_whatever_the_padding():
    task = make_task()
    examples = [question("c d", "d", text="a", name="0"), question("c d e f", "f", at=0, text="a", name="1")]
    windows = task.encode(examples)
    assert [len(w.parts[0].ids) for w in windows] == [6, 8]
    graphdef, _ = abstract_state(task, optax.sgd(0.1))
    state = init_state(task, optax.sgd(0.1), 0, make_mesh(task.config.mesh))
    model = unflatten(graphdef, state.parameters)
    outputs_of = jax.jit(lambda batch: task.outputs(model, batch, None))
    sums = {}
    for length in (8, 16):
        batch = jax.tree.map(jnp.asarray, collate(windows, [[0], [1], [], []], Shape(4, 1, length)))
        outputs = outputs_of(batch)
        sums[length] = jax.device_get(task.losses(outputs, batch))
        logits = [np.asarray(outputs[name][0, 0, :6], np.float64) for name in ("start_logits", "end_logits")]
        # Only the first question's answer is where it says: token 4 of [CLS] a [SEP] c d [SEP]
        by_hand = sum(np.log(np.exp(x).sum()) - x[4] for x in logits) / 2
        assert sums[length]["loss"][0] == pytest.approx(by_hand, rel=1e-5)
        assert sums[length]["loss"][1] == 1 == task.weights(batch)["loss"]
    assert sums[8]["loss"][0] == pytest.approx(sums[16]["loss"][0], rel=1e-5)


def test_eight_devices_score_like_one(tmp_path):
    path = write(tmp_path / "dev.json", letters(11, impossible_share=0.3))
    found = []
    for devices in (1, 8):
        config = make_config(train=path, validation=path)
        config.mesh.data = devices
        task, mesh = load(config), make_mesh(config.mesh)
        graphdef, _ = abstract_state(task, optax.sgd(0.1))
        state = init_state(task, optax.sgd(0.1), 0, mesh)
        evaluation = make_evaluation(task, graphdef, config, mesh, {})(
            state.parameters, "validation", task.description()
        )
        found.append((evaluation.metrics, evaluation.predictions))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, eight in zip(found[0][1], found[1][1], strict=True):
        assert one["answer"] == eight["answer"] and one["null_odds"] == pytest.approx(eight["null_odds"], abs=1e-5)


def test_rows_to_predict():
    task = make_task({"may_have_no_answer": True, "threshold": -1.5})
    rows = [
        Row("in.csv:2", {"question": "a", "context": "b c", "id": 7}),
        Row("in.csv:3", {"question": "a"}),
        Row("in.csv:4", {"question": "a", "context": "\x00"}),
    ]
    first, wrong, empty = task.prediction_examples(rows)
    assert (first.id, first.context, empty.id) == ("7", "b c", "in.csv:4")
    assert isinstance(wrong, UserError) and "in.csv:3: no column 'context'" in str(wrong)
    windows = task.encode([first, empty])
    assert len(windows) == 2
    found = task.predict([first, empty], windows, random_outputs(windows, 0))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found[1]["answer"], found[1]["n_best"], found[1]["probability"]) == ("", [], 1.0)
    assert task.threshold == -1.5
    no_text = task.predict([empty], task.encode([empty]), random_outputs(windows, 0))
    assert [p["answer"] for p in no_text] == [""]


def test_what_is_refused(tmp_path):
    unanswered = write(tmp_path / "a.json", [question("a b", "b")])
    content = json.loads((tmp_path / "a.json").read_text())
    del content["data"][0]["paragraphs"][0]["qas"][0]["answers"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a.json:data.0.*qas.0.: neither answers nor is_impossible.*\(data.train\)"):
        load(make_config(train=unanswered))
    config = make_config()
    config.data.max_query_length = 13
    with pytest.raises(UserError, match=r"data.sequence_length 16 .* data.max_query_length 13"):
        SpanQA(config, TOKENIZER, None)
    for key, value in (("label_smoothing", 0.1), ("class_weights", "balanced")):
        config = make_config()
        config.train[key] = value
        with pytest.raises(UserError, match=f"train.{key} is {value}; task=span_qa has no classes"):
            SpanQA(config, TOKENIZER, None)
    bad = [question("a b", "b", at=0, name=str(i)) for i in range(1)]
    with pytest.raises(UserError, match="1 of 1 answers are not in the context"):
        load(make_config(train=write(tmp_path / "b.json", bad)))
    with pytest.raises(UserError, match=r"squad.py:v3 is not known; it can be v1, v2"):
        squad.get_config("v3")


def test_long_questions_and_answers_are_counted(caplog):
    context = " ".join(LETTERS * 3)
    with caplog.at_level(logging.INFO):
        task = make_task()
        task.config.data.sequence_length = 64
        window, *_ = task.encode([question(context, context[:61], text="a b c d")])
    assert "1 of 1 questions lose tokens to data.max_query_length" in caplog.text
    assert "1 answers are longer than the 30 tokens that are predicted" in caplog.text
    assert window.first == 5  # [CLS] a b c [SEP]


def test_gold_places_give_the_answers_of_squad_back(shared_data):
    """What the pieces of a word cost: an answer inside a word comes back as the whole piece."""
    path = next(shared_data("squad_dev").rglob("dev-v1.1.reconstructed.json"))
    vocab = shared_data("bert_assets") / "bert_assets" / "uncased" / "vocab.txt"
    config = squad.get_config("v1")
    task = SpanQA(config, load_tokenizer(vocab), None)
    task.may_have_no_answer = False
    examples = list(task.read(str(path)))[::40]
    windows = task.encode(examples)
    outputs = {}
    for name in ("start", "end"):
        rows = np.zeros((len(windows), 384), np.float32)
        places = [int(window.values[f"{name}_positions"]) for window in windows]
        rows[np.arange(len(windows)), places] = 9
        outputs[f"{name}_logits"] = list(rows)
    scores = task.score(examples, task.predict(examples, windows, outputs), {})
    assert scores["f1"] > 99 and scores["exact_match"] > 98
