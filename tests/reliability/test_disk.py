"""Disks that are full, read-only or gone under a run: it ends within bounds, with status 2, one line, nothing lost."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from bert_jax.training.checkpoint import steps

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
LIMIT = 240  # seconds; a run that hangs is killed then


@pytest.fixture
def train(small_config, command_line):
    """train(workdir, **environment) → status and output of a run that saves every second step."""
    small_config.train.log_every = 1
    small_config.checkpoint.every = 2

    def run(workdir, **environment):
        command = command_line(small_config, workdir)
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, timeout=LIMIT, text=True, capture_output=True, check=False
        )
        return done.returncode, done.stderr

    run.config = small_config
    return run


@contextlib.contextmanager
def small_disk(folder, size, *options):
    """A file system of its own of `size`, for example 3m."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs the rights of root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def immutable(folder):
    if subprocess.run(["chattr", "+i", str(folder)], check=False, capture_output=True).returncode:
        pytest.skip("chattr +i needs the rights of root and a file system that has it")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


def assert_one_line(status, output, *words):
    assert status == 2, output[-2000:]
    assert "Traceback" not in output
    last = output.splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), last


def test_a_disk_that_fills_up_keeps_what_was_finished(train, tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        train.config.checkpoint.keep = 1000
        train.config.train.steps = 100
        status, output = train(disk / "run")
        kept = steps(disk / "run" / "checkpoints")
        assert_one_line(status, output, "No space left on device")
        assert kept and f"the checkpoint of step {kept[-1]} is whole" in output.splitlines()[-1]
        json.loads((disk / "run" / "config.json").read_text())
        for line in (disk / "run" / "metrics.jsonl").read_text().splitlines():
            json.loads(line)


def test_no_inodes_are_left(train, tmp_path):
    with small_disk(tmp_path / "disk", "100m", "nr_inodes=24") as disk:
        assert_one_line(*train(disk / "run"), "cannot write", "No space left on device")


def test_a_full_temporary_folder_harms_no_checkpoint(train, tmp_path):
    train.config.train.steps = 4
    assert train(tmp_path / "run")[0] == 0
    train.config.train.steps = 6
    with small_disk(tmp_path / "disk", "4k") as disk:
        (disk / "full").write_bytes(b"x" * 4096)
        status, output = train(tmp_path / "run", TMPDIR=str(disk))
    assert status == 0, output[-2000:]
    assert not (tmp_path / "run" / "damaged").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_an_immutable_folder(train, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with immutable(tmp_path / "run" / "checkpoints"):
        assert_one_line(*train(tmp_path / "run"), "cannot write a checkpoint", "Operation not permitted")


def test_a_read_only_disk(train, tmp_path):
    with small_disk(tmp_path / "disk", "10m") as disk:
        (disk / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_one_line(*train(disk / "run"), "Read-only file system")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoints", "cannot"),
        ("metrics.jsonl", "is a folder, not a regular file"),
        ("config.json", "cannot be written (Is a directory)"),
    ],
)
def test_something_else_in_place_of_a_file_or_folder(train, tmp_path, name, message):
    (tmp_path / "run").mkdir()
    if name == "checkpoints":
        (tmp_path / "run" / name).write_text("a file")
    else:
        (tmp_path / "run" / name).mkdir()
    assert_one_line(*train(tmp_path / "run"), name, message)


@pytest.fixture
def interrupted(train, command_line, tmp_path):
    """interrupted(act) → status and output of a long run, while which `act(workdir)` is called after a checkpoint."""

    def run(act):
        train.config.train.steps = 2000
        workdir = tmp_path / "run"
        with open(tmp_path / "output", "w") as output:
            process = subprocess.Popen(command_line(train.config, workdir), cwd=ROOT, stderr=output)
        try:
            deadline = time.time() + LIMIT
            while not steps(workdir / "checkpoints") and time.time() < deadline:
                time.sleep(0.05)
            act(workdir)
            status = process.wait(timeout=LIMIT)
        finally:
            process.kill()
            process.wait()
        return status, (tmp_path / "output").read_text()

    return run


def test_a_workdir_deleted_under_the_run(interrupted):
    assert_one_line(*interrupted(lambda workdir: shutil.rmtree(workdir, ignore_errors=True)))


def test_a_workdir_deleted_and_made_again_by_what_writes_into_it(interrupted):
    def replace(workdir):
        workdir.rename(workdir.with_name("moved"))
        (workdir / "checkpoints").mkdir(parents=True)

    assert_one_line(*interrupted(replace), "was deleted or moved during the run")


def test_a_second_training_in_the_same_workdir(train, command_line, tmp_path):
    train.config.train.steps = 2000
    process = subprocess.Popen(command_line(train.config, tmp_path / "run"), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + LIMIT
        while not (tmp_path / "run" / "lock").exists() and time.time() < deadline:
            time.sleep(0.05)
        assert_one_line(*train(tmp_path / "run"), f"is in use by process {process.pid} on")
    finally:
        process.kill()
        process.wait()
