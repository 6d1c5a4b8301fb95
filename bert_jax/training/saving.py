"""The checkpoints of a run: written in the background, whole or not at all; the newest whole one is restored."""

import contextlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.files import LOCK, only_writer
from bert_jax.sharding import Mesh
from bert_jax.training.checkpoint import (
    HIDDEN,
    arrays_of,
    best_modes,
    best_of,
    items,
    on_mesh,
    read_checkpoint,
    restored_state,
    scores,
    steps,
)
from bert_jax.training.checkpoint_format import Damaged, first_line, is_outside
from bert_jax.training.parameters import Parameters
from bert_jax.training.processes import as_on_first_process, on_first_process
from bert_jax.training.step import TrainState

_WRITING = "*.orbax-checkpoint-tmp*"  # what Orbax calls a checkpoint that is not finished


class Checkpoints:
    """The checkpoints of one workdir: the last `checkpoint.keep`, the best one by `checkpoint.best_metric` and by each
    metric of `checkpoint.also_best`, and as long as it is the newest of all a temporary one, of a step at which none
    was planned. Whoever saves holds the workdir's lock (`alone_in`)."""

    def __init__(self, directory: Path, checkpoint: ConfigDict, check_mirror: Callable[[], None] = lambda: None):
        """Makes the folder, and removes what an earlier process left half written. Raises UserError if it cannot.
        `check_mirror` is called before each save."""
        self._check_mirror = check_mirror
        self.directory = directory.absolute()
        self.damaged = self.directory.parent / "damaged"
        self.keep, self.metric, self.modes = checkpoint.keep, checkpoint.best_metric, best_modes(checkpoint)
        self.seconds, self.last_save = 60 * checkpoint.minutes, time.monotonic()
        with self._explained():
            self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            for left_over in (*self.directory.glob(_WRITING), *self.directory.glob(f"{HIDDEN}*")):
                shutil.rmtree(left_over, ignore_errors=True)
        self.temporary = {step for step in steps(self.directory) if _is_temporary(self.directory / str(step))}
        # Folders are made in this thread: where that fails in Orbax's, its other threads wait for them for 20 minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest finished checkpoint."""
        return max(steps(self.directory), default=None)

    def are_due_by_time(self, step: int, train: ConfigDict) -> bool:
        """Returns True if the last save is `checkpoint.minutes` ago. The clocks of several processes differ: there the
        first one decides, once per report."""
        if not self.seconds or (jax.process_count() > 1 and step % train.log_every):
            return False
        return bool(as_on_first_process(int(time.monotonic() - self.last_save >= self.seconds)))

    def save(
        self, state: TrainState, run: dict, tokenizer: Tokenizer, metrics: dict, *, temporary: bool = False
    ) -> None:
        """Starts to write in the background; first waits for the one before, whose failure is raised here. `run` goes
        into the item of that name: data position, config, the task's description. A temporary checkpoint is never the
        best one and is deleted after the next save."""
        self.wait()
        self._check_mirror()
        self.last_save = time.monotonic()
        step = int(state.step)
        if (self.directory / str(step)).exists():
            return
        score = {} if temporary else {name: float(metrics[name]) for name in self.modes if name in metrics}
        args = items(arrays_of(state), {"step": step, "score": score, "temporary": temporary} | run, tokenizer)
        with self._explained():
            self._check_workdir()
            self._writer.save(self.directory / str(step), args=args)
        if temporary:
            self.temporary.add(step)

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk. Raises UserError if it could not be written."""
        with self._explained():
            self._writer.wait_until_finished()
            self._check_workdir()
        if jax.process_index() == 0:
            self._delete_surplus()

    def close(self) -> None:
        """Waits for the last checkpoint; its failure is only logged, since what ended the run is raised already."""
        try:
            self._writer.close()
        except Exception as problem:  # Orbax raises many kinds
            logging.warning("the last checkpoint was not written (%s)", first_line(problem))

    def restore_latest(self, abstract: TrainState, mesh: Mesh, tokenizer_hash: str) -> tuple[TrainState, dict] | None:
        """Returns the newest checkpoint that is whole, with its `run` item; None if there is none at all.

        A damaged one is moved to `damaged/` beside the others, with a warning. Raises UserError if all are damaged,
        also those of an earlier start; if one was trained with another tokenizer or another config; and Trouble, with
        everything left where it is, if one cannot be read for a reason outside it.
        """
        while (step := as_on_first_process(self.latest)) is not None:
            folder = self.directory / str(step)
            places = on_mesh(mesh)
            try:
                saved = read_checkpoint(folder, shardings=places, expected=abstract, tokenizer_hash=tokenizer_hash)
                return restored_state(saved, mesh), saved.run
            except Damaged as damage:
                on_first_process(lambda folder=folder, damage=damage: self._set_aside(folder, damage))
        if count := len(list(self.damaged.glob("*"))):
            raise UserError(
                f"all {count} checkpoints of {self.directory.parent} are damaged and lie in {self.damaged}; choose "
                "another --workdir, or delete that folder to start from the beginning"
            )
        return None

    def best(self, mesh: Mesh) -> tuple[Parameters, dict] | None:
        """Returns parameters and `run` of the best checkpoint by `checkpoint.best_metric`; None if none has it."""
        step = as_on_first_process(best_of(scores(self.directory, self.metric), self.modes[self.metric]))
        if step is None:
            return None
        saved = read_checkpoint(self.directory / str(step), shardings=on_mesh(mesh))
        return saved.parameters, saved.run

    def _check_workdir(self) -> None:
        """Raises UserError if the workdir was deleted: TensorStore makes missing folders again, without what was in
        them, so a folder that is there proves nothing."""
        workdir = self.directory.parent
        if jax.process_index() == 0 and not (workdir / LOCK).exists():
            raise UserError(f"{workdir} was deleted or moved during the run; choose a --workdir that stays")

    def _set_aside(self, folder: Path, damage: Damaged) -> None:
        kept = self.damaged / folder.name
        for number in itertools.count(2):
            if not kept.exists():
                break
            kept = self.damaged / f"{folder.name}-{number}"
        try:
            self.damaged.mkdir(exist_ok=True)
            folder.rename(kept)
        except OSError as problem:
            raise UserError(f"{damage}; it cannot be moved to {kept} ({problem.strerror}): move it by hand") from damage
        logging.warning("%s; moved to %s, trying the one before", damage, kept)

    def _delete_surplus(self) -> None:
        there = steps(self.directory)
        kept = [step for step in there if step not in self.temporary]
        surplus = kept[: -self.keep]
        best = {best_of(scores(self.directory, name), mode) for name, mode in self.modes.items()} if surplus else {}
        surplus = [step for step in surplus if step not in best]
        for step in (*surplus, *(step for step in there[:-1] if step in self.temporary)):
            hidden = self.directory / f"{HIDDEN}{step}"
            try:
                (self.directory / str(step)).rename(hidden)
            except OSError as problem:
                logging.warning("checkpoint %d is no longer needed but cannot be deleted (%s)", step, problem.strerror)
            shutil.rmtree(hidden, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns a failure to write into a UserError that says what is left."""
        try:
            yield
        except UserError:
            raise
        except Exception as problem:  # Orbax and TensorStore raise many kinds for one cause
            self._check_workdir()
            if not (isinstance(problem, OSError) or is_outside(problem) or "os_error_code" in str(problem)):
                raise
            latest = self.latest
            left = (
                "no checkpoint was finished before" if latest is None else f"the checkpoint of step {latest} is whole"
            )
            raise UserError(
                f"cannot write a checkpoint to {self.directory} ({first_line(problem)}); {left}: remove the cause, "
                "such as a full disk, and start the same command again"
            ) from problem


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Holds the lock of the workdir on behalf of all processes of the run. Raises UserError that says who holds it."""

    def lock() -> None:
        try:
            held.enter_context(only_writer(workdir))
        except BlockingIOError as problem:
            remedy = "wait for its end, stop it, or choose another --workdir"
            raise UserError(f"{workdir} is {problem.strerror}; {remedy}") from None
        except OSError as problem:
            raise UserError(f"{workdir} cannot be written to ({problem.strerror}); choose another --workdir") from None

    with contextlib.ExitStack() as held:
        on_first_process(lock)
        yield


def _is_temporary(checkpoint: Path) -> bool:
    """Returns True if a checkpoint says that it is a temporary one; one that cannot be read is not deleted as such."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return json.loads((checkpoint / "run" / "metadata").read_bytes())["temporary"] is True
    return False
