"""The one door from a path to a model: which checkpoint is meant, its config, tokenizer, task and parameters.

Whoever wants a trained model goes through `open_model`: evaluation, Predictor, Embedder, FillMask, `bert_jax.load`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from bert_jax.config import UserError, from_json_dict
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.models.config import BertConfig, bert_config
from bert_jax.options import INFERENCE, SHAPE
from bert_jax.tasks import known_task
from bert_jax.tasks.task import Task
from bert_jax.training.checkpoint import Damaged, choose_checkpoint, has_checkpoint, read_checkpoint
from bert_jax.training.parameters import Parameters, flatten, take_over, unflatten


@dataclass(frozen=True)
class Opened:
    """A checkpoint in memory. `run` is the checkpoint's own item: config, data position, what the task learned."""

    path: Path
    step: int
    config: ConfigDict
    tokenizer: Tokenizer
    parameters: Parameters
    run: dict[str, Any]
    users_task: str = ""

    @cached_property
    def bert_config(self) -> BertConfig:
        return bert_config(self.config.model, self.tokenizer.vocab_size)

    @cached_property
    def task(self) -> Task:
        """The task that the checkpoint was trained on, without data."""
        make = known_task(self.config.get("task", "pretraining"), self.users_task, str(self.path))
        return make(self.config, self.tokenizer, self.run.get("task"))

    @cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The structure of the task's model, without parameters."""
        return nnx.split(_abstract(self.task.init))[0]

    def fit(
        self, build: Callable[[nnx.Rngs], nnx.Module], *, absent: str = "", dropped: str = ""
    ) -> tuple[nnx.GraphDef, Parameters]:
        """Structure and parameters of the model that `build` describes, which need not be the task's own.

        `absent` and `dropped` are regular expressions, matched at the start of a name: parameters that the checkpoint
        may lack (they are zero), or has in vain. Raises UserError for any other name without a counterpart, and for a
        shape that is not the one of the config.
        """
        model = _abstract(build)
        origin = str(self.path)
        parameters, report = take_over(flatten(model), self.parameters, new=absent, dropped=dropped, origin=origin)
        zeros = {name: jnp.zeros(parameters[name].shape, parameters[name].dtype) for name in report.missing}
        return nnx.split(model)[0], parameters | zeros

    def model(
        self, build: Callable[[nnx.Rngs], nnx.Module] | None = None, *, absent: str = "", dropped: str = ""
    ) -> nnx.Module:
        """The same as one module; by default the task's own model."""
        return unflatten(*self.fit(build or self.task.init, absent=absent, dropped=dropped))


def open_model(
    path: str | Path, *, overrides: Mapping[str, Any] | None = None, which: str = "best", users_task: str = ""
) -> Opened:
    """Opens the checkpoint that `choose_checkpoint(path, which)` finds.

    Its config is the run's own with those `overrides`, {"model.dtype": "float32", …}, that are in INFERENCE.
    `users_task` is the one class outside bert_jax that the checkpoint may name as its task. Raises
    UserError if there is no checkpoint, if it is damaged, and for overrides that ask for another model.
    """
    folder = choose_checkpoint(str(path), which)
    try:
        saved = read_checkpoint(folder)
    except Damaged as damage:
        raise UserError(str(damage)) from damage
    config = from_json_dict(saved.run["config"])
    check_alike(bert_config(config.model, saved.tokenizer.vocab_size), overrides or {}, folder)
    for key in INFERENCE:
        if overrides and key in overrides:
            group, _, name = key.partition(".")
            config[group][name] = overrides[key]
    return Opened(folder, saved.run["step"], config, saved.tokenizer, saved.parameters, saved.run, users_task)


def meant(workdir: str | Path, init_from: str = "") -> str:
    """Whose checkpoints a command uses: 1. those of the workdir; 2. if it has none, those that `init_from` names."""
    return init_from if init_from and not has_checkpoint(str(workdir)) else str(workdir)


def check_alike(model: BertConfig, wanted: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if `wanted`, dotted keys with their values, asks for another model than the one in `folder`."""
    pairs = [(f"model.{name}", getattr(model, name)) for name in SHAPE]
    differing = [f"{key} was {own!r}, is {wanted[key]!r}" for key, own in pairs if wanted.get(key) not in (None, own)]
    if differing:
        raise UserError(
            f"{folder} holds another model ({'; '.join(differing)}); leave these keys as they were in its run"
        )


def _abstract(build: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    return nnx.eval_shape(lambda: build(nnx.Rngs(params=0)))
