"""The copy of a run in a bucket: another machine continues from it, with the bits of a run that was never moved."""

import json
import shutil
import subprocess

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.config import UserError
from bert_jax.data.text import buckets
from bert_jax.run import run
from bert_jax.training import mirror
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint, steps
from bert_jax.training.mirror import Mirror, TakenOver
from tests import s3
from tests.processes import metrics

pytestmark, server, bucket = [*s3.pytestmark, s3.needed], s3.server, s3.bucket


@pytest.fixture
def copied(bucket, tmp_path, monkeypatch):
    """The name of a copy in the bucket, to which processes look every moment."""
    monkeypatch.setattr(mirror, "_LOOK_SECONDS", 0.05)
    buckets.local.cache_clear()
    return f"{bucket}/{tmp_path.name}/run"


def parameters(workdir):
    return jax.device_get(read_checkpoint(find_checkpoint(str(workdir))).parameters)


def learned(workdir):
    return [{name: line.get(name) for name in ("step", "split", "loss", "grad_norm")} for line in metrics(workdir)]


def names_of(url):
    return buckets.Bucket(url, "test").names()


def newest_of(url):
    """The step of the newest whole checkpoint of a copy; 0 without one."""
    found = [mirror._WHOLE.fullmatch(name) for name in names_of(url)]
    return max((int(match[1]) for match in found if match), default=0)


def test_a_run_continues_on_a_machine_that_has_nothing(small_config, copied, tmp_path):
    small_config.checkpoint.update(every=2, keep=2)
    run(small_config, tmp_path / "whole")
    small_config.checkpoint.mirror = copied
    small_config.train.steps = 4
    small_config.optimizer.decay_steps = 100
    run(small_config, tmp_path / "first")
    there = names_of(copied)
    assert {"checkpoints/4.json", "config.json", "metrics.jsonl", "owner.json"} <= there.keys()
    assert json.loads(buckets.Bucket(copied, "test").read("checkpoints/4.json")).keys() == {
        path.relative_to(tmp_path / "first/checkpoints/4").as_posix()
        for path in (tmp_path / "first/checkpoints/4").rglob("*")
        if path.is_file()
    }
    small_config.train.steps = 8
    result = run(small_config, tmp_path / "second")
    assert result.step == 8 and learned(tmp_path / "second") == learned(tmp_path / "whole")
    for name, value in parameters(tmp_path / "whole").items():
        np.testing.assert_array_equal(parameters(tmp_path / "second")[name], value, err_msg=name)
    # What the run no longer keeps is gone from the copy too.
    kept = {str(step) for step in steps(tmp_path / "second" / "checkpoints")}
    assert {name.split("/")[1].removesuffix(".json") for name in names_of(copied) if "/" in name} == kept

    loaded = bert_jax.load(copied)
    assert loaded.step in (4, 6, 8) and str(loaded.path).startswith(str(tmp_path / "home" / ".cache" / "bert_jax"))
    small_config.init_from, small_config.checkpoint.mirror, small_config.train.steps = copied, "", 2
    assert run(small_config, tmp_path / "warm").step == 2


def test_an_older_folder_is_brought_up_to_date_and_a_newer_one_is_not(small_config, copied, tmp_path):
    small_config.checkpoint.update(every=2, keep=9, mirror=copied)
    small_config.train.steps = 4
    run(small_config, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "old")
    small_config.train.steps = 6
    run(small_config, tmp_path / "one")
    with Mirror(copied, tmp_path / "old"):
        pass
    assert steps(tmp_path / "old/checkpoints") == steps(tmp_path / "one/checkpoints")
    assert (tmp_path / "old/metrics.jsonl").read_text() == (tmp_path / "one/metrics.jsonl").read_text()
    # A checkpoint whose copy was cut off does not count, and what is left of it is removed.
    there = buckets.Bucket(copied, "test")
    there.remove(["checkpoints/6.json"])
    copy = Mirror(copied, tmp_path / "old")
    copy.fetch()
    assert sorted(copy.whole) == [2, 4]
    with copy:
        pass
    assert json.loads(there.read("checkpoints/6.json"))


def checkpoint(folder, step, content="x"):
    path = folder / "checkpoints" / str(step) / "run" / "metadata"
    path.parent.mkdir(parents=True)
    path.write_text(content)


def test_two_runs_with_one_copy(copied, tmp_path):
    checkpoint(tmp_path / "first", 1)
    said = rf"{copied} has been taken over by another run \(process \d+ on .*own$"
    with pytest.raises(TakenOver, match=said), Mirror(copied, tmp_path / "first") as first:
        checkpoint(tmp_path / "second", 1)
        with Mirror(copied, tmp_path / "second"):
            pass
        checkpoint(tmp_path / "first", 2)
        first._thread.join(20)
        first.check()
    assert "checkpoints/2.json" not in names_of(copied)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ('{"../../stolen": 1}', "holds no copy of a run: its list of files names '../../stolen'"),
        ('{"/etc/x": 1}', "names '/etc/x'"),
        ("[1]", "holds no copy of a run"),
        ("not JSON", "holds no copy of a run"),
        ('{"run/metadata": 7}', r"run/metadata has 1 bytes and should have 7; delete s3://.*1\.json to continue from"),
        ('{"run/none": 1}', r"checkpoint\.mirror: s3://.* cannot be read \("),
    ],
)
def test_a_copy_that_is_damaged_or_hostile(copied, tmp_path, listed, message):
    there = buckets.Bucket(copied, "test")
    there.write("checkpoints/1/run/metadata", b"x")
    there.write("checkpoints/1.json", listed.encode())
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=message) as error:
        Mirror(copied, tmp_path / "run").fetch()
    assert "\n" not in str(error.value) and not steps(tmp_path / "run/checkpoints")


def test_a_bucket_that_fails_is_one_line_at_the_start_and_at_the_end(
    small_config, copied, tmp_path, monkeypatch, caplog
):
    small_config.checkpoint.mirror = "s3://no-such-bucket/run"
    with pytest.raises(UserError, match=r"^checkpoint\.mirror: s3://no-such-bucket/run: cannot be listed|cannot be wr"):
        run(small_config, tmp_path / "run")
    small_config.checkpoint.mirror = copied

    def fail(*_):
        raise OSError(5, "the network is away", copied)

    monkeypatch.setattr(buckets.Bucket, "put", fail)
    monkeypatch.setattr(mirror, "_AGAIN_SECONDS", 0.05)
    with pytest.raises(
        UserError, match=r"could not be written to: the run's last checkpoint is in its workdir only \(the"
    ):
        run(small_config, tmp_path / "run")
    assert steps(tmp_path / "run/checkpoints")[-1] == 8 and "(the network is away); trying again" in caplog.text
    monkeypatch.undo()


def test_a_name_in_a_bucket_that_is_no_checkpoint(copied, tmp_path, small_config):
    with pytest.raises(UserError, match=rf"{copied} is empty or not there"):
        bert_jax.load(copied)
    there = buckets.Bucket(copied, "test")
    there.write("a.txt", b"no model")
    small_config.init_from = copied
    with pytest.raises(UserError, match=rf"init_from={copied} is not a checkpoint"):
        run(small_config, tmp_path / "run")


@pytest.mark.slow
def test_killed_at_any_moment_the_copy_is_whole(small_config, copied, command_line, tmp_path):
    small_config.checkpoint.update(every=2, keep=3, mirror=copied)
    small_config.train.steps = 20_000
    small_config.eval.update(every=20_000, at_start=False)
    for number in range(3):
        workdir = tmp_path / str(number)
        before = newest_of(copied)
        process = subprocess.Popen(command_line(small_config, workdir), stderr=subprocess.DEVNULL)
        while newest_of(copied) < before + 5:
            assert process.poll() is None
        process.kill()
        process.wait()
        there = Mirror(copied, tmp_path / f"fetched{number}")
        there.fetch()
        newest = find_checkpoint(str(tmp_path / f"fetched{number}"))
        assert int(newest.name) > before and read_checkpoint(newest).run["step"] == int(newest.name)
