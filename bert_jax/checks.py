"""What a run checks of its folders and files before it reads any of them."""

import itertools
import re
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.config import UserError, naming
from bert_jax.data.labelled.languages import files_of
from bert_jax.data.labelled.parallel import file_pairs
from bert_jax.data.text.text_files import find_files
from bert_jax.entries import of_task
from bert_jax.tasks.retrieval import read_translations


def check_folders(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError for a folder in a bucket, where the file system under it must have locks and renames."""
    folders = {"--workdir": str(workdir), "data.prepared": config.data.prepared}
    for name, folder in folders.items():
        if scheme := re.match(r"([a-z]\w+):/", folder):  # Path has dropped one of the two slashes
            url = folder.replace(":/", "://", 1) if "://" not in folder else folder
            remedy = "use a local folder"
            remedy += f", and --config.checkpoint.mirror={url}" if name == "--workdir" else ""
            raise UserError(f"{name}: {url} is not a folder of this machine ({scheme[1]}://): {remedy}")


def check_writable(workdir: Path) -> None:
    """Makes the folder. Raises UserError if it cannot be written to."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as problem:
        raise UserError(f"--workdir {workdir} cannot be written to ({problem.strerror}); choose another") from problem


def check_files(config: ConfigDict) -> None:
    """Raises UserError for a file that the config names and that is not there, before anything slow is done."""
    for name in config.tasks:
        with naming(f"tasks.{name}"):
            check_files(of_task(config, name))
    for key in ("train", "validation", "test"):
        for one in files_of(config.data[key], f"data.{key}"):
            pairs = file_pairs(one)
            for files in itertools.chain(*pairs) if pairs else [one]:
                if files and not files.startswith("tfds:"):
                    find_files(files, f"data.{key}")
    if config.eval.retrieval:
        read_translations(config.eval.retrieval, "eval.retrieval")
    if config.eval.blimp and not Path(config.eval.blimp).is_dir():
        raise UserError(f"eval.blimp: {config.eval.blimp} is not a folder; give that of the .jsonl files")
    if config.data.vocab_file and not Path(config.data.vocab_file).expanduser().exists():
        raise UserError(f"data.vocab_file: {config.data.vocab_file} does not exist; correct the path")
