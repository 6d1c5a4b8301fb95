"""Several processes, as on a pod: each with some of the devices and some of the rows, together one run."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.config import UserError
from bert_jax.training import processes as joining
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.processes import join_processes, parts_of_batch
from tests.processes import ROOT, finished, free_port, module, run

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}

JOIN = """
import os, sys
import jax
from bert_jax.config import UserError
from bert_jax.training.processes import check_same, join_processes, on_first_process
join_processes(os.environ, 120)
number = jax.process_index()
on_first_process(lambda: print("first:", number))
try:
    on_first_process(lambda: 1 / 0)
except (UserError, ZeroDivisionError) as error:
    print("together:", error)
check_same({"train": {"steps": 8}, "seed": 1})
try:
    check_same({"train": {"steps": 8 + number}, "seed": 1, "paths": {"workdir": f"/run{number}"}})
except UserError as error:
    print("differ:", error)
print("joined:", number, "of", jax.process_count(), "with", jax.local_device_count())
"""


@pytest.mark.parametrize(
    ("address", "count", "number", "message"),
    [
        ("host", "2", "0", "JAX_COORDINATOR_ADDRESS is 'host'; it must be host:port, auto or none"),
        ("host:99999", "2", "0", "it must be host:port"),
        (":1234", "2", "0", "it must be host:port"),
        ("", "2", "0", "it must be host:port"),
        ("host:1234", "2", "2", "JAX_PROCESS_ID is 2; it must be below JAX_NUM_PROCESSES, which is 2"),
        ("host:1234", "two", "0", "set JAX_NUM_PROCESSES and JAX_PROCESS_ID to numbers too"),
    ],
)
def test_a_malformed_coordinator_is_one_line(address, count, number, message):
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": number}
    with pytest.raises(UserError, match=message):
        join_processes(variables, 300)


def test_processes_are_joined_once(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", None)  # a call would raise TypeError
    join_processes({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, 300)


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        ({}, False),
        (SLURM | {"SLURM_PROCID": "1"}, True),
        (SLURM | {"SLURM_PROCID": "1", "JAX_COORDINATOR_ADDRESS": "none"}, False),
        (SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        # A shell inside an allocation for several tasks, with and without a step of its own
        (SLURM | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "1"}, True),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, False),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, False),  # may be independent runs
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JAX_COORDINATOR_ADDRESS": "auto"}, True),
    ],
)
def test_several_tasks_are_one_run_unless_it_is_said_otherwise(variables, joins, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **arguments: calls.append(arguments))
    join_processes(variables, 300)
    assert [call["cluster_detection_method"] for call in calls] == [None] * joins


def test_an_mpi_that_jax_cannot_ask_needs_mpi4py(monkeypatch):
    variables = {"PMI_SIZE": "2", "PMI_RANK": "1"}
    monkeypatch.setattr(joining.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="install mpi4py, or set JAX_COORDINATOR_ADDRESS to host:port"):
        join_processes(variables, 300)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words, **arguments: calls.append((words, arguments)))
    monkeypatch.setattr(joining.importlib.util, "find_spec", lambda _: "found")
    join_processes(variables, 300)
    assert calls[0][1]["cluster_detection_method"] == "mpi4py"
    join_processes(variables | {"JAX_COORDINATOR_ADDRESS": "first:1234"}, 300)
    assert calls[1][0] == ("first:1234", 2, 1)


def test_an_unknown_cluster_is_one_line(tmp_path):
    """The real detection finds no cluster here. In a process of its own: in this one jax may have run before."""
    command = [sys.executable, "-m", "bert_jax.main", "--config=experiments/tiny.py", f"--workdir={tmp_path}"]
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": "auto"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "JAX_COORDINATOR_ADDRESS=auto: the processes cannot be joined (coordinator_address should" in ended.stderr


def launched(cluster, number):
    """The variables that a cluster's launcher gives to each of two processes on this machine."""
    port = str(PORTS.setdefault(cluster, free_port()))
    if cluster == "slurm":
        return SLURM | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "JAX_COORDINATOR_PORT": port}
    if cluster == "open mpi":
        ranks = {"OMPI_COMM_WORLD_RANK": str(number), "OMPI_COMM_WORLD_LOCAL_RANK": str(number)}
        return OPEN_MPI | ranks | {"JAX_COORDINATOR_PORT": port}
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}  # as a JobSet's template sets
    return address | {"JOB_COMPLETION_INDEX": str(number)}


PORTS = {}


@pytest.mark.parametrize(
    "cluster", ["slurm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("open mpi", "jobset"))]
)
def test_two_real_processes_find_each_other_and_agree(cluster, tmp_path):
    command = [sys.executable, "-c", JOIN]
    found = finished(command, tmp_path / "join", 2, variables=lambda number: launched(cluster, number))
    for number, (status, text) in enumerate(found):
        assert status == 0, text[-3000:]
        assert f"joined: {number} of 2 with 1" in text
        assert ("first: 0" in text) == (number == 0) and "first: 1" not in text
        told = "division by zero" if number == 0 else "process 0 failed; its output says why"
        assert f"together: {told}" in text
        values = "'/run0' on process 0, '/run1' on process 1, and in 1 more; "
        assert f"differ: the processes differ in paths.workdir: {values}" in text


@pytest.mark.slow
def test_processes_that_do_not_come_are_said_in_bounded_time(tmp_path):
    options = ("--config=experiments/tiny.py", "--config.mesh.join_seconds=3")
    command = lambda number: module(*options, f"--workdir={tmp_path / str(number)}")  # noqa: E731
    ports = [free_port(), free_port()]

    def variables(number):  # each waits for another one
        address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{ports[number]}", "JAX_NUM_PROCESSES": "2"}
        return address | {"JAX_PROCESS_ID": str(number)}

    for status, text in finished(command, tmp_path / "lonely", 2, variables=variables):
        waiting, *line = text.splitlines()
        assert status == 2 and "waiting for the other processes, at most 3 s" in waiting and len(line) == 1, text
        assert "not all came within 3 s (mesh.join_seconds): start all of them" in text


@pytest.mark.slow
def test_processes_that_differ_in_options_or_data_are_an_error_on_each(small_config, command_line, tmp_path):
    small_config.mesh.data = -1
    command = command_line(small_config, tmp_path / "run")
    other = lambda number: [*command, f"--config.train.steps={8 + number}"]  # noqa: E731
    found = finished(other, tmp_path / "steps", 2)
    for number, (status, text) in enumerate(found):
        assert status == 2, text[-3000:]
        who = "error: process 1: " if number else "error: "
        message = "the processes differ in train.steps: 8 on process 0, 9 on process 1; start all of them with"
        assert text.splitlines()[-1].startswith(who + message)
    rows = [{"text": word, "label": word} for word in ("red", "green")]
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green"]) + "\n"
    )
    for number in range(2):  # each machine has files of its own under one name
        (tmp_path / str(number)).mkdir()
        lines = [json.dumps(row) + "\n" for row in rows * (4 + number)]
        (tmp_path / str(number) / "rows.jsonl").write_text("".join(lines))
    keys = {"data.train": "rows.jsonl", "data.vocab_file": str(tmp_path / "vocab.txt"), "data.sequence_length": 8}
    keys |= {"data.buckets": 1, "train.batch_size": 4, "train.steps": 8, "train.epochs": None, "model.size": "tiny"}
    options = [f"--config.{key}={value}" for key, value in keys.items()]
    words = module(f"--config={ROOT}/experiments/classify.py", f"--workdir={tmp_path / 'tuned'}", *options)
    own = lambda number: ["env", f"--chdir={tmp_path / str(number)}", f"PYTHONPATH={ROOT}", *words]  # noqa: E731
    for status, text in finished(own, tmp_path / "data", 2):
        assert status == 2, text[-3000:]
        assert "the processes differ in the examples of train: " in text.splitlines()[-1]


def of_process(devices, layout, spec, index, monkeypatch):
    """What process `index` reads where device i of the mesh belongs to process layout[i]."""
    sharding = NamedSharding(Mesh(np.asarray(devices), ("data", "tensor")), spec)
    own = {device for device, process in zip(np.ravel(devices), layout, strict=True) if process == index}
    everywhere = sharding.devices_indices_map
    indices = lambda _, shape: {d: i for d, i in everywhere(shape).items() if d in own}  # noqa: E731
    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", indices)
    return parts_of_batch(sharding)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((8, 1), [0] * 8, {0: ([0], 1)}),
        ((8, 1), [0, 0, 0, 0, 1, 1, 1, 1], {0: ([0], 2), 1: ([1], 2)}),
        ((8, 1), [1, 1, 0, 0, 3, 3, 2, 2], {0: ([1], 4), 1: ([0], 4), 2: ([3], 4), 3: ([2], 4)}),
        # Neighbours of a torus that belong to several hosts, as jax orders a slice of 2×4
        ((8, 1), [0, 0, 1, 1, 0, 0, 1, 1], {0: ([0, 2], 4), 1: ([1, 3], 4)}),
        ((8, 1), [0, 1, 1, 0, 0, 1, 1, 0], {0: ([0, 3, 4, 7], 8), 1: ([1, 2, 5, 6], 8)}),
        ((4, 2), [0, 0, 0, 0, 1, 1, 1, 1], {0: ([0], 2), 1: ([1], 2)}),
        # An axis that does not split rows spans two processes: both read the same rows
        ((4, 2), [0, 1, 0, 1, 2, 3, 2, 3], {0: ([0], 2), 1: ([0], 2), 2: ([1], 2), 3: ([1], 2)}),
        ((1, 8), [0, 0, 0, 0, 1, 1, 1, 1], {0: ([0], 1), 1: ([0], 1)}),
    ],
)
def test_parts_of_a_batch_follow_the_devices(shape, layout, expected, monkeypatch):
    devices = np.asarray(jax.devices()).reshape(shape)
    for index, parts in expected.items():
        with monkeypatch.context() as patched:
            assert of_process(devices, layout, PartitionSpec("data"), index, patched) == parts


@pytest.mark.slow
def test_two_processes_are_one_run(small_config, command_line, tmp_path):
    small_config.model.dtype = "float32"
    small_config.mesh.data = -1
    one = run(command_line(small_config, tmp_path / "one"), tmp_path / "one", count=1, devices_each=4)
    two = run(command_line(small_config, tmp_path / "two"), tmp_path / "two", count=2, devices_each=2)
    assert [(r["step"], r["split"]) for r in one] == [(r["step"], r["split"]) for r in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-6), (a, b)
        assert a["mlm_accuracy"] == pytest.approx(b["mlm_accuracy"], abs=1e-6)
    assert read_checkpoint(find_checkpoint(str(tmp_path / "two"))).run["step"] == small_config.train.steps


def assert_close(one, two):
    """The same JSON, but for the rounding of float32 in its numbers."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
    if isinstance(one, dict | list):
        assert len(one) == len(two)
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_close(one[key], two[key])
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5)
    else:
        assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["ner.py:plain", "classify.py"])
def test_two_and_four_processes_fine_tune_and_predict_as_one(experiment, tmp_path):
    """Tags have outputs of their own for every token, which all processes gather before they are scored."""
    letters = [*"abcdefgh"]
    words = [[letters[(i * k) % 8] for k in range(1, 2 + i % 5)] for i in range(1, 17)]
    if experiment.startswith("ner"):
        rows = [{"words": some, "tags": [f"T{letters.index(word) % 2}" for word in some]} for some in words]
        keys = {"data.text": "words", "data.label": "tags"}
    else:
        rows = [{"text": " ".join(some), "label": f"C{letters.index(some[0]) % 3}"} for some in words]
        keys = {}
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]) + "\n")
    keys |= {f"data.{split}": str(tmp_path / "data.jsonl") for split in ("train", "validation", "test")}
    keys |= {"data.vocab_file": str(tmp_path / "vocab.txt"), "train.log_every": 1, "model.layers": "scan"}
    keys |= {"data.sequence_length": 16, "data.buckets": 1, "train.epochs": 2.0, "train.batch_size": 8}
    keys |= {"eval.batch_size": 8, "model.size": "tiny", "model.dtype": "float32", "train.peak_tflops": 1.0}
    options = [f"--config.{key}={value}" for key, value in keys.items()]
    found, predicted = [], []
    for count in (1, 2, 4):
        workdir = tmp_path / str(count)
        command = module(f"--config=experiments/{experiment}", f"--workdir={workdir}", *options)
        lines = run(command, workdir, count, devices_each=4 // count)
        speed = ("tokens_per_second", "sequences_per_second", "step_seconds", "mfu", "wait_share")
        found.append([{name: value for name, value in line.items() if name not in speed} for line in lines])
        predicted.append([*map(json.loads, (workdir / "predictions/validation.jsonl").read_text().splitlines())])
        assert (workdir / "report.html").is_file()
    assert found[0][-1]["split"] == "test" and len(predicted[0]) == 16
    for number in (1, 2):
        assert_close(found[0], found[number])
        assert_close(predicted[0], predicted[number])


@pytest.mark.slow
def test_every_process_says_what_is_wrong_with_the_corpus(small_config, command_line, tmp_path):
    (tmp_path / "one.txt").write_text("One sentence here. And another one there.\n" * 50)
    small_config.data.corpus, small_config.data.files = "text", str(tmp_path / "one.txt")
    small_config.data.validation_share = small_config.data.test_share = 0.0
    small_config.mesh.data = -1
    command = command_line(small_config, tmp_path / "run")
    for status, text in finished(command, tmp_path / "output", count=2, devices_each=1):
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
        options = [f"--config.{key}={value}" for key, value in (keys | more).items()]
        command = module("--config=experiments/classify.py", f"--workdir={tmp_path / name}", *options)
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
