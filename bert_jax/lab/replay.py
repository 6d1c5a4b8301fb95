"""`--mode=doctor --replay=N`: steps that a run took are taken again, and the bits compared with those recorded.

Faulty memory or a faulty core that is wrong now and then leaves no other trace: the loss of a run keeps falling.
"""

from itertools import pairwise
from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.sharding import to_mesh
from bert_jax.tasks.task import Task
from bert_jax.training.checkpoint import arrays_of, describe_checkpoint, on_mesh, read_checkpoint, restored_state, steps
from bert_jax.training.checkpoint_format import checksums
from bert_jax.training.guard import batch_number
from bert_jax.training.observer import Observer
from bert_jax.training.programs import Programs, make_programs
from bert_jax.training.saving import alone_in

Bits = dict[str, dict[str, int]]  # item → array → checksum


def replay(task: Task, config: ConfigDict, workdir: Path, count: int) -> str:
    """Takes up to `count` steps again and returns a sentence about the comparison: from a checkpoint to the next one,
    the newest such pair, whose second one has the bits to compare with; if no pair is that close, `count` steps from
    the newest checkpoint, twice. Raises UserError if bits differ."""
    folder = workdir / "checkpoints"
    there = steps(folder)
    if not there:
        raise UserError(f"{workdir} has no checkpoint to repeat steps from; train that run first")
    with alone_in(workdir):  # a run that trains would delete what is read here
        programs = make_programs(task, config, Observer())
        pairs = [(start, end) for start, end in pairwise(there) if end - start <= count]
        if not pairs:
            start, end = there[-1], there[-1] + count
            left_out = describe_checkpoint(folder / str(start))[0]["guard"].get("left_out", [])
            once, again = (_repeat(programs, task, folder / str(start), end, left_out) for _ in range(2))
            if name := _difference(once, again):
                raise UserError(_not_deterministic(start, end, name))
            return f"steps {start + 1} to {end}, taken twice, gave the same bits"
        start, end = pairs[-1]
        run = describe_checkpoint(folder / str(end))[0]
        left_out = run["guard"].get("left_out", [])
        recorded = {item: sums for item, sums in run["checksums"].items() if isinstance(sums, dict)}
        found = _repeat(programs, task, folder / str(start), end, left_out)
        if name := _difference(found, recorded):
            if other := _difference(found, _repeat(programs, task, folder / str(start), end, left_out)):
                raise UserError(_not_deterministic(start, end, other))
            raise UserError(
                f"steps {start + 1} to {end} give other bits than the checkpoint of step {end} has ({name}), twice the "
                "same: the run computed wrong there, or took them on another kind or number of devices or with other "
                "versions; if neither differs, check that machine's memory and continue from the checkpoint before"
            )
    return f"steps {start + 1} to {end} gave the bits of the checkpoint of step {end}"


def _repeat(programs: Programs, task: Task, folder: Path, end: int, left_out: list[int]) -> Bits:
    """Returns the checksums of the state after the steps from a checkpoint to `end`."""
    mesh = programs.mesh
    saved = read_checkpoint(folder, shardings=on_mesh(mesh), expected=programs.abstract)
    state = restored_state(saved, mesh)
    step = int(saved.run["step"])
    number = batch_number(step, left_out)
    phase, batches = programs.enter(step, number)
    try:
        while step < end:
            if phase is not programs.phase(step):
                batches.close()
                phase, batches = programs.enter(step, number)
            for _ in range(number, batch_number(step, left_out)):
                next(batches)
            number = batch_number(step, left_out) + 1
            state, _ = phase.launch(state, programs.constants, to_mesh(mesh, next(batches)), programs.key)
            step += 1
    finally:
        batches.close()
    return {item: checksums(tree) for item, tree in arrays_of(state).items()}


def _difference(one: Bits, other: Json) -> str:
    """Returns the first array whose bits differ; "" if none does."""
    names = ((item, name) for item, sums in one.items() for name in sums)
    return next((f"{item}{name}" for item, name in names if one[item][name] != other[item].get(name)), "")


def _not_deterministic(start: int, end: int, name: str) -> str:
    return (
        f"steps {start + 1} to {end}, taken twice, gave different bits ({name}): this machine computes wrong now and "
        "then; check its memory and its devices before you continue the run on it"
    )
