"""`--mode=compile`: what programs need on machines that are not there, what helps, and what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ml_collections.config_dict import placeholder

from bert_jax import modes
from bert_jax.config import UserError
from bert_jax.lab import compile as lab
from bert_jax.lab import programs
from bert_jax.lab.compile import EVALUATION, TRAINING, compile_experiment, compiled
from bert_jax.lab.topology import GIB, Topology
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.step import abstract_state
from experiments import classify, ner

ROOT = Path(__file__).resolve().parents[2]
CPU, NO_RUN = Topology.parse("cpu:8"), Path("none")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'"
)


@pytest.fixture
def config(small_config):
    """Of all devices; nothing that would have to be read is there."""
    small_config.model.num_hidden_layers = 1
    small_config.mesh.data = placeholder(int)
    small_config.data.update(files="nowhere", prepared="nowhere", vocab_file="")
    return small_config


def finetuning(config, experiment, **data):
    """The small model on another task."""
    other = experiment.get_config()
    other.model.update(config.model.to_dict())
    other.data.update(vocab_size=600, sequence_length=32, **data)
    other.train.update(batch_size=16)
    other.eval.update(batch_size=16)
    return other


def in_this_process(config, names=(TRAINING, EVALUATION)):
    lines = list(programs.compile_programs(config, CPU, NO_RUN, list(names)))
    return {line["program"]: line for line in lines if "seconds" in line}


def test_a_pretraining_step_is_counted_without_data(config):
    found = in_this_process(config)
    task = Pretraining.without_data(config, programs._tokenizer(config), None)
    schedule = make_schedule(config.optimizer, config.train.steps)
    state = abstract_state(task, make_optimizer(config.optimizer, schedule))[1]
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    batch = sum(x.size * x.dtype.itemsize for x in task.batch_shapes(training=True).values())
    memory = found[TRAINING]["memory"]
    assert memory["arguments"] == pytest.approx(held + batch / 8, abs=100)  # the key, besides
    assert memory["arguments"] < memory["peak"] <= memory["available"]
    gradients = sum(x.size * x.dtype.itemsize for x in state.parameters.values())
    assert found[TRAINING]["collectives"]["all-reduce"]["bytes"] == pytest.approx(gradients, rel=0.01)
    assert found[EVALUATION]["memory"]["arguments"] < memory["arguments"] / 2  # no optimizer
    assert found[TRAINING]["limits"] == {"flops": task.flops_per_step, "products": task.flops_per_step / 8e12}


def test_splitting_the_state_takes_it_from_the_arguments(config):
    config.mesh.update(preset="fsdp", smallest=0)
    (split,) = in_this_process(config, [TRAINING]).values()
    task = Pretraining.without_data(config, programs._tokenizer(config), None)
    parameters = jax.tree.leaves(abstract_state(task, make_optimizer(config.optimizer, lambda _: 0.0))[1])
    assert split["memory"]["arguments"] < sum(x.size * x.dtype.itemsize for x in parameters) / 4
    assert "all-gather" in split["collectives"]


@pytest.mark.parametrize(("experiment", "data"), [(classify, {"text": "t"}), (ner, {})])
def test_finetuning_needs_no_data_and_no_labels(config, experiment, data):
    name = TRAINING if experiment is ner else EVALUATION
    (found,) = in_this_process(finetuning(config, experiment, **data), [name]).values()
    assert found["program"] == name
    assert 0 < found["memory"]["arguments"] < found["memory"]["peak"]


def test_the_command_prints_and_writes(config, command_line, tmp_path):
    config.mesh.preset = "data"
    command = command_line(config, tmp_path / "run")
    flags = ["--mode=compile", "--topology=cpu:2", f"--output={tmp_path}/needs.json"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu:2: 2 × cpu, batches of 16\ntraining step, compiled in ")
    assert "fits\n" in done.stdout and "evaluation step, compiled in" in done.stdout
    written = json.loads((tmp_path / "needs.json").read_text())
    assert [one["program"] for one in written["programs"]] == [TRAINING, EVALUATION]
    assert written["programs"][0]["devices"] == 2 and written["variants"] == []
    assert not (tmp_path / "run").exists()


@needs_libtpu
def test_a_tpu_slice_is_compiled_for_without_one(config):
    (found,) = compiled(config, Topology.parse("v5e:2x4"), NO_RUN, [TRAINING])
    assert (found["devices"], found["kind"]) == (8, "TPU v5 lite")
    assert 0 < found["memory"]["peak"] < found["memory"]["available"] == 15.75 * GIB
    assert found["collectives"]["all-reduce"]["bytes"] > 100_000
    assert set(found["limits"]) == {"flops", "products", "memory", "network"}


@needs_libtpu
@pytest.mark.slow
def test_what_is_too_large_for_a_tpu_is_refused_with_what_helps(config, capsys, monkeypatch):
    monkeypatch.setattr(lab, "_variants", lambda config, name: iter([{"train.accumulation": 64}]))
    config.data.sequence_length = 512
    config.train.batch_size = 1 << 17
    with pytest.raises(UserError, match=r"the training step does not fit v5e:2x4 .* it fits with \S+accumulation=64$"):
        compile_experiment(config, NO_RUN, "v5e:2x4")
    assert "  --config.train.accumulation=64: peak " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "peak", "available"),
    [
        ("Ran out of memory in memory space hbm. Used 30.75G of 15.75G hbm. Exceeded by 15.00G.", 30.75, 15.75),
        ("the total memory required for HLO temporaries (160.00G) exceeds available HBM (31.25G).", 160, 31.25),
    ],
)
def test_the_compilers_own_count_of_memory_is_read(message, peak, available):
    memory = programs._refused(f"RESOURCE_EXHAUSTED: {message}", CPU)["memory"]
    assert memory == {"peak": peak * GIB, "available": available * GIB}


def program(name, peak):
    return {"program": name, "devices": 8, "kind": "chip", "seconds": 1.0, "collectives": {}} | {
        "memory": {"peak": peak * GIB, "available": 16 * GIB}
    }


def compile_by(monkeypatch, peak_of):
    """Lets `compiled` answer with the peak that `peak_of` returns for a config."""
    seen = []

    def answer(config, topology, workdir, names=(TRAINING, EVALUATION)):
        seen.append((config.model.remat, config.train.accumulation, config.mesh.preset))
        return [program(name, peak_of(config) if name == TRAINING else 1) for name in names]

    monkeypatch.setattr(lab, "compiled", answer)
    return seen


def test_options_that_help_are_printed_with_their_peaks(monkeypatch, config, capsys, tmp_path):
    peaks = {"full": 10.0, "none": 40.0}
    seen = compile_by(monkeypatch, lambda config: peaks[config.model.remat] / config.train.accumulation)
    with pytest.raises(UserError) as caught:
        compile_experiment(config, NO_RUN, "cpu:8", str(tmp_path / "needs.json"))
    printed = capsys.readouterr().out
    assert str(caught.value).startswith("the training step does not fit cpu:8 (peak 40.00 of 16.00 GiB per device)")
    assert str(caught.value).endswith("it fits with --config.model.remat=full")
    assert "  --config.model.remat=full: peak 10.00 of 16.00 GiB: fits\n" in printed
    assert "  --config.train.accumulation=2: peak 20.00 of 16.00 GiB: too much\n" in printed
    assert "  --config.train.accumulation=4: peak 10.00 of 16.00 GiB: fits\n" in printed
    assert seen == [
        *[("none", 1, "data"), ("full", 1, "data"), ("none", 2, "data"), ("none", 4, "data"), ("none", 1, "fsdp")]
    ]
    assert len(json.loads((tmp_path / "needs.json").read_text())["variants"]) == 4


def test_combinations_are_tried_where_no_single_option_is_enough(monkeypatch, config):
    enough = lambda config: config.model.remat == "full" and config.mesh.preset == "fsdp"  # noqa: E731
    compile_by(monkeypatch, lambda config: 15.0 if enough(config) else 20.0)
    with pytest.raises(UserError, match=r"it fits with --config\.model\.remat=full --config\.mesh\.preset=fsdp$"):
        compile_experiment(config, NO_RUN, "cpu:8")


def test_nothing_is_promised_where_nothing_helps(monkeypatch, config):
    compile_by(monkeypatch, lambda config: 100.0)
    with pytest.raises(UserError, match=r"choose more or larger devices, or a smaller batch$"):
        compile_experiment(config, NO_RUN, "cpu:8")


def test_a_compiler_that_crashes_is_one_line(config, tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text(
        "import os, sys\n"
        "from bert_jax.tasks.pretraining import Pretraining\n"
        "class Crash(Pretraining):\n"
        "    def batch_shapes(self, *, training):\n"
        "        print('F1130 00:00 sharding.cc:1] Check failed: rank == 3', file=sys.stderr, flush=True)\n"
        "        print('    @ 0x55 stack', file=sys.stderr, flush=True)\n"
        "        os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    config.task = "crashing.Crash"
    (found,) = compiled(config, CPU, NO_RUN, [TRAINING])
    assert found["crashed"] == "SIGABRT: F1130 00:00 sharding.cc:1] Check failed: rank == 3"
    assert list(lab.describe(found)) == [f"training step: the compiler crashed ({found['crashed']})"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"batch_size": 12}}, "train.batch_size 12 is not a multiple of 8 devices"),
        ({"train": {"accumulation": 3}}, "is not a multiple of 8 devices × 3 micro-batches"),
        ({"mesh": {"tensor": 3}}, "mesh.tensor=3"),
        ({"mesh": {"tensor": 4}}, "mesh.tensor=4 does not divide the 2 attention heads"),
        ({"data": {"sequence_length": 1024}}, "data.sequence_length 1024 is over model.max_position_embeddings 512"),
        ({"init_from": "nowhere"}, "init_from=nowhere does not exist"),
    ],
)
def test_a_config_that_cannot_run_there_is_refused(config, change, message):
    config.update(change)
    with pytest.raises(UserError) as caught:
        in_this_process(config, [TRAINING])
    assert message in str(caught.value)


def test_a_machine_that_the_compiler_does_not_know(config):
    with pytest.raises(UserError, match="--mode=compile needs --topology"):
        modes.compile(config, NO_RUN, topology="")
    with pytest.raises(UserError, match=r"--output=needs\.txt: --mode=compile writes \.json"):
        modes.compile(config, NO_RUN, topology="cpu:8", output="needs.txt")


@needs_libtpu
def test_a_slice_that_cannot_be(config):
    with pytest.raises(UserError, match=r"--topology=v5e:3x5 is not a machine that the compiler knows \(INVALID"):
        compiled(config, Topology.parse("v5e:3x5"), NO_RUN, [TRAINING])
