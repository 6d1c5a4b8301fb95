"""What a run starts from: its newest checkpoint, the parameters of another one, or nothing; and what a checkpoint keeps
of the run besides its arrays.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.models.config import layer_numbers
from bert_jax.sharding import Mesh
from bert_jax.tasks.task import Description, Sums, Task
from bert_jax.training import step as steps
from bert_jax.training.checkpoint import choose_checkpoint, on_mesh, read_checkpoint, start_of
from bert_jax.training.guard import Guard
from bert_jax.training.parameters import Parameters, is_stacked, matching, of_one_task, take_over, with_copies
from bert_jax.training.programs import Programs
from bert_jax.training.saving import Checkpoints
from bert_jax.training.step import TrainState


def first_state(
    task: Task, config: ConfigDict, programs: Programs, checkpoints: Checkpoints
) -> tuple[TrainState, Json | None]:
    """Returns the state to begin with and, if it is a resumed one, the checkpoint's `run` item. It comes from 1. the
    newest whole checkpoint of this workdir, 2. `init_from`, 3. random initialisation."""
    mesh, _, optimizer, abstract, *_ = programs
    restored = checkpoints.restore_latest(abstract, mesh, task.tokenizer.content_hash)
    if restored is not None:
        logging.info("resuming %s at step %d", checkpoints.directory.parent, int(restored[0].step))
        return restored
    workdir = checkpoints.directory.parent
    known = _warm_start(abstract.parameters, task, config, mesh, workdir) if config.init_from else {}
    return steps.init_state(task, optimizer, config.seed, mesh, known), None


def check_data(saved: dict, now: dict, workdir: Path) -> None:
    """Raises UserError if the position of a checkpoint in its data is not that of the batches now."""
    if saved != now:
        raise UserError(
            f"{workdir} was trained on other data ({saved}, now {now}): "
            "restore the corpus as it was, or choose another --workdir and --config.init_from"
        )


@dataclass
class Record:
    """What a checkpoint says of a run besides its arrays, and the run continues from."""

    description: Description
    history: list[float]  # checkpoint.best_metric of each evaluation
    pending: list[Sums]  # of the steps since the last report
    guard: Json

    @classmethod
    def of(cls, resumed: Json | None, task: Task) -> "Record":
        """Returns the record in a checkpoint's `run` item, or that of a run that begins."""
        run = {"task": {}, "history": [], "pending": [], "guard": {}} if resumed is None else resumed
        pending = [
            {name: (jnp.asarray(total), jnp.asarray(weight)) for name, (total, weight) in sums.items()}
            for sums in run["pending"]
        ]
        return cls(task.description() | run["task"], run["history"], pending, run["guard"])

    def json(self, data: Json, config: ConfigDict, guard: Guard) -> Json:
        """Returns the fields of the `run` item. It copies what is in it: that is written in the background, while the
        originals change. Waits for the steps whose sums are pending."""
        host = jax.device_get(self.pending)
        lists = [{name: [np.asarray(x).tolist() for x in pair] for name, pair in sums.items()} for sums in host]
        run = {"data": data, "config": config.to_dict(), "task": self.description, "history": self.history}
        return run | {"pending": lists, "guard": guard.state()}


def _warm_start(shapes: Parameters, task: Task, config: ConfigDict, mesh: Mesh, workdir: Path) -> Parameters:
    """Returns the parameters that are taken from `init_from`, on the mesh."""
    folder = choose_checkpoint(start_of(config, workdir))
    saved = read_checkpoint(folder, shardings=on_mesh(mesh), tokenizer_hash=task.tokenizer.content_hash)
    source, copied = with_copies(of_one_task(saved.parameters, config.init_task), task.copied_parameters)
    taken, depths = config.train.take_layers, {len(x) for name, x in source.items() if is_stacked(name)}
    if taken:
        places = np.asarray(layer_numbers("train.take_layers", taken, min(depths)))
        source = {name: x[places] if is_stacked(name) else x for name, x in source.items()}
    renewed = matching("renewed_parameters", task.renewed_parameters, source)
    source = {name: value for name, value in source.items() if name not in renewed}
    _, report = take_over(shapes, source, new=task.new_parameters, dropped=task.dropped_parameters, origin=str(folder))
    logging.info("warm start from %s: %s", folder, replace(report, copied=copied))
    return _without_top_layers({name: source[name] for name in report.loaded}, config.train.reinitialise_layers)


def _without_top_layers(known: Parameters, top: int) -> Parameters:
    """Leaves out the `top` layers and the pooler, which then start as initialised (Zhang et al. 2021, arXiv:2006.05987,
    section 4). Raises UserError if there are fewer layers."""
    if not top:
        return known
    depth = next(x.shape[0] for name, x in known.items() if is_stacked(name))
    if top > depth:
        raise UserError(f"train.reinitialise_layers is {top}; the model has {depth} layers")
    kept = {name: x[: depth - top] if is_stacked(name) else x for name, x in known.items()}
    return {name: x for name, x in kept.items() if x.size and not name.startswith("pooler/")}
