"""BERT in JAX: raw text in, a resumable BERT out.

    bert = bert_jax.load("runs/mine")                 # a workdir, a checkpoint, a Hugging Face or TensorFlow model
    bert.encode(["Hello, my dog is cute"]).last_hidden_state
    result = bert_jax.train(config, "runs/new")

To import this package imports nothing heavy: JAX comes with the first call.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ml_collections import ConfigDict

    from bert_jax.inference.loaded import LoadedModel
    from bert_jax.run import Result

__version__ = "0.1.0"  # the one place: setup.cfg, checkpoints and `bert_jax --version` read it here


def load(
    path: "str | Path",
    *,
    dtype: str | None = None,
    batch_size: int = 32,
    checkpoint: str = "best",
    task: str = "",
    task_name: str = "",
    overrides: Mapping[str, object] | None = None,
) -> "LoadedModel":
    """Loads a model into memory, with its tokenizer and, if it was fine-tuned, its task.

    `path` is a workdir, a checkpoint folder, a folder of Hugging Face, a TensorFlow checkpoint of google-research/bert
    or a name of the Hugging Face Hub. `checkpoint` chooses one of a workdir's: "best", "newest" or a step.

    `dtype` of the matrix products is "bfloat16" or "float32", by default as in the run. `batch_size` is the largest
    number of rows of a batch. `overrides` sets options of the config that may differ from the run's, such as
    {"data.sequence_length": 64}. `task` is the one class outside bert_jax, as "module.Class", that the checkpoint may
    name as its task: its code is executed. `task_name` chooses one of several tasks that were trained together, without
    which only the encoder can be used. Raises `bert_jax.config.UserError`.
    """
    from bert_jax.inference.loaded import load as load_model

    return load_model(
        path,
        dtype=dtype,
        batch_size=batch_size,
        checkpoint=checkpoint,
        task=task,
        task_name=task_name,
        overrides=overrides or {},
    )


def train(config: "ConfigDict", workdir: "str | Path") -> "Result":
    """Trains, or continues the run in `workdir`, as `python -m bert_jax.main` does with this config; returns metrics,
    paths and why it ended.

    `config` is one of an experiment file's `get_config()`; what it leaves open is filled in. Raises
    `bert_jax.config.UserError`.
    """
    from pathlib import Path

    from bert_jax.run import run

    return run(config, Path(workdir))
