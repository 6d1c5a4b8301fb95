"""Trackers: real packages without a network; one that fails or hangs neither stops a run nor holds it up."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from bert_jax.config import UserError
from bert_jax.options import default_config
from bert_jax.training import trackers
from bert_jax.training.metrics_log import MetricsLog, read_metrics
from bert_jax.training.trackers import TRACKERS, Tracker, check_trackers

LINES = [(2, {"train/loss": 3.0, "train/mfu": 0.5}), (2, {"eval/loss": 2.5}), (4, {"train/loss": 2.0})]
PROGRAM = """
import json, sys
from pathlib import Path
from bert_jax.options import default_config
from bert_jax.training.trackers import Trackers, check_trackers

name, workdir, lines = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
config = default_config()
config.update_from_flattened_dict({"train.trackers": name, "model.size": "tiny", "seed": 7})
check_trackers(name)
run = Trackers(config, workdir)
for step, values in lines:
    run.add(step, values)
run.close()
assert not any(thread.has_failed for thread in run.threads)
"""


def needs(package):
    reason = f"needs {package}: pip install -e '.[trackers]'"
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=reason)


def track(name, workdir, lines, **environment):
    """Tracks lines in a process of its own, whose home is empty."""
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, name, str(workdir), json.dumps(lines)]
    known = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))}
    known |= {"HOME": str(workdir.parent), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@needs("wandb")
def test_wandb_offline_writes_a_folder_for_every_start_of_one_run(tmp_path):
    for lines in (LINES[:2], LINES[2:]):
        track("wandb", tmp_path / "run", lines, WANDB_MODE="offline")
        time.sleep(1.1)  # the folder's name has the second
    files = sorted((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))
    name = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    assert [file.name for file in files] == [f"run-{name}.wandb"] * 2
    first, second = (file.read_bytes() for file in files)
    assert b"train/loss" in first and b"eval/loss" in first and b"model.size" in first
    assert b"train/loss" in second and b"eval/loss" not in second


@needs("wandb")
def test_wandb_without_a_key_is_refused_before_anything_starts(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "setup", lambda: type("Setup", (), {"settings": wandb.Settings(mode="online")}))
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(UserError, match="no API key; run 'wandb login', or set WANDB_MODE=offline"):
        check_trackers("wandb")


@pytest.mark.slow
@needs("mlflow")
@needs("sqlalchemy")
def test_mlflow_continues_its_run_in_sqlite(tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for lines in (LINES[:2], LINES[2:]):
        track("mlflow", tmp_path / "run", lines, MLFLOW_TRACKING_URI=store)
    program = f"""
import json, mlflow
client = mlflow.MlflowClient("{store}")
[run] = client.search_runs([client.get_experiment_by_name("bert_jax").experiment_id])
of = lambda name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
print(json.dumps([{{name: of(name) for name in run.data.metrics}}, run.data.params, run.data.tags, run.info.status]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    history, parameters, tags, status = json.loads(done.stdout.splitlines()[-1])
    assert history == {"train/loss": [[2, 3.0], [4, 2.0]], "train/mfu": [[2, 0.5]], "eval/loss": [[2, 2.5]]}
    assert parameters["seed"] == "7" and parameters["model.size"] == "tiny"
    assert tags["task"] == "pretraining" and status == "FINISHED"


@pytest.mark.slow
@needs("trackio")
def test_trackio_continues_its_run_in_a_folder(tmp_path):
    for lines in (LINES[:2], LINES[2:]):
        track("trackio", tmp_path / "run", lines, TRACKIO_DIR=str(tmp_path / "trackio"))
    program = """
import json
from trackio.sqlite_storage import SQLiteStorage
[run] = SQLiteStorage.get_runs("bert_jax")
print(json.dumps([run, SQLiteStorage.get_logs("bert_jax", run), SQLiteStorage.get_run_config("bert_jax", run)]))
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    name, lines, config = json.loads(done.stdout.splitlines()[-1])
    known = json.loads((tmp_path / "run" / "trackers.json").read_text())
    assert name == f"run-{known['trackio']}"
    found = [(line["step"], {key: line[key] for key in line if "/" in key}) for line in lines]
    assert found == LINES
    assert config["seed"] == 7 and config["tag.task"] == "pretraining"


class Hangs(Tracker):
    package = "json"
    released = threading.Event()

    def open(self, *_):
        self.released.wait(60)

    def add(self, step, values):
        pass

    def close(self):
        pass


class Fails(Tracker):
    package = "json"

    def open(self, *_):
        pass

    def add(self, step, values):
        raise SystemExit("the server\nsays no")

    def close(self):
        pass


@pytest.mark.parametrize("tracker, said", [(Hangs, "did not end in 0.2 s"), (Fails, "SystemExit: the server says no")])
def test_a_tracker_that_hangs_or_fails_is_one_warning(tmp_path, monkeypatch, caplog, tracker, said):
    monkeypatch.setitem(TRACKERS, "mine", tracker)
    monkeypatch.setattr(trackers, "_PATIENCE", 0.2)
    config = default_config()
    config.train.trackers = "mine"
    start = time.monotonic()
    log = MetricsLog(tmp_path, 0, 10, config=config)
    for step in range(1, 6):
        log.record(step, "train", {"loss": 1.0})
    log.close()
    assert time.monotonic() - start < 20  # nothing waits for the tracker's 60 s
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5
    warnings = [record.message for record in caplog.records if "train.trackers" in record.message]
    assert len(warnings) == 1 and said in warnings[0] and "metrics.jsonl has it all" in warnings[0]
    Hangs.released.set()


def test_lines_that_nobody_takes_do_not_fill_the_memory(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(TRACKERS, "mine", Hangs)
    monkeypatch.setattr(trackers, "_MOST_WAITING", 3)
    monkeypatch.setattr(Hangs, "released", threading.Event())
    config = default_config()
    config.train.trackers = "mine"
    run = trackers.Trackers(config, tmp_path)
    for step in range(10):
        run.add(step, {"loss": 1.0})
    assert caplog.text.count("it does not answer, and 3 lines wait") == 1
    Hangs.released.set()
    run.close()


def test_a_damaged_file_of_ids_begins_new_runs(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(TRACKERS, "mine", Fails)
    config = default_config()
    config.train.trackers = "mine"
    names = []
    for content in (None, None, "[1]", '{"mine": "../up"}'):
        if content is not None:
            (tmp_path / "trackers.json").write_text(content)
        trackers.Trackers(config, tmp_path).close()
        names.append(json.loads((tmp_path / "trackers.json").read_text())["mine"])
    assert names[0] == names[1] and len(set(names)) == 3
    assert "trackers.json cannot be read" in caplog.text


def test_mistakes_in_the_option_come_before_the_first_step(monkeypatch):
    with pytest.raises(UserError, match=r"train\.trackers has 'wanb'; it can be .*did you mean wandb\?"):
        check_trackers("mlflow,wanb" if importlib.util.find_spec("mlflow") else "wanb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the extra trackers: pip install -e '\.\[trackers\]'"):
        check_trackers("trackio")
    check_trackers(" , ")
