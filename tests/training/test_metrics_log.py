"""What a resumed run keeps of its log."""

import json

from bert_jax.training.metrics_log import MetricsLog


def test_a_resumed_run_takes_later_lines_again_and_its_test(tmp_path):
    lines = [(5, "train"), (5, "eval"), (10, "train"), (10, "eval"), (10, "test"), (15, "train")]
    written = "".join(json.dumps({"step": step, "split": split, "loss": 1.0}) + "\n" for step, split in lines)
    (tmp_path / "metrics.jsonl").write_text(written + '{"step": 15, "spl')  # a kill cut the last one in half
    log = MetricsLog(tmp_path, 10, 10, forget_after=10)
    log.record(10, "test", {"loss": 0.123456789})
    log.close()
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in kept] == lines[:5]
    assert [line["loss"] for line in kept] == [1, 1, 1, 1, 0.123457]
