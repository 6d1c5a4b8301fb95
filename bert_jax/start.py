"""How a run starts: devices and processes, what it inherits from a checkpoint, its data and its task.

Heavy imports are inside the functions, as in `modes.py`.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ml_collections import ConfigDict

from bert_jax.config import UserError, from_json_dict, read_config, validate
from bert_jax.tasks import task_class

if TYPE_CHECKING:
    from bert_jax.tasks.task import Source


def start_run(config: ConfigDict, workdir: Path) -> "Source | None":
    """Joins the processes of the run and returns what it inherits.

    Raises UserError for every mistake in the config that can be seen before any data is read.
    """
    check_files(config)
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


def check_files(config: ConfigDict) -> None:
    """Raises UserError for a file that the config names and that is not there, before anything slow is done."""
    from bert_jax.data.text.text_files import find_files

    for key in ("train", "validation", "test"):
        if config.data[key] and not config.data[key].startswith("tfds:"):
            find_files(config.data[key], f"data.{key}")
    if config.data.vocab_file and not Path(config.data.vocab_file).expanduser().exists():
        raise UserError(f"data.vocab_file: {config.data.vocab_file} does not exist; correct the path")


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

    if (workdir / "config.json").is_file() and has_checkpoint(str(workdir)):
        model = read_config(workdir / "config.json").model
        inherit_shape(config.model, bert_config(model, model.vocab_size or config.data.vocab_size))
    if not config.init_from:
        return None
    # A run that continues no longer needs what it started from, unless its newest checkpoint is damaged.
    has_own = has_checkpoint(str(workdir))
    if not has_own and not has_checkpoint(config.init_from):
        _explain_init_from(config.init_from)
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


def _explain_init_from(path: str) -> NoReturn:
    """Raises UserError. The commonest first mistake is the name or the folder of a model in another format."""
    from bert_jax.convert import google_tf, hub

    folder = Path(path)
    convert = f"python -m bert_jax.convert --from={path} --to=ckpts/{folder.name}"
    then = f"{convert}, then give --config.init_from=ckpts/{folder.name}"
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        raise UserError(f"init_from={path} is a workdir without a checkpoint; train that run first")
    if google_tf.is_checkpoint(folder) or any((folder / name).is_file() for name in ("config.json", "modules.json")):
        raise UserError(f"init_from={path} is a model in another format; convert it first: {then}")
    if folder.exists():
        raise UserError(f"init_from={path} is not a checkpoint; give a workdir or one of its checkpoints")
    if hub.is_name(path):
        raise UserError(f"init_from={path} does not exist; if it is a model of the Hugging Face Hub: {then}")
    raise UserError(f"init_from={path} does not exist; correct the path")


def _join_processes(environment: Mapping[str, str]) -> None:
    """Makes one run of several processes if JAX_COORDINATOR_ADDRESS is set: to `auto` where jax finds the cluster
    itself (TPU pods, Slurm, Kubernetes, MPI), else to host:port, with JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    import jax

    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        return
    arguments: tuple[Any, ...] = ()
    if address == "auto":
        del os.environ["JAX_COORDINATOR_ADDRESS"]  # jax would take it for a host
    else:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        if any(not environment.get(name, "").isdecimal() for name in names):
            raise UserError("JAX_COORDINATOR_ADDRESS is set; set JAX_NUM_PROCESSES and JAX_PROCESS_ID to numbers too")
        count, number = (int(environment[name]) for name in names)
        if number >= count:
            raise UserError(f"JAX_PROCESS_ID is {number}; it must be below JAX_NUM_PROCESSES, which is {count}")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UserError(f"JAX_COORDINATOR_ADDRESS is '{address}'; it must be host:port or auto")
        arguments = (address, count, number)
    try:
        jax.distributed.initialize(*arguments)
    except (ValueError, RuntimeError) as error:  # no cluster, no such host, nobody answers
        first = str(error).partition("\n")[0]
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: the processes cannot be joined ({first})") from error
