"""A program is traced for the devices that it will run on, whatever this machine has."""

from dataclasses import replace

import jax

from bert_jax import backend
from bert_jax.backend import CPU, GPU, TPU, Backend
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.sharding import make_mesh
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.step import abstract_state, make_train_step


def test_the_training_step_is_traced_for_another_platform(small_config):
    """On a TPU layers are a loop, products give bfloat16 and the vocabulary is padded to tiles; on a CPU none is so."""
    small_config.model.update(dtype="bfloat16", num_hidden_layers=3)
    task = Pretraining.over(small_config, prepare(small_config.data, small_config.data.seed, progress=False))
    schedule = make_schedule(small_config.optimizer, 8)
    optimizer = make_optimizer(small_config.optimizer, schedule)
    graphdef, state = abstract_state(task, optimizer)
    arguments = state, {}, next(task.train_batches(0, 0, 1)), jax.random.key(0)
    vocabulary = task.bert_config.vocab_size
    padded = -(-vocabulary // 128) * 128
    assert padded > vocabulary

    one = make_mesh(small_config.mesh)

    def traced(target: Backend) -> str:
        step = make_train_step(task, graphdef, optimizer, schedule, replace(one, backend=target))
        return str(step.trace(*arguments).jaxpr)  # type: ignore[attr-defined]

    on_tpu, on_cpu = traced(TPU), traced(CPU)
    for sign in ("length=3", "preferred_element_type=bfloat16", f",{padded}]"):
        assert sign in on_tpu and sign not in on_cpu, sign
    assert "row_major" in on_cpu and "row_major" not in on_tpu


def test_the_backend_is_that_of_the_mesh_or_of_whoever_traces(small_config):
    assert backend.current() is CPU is make_mesh(small_config.mesh).backend
    asked = backend.traced_for(GPU, lambda: backend.current())
    assert asked() is GPU and backend.current() is CPU


def test_options_that_the_user_sets_in_xla_flags_win_over_ours(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3 --xla_dump_to=/dumps")
    ours = {"xla_backend_optimization_level": 1, "xla_dump_hlo_as_text": True}
    assert backend._unless_in_xla_flags(ours) == {"xla_dump_hlo_as_text": True}
    monkeypatch.delenv("XLA_FLAGS")
    assert backend._unless_in_xla_flags(ours) == ours
