"""Names of machines: which are understood, which are refused and how, what a process needs to compile for them."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from bert_jax.config import UserError
from bert_jax.lab import topology
from bert_jax.lab.topology import CHIPS, GIB, Topology
from bert_jax.sharding import _arranged


@pytest.mark.parametrize(
    ("name", "chip", "shape", "slices"),
    [
        ("v5e:2x4", "v5e", (2, 4), 1),
        ("v4:2x2x2", "v4", (2, 2, 2), 1),
        ("2xv5e:4x4", "v5e", (4, 4), 2),
        ("h100:8", "h100", (8,), 1),
        ("h100:16", "h100", (16,), 1),
        ("cpu:3", "cpu", (3,), 1),
    ],
)
def test_names_are_understood(name, chip, shape, slices):
    assert Topology.parse(name) == Topology(name, chip, shape, slices)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "--topology is ''; it must be CHIP:SHAPE, such as v4:2x2x2, v5e:2x4, "),
        ("v5e", "it must be CHIP:SHAPE"),
        ("v5e:2*4", "it must be CHIP:SHAPE"),
        ("2*v5e:4x4", "COUNTxCHIP:SHAPE for several slices of TPUs, as 2xv5e:4x4"),
        ("v5litepod:2x4", "there is no chip 'v5litepod'; it can be v4, v5e, v5p, v6e, h100, cpu"),
        ("v5e:2x2x2", "v5e needs a size for each of its 2 axes, as in v5e:2x4"),
        ("v4:2x4", "v4 needs a size for each of its 3 axes, as in v4:2x2x2"),
        ("v5e:0x4", "v5e needs a size for each"),
        ("0xv5e:2x4", "v5e needs a size for each"),
        ("cpu:2x4", "cpu needs the number of devices, as in cpu:8"),
        ("2xh100:8", "only TPUs have slices: give the number of all devices, h100:N"),
        ("h100:12", "over 8 GPUs must fill hosts of 8"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UserError) as caught:
        Topology.parse(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x4", "tpu"), ("h100:8", "cuda13")])
def test_a_compiler_that_is_not_installed_is_named_with_its_extra(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"--topology={name} needs \S+: pip install -e '\.\[{extra}\]'"):
        Topology.parse(name).check_installed()


def test_the_environment_is_that_of_the_machine():
    given = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --other", "HOME": "/home"}
    cpu, tpu, gpu = (Topology.parse(name).environment(given) for name in ("cpu:3", "v5e:2x4", "h100:8"))
    assert cpu["XLA_FLAGS"].endswith("--other --xla_force_host_platform_device_count=3")
    assert tpu["XLA_FLAGS"] == given["XLA_FLAGS"] and tpu["TPU_SKIP_MDS_QUERY"] == "1"
    assert gpu["XLA_FLAGS"].endswith("--xla_gpu_autotune_level=0")
    assert all(one["JAX_PLATFORMS"] == "cpu" and one["HOME"] == "/home" for one in (cpu, tpu, gpu))


def test_chips_are_written_as_on_their_data_sheets():
    assert CHIPS["v5e"].memory == 15.75 * GIB  # of 16
    for name, chip in CHIPS.items():
        if chip.platform != "cpu":
            assert chip.memory and chip.bandwidth and chip.network and chip.bandwidth > chip.network, name


def test_every_gpu_has_a_description_for_the_compiler_that_is_packaged():
    for name, chip in CHIPS.items():
        if chip.platform == "gpu":
            text = topology.target(name)
            assert f"device_memory_size: {chip.memory}" in text
            assert f"memory_bandwidth: {int(chip.bandwidth or 0)}" in text
    packaged = (Path(__file__).resolve().parents[2] / "setup.cfg").read_text()
    assert "targets/*.txtpb" in packaged


def slices(count, sizes):
    """Devices as those of `count` TPU slices look; two devices share a host."""
    coordinates = [(x, y, 0) for y in range(sizes[1]) for x in range(sizes[0])]
    return [
        SimpleNamespace(platform="tpu", device_kind="TPU v6 lite", slice_index=number, coords=at, core_on_chip=0, id=i)
        for number in range(count)
        for i, at in enumerate(coordinates)
    ]


@pytest.mark.parametrize("sizes", [(16, 1, 1), (2, 8, 1), (4, 2, 2), (1, 16, 1)])
def test_one_axis_of_the_mesh_spans_the_slices(sizes):
    arranged = _arranged(sizes, slices(2, (2, 4)))
    assert arranged.shape == sizes
    flat = arranged.reshape(2, -1)  # along the first axis that is not 1
    assert [{device.slice_index for device in half} for half in flat] == [{0}, {1}]
    assert len({id(device) for device in arranged.flat}) == 16


def test_an_axis_may_be_half_of_one_of_the_network():
    assert _arranged((1, 8, 2), slices(1, (4, 4))).shape == (1, 8, 2)


def test_slices_that_no_axis_can_span_are_refused():
    with pytest.raises(UserError, match=r"the mesh is \(5, 4, 1\) \(data, fsdp, tensor\): 3 slices must divide one"):
        _arranged((5, 4, 1), slices(3, (2, 4))[:20])
