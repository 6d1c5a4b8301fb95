"""Predictions: those of evaluation, in the order of the input, whatever is wrong with some of it."""

import contextlib
import itertools
import json
import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import modes
from bert_jax.config import UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.batching import Batching
from bert_jax.inference.glue_submission import FILES, add_to_submission
from bert_jax.inference.predictor import Predictor, windows
from bert_jax.sharding import make_mesh
from bert_jax.training.checkpoint import choose_checkpoint, find_checkpoint
from bert_jax.training.saving import Checkpoints, alone_in
from bert_jax.training.step import TrainState
from experiments import base

from .conftest import TOKENIZER, sentences, write_rows


@pytest.fixture(scope="module")
def predictor(tuned):
    return Predictor(str(tuned[1]), batch_size=16)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_gives_what_evaluation_counted(tuned, predictor):
    _, _, rows, metrics = tuned
    found = predictor([row["sentence"] for row in rows])
    right = [prediction["label"] == row["label"] for prediction, row in zip(found, rows, strict=True)]
    assert np.mean(right) == pytest.approx(metrics["accuracy"], abs=1e-6)
    gold = [prediction["probabilities"][row["label"]] for prediction, row in zip(found, rows, strict=True)]
    assert np.mean(-np.log(gold)) == pytest.approx(metrics["loss"], rel=1e-4)


def test_alone_or_among_others_a_text_gets_the_same(predictor):
    texts = [row["sentence"] for row in sentences(60, seed=5)]
    together = predictor(texts)
    for number in (0, 17, 59):
        alone = predictor([{"sentence": texts[number], "other": 1}])[0]
        assert alone["label"] == together[number]["label"]
        assert alone["probability"] == pytest.approx(together[number]["probability"], abs=1e-5)
    backwards = predictor(texts[::-1])
    assert [p["label"] for p in backwards] == [p["label"] for p in together[::-1]]
    assert len({round(p["probability"], 3) for p in together}) > 40  # else any order would pass


def test_nothing_in_nothing_out(predictor):
    assert predictor([]) == []
    assert list(predictor.stream(iter(()))) == []
    assert [type(x) for x in predictor.stream([Row("x:1", {}), UserError("x:2: torn")])] == [UserError, UserError]
    assert Batching(16, 4).run(lambda batch: {}, [])["logits"] == []


def test_a_stream_is_read_no_further_than_the_window(predictor):
    read_so_far = itertools.count()
    rows = (Row(f"r:{next(read_so_far)}", {"sentence": "good"}) for _ in range(10_000))
    stream = predictor.stream(rows)
    next(stream)
    assert next(read_so_far) == 64
    stream.close()


def test_errors_keep_their_place(predictor):
    broken = UserError("x:2: half a line")
    rows = [Row("x:1", {"sentence": "good"}), broken, Row("x:3", {"text": "good"}), Row("x:4", {"sentence": "bad"})]
    first, second, third, fourth = predictor.stream(rows)
    assert second is broken
    assert "x:3: no column 'sentence'" in str(third)
    assert [set(first), set(fourth)] == [{"label", "probability", "probabilities"}] * 2
    with pytest.raises(UserError, match="input 2: column 'sentence' holds 3, no text"):
        predictor(["good", {"sentence": 3}])


def test_too_long_is_an_error_where_asked_for(tuned):
    strict = Predictor(str(tuned[1]), overrides={"data.long_texts": "error", "train.batch_size": 7})
    rows = [Row(f"x:{i}", {"sentence": "a " * length}) for i, length in enumerate((3, 23, 22, 200), 1)]
    found = list(strict.stream(rows))
    assert [isinstance(result, UserError) for result in found] == [False, True, False, True]
    assert str(found[1]).startswith("x:2: 25 tokens, over data.sequence_length 24")
    assert strict.config.train.batch_size == 32  # only what concerns the input may differ


def test_other_columns_on_request(tuned):
    assert Predictor(str(tuned[1]), overrides={"data.text": "review"})([{"review": "good"}])[0]["label"]


def test_windows_over_long_texts(tuned, predictor):
    """The mean of the windows: a text repeated to fill two of them alike has the logits of one."""
    windowed = Predictor(str(tuned[1]), overrides={"data.long_texts": "windows", "data.window_stride": 22})
    text = " ".join(itertools.islice("abcdefghijklmnopqrstuvwxyz", 21)) + " good"
    once, twice = windowed([text, f"{text} {text}"])
    assert twice["probability"] == pytest.approx(once["probability"], abs=1e-5)


def test_what_cannot_predict_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path}"):
        Predictor(str(tmp_path))


def test_windows_grow():
    assert [len(window) for window in windows(range(10_000))] == [64, 256, 1024, 4096, 4096, 464]


def test_the_best_checkpoint_is_found(tmp_path):
    config = base.get_config()
    config.checkpoint.update(keep=5, best_metric="accuracy", best_mode="max")
    checkpoints = Checkpoints(tmp_path / "checkpoints", config.checkpoint)
    with alone_in(tmp_path), contextlib.closing(checkpoints):
        for step, metrics in ((1, {"accuracy": 0.9}), (2, {"accuracy": 0.5}), (3, {"accuracy": 0.9}), (4, {})):
            state = TrainState(jnp.asarray(step), {"pooler/bias": jnp.ones(2)}, {"y": jnp.ones(2)})
            checkpoints.save(state, {"config": config.to_dict(), "task": {}}, TOKENIZER, metrics)
        checkpoints.wait()
        best = checkpoints.best(make_mesh(config.mesh, jax.devices()[:1]))
    assert find_checkpoint(str(tmp_path)).name == "4"
    assert choose_checkpoint(str(tmp_path)).name == "3" and best[1]["step"] == 3
    assert choose_checkpoint(str(tmp_path / "checkpoints")).name == "3"
    assert choose_checkpoint(str(tmp_path / "checkpoints" / "2")).name == "2"
    assert choose_checkpoint(str(tmp_path), "newest").name == "4"
    assert choose_checkpoint(str(tmp_path), "1").name == "1"
    assert choose_checkpoint(str(tmp_path), str(tmp_path / "checkpoints" / "2")).name == "2"
    with pytest.raises(UserError, match="has no checkpoint of step 7; it has 1, 2, 3, 4"):
        choose_checkpoint(str(tmp_path), "7")


def test_a_file_in_a_file_out(tuned, tmp_path):
    config, workdir, rows, _ = tuned
    source = write_rows(tmp_path / "in.jsonl", [{"sentence": r["sentence"], "id": f"n{i}"} for i, r in enumerate(rows)])
    assert modes.predict(config, workdir, input=source, output=str(tmp_path / "out" / "o.jsonl")) == 0
    found = read(tmp_path / "out" / "o.jsonl")
    assert [(line["line"], line["id"]) for line in found] == [(i + 1, f"n{i}") for i in range(len(rows))]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["o.jsonl"]


def test_bad_lines_end_it_or_are_reported(tuned, tmp_path, caplog):
    config, workdir, _, _ = tuned
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"sentence": "good"}\n{"sentence": "go\n\xff\n[1]\n{"x": 1}\n{"sentence": "bad", "id": 7}\n')
    output = tmp_path / "out.jsonl"
    with pytest.raises(
        UserError, match=r"in.jsonl:2: not a whole JSON object .*--bad_lines=skip.*out.jsonl.\w+.partial"
    ):
        modes.predict(config, workdir, input=str(source), output=str(output))
    assert not output.exists()
    [partial] = tmp_path.glob("out.jsonl.*.partial")
    assert [line["line"] for line in read(partial)] == [1]
    with caplog.at_level(logging.WARNING):
        modes.predict(config, workdir, input=str(source), output=str(output), bad_lines="skip")
    found = read(output)
    assert [line["line"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert ["error" in line for line in found] == [False, True, True, True, True, False]
    assert found[5]["id"] == 7
    for line, reason in ((2, "not a whole JSON"), (3, "not UTF-8"), (4, "a list, no JSON object"), (5, "no column")):
        assert f"{source}:{line}: {reason}" in found[line - 1]["error"]
        assert any(message.startswith(f"{source}:{line}: {reason}") for message in caplog.messages)


def test_standard_input_as_a_user_meets_it(tuned):
    _, workdir, rows, _ = tuned
    command = [sys.executable, "-m", "bert_jax.main", "--config=experiments/classify.py", "--mode=predict", "--input=-"]
    text = "".join(row["sentence"] + "\n" for row in rows[:5]) + "\ngood"
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [*command, f"--workdir={workdir}"], input=text.encode(), cwd=root, capture_output=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert [line["line"] for line in found] == [1, 2, 3, 4, 5, 6, 7]
    expected = Predictor(str(workdir))([row["sentence"] for row in rows[:5]] + ["", "good"])
    for line, prediction in zip(found, expected, strict=True):
        assert line["label"] == prediction["label"]
        assert line["probability"] == pytest.approx(prediction["probability"], abs=1e-5)


def test_a_submission_to_glue(tuned, tmp_path, caplog):
    config, workdir, rows, _ = tuned
    source = write_rows(tmp_path / "in.jsonl", rows)
    archive = tmp_path / "submission.zip"
    with caplog.at_level(logging.WARNING):
        modes.predict(config, workdir, input=source, output=str(archive), glue="SST-2")
    assert "SST-2: 70 rows, where the official test set has 1821" in caplog.text
    labels = [p["label"] for p in Predictor(str(workdir))([row["sentence"] for row in rows])]
    with zipfile.ZipFile(archive) as file:
        lines = file.read("SST-2.tsv").decode().splitlines()
    assert lines[0] == "index\tprediction"  # the labels are "bad", "good", in this order
    assert lines[1:] == [f"{i}\t{int(label == 'good')}" for i, label in enumerate(labels)]
    add_to_submission(archive, "STS-B", [{"value": 5.3}, {"value": -0.1}, {"value": 2.34567}], [])
    add_to_submission(archive, "RTE", [{"label": "entailment"}], ["not_entailment", "entailment"])
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == ["RTE.tsv", "SST-2.tsv", "STS-B.tsv"]
        assert file.read("STS-B.tsv").decode() == "index\tprediction\n0\t5.000\n1\t0.000\n2\t2.346\n"
        assert file.read("RTE.tsv").decode().splitlines()[1] == "0\tentailment"
    with pytest.raises(
        UserError, match=r"MNLI-m takes entailment, neutral, contradiction, and the labels .* bad, good"
    ):
        add_to_submission(archive, "MNLI-m", [{"label": "bad"}], ["bad", "good"])
    with pytest.raises(UserError, match="STS-B takes numbers"):
        add_to_submission(archive, "STS-B", [{"label": "bad"}], ["bad", "good"])
    assert len(FILES) == 11
