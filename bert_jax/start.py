"""How a run starts: devices and processes, what it inherits from a checkpoint, its data and its task.

Heavy imports are inside the functions, as in `modes.py`.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from bert_jax.config import UserError, from_json_dict, read_config, validate
from bert_jax.tasks import task_class

if TYPE_CHECKING:
    from bert_jax.tasks.task import Source


def start_run(config: ConfigDict, workdir: Path) -> "Source | None":
    """Devices, and every mistake in the config that can be seen before any data is."""
    task_class(config.task)
    import jax

    from bert_jax.models.config import SHAPE, bert_config, check_length

    keep_programs(workdir)
    _join_processes(os.environ)
    source = _inherit(config, workdir)
    vocab_size = config.data.vocab_size if source is None else source.tokenizer.vocab_size
    model = bert_config(config.model, config.model.vocab_size or vocab_size)
    config.model.update({key: getattr(model, key) for key in SHAPE})
    check_length(model, config.data.sequence_length)
    validate(config, jax.device_count())
    return source


def keep_programs(workdir: Path) -> None:
    """Programs compiled by one run are there for the next, small ones too: by itself jax keeps what took a second, as
    an evaluation's does not. jax's own settings go first."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute().parent / ".compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def check_writable(workdir: Path) -> None:
    """Makes the folder. Raises UserError if it cannot be written to."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as problem:
        raise UserError(f"--workdir {workdir} cannot be written to ({problem.strerror}); choose another") from problem


def _inherit(config: ConfigDict, workdir: Path) -> "Source | None":
    """What the config leaves open is as in the run that this one continues, else as in `init_from`: the model's shape,
    and what `Source` holds (None: nothing is inherited)."""
    from bert_jax.models.config import bert_config, inherit_shape
    from bert_jax.tasks.task import Source
    from bert_jax.training.checkpoint import (
        Damaged,
        choose_checkpoint,
        describe_checkpoint,
        find_checkpoint,
        has_checkpoint,
    )

    if (workdir / "config.json").is_file():
        model = read_config(workdir / "config.json").model
        inherit_shape(config.model, bert_config(model, model.vocab_size or config.data.vocab_size))
    if not config.init_from:
        return None
    # A run that goes on no longer needs what it started from, unless its newest checkpoint is damaged.
    has_own = has_checkpoint(str(workdir))
    try:
        folder = find_checkpoint(str(workdir)) if has_own else choose_checkpoint(config.init_from)
        run, tokenizer = describe_checkpoint(folder)
    except Damaged:
        if not has_own:
            raise
        run, tokenizer = describe_checkpoint(choose_checkpoint(config.init_from))
    saved = from_json_dict(run["config"])
    inherit_shape(config.model, bert_config(saved.model, tokenizer.vocab_size))
    return Source(tokenizer, saved.task, run["task"])


def _join_processes(environment: Mapping[str, str]) -> None:
    """Makes one run of several processes where JAX_COORDINATOR_ADDRESS is set: to `auto` where jax can find out
    by itself (TPU pods, Slurm, Kubernetes, MPI), else to host:port, with JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    import jax

    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address == "auto":
        del os.environ["JAX_COORDINATOR_ADDRESS"]  # jax would take it for a host
        jax.distributed.initialize()
    elif address is not None:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        if any(not environment.get(name, "").isdigit() for name in names):
            raise UserError("JAX_COORDINATOR_ADDRESS is set; set JAX_NUM_PROCESSES and JAX_PROCESS_ID to numbers too")
        count, number = (int(environment[name]) for name in names)
        jax.distributed.initialize(address, count, number)
