"""`--profile`: a trace of a few training steps, and a table of where their time goes.

The profiler says when each operation of the compiled program ran; the program's text says what it is and, by the stack
of Python functions that it was traced from, whose. Every moment of the traced steps is divided among the operations
that run in it on one device, so that the groups add up to the time that passed.
"""

import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Compiled

from bert_jax.config import Json, UserError
from bert_jax.files import write_atomically
from bert_jax.tasks.task import Batch, Sums
from bert_jax.training.observer import DATA_WAIT, Observer

FORWARD, BACKWARD, ATTENTION = "matrix products, forward", "matrix products, backward", "attention"
ELEMENTWISE, COPIES = "element-wise, norm, dropout", "copies, transposes, conversions"
OPTIMIZER, COLLECTIVES, REST = "optimizer", "collectives", "masking, metrics, other programs"
WAIT, IDLE = "data wait", "no operation"
GROUPS = (FORWARD, BACKWARD, ATTENTION, ELEMENTWISE, COPIES, OPTIMIZER, COLLECTIVES, REST, WAIT, IDLE)

SKIPPED = 2  # steps before the traced ones: the first compiles, the second is the first at speed


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a step. Each group is a sum over operations, `operations` names them, the longest first."""

    steps: int
    seconds: float
    groups: dict[str, float]
    operations: list[Json]

    def __str__(self) -> str:
        lines = [f"{self.seconds:.4g} s a step, over {self.steps} steps", ""]
        lines += [f"{1e3 * s:10.2f} ms {100 * s / self.seconds:5.1f} %  {name}" for name, s in self.groups.items() if s]
        lines += ["", "        ms  calls  operation"]
        for row in self.operations[:40]:
            where = f"{row['group']}: {row['operation']} {row['shape']} {row['function']}"
            lines.append(f"{1e3 * row['seconds']:10.2f} {row['calls']:6.0f}  {where}")
        return "\n".join(lines) + "\n"


class Profiler(Observer):
    """Traces `steps` steps of a run, from the third of this process on, into `folder`."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        self.seen, self.tracing = 0, False
        self.programs: list[Compiled] = []
        self.last: Sums = {}

    def before_batch(self) -> None:
        if self.seen == SKIPPED:
            jax.block_until_ready(self.last)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would be an event
            jax.profiler.start_trace(self.folder, profiler_options=options)
            self.tracing = True

    def compiled(self, batch: Batch, program: Compiled, waited: float) -> None:
        self.programs.append(program)

    def after_step(self, sums: Sums) -> bool:
        """Returns True if the table was written now, which takes a while."""
        self.seen, self.last = self.seen + 1, sums
        return self.seen >= SKIPPED + self.steps and self._finish()

    def end(self) -> None:
        """Writes profile.txt and profile.json of the steps traced so far, unless that is done."""
        if self.seen <= SKIPPED:
            logging.warning("--profile: nothing was traced, because the run took no more than %d steps", SKIPPED)
        self._finish()

    def _finish(self) -> bool:
        if not self.tracing:
            return False
        jax.block_until_ready(self.last)
        jax.profiler.stop_trace()
        self.tracing = False
        texts = [program.as_text() or "" for program in self.programs]
        newest = max(self.folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        try:
            planes = jax.profiler.ProfileData.from_file(str(newest)).planes
            found = break_down(planes, texts, self.seen - SKIPPED)
            write_atomically(self.folder / "profile.txt", str(found))
            write_atomically(self.folder / "profile.json", json.dumps(vars(found), indent=1) + "\n")
            logging.info("profile, also in %s:\n%s", self.folder / "profile.txt", found)
        except (UserError, OSError) as error:  # no reason to end the run: the trace itself can be looked at
            logging.warning("--profile: %s", error)
        return True


def break_down(planes: Iterable[Any], texts: Sequence[str], steps: int) -> Breakdown:
    """Joins a trace (`ProfileData.planes`) with the programs' text (HLO); of several devices it takes the mean. Raises
    UserError if the trace names no operations."""
    planes = list(planes)
    host = [plane for plane in planes if plane.name == "/host:CPU"]
    devices = [lanes for plane in planes if plane.name.startswith("/device:") and (lanes := _lanes(plane))]
    devices = devices or [lanes for plane in host if (lanes := _lanes(plane))]
    if not devices:
        raise UserError("the trace names no operations: what this device's profiler writes is not understood")
    events = (event for plane in host for line in plane.lines for event in line.events if event.name == DATA_WAIT)
    waits = [Span(event.start_ns, event.end_ns, DATA_WAIT, "") for event in events]
    programs = [read_program(text) for text in texts]
    rows: dict[Operation, np.ndarray] = defaultdict(lambda: np.zeros(2))  # seconds, calls
    for lanes in devices:
        calls: Counter[Key] = Counter((span.program, span.name) for lane in lanes for span in lane)
        traced: dict[str, set[str]] = defaultdict(set)  # number of a program in the trace → its operations
        for number, name in calls:
            traced[number].add(name)
        # The program of a number is the one with most of the operations traced under it.
        of_program = {n: max(programs, key=lambda p: len(names & p.keys()), default={}) for n, names in traced.items()}
        for key, nanoseconds in share_time(lanes, waits).items():
            row = Operation(key, "", "", "") if isinstance(key, str) else of_program[key[0]].get(key[1])
            row = row or Operation(REST, _without_number(key[1]), "", "")
            rows[row] += np.array([nanoseconds / 1e9, calls[key]]) / steps / len(devices)
    groups = {group: float(sum(s for row, (s, _) in rows.items() if row.group == group)) for group in GROUPS}
    longest = sorted(rows.items(), key=lambda row: -row[1][0])
    operations = [row._asdict() | {"seconds": float(s), "calls": float(n)} for row, (s, n) in longest if row.operation]
    return Breakdown(steps, sum(groups.values()), groups, operations)


class Span(NamedTuple):
    start: float  # nanoseconds
    end: float
    name: str
    program: str


Key = tuple[str, str] | str  # (program, operation), or WAIT or IDLE


def share_time(lanes: Sequence[Sequence[Span]], waits: Sequence[Span]) -> dict[Key, float]:
    """Returns the nanoseconds of each operation; besides, under WAIT and IDLE, those in which none ran.

    Of operations one inside the other on a lane only the innermost counts; where n lanes are busy, each gets 1/n. All
    together is the time from the first event to the last.
    """
    segments = [segment for lane in lanes for segment in _innermost(lane)]
    segments += [(wait.start, wait.end, WAIT) for wait in waits]
    points = [point for start, end, key in segments for point in ((start, 1, key), (end, -1, key))]
    points.sort(key=lambda point: point[0])
    shares: dict[Key, float] = defaultdict(float)
    running: Counter[Key] = Counter()
    for (time, change, key), (until, _, _) in pairwise(points):
        running[key] += change
        if not running[key]:
            del running[key]
        busy = [key for key in running if key != WAIT]
        for key in busy or [WAIT if running else IDLE]:
            shares[key] += (until - time) / max(len(busy), 1)
    return dict(shares)


class Operation(NamedTuple):
    """One operation of the compiled program, or all that look alike."""

    group: str
    operation: str
    shape: str
    function: str  # of the model, that it was traced from


def read_program(text: str) -> dict[str, Operation]:
    """Returns the instructions of a program's text (HLO), by name."""
    frames = _stack_frames(text)
    inside: dict[str, list[re.Match]] = defaultdict(list)  # computation → its instructions
    computation = ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            computation = match["name"]
        elif match := INSTRUCTION.match(line):
            inside[computation].append(match)
    return {match["name"]: _operation(match, inside, frames) for matches in inside.values() for match in matches}


# Lines of a program's text
COMPUTATION = re.compile(r"(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<kind>[\w\-]+)\((?P<rest>.*)")
_METADATA = re.compile(r'op_name="(jit[^"]*)"(?: stack_frame_id=(\d+))?')
_PRODUCT_CALL = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul|conv)', re.IGNORECASE)
COLLECTIVE = re.compile(r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-)")
_MOVING = {"copy", "transpose", "convert", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate"}
_MOVING |= {"copy-start", "copy-done"}
_NEUTRAL = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant", "broadcast"}


def _operation(match: re.Match, inside: dict[str, list[re.Match]], frames: dict[str, list[tuple[str, str]]]):
    called = re.search(r"calls=%?([\w.\-]+)", match["rest"])
    parts = inside[called[1]] if called and called[1] in inside else [match]
    kinds = {part["kind"] for part in parts} - _NEUTRAL
    # A fusion that XLA has given no name has that of what it ends with.
    named = [found for part in [match, *reversed(parts)] if (found := _METADATA.search(part["rest"]))]
    name, stack = (named[0][1], frames.get(named[0][2], [])) if named else ("", [])
    methods = [function.split(".")[0] for function, file in stack if "/bert_jax/models/" in file]
    modules = list(dict.fromkeys(name for name in methods if name[0].isupper()))
    shape = re.sub(r"\{[^}]*\}", "", match["shape"])
    is_product = bool({"dot", "convolution"} & kinds or _PRODUCT_CALL.search(match["rest"]))
    group = _group(kinds, name, stack, is_product=is_product)
    return Operation(group, _without_number(match["name"]), shape, " < ".join(modules[:2]))


def _without_number(name: str) -> str:
    return re.sub(r"[.\d]+$", "", name)


def _group(kinds: set[str], name: str, stack: list[tuple[str, str]], *, is_product: bool) -> str:
    # The order decides: an all-reduce of the optimizer is a collective, a copy in attention a copy.
    functions, files = {function for function, _ in stack}, " ".join(file for _, file in stack)
    is_of_model = "jvp(" in name or "/bert_jax/models/" in files
    if any(COLLECTIVE.match(kind) for kind in kinds):
        return COLLECTIVES
    if not is_of_model and ("/optax/" in files or "/training/optimizer.py" in files):
        return OPTIMIZER
    if kinds and kinds <= _MOVING:
        return COPIES
    if "attend" in functions or "fmha" in name or "dot_product_attention" in functions:
        return ATTENTION
    if is_product and not name.endswith("reduce_sum"):  # XLA writes some sums as products with ones
        return BACKWARD if "transpose(" in name else FORWARD
    return ELEMENTWISE if is_of_model else REST


def _stack_frames(text: str) -> dict[str, list[tuple[str, str]]]:
    """Number of a frame → (function, file) from the innermost call outwards, from the tables before the program."""
    tables: dict[str, dict[str, str]] = defaultdict(dict)
    title = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            title = line
        elif title and (entry := re.match(r"(\d+) (.*)", line)):
            tables[title][entry[1]] = entry[2].strip('"')
        elif line.endswith("{"):
            break
    frames: dict[str, list[tuple[str, str]]] = {}
    for number, frame in tables["StackFrames"].items():  # a frame comes after the one it was called from
        values = dict(re.findall(r"(\w+)=(\d+)", frame))
        place = dict(re.findall(r"(\w+)=(\d+)", tables["FileLocations"][values["file_location_id"]]))
        function = tables["FunctionNames"][place["function_name_id"]], tables["FileNames"][place["file_name_id"]]
        caller = str(int(values["parent_frame_id"]) - 1)  # as printed it is one too high; that of the outermost is 0
        frames[number] = [function, *frames.get(caller, [])]
    return frames


def _lanes(plane: Any) -> list[list[Span]]:
    """Returns the operations of each line of a plane. On a TPU they are on a line of their own, elsewhere they say
    `hlo_op`."""
    lines = list(plane.lines)
    own = [line for line in lines if line.name == "XLA Ops"]
    lanes = []
    for line in own or lines:
        spans = []
        for event in line.events:
            stats = dict(event.stats)
            if own or "hlo_op" in stats:
                name = str(event.name if own else stats["hlo_op"]).split(" ")[0].lstrip("%")
                # A TPU's events may lack the program's number: then all count as of one program, found by their names.
                program = str(stats["program_id"]) if "program_id" in stats else ""
                spans.append(Span(event.start_ns, event.end_ns, name, program))
        lanes += [spans] if spans else []
    return lanes


def _innermost(lane: Sequence[Span]) -> Iterator[tuple[float, float, tuple[str, str]]]:
    """Yields (start, end, (program, operation)) of the parts of a lane in which no operation runs inside another."""
    stack: list[Span] = []
    cursor = 0.0
    for span in [*sorted(lane, key=lambda span: (span.start, -span.end)), Span(math.inf, math.inf, "", "")]:
        while stack and stack[-1].end <= span.start:
            done = stack.pop()
            if done.end > cursor:
                yield cursor, done.end, (done.program, done.name)
                cursor = done.end
        if stack and span.start > cursor:
            yield cursor, span.start, (stack[-1].program, stack[-1].name)
        cursor = max(span.start, cursor) if stack else span.start
        stack.append(span)
