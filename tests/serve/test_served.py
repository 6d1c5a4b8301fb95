"""A checkpoint as it is served: its tasks share their trunk in memory, and each device has a copy of its own."""

import gc

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from bert_jax.config import UserError
from bert_jax.inference.loaded import load_members
from bert_jax.serve.__main__ import _devices, _hosts
from bert_jax.serve.routes import Setup
from bert_jax.serve.served import Slot

from .conftest import write_classifier


def opened(path, device=0):
    given = {"dtype": None, "batch_size": 1, "checkpoint": "best", "task": "", "overrides": {}}
    return load_members(path, device=device, **given)


def leaves(model):
    return jax.tree.leaves(trunk(model))


def trunk(model):
    at_work = model._opened.at_work
    return jax.tree.unflatten(at_work._tree, at_work._leaves).trunk


def pointers(model):
    return [leaf.unsafe_buffer_pointer() for leaf in leaves(model)]


def test_tasks_have_one_trunk_in_memory(models):
    found = opened(models["several"])
    assert list(found) == ["", "ner", "squad"]
    assert pointers(found["ner"]) == pointers(found["squad"]) == pointers(found[""])
    assert pointers(found[""]) != pointers(opened(models["several"])[""])


def test_a_model_of_one_task_is_all_there_is(models):
    assert list(opened(models["sst2"])) == [""]


def test_each_device_has_a_copy_that_answers_alike(models):
    slot = Slot("sst2", str(models["sst2"]), "best", opened, Setup(attention=False), [24], devices=2)
    served = slot.served[""]
    places = [{leaf.device for leaf in leaves(model)} for model in served.models]
    assert places == [{jax.devices()[0]}, {jax.devices()[1]}]
    texts = ["good a b", "c"]
    [first, second, third] = (served.run("embed", texts, thread) for thread in range(3))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_a_newer_checkpoint_that_cannot_be_read_now_is_tried_again(tmp_path):
    write_classifier(tmp_path)
    wrong = []

    def load(path, device):
        if wrong:
            raise wrong.pop()
        return opened(path, device)

    slot = Slot("sst2", str(tmp_path), "best", load, Setup(attention=False), [24])
    write_classifier(tmp_path, step=9)
    memory = JaxRuntimeError("RESOURCE_EXHAUSTED: of a device")
    for problem, again in (
        (OSError("stale handle"), True),
        (MemoryError(), True),
        (memory, True),
        (UserError("damaged"), False),
    ):
        wrong.append(problem)
        assert not slot.reload() and slot.step == 5
        assert not wrong
        if not again:
            assert not slot.reload() and slot.step == 5  # nothing has changed
    gc.collect()
    arrays = len(jax.live_arrays())
    gc.disable()
    try:
        assert slot.reload(anyway=True) and slot.step == 9  # as at SIGHUP
    finally:
        gc.enable()
    assert len(jax.live_arrays()) <= arrays  # a server that reloads for weeks holds one model
    assert not slot.reload()


def test_devices_are_those_that_there_are():
    assert (_devices(0), _devices(1), _devices(8)) == (8, 1, 8)
    with pytest.raises(UserError, match="--devices=9: this machine has 8; give no more, or 0 for all of them"):
        _devices(9)


def test_names_of_the_server_are_in_addition_to_those_of_this_machine():
    local = {"localhost", "127.0.0.1", "[::1]"}
    assert _hosts("127.0.0.1", "") == local
    assert _hosts("0.0.0.0", "") == set()  # any
    assert _hosts("0.0.0.0", "Api.example.com, ") == _hosts("::1", "api.example.com") == local | {"api.example.com"}
