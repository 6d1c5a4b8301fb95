"""Workdirs of the first version (tests/fixtures/format1) are continued, evaluated, used and converted as they are."""

import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bert_jax import modes
from bert_jax.config import read_config
from bert_jax.convert.conversion import convert
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.predictor import Predictor
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.observer import LEDGER

FIXTURES = Path(__file__).parents[1] / "fixtures" / "format1"
NAMES = ("pretraining", "single", "multi", "tagging", "span_qa")


@pytest.fixture
def workdir(request, tmp_path, monkeypatch):
    """The workdir of the family `request.param`, in a current folder that has its data."""
    with tarfile.open(FIXTURES / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return Path("run")


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workdir", NAMES, indirect=True)
def test_a_finished_run_is_found_whole_and_changes_nothing(workdir):
    before = lines(workdir)
    assert modes.train(read_config(workdir / "config.json"), workdir) == 0
    assert [line for line in lines(workdir) if line["split"] != "test"] == before
    assert not (workdir / "damaged").exists()


@pytest.mark.parametrize("workdir", ["pretraining"], indirect=True)
def test_a_run_is_continued_and_then_has_todays_format(workdir):
    config = read_config(workdir / "config.json")
    config.train.steps = 6
    assert modes.train(config, workdir) == 0
    run = read_checkpoint(find_checkpoint(str(workdir))).run
    assert run["step"] == 6 and run["format"] == 2
    assert [line["step"] for line in lines(workdir) if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) for line in lines(workdir) if line["split"] != LEDGER)


@pytest.mark.parametrize("workdir", ["pretraining"], indirect=True)
def test_masks_are_filled(workdir):
    (answers,) = FillMask(workdir)("The cat [MASK] the dog.", top_k=3)
    assert len(answers) == 3 and all(0 < probability < 1 for _, probability in answers)


@pytest.mark.parametrize(
    ("workdir", "item"),
    [
        ("single", "The cat sees the dog."),
        ("multi", "The cat sees the house."),
        ("tagging", "The cat sees the dog"),
        ("span_qa", {"question": "what sees the dog?", "context": "The cat sees the dog."}),
    ],
    indirect=["workdir"],
)
def test_predictions_are_made(workdir, item):
    (result,) = Predictor(workdir)([item])
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("workdir", ["single", "multi", "tagging", "span_qa"], indirect=True)
def test_it_is_evaluated_as_it_was(workdir):
    """The loss that the first version recorded, but for another processor's bfloat16."""
    (recorded,) = [line for line in lines(workdir) if line["split"] == "eval"]
    assert modes.evaluate(read_config(workdir / "config.json"), workdir) == 0
    now = [line for line in lines(workdir) if line["split"] == "eval"][-1]
    assert now["step"] == recorded["step"] and now.keys() == recorded.keys()
    assert now["loss"] == pytest.approx(recorded["loss"], rel=2e-3)


@pytest.mark.parametrize("workdir", NAMES, indirect=True)
def test_it_is_converted(workdir, tmp_path):
    convert(str(workdir), str(tmp_path / "ours"))
    converted, original = read_checkpoint(tmp_path / "ours"), read_checkpoint(find_checkpoint(str(workdir)))
    assert converted.run["format"] == 2 and converted.tokenizer.content_hash == original.tokenizer.content_hash
    for name, value in original.parameters.items():
        np.testing.assert_array_equal(converted.parameters[name], value, err_msg=name)
    convert(str(workdir), str(tmp_path / "theirs"), format="huggingface")
    assert (tmp_path / "theirs" / "model.safetensors").is_file()


@pytest.mark.parametrize("workdir", ["single"], indirect=True)
def test_a_checkpoint_without_a_description_of_the_task_is_read(workdir):
    file = find_checkpoint(str(workdir)) / "run" / "metadata"
    run = json.loads(file.read_text())
    assert "format" not in run
    del run["task"], run["history"], run["config"]["eval"]["max_examples"]
    file.write_text(json.dumps(run))
    saved = read_checkpoint(find_checkpoint(str(workdir)))
    assert saved.run["task"] == {} and saved.run["history"] == []
    assert saved.run["config"]["eval"]["max_examples"] == 10_000
