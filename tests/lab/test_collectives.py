"""What devices exchange, from programs written by hand: bytes, loops, groups."""

import pytest

from bert_jax.lab.collectives import Collective, by_kind, collectives

LOOP = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (state: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %state = (s32[], f32[4]) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

%inner (x: f32[4]) -> f32[4] {
  ROOT %all-gather.1 = f32[8]{0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}
}

%body (state.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state.1 = (s32[], f32[4]) parameter(0)
  %fused = f32[8] fusion(%x), kind=kLoop, calls=%inner
  ROOT %all-reduce.1 = f32[4] all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%unused (x.2: f32[4]) -> f32[4] {
  ROOT %all-reduce.9 = f32[4] all-reduce(%x.2), to_apply=%add
}

ENTRY %main (x.1: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[4]) while(%tuple), condition=%condition, body=%body
  %start = ((f32[2]), (f32[16])) all-gather-start(%x.1), replica_groups=mesh['a'=8,'b'=4] {'a'}, dimensions={0}
  %done = f32[16] all-gather-done(%start)
  %permute = (bf16[3], bf16[3], u32[], u32[]) collective-permute-start(%x.1), source_target_pairs={{0,1}}
  %other = (f32[5], u32[], token[]) send(%x.1, %after), is_host_transfer=true
  %sent = token[] send-done(%other), is_host_transfer=true
  ROOT %out = f32[4] add(%x.1, %x.1)
}
"""


def test_loops_are_multiplied_and_results_counted_once():
    assert sorted(collectives(LOOP)) == [
        Collective("all-gather", 8 * 4, times=12, group=2),
        Collective("all-gather", 16 * 4, group=8),
        Collective("all-reduce", 4 * 4, times=12, group=4),
        Collective("collective-permute", 3 * 2),
        Collective("send", 5 * 4),
    ]
    assert by_kind(collectives(LOOP)) == {
        "all-gather": {"count": 13, "bytes": 12 * 32 + 64},
        "all-reduce": {"count": 12, "bytes": 12 * 16},
        "collective-permute": {"count": 1, "bytes": 6},
        "send": {"count": 1, "bytes": 20},
    }


def test_a_tpus_fusions_are_what_they_do():
    """One all-gather in three steps beside products; an all-reduce of which every device keeps its quarter."""
    steps = "\n".join(f"  %g{i} = f32[8] all-gather(%x.1), channel_id=7, replica_groups=[2,4]<=[8]" for i in range(3))
    text = LOOP.replace("%unused (x.2", "%all-reduce-scatter.3 (x.2")
    text = text.replace("all-reduce(%x.2)", "all-reduce(%x.2), replica_groups=[2,4]<=[8]")
    text = text.replace(
        "  %start =", f"{steps}\n  %kept = f32[1] fusion(%x.1), calls=%all-reduce-scatter.3\n  %start ="
    )
    more = sorted({*collectives(text)} - {*collectives(LOOP)})
    assert more == [Collective("all-gather", 8 * 4, group=4), Collective("reduce-scatter", 4 * 4 // 4, group=4)]
    assert len(collectives(text)) == len(collectives(LOOP)) + 2


def test_a_stated_trip_count_has_precedence():
    stated = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    text = LOOP.replace("body=%body", stated)
    assert {one.times for one in collectives(text) if one.group in (2, 4)} == {5}


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 3 / 4 * 100),  # scattered, then gathered
        ("all-gather", 3 / 4 * 100),
        ("reduce-scatter", 3 * 100),  # 100 bytes are a quarter
        ("collective-permute", 100),
    ],
)
def test_what_a_ring_sends(kind, sent):
    assert Collective(kind, 100, group=4).sent(devices=8) == pytest.approx(sent)
    assert Collective(kind, 100, times=3).sent(devices=4) == pytest.approx(3 * sent)
