"""What cannot fit is refused, and what ran out says which options to change."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.options import default_config
from bert_jax.sharding import make_mesh
from bert_jax.training import memory
from bert_jax.training.step import TrainState

TASK = SimpleNamespace(
    tokens_per_step=800,
    config=ConfigDict({"train": {"accumulation": 2}, "model": {"dtype": "bfloat16"}}),
    bert_config=SimpleNamespace(num_hidden_layers=3, hidden_size=10),
)


def mesh_of(devices):
    config = default_config().mesh
    config.data = devices
    return make_mesh(config)


def state(count):
    weights = {"w": jax.ShapeDtypeStruct((count,), jnp.float32)}
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32), weights, (weights, weights))  # pyright: ignore


@pytest.mark.parametrize("devices", [1, 8])
def test_state_and_activations_are_counted_per_device(monkeypatch, devices):
    mesh = mesh_of(devices)
    # Parameters, gradients and two moments of 100 numbers each; a micro-batch of 400 tokens, 3 layers of 10 values.
    needed = 4 * 4 * 100 + 400 * 3 * 10 * 2 // devices
    monkeypatch.setattr(memory, "host_memory", lambda: needed * devices)
    memory.check_fits(TASK, state(100), mesh)  # pyright: ignore
    monkeypatch.setattr(memory, "host_memory", lambda: (needed - 1) * devices)
    with pytest.raises(UserError, match=r"a step needs at least .* GB per device .*: lower train\.batch_size"):
        memory.check_fits(TASK, state(100), mesh)  # pyright: ignore


def test_a_compiled_step_over_the_memory_is_refused(monkeypatch):
    program = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((1024,), jnp.float32)).compile()
    mesh = mesh_of(1)
    monkeypatch.setattr(memory, "host_memory", lambda: 2 * 4096)
    memory.check_program_fits(program, mesh)
    monkeypatch.setattr(memory, "host_memory", lambda: 2 * 4096 - 1)
    with pytest.raises(UserError, match="a step needs"):
        memory.check_program_fits(program, mesh)


@pytest.mark.parametrize(
    "problem",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes\nlong table"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_which_options_to_change(problem):
    with (
        pytest.raises(UserError, match=r"^out of memory \(.*\): lower train\.batch_size"),
        memory.out_of_memory_explained(),
    ):
        raise problem


def test_other_errors_of_a_device_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.out_of_memory_explained():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
