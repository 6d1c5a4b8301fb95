"""Where a step's time goes: the sharing of moments, what an operation is, a real trace of a small model."""

import json
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import modes
from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.lab import profile
from bert_jax.lab.profile import IDLE, WAIT, Profiler, Span, break_down, read_program, share_time
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.loop import train
from bert_jax.training.observer import DATA_WAIT


def spans(*rows):
    return [Span(start, end, name, "1") for start, end, name in rows]


def test_moments_are_shared_by_hand():
    outer = spans((10, 40, "while"), (15, 25, "dot"), (15, 20, "inner"))  # in the loop a product, in it one more
    other = spans((20, 30, "add"))
    waits = spans((0, 5, "wait"), (38, 45, "wait"))
    assert share_time([outer, other], waits) == {
        WAIT: 5 + 5,  # 0–5 and 40–45: before 40 there is an operation
        IDLE: 5,  # 5–10
        ("1", "while"): 5 + 2.5 + 10,  # 10–15, half of 25–30, 30–40
        ("1", "inner"): 5,
        ("1", "dot"): 2.5,  # half of 20–25
        ("1", "add"): 2.5 + 2.5,
    }


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.sampled_from("abc")), max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_shares_add_up_to_the_time_that_passed(drawn):
    lanes = [spans(*((start, start + length, name) for start, length, name in lane)) for lane in drawn]
    busy = [span for lane in lanes for span in lane if span.end > span.start]
    shares = share_time(lanes, [])
    passed = max(span.end for span in busy) - min(span.start for span in busy) if busy else 0
    assert sum(shares.values()) == pytest.approx(passed)


HLO = """HloModule jit_step, is_scheduled=true

FileNames
1 "/x/bert_jax/training/step.py"
2 "/x/bert_jax/models/attention.py"
3 "/y/optax/_src/update.py"

FunctionNames
1 "step"
2 "SelfAttention.__call__"
3 "attend"
4 "apply_updates"

FileLocations
1 {file_name_id=1 function_name_id=1 line=4}
2 {file_name_id=2 function_name_id=2 line=4}
3 {file_name_id=2 function_name_id=3 line=4}
4 {file_name_id=3 function_name_id=4 line=4}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=2}

%fused (p: f32[4,8]) -> bf16[8,4] {
  %p = f32[4,8]{1,0} parameter(0)
  %t = f32[8,4]{1,0} transpose(%p), dimensions={1,0}
  ROOT %c = bf16[8,4]{1,0} convert(%t), metadata={op_name="jit(step)/jvp()/convert_element_type" stack_frame_id=2}
}

%fused.1 (p: f32[4,8]) -> f32[4,8] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  ROOT %e = f32[4,8]{1,0} exponential(%p.1), metadata={op_name="jit(step)/jvp()/exp" stack_frame_id=3}
}

ENTRY %main (x: f32[4,8]) -> (f32[8,8], /*index=1*/f32[4,8]) {
  %x = f32[4,8]{1,0} parameter(0), metadata={op_name="x"}
  %turned.3 = bf16[8,4]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused
  %soft = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused.1
  %gemm = (f32[8,8]{1,0}, s8[9]{0}) custom-call(%turned.3, %x), custom_call_target="__cublas$gemm", \
metadata={op_name="jit(step)/transpose(jvp())/dot_general" stack_frame_id=2}
  %plain = f32[8,8]{1,0} dot(%turned.3, %x), metadata={op_name="jit(step)/jvp()/dot_general" stack_frame_id=2}
  %ones = f32[8,8]{1,0} dot(%turned.3, %x), metadata={op_name="jit(step)/jvp()/reduce_sum" stack_frame_id=2}
  %all-reduce-start.2 = f32[8,8]{1,0} all-reduce-start(%plain), metadata={op_name="jit(step)/transpose(jvp())/mul"}
  %adam = f32[8,8]{1,0} add(%plain, %ones), metadata={op_name="jit(step)/add" stack_frame_id=4}
  %mask = f32[4,8]{1,0} negate(%x), metadata={op_name="jit(step)/neg" stack_frame_id=1}
  ROOT %out = (f32[8,8]{1,0}, /*index=1*/f32[4,8]{1,0}) tuple(%adam, %mask)
}
"""


def test_a_program_is_read_by_hand():
    found = read_program(HLO)
    assert {name: found[name].group for name in ("turned.3", "soft", "gemm", "plain", "ones", "adam", "mask")} == {
        "turned.3": profile.COPIES,
        "soft": profile.ATTENTION,
        "gemm": profile.BACKWARD,
        "plain": profile.FORWARD,
        "ones": profile.ELEMENTWISE,
        "adam": profile.OPTIMIZER,
        "mask": profile.REST,
    }
    assert found["all-reduce-start.2"].group == profile.COLLECTIVES
    assert found["turned.3"] == (profile.COPIES, "turned", "bf16[8,4]", "SelfAttention")
    assert found["gemm"].shape == "(f32[8,8], s8[9])"


def event(start, end, name, **stats):
    return SimpleNamespace(start_ns=start, end_ns=end, name=name, stats=list(stats.items()))


def plane(name, **lines):
    lines = [SimpleNamespace(name=line.replace("_", " "), events=events) for line, events in lines.items()]
    return SimpleNamespace(name=name, lines=lines)


def test_two_gpus_are_averaged():
    host = plane("/host:CPU", python=[event(0, 1e9, DATA_WAIT), event(1e9, 2e9, "something else")])
    first = plane("/device:GPU:0", Stream=[event(1e9, 3e9, "kernel_7", hlo_op="plain", program_id=4)])
    second = plane("/device:GPU:1", Stream=[event(1e9, 2e9, "kernel_7", hlo_op="plain", program_id=4)])
    found = break_down([host, first, second], [HLO], steps=2)
    assert found.groups[profile.FORWARD] == (2 + 1) / 2 / 2
    assert found.groups[WAIT] == 1 / 2
    assert found.seconds == (3 + 2) / 2 / 2
    assert [(row["operation"], row["calls"]) for row in found.operations] == [("plain", 0.5)]


def test_a_tpu_has_a_line_of_operations():
    ops = [event(0, 1e9, "%gemm = (f32[8,8]) custom-call(...)"), event(1e9, 4e9, "%new.1 = f32[] add(...)")]
    tpu = plane("/device:TPU:0", Steps=[event(0, 9e9, "7")], XLA_Ops=ops)
    found = break_down([plane("/host:CPU"), tpu], [HLO], steps=1)
    assert found.groups[profile.BACKWARD] == 1
    assert found.groups[profile.REST] == 3  # in no program that is known
    assert found.seconds == 4


def test_a_trace_without_operations_is_said():
    with pytest.raises(UserError, match="names no operations"):
        break_down([plane("/host:CPU", python=[event(0, 1, "f")])], [HLO], steps=1)


def run(config, workdir, profiler):
    task = Pretraining.over(config, prepare(config.data, 0, progress=False))
    train(task, config, workdir, [profiler])  # pyright: ignore[reportArgumentType]


def test_a_run_is_broken_down(small_config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    small_config.eval.at_start = False
    profiler = Profiler(tmp_path / "profile", steps=2)
    run(small_config, tmp_path, profiler)
    profiler.end()  # has ended already, and says nothing
    found = json.loads((tmp_path / "profile" / "profile.json").read_text())
    groups = found["groups"]
    assert found["steps"] == 2
    assert sum(groups.values()) == pytest.approx(found["seconds"])
    operations = [(row["group"], row["seconds"]) for row in found["operations"]]
    for name in set(groups) - {WAIT, IDLE}:
        assert sum(seconds for group, seconds in operations if group == name) == pytest.approx(groups[name])
    for name in (profile.FORWARD, profile.BACKWARD, profile.ATTENTION, profile.ELEMENTWISE, profile.COPIES):
        assert groups[name] > 0, name
    assert groups[profile.OPTIMIZER] > 0 and groups[WAIT] > 0 and groups[profile.COLLECTIVES] == 0
    # Forward 6 products a layer, the token types, pooler, NSP, the MLM head's 2; backward two for each, but one for the
    # token types: a one-hot needs no gradient.
    calls = {name: sum(row["calls"] for row in found["operations"] if row["group"] == name) for name in groups}
    assert (calls[profile.FORWARD], calls[profile.BACKWARD]) == (17, 33)
    assert (tmp_path / "profile" / "profile.txt").read_text() in caplog.text
    assert any("Linear < Layer" in row["function"] for row in found["operations"])


def test_a_run_too_short_to_trace_is_said(small_config, tmp_path, caplog):
    small_config.train.steps = 2
    profiler = Profiler(tmp_path / "profile", steps=2)
    run(small_config, tmp_path, profiler)
    assert "nothing was traced" in caplog.text
    assert not (tmp_path / "profile").exists()


def test_seeds_are_not_profiled(small_config, tmp_path):
    small_config.seeds = 2
    with pytest.raises(UserError, match=r"--profile=3 is for one run"):
        modes.train(small_config, tmp_path, profile=3)
