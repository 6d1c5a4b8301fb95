"""The doctor of workdirs: what is wrong is named with its remedy, and steps that are taken again give the same bits."""

import json
import shutil

import pytest

from bert_jax import modes
from bert_jax.config import UserError, read_config
from bert_jax.files import only_writer
from bert_jax.lab.doctor import examine
from bert_jax.lab.replay import replay
from bert_jax.options import default_config
from bert_jax.run import start_run
from bert_jax.tasks import task_class
from bert_jax.training.checkpoint import read_checkpoint
from bert_jax.training.checkpoint_format import seal


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def workdir(small_config, made, tmp_path, tmp_path_factory):
    """A copy of a run of 6 steps with checkpoints at 2, 4 and 6."""
    if not made:
        made["run"] = tmp_path_factory.mktemp("doctor") / "run"
        small_config.train.steps = 6
        small_config.checkpoint.every = 2
        assert modes.train(small_config, made["run"]) == 0
    shutil.copytree(made["run"], tmp_path / "run")
    return tmp_path / "run"


def problems(workdir):
    return {finding.item: finding.text for finding in examine(workdir) if finding.is_problem}


def spoil(path, change=lambda content: content[: len(content) // 2]):
    path.write_bytes(change(path.read_bytes()))


def test_a_healthy_run(workdir, capsys):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert modes.doctor(default_config(), workdir) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    for item in ("config.json", "lock", "checkpoint 2", "checkpoint 6", "damaged", "metrics.jsonl", "data", "disk"):
        assert any(line.removeprefix("ok").strip().startswith(f"{item}: ") for line in lines), item
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_each_problem_is_named_with_what_to_do(workdir):
    largest = max((workdir / "checkpoints" / "4" / "optimizer").rglob("d/*"), key=lambda file: file.stat().st_size)
    spoil(largest)
    spoil(
        workdir / "checkpoints" / "6" / "run" / "metadata",
        lambda content: content.replace(b'"history": [', b'"history": [0.5, '),
    )
    spoil(workdir / "metrics.jsonl", lambda content: b"mine\n" + content)
    spoil(workdir / "config.json", lambda content: content.replace(b'"steps": 6', b'"steps": "six"'))
    (workdir / "damaged" / "1").mkdir(parents=True)
    (workdir / "checkpoints" / "8.orbax-checkpoint-tmp-1").mkdir()
    found = problems(workdir)
    assert found.keys() == {"checkpoint 4", "checkpoint 6", "metrics.jsonl", "config.json", "damaged", "data"}
    assert "the next start sets it aside in damaged/" in found["checkpoint 4"]
    assert "run differs from what was saved" in found["checkpoint 6"]
    assert "metrics.jsonl:1 is not a line of metrics; correct the line" in found["metrics.jsonl"]
    assert "train.steps is 'six'" in found["config.json"] and "restore it" in found["config.json"]
    with pytest.raises(UserError, match="6 of the items above need your attention; each says what to do"):
        modes.doctor(default_config(), workdir)


def test_a_disk_without_room_for_a_checkpoint(workdir, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert "0.0 MB are free and a checkpoint takes" in problems(workdir)["disk"]


def test_a_workdir_in_use_is_no_problem(workdir):
    with only_writer(workdir):
        holder = (workdir / "lock").read_text()
        found = {finding.item: finding for finding in examine(workdir)}
        assert "in use by process" in found["lock"].text and not found["lock"].is_problem
        assert (workdir / "lock").read_text() == holder


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match="nothing is not a folder; give the folder of a run"):
        list(examine(tmp_path / "nothing"))


def test_steps_taken_again_give_the_bits_of_the_next_checkpoint(workdir, capsys):
    assert modes.doctor(default_config(), workdir, replay=3) == 0
    assert "steps 5 to 6 gave the bits of the checkpoint of step 6" in capsys.readouterr().out
    assert modes.doctor(default_config(), workdir, replay=1) == 0
    assert "steps 7 to 7, taken twice, gave the same bits" in capsys.readouterr().out


def test_silent_corruption_is_found(workdir):
    """As if step 5 or 6 had gone wrong unnoticed: a checkpoint says other bits than these steps give."""
    file = workdir / "checkpoints" / "6" / "run" / "metadata"
    run = json.loads(file.read_text())
    sums = {item: dict(run["checksums"][item]) for item in ("parameters", "optimizer")}
    sums["parameters"]["['pooler/bias']"] += 1
    content = {key: value for key, value in run.items() if key not in ("format", "written_by", "checksums")}
    tokenizer = json.loads((workdir / "checkpoints" / "6" / "tokenizer" / "metadata").read_text())
    file.write_text(json.dumps(seal(content, sums, tokenizer)))
    config = read_config(workdir / "config.json")
    task = task_class(config.task).with_data(config, start_run(config, workdir))
    with pytest.raises(UserError, match=r"steps 5 to 6 give other bits than the checkpoint of step 6 has \(parameters"):
        replay(task, config, workdir, 2)


def test_a_replay_changes_nothing(workdir):
    before = read_checkpoint(workdir / "checkpoints" / "6").run
    modes.doctor(default_config(), workdir, replay=2)
    assert read_checkpoint(workdir / "checkpoints" / "6").run == before
