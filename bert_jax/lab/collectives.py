"""What devices exchange in a compiled program, by its text (HLO)."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from bert_jax.lab.profile import COLLECTIVE, COMPUTATION, INSTRUCTION

SEND = "send"  # to another slice, through the hosts


class Collective(NamedTuple):
    kind: str
    bytes: int  # of its results, on one device
    times: int = 1  # that a run of the program executes it
    group: int = 0  # devices that exchange with each other; 0 = all

    def sent(self, devices: int) -> float:
        """Returns the bytes that each device sends at the least, one execution after the other: a ring of n devices
        passes on (n − 1)/n of what is gathered or summed, and both for an all-reduce. What goes to another slice takes
        another network."""
        size = self.group or devices
        others = (size - 1) / size
        factor = {SEND: 0.0, "all-reduce": 2 * others, "reduce-scatter": size * others, "collective-permute": 1.0}
        return self.times * self.bytes * factor.get(self.kind, others)


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a program. Those in the body of a loop are listed once, with the number of its
    iterations."""
    inside: dict[str, list[re.Match]] = defaultdict(list)  # computation → its instructions
    computation = entry = ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            computation = match["name"]
            entry = computation if line.startswith("ENTRY") else entry
        elif match := INSTRUCTION.match(line):
            inside[computation].append(match)
    times, channels, found = _times(inside, entry), set(), []
    for name, match in ((name, match) for name, matches in inside.items() for match in matches):
        kind, channel = match["kind"], re.search(r"channel_id=(\d+)", match["rest"])
        if not times[name] or kind.endswith("-done") or not (COLLECTIVE.match(kind) or kind == SEND):
            continue
        if channel:  # on a TPU, one that runs beside other work is listed once for each of its steps
            if channel[1] in channels:
                continue
            channels.add(channel[1])
        kind, size, group = kind.removesuffix("-start"), _bytes(match), _group(match["rest"])
        if name.startswith("all-reduce-scatter"):  # a fusion of a TPU, which keeps a part of the sum
            kind, size = "reduce-scatter", size // max(group, 1)
        found.append(Collective(kind, size, times[name], group))
    return found


_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_WIDTHS |= {"f64": 8, "s64": 8, "u64": 8}
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def _times(inside: dict[str, list[re.Match]], entry: str) -> dict[str, int]:
    """Returns how often each computation is executed."""
    times: dict[str, int] = defaultdict(int, {entry: 1})
    # A computation stands before those that call it.
    for name in reversed(inside):
        for match in inside[name]:
            trips = _trips(match["rest"], inside) if match["kind"] == "while" else 1
            for how, called in _CALLED.findall(match["rest"]):
                if how == "to_apply" and match["kind"] != "call":
                    continue  # the sum of a reduction
                for one in re.findall(r"[\w.\-]+", called):
                    times[one] += times[name] * (trips if how == "body" else 1)
    return times


def _trips(rest: str, inside: dict[str, list[re.Match]]) -> int:
    """Returns the iterations of a loop: as the compiler states them, or else the constant that its counter is compared
    with; 1 if there is no such constant."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    instructions = inside.get(condition[1], []) if condition else []
    constants = {match["name"]: match["rest"] for match in instructions if match["kind"] == "constant"}
    for match in instructions:
        if match["kind"] == "compare" and "direction=LT" in match["rest"]:
            for name in re.findall(r"%?([\w.\-]+)", match["rest"].partition(")")[0]):
                if name in constants:
                    return int(constants[name].partition(")")[0])
    return 1


def _bytes(match: re.Match) -> int:
    sizes = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match["shape"])
    if match["kind"] == "all-gather-start":  # a pair of operands and results
        sizes = sizes[len(sizes) // 2 :]
    elif match["kind"] == "collective-permute-start":  # operand, result, and two numbers
        sizes = sizes[1:2]
    elif match["kind"] == SEND:  # what is sent, a number and a token
        sizes = sizes[:1]
    return sum(_WIDTHS[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in sizes)


def _group(rest: str) -> int:
    """Returns the number of devices of a group: {{0,1},{2,3}}, [2,4]<=[8], or mesh['a'=2,'b'=4] {'b'}."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        axes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(axes.get(axis, 1)) for axis in re.findall(r"'([^']+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found[1].split(","))
    return 0


def by_kind(found: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Returns {kind: {"count": executions, "bytes": of all of them}}."""
    sums: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    for one in found:
        sums[one.kind]["count"] += one.times
        sums[one.kind]["bytes"] += one.times * one.bytes
    return dict(sums)
