"""Several processes, as on a pod: each with some of the devices and some of the rows, together one run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def finished(command, output_file, processes, devices_each):
    """Status and output of every process of one run on this machine."""
    port = free_port()
    started = []
    for number in range(processes):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}"}
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            }
        output = open(f"{output_file}.{number}", "w+")  # noqa: SIM115 — closed below
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        started.append((process, output))
    found = []
    for process, output in started:
        try:
            status = process.wait(timeout=240)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        found.append((status, output.read()))
        output.close()
    return found


def run(command, workdir, processes, devices_each):
    """The metrics of one run."""
    for status, text in finished(command, workdir, processes, devices_each):
        assert status == 0, text[-3000:]
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_are_one_run(small_config, command_line, tmp_path):
    small_config.model.dtype = "float32"
    small_config.mesh.data = -1
    one = run(command_line(small_config, tmp_path / "one"), tmp_path / "one", processes=1, devices_each=4)
    two = run(command_line(small_config, tmp_path / "two"), tmp_path / "two", processes=2, devices_each=2)
    assert [(r["step"], r["split"]) for r in one] == [(r["step"], r["split"]) for r in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-6), (a, b)
        assert a["mlm_accuracy"] == pytest.approx(b["mlm_accuracy"], abs=1e-6)
    assert read_checkpoint(find_checkpoint(str(tmp_path / "two"))).run["step"] == small_config.train.steps


@pytest.mark.slow
def test_two_processes_fine_tune_tag_and_report_as_one(tmp_path):
    """Tags have outputs of their own for every token, which all processes gather before they are scored."""
    letters = [*"abcdefgh"]
    rows = [{"words": [letters[(i * k) % 8] for k in range(1, 2 + i % 5)]} for i in range(1, 17)]
    rows = [row | {"tags": [f"T{letters.index(word) % 2}" for word in row["words"]]} for row in rows]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]) + "\n")
    keys = {f"data.{split}": str(tmp_path / "data.jsonl") for split in ("train", "validation", "test")}
    keys |= {"data.text": "words", "data.label": "tags", "data.vocab_file": str(tmp_path / "vocab.txt")}
    keys |= {"data.sequence_length": 16, "data.buckets": 1, "train.epochs": 2.0, "train.batch_size": 8}
    keys |= {"eval.batch_size": 8, "model.size": "tiny", "model.dtype": "float32", "train.peak_tflops": 1.0}
    options = [f"--config.{key}={value}" for key, value in keys.items()]
    found = []
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        command = [sys.executable, "-m", "bert_jax.main", "--config=experiments/ner.py:plain", f"--workdir={workdir}"]
        found.append(run(command + options, workdir, processes, devices_each=2 // processes))
        assert (workdir / "report.html").is_file()
    assert [(r["step"], r["split"]) for r in found[0]] == [(r["step"], r["split"]) for r in found[1]]
    for one, two in zip(*found, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5), (one, two)
    assert found[1][-1]["split"] == "test"


@pytest.mark.slow
def test_every_process_says_what_is_wrong_with_the_corpus(small_config, command_line, tmp_path):
    (tmp_path / "one.txt").write_text("One sentence here. And another one there.\n" * 50)
    small_config.data.corpus, small_config.data.files = "text", str(tmp_path / "one.txt")
    small_config.data.validation_share = small_config.data.test_share = 0.0
    small_config.mesh.data = -1
    command = command_line(small_config, tmp_path / "run")
    for status, text in finished(command, tmp_path / "output", processes=2, devices_each=1):
        assert status == 2, text[-3000:]
        assert "1 training document" in text.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_start_from_a_checkpoint_with_two_seeds(tmp_path):
    """Warm start, test of the best checkpoint, and several runs in one command, which joins its processes once."""
    words = ["red", "green", "blue", "warm"]
    rows = [{"text": f"{a} {b}", "label": "hot" if a == "red" else "not"} for a in words for b in words]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    keys = {f"data.{split}": str(tmp_path / "rows.jsonl") for split in ("train", "validation", "test")}
    keys |= {"data.sequence_length": 8, "data.buckets": 1, "train.batch_size": 8, "train.epochs": 1.0}
    keys |= {"model.dtype": "float32", "model.size": "tiny", "train.log_every": 1, "eval.batch_size": 8}
    keys |= {"train.peak_tflops": 1.0}

    def trained(name, processes, **more):
        command = [sys.executable, "-m", "bert_jax.main", "--config=experiments/classify.py"]
        options = [f"--config.{key}={value}" for key, value in (keys | more).items()]
        command += [f"--workdir={tmp_path / name}", *options]
        return run(command, tmp_path / name, processes, devices_each=2 // processes)

    source = trained("source", 2, **{"data.vocab_file": str(tmp_path / "vocab.txt")})
    assert source[-1]["split"] == "test"
    more = {"init_from": str(tmp_path / "source"), "train.reinitialise_layers": 1, "seeds": 2}
    found = []
    for name, processes in (("one", 1), ("two", 2)):
        lines = trained(name, processes, **more)
        assert [line["split"] for line in lines] == ["eval", "eval_last", "test"]
        report = json.loads((tmp_path / name / "seeds.json").read_text())
        found.append(report["splits"]["test"]["loss"]["values"])
    assert len(found[1]) == 2
    assert found[1] == pytest.approx(found[0], rel=1e-5)
