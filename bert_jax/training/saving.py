"""The checkpoints of a run: written in the background, whole or not at all; the newest whole one is restored."""

import errno
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from bert_jax.config import UserError
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.training.checkpoint import first_line, items, on_mesh, read_checkpoint
from bert_jax.training.checkpoint_format import Damaged
from bert_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one workdir: the last `checkpoint.keep` and the best one by `checkpoint.best_metric`."""

    def __init__(self, directory: Path, checkpoint: ConfigDict):
        self.directory = directory
        self.damaged = directory.parent / "damaged"
        self.metric = checkpoint.best_metric
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[self.metric],
            reverse=checkpoint.best_mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self.manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(checkpoint.keep), best]
                ),
                best_fn=lambda metrics: metrics[self.metric],
                best_mode=checkpoint.best_mode,
            ),
        )

    def save(self, state: TrainState, run: dict, tokenizer: Tokenizer, metrics: dict) -> None:
        """Starts to write in the background; first waits for the one before, whose failure is raised here.

        `run` goes into the item of that name: data position, config, the task's description.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        args = items({"parameters": state.parameters, "optimizer": state.optimizer}, {"step": step} | run, tokenizer)
        known = {self.metric: metrics[self.metric]} if self.metric in metrics else None
        with _explained(self):
            self.manager.save(step, args=args, metrics=known)

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk. Raises UserError if it could not be written."""
        with _explained(self):
            self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()

    def restore_latest(self, abstract: TrainState, mesh: Mesh, tokenizer_hash: str) -> tuple[TrainState, dict] | None:
        """Returns the newest checkpoint that is whole, with its `run` item; None if there is none at all.

        A damaged one is moved to `damaged/` beside the others, with a warning. Raises UserError if all are damaged,
        also those of an earlier start; if one was trained with another tokenizer or another config; and Trouble, with
        everything left where it is, if one cannot be read for a reason outside it.
        """
        while (step := self._newest()) is not None:
            try:
                saved = read_checkpoint(
                    self.directory / str(step),
                    shardings=on_mesh(mesh),
                    expected=abstract,
                    tokenizer_hash=tokenizer_hash,
                )
            except Damaged as damage:
                self._set_aside(step, damage)
                continue
            state = TrainState(jnp.asarray(saved.run["step"], jnp.int32), saved.parameters, saved.optimizer)
            return state, saved.run
        if count := len(list(self.damaged.glob("*"))):
            raise UserError(
                f"all {count} checkpoints of {self.directory.parent} are damaged and lie in {self.damaged}; choose "
                "another --workdir, or delete that folder to start from the beginning"
            )
        return None

    def best(self, mesh: Mesh) -> tuple[dict[str, jax.Array], dict] | None:
        """Parameters and `run` of the best checkpoint by `checkpoint.best_metric`; None if no checkpoint has it."""
        step = self.manager.best_step()
        if step is None:
            return None
        saved = read_checkpoint(self.directory / str(step), shardings=on_mesh(mesh))
        return saved.parameters, saved.run

    def _newest(self) -> int | None:
        """Returns the newest step as process 0 sees it: the folder of another may lag behind on a network disk."""
        newest = np.int32(max(self.manager.all_steps(), default=-1))
        if jax.process_count() > 1:
            newest = multihost_utils.broadcast_one_to_all(newest)
        return None if newest < 0 else int(newest)

    def _set_aside(self, step: int, damage: Damaged) -> None:
        if jax.process_index() == 0:
            self.damaged.mkdir(exist_ok=True)
            kept = self.damaged / str(step)
            number = 1
            while kept.exists():
                number += 1
                kept = self.damaged / f"{step}-{number}"
            shutil.move(self.directory / str(step), kept)
            logging.warning("%s; moved to %s, trying the one before", damage, kept)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint moved")
        self.manager.reload()


class _explained:
    """Turns a failure to write into a UserError that says what is left."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def __enter__(self):
        return self

    def __exit__(self, _, problem, __):
        if problem is None or not _is_about_storage(problem):
            return
        latest = self.checkpoints.manager.latest_step()
        left = "no checkpoint was finished before" if latest is None else f"the checkpoint of step {latest} is whole"
        raise UserError(
            f"cannot write a checkpoint to {self.checkpoints.directory} ({first_line(problem)}); {left}: "
            "free some space and start the same command again"
        ) from problem


def _is_about_storage(problem: BaseException) -> bool:
    if isinstance(problem, OSError) and problem.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EIO,
    ):
        return True
    text = str(problem)
    return any(sign in text for sign in ("No space left", "RESOURCE_EXHAUSTED", "Disk quota", "Read-only file system"))
