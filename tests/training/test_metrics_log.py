"""What a resumed run keeps of its log, and what happens where it cannot be written."""

import json
import os
import subprocess
import sys

import pytest

from bert_jax.config import UserError, read_config
from bert_jax.training.metrics_log import MetricsLog, read_metrics

LINES = [(5, "train"), (5, "eval"), (10, "train"), (10, "eval"), (10, "test"), (15, "train")]
WRITTEN = "".join(json.dumps({"step": step, "split": split, "loss": 1.0}) + "\n" for step, split in LINES)


def test_a_resumed_run_takes_later_lines_again_and_its_test(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(WRITTEN + '{"step": 15, "spl')  # a kill cut the last one in half
    log = MetricsLog(tmp_path, 10, 10, forget_after=10)
    log.record(10, "test", {"loss": 0.123456789})
    log.close()
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in kept] == LINES[:5]
    assert [line["loss"] for line in kept] == [1, 1, 1, 1, 0.123457]


@pytest.mark.parametrize("foreign", [b"my notes\n", b'{"loss": 1}\n', b"[1, 2]\n", b"\xff\xfe\n", b"\n"])
def test_a_foreign_line_is_named_and_nothing_is_rewritten(tmp_path, foreign):
    content = foreign + WRITTEN.encode()
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl:1 is not a line of metrics; move the file away"):
        MetricsLog(tmp_path, 10, 10, forget_after=10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_lines_are_dropped_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text(WRITTEN)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(No space left on device\)"):
        MetricsLog(tmp_path, 10, 10, forget_after=10)
    assert (tmp_path / "metrics.jsonl").read_text() == WRITTEN
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_that_cannot_be_written_ends_the_run_in_one_line(tmp_path):
    log = MetricsLog(tmp_path, 0, 10)
    log.file.close()
    log.file = open("/dev/full", "a", buffering=1)  # noqa: SIM115 — closed by the log
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(No space left on device\); remove"):
        log.record(1, "train", {"loss": 1.0})
    log.close()


@pytest.mark.parametrize("forget_after", [None, 10])
def test_a_fifo_in_its_place_never_hangs(tmp_path, forget_after):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl: is a FIFO.*move it away, or choose another --workdir"):
        MetricsLog(tmp_path, 10, 10, forget_after=forget_after)
    with pytest.raises(UserError, match="FIFO"):
        read_metrics(tmp_path / "metrics.jsonl")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"config\.json is not a regular file"):
        read_config(tmp_path / "config.json")


def test_torch_is_neither_imported_nor_hidden():
    code = "import sys, bert_jax.training.metrics_log; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
