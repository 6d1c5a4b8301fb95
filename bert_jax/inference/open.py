"""The one door from a path to a model: which checkpoint is meant, its config, tokenizer, task and parameters.

Whoever wants a trained model goes through `open_model`: evaluation, Predictor, Embedder, FillMask, `bert_jax.load`.
"""

import copy
import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from bert_jax import backend
from bert_jax.config import Json, UserError, from_json_dict, naming
from bert_jax.data.text.buckets import local
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.entries import of_task
from bert_jax.extras import install
from bert_jax.inference.prepared import PredictionModel
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import BertConfig, bert_config
from bert_jax.models.heads import MaskedLMHead
from bert_jax.options import INFERENCE, SHAPE
from bert_jax.tasks import known_task, may_import
from bert_jax.tasks.distillation import HEAD as DISTILLATION
from bert_jax.tasks.task import Task, description_of
from bert_jax.training import checkpoint
from bert_jax.training.checkpoint_format import Damaged
from bert_jax.training.parameters import Parameters, of_one_task, structure, take_over, unflatten

if TYPE_CHECKING:
    from bert_jax.inference.openvino_model import OpenVinoModel


@dataclass(frozen=True)
class Opened:
    """A model in memory. `run` is the checkpoint's own item: config, data position, what the task learned. `like` is
    a prepared model with the same trunk, which is shared."""

    path: Path
    step: int
    config: ConfigDict
    tokenizer: Tokenizer
    parameters: Parameters
    run: Json
    users_task: str = ""
    like: PredictionModel | None = None

    @cached_property
    def bert_config(self) -> BertConfig:
        return bert_config(self.config.model, self.tokenizer.vocab_size)

    @cached_property
    def task(self) -> Task:
        """The task that the checkpoint was trained on, without data."""
        make = known_task(self.config, self.users_task, str(self.path))
        return make(self.config, self.tokenizer, self.run["task"])

    def check_single(self) -> None:
        """Raises UserError for a model of several tasks, of which one has to be chosen."""
        if names := ", ".join(self.config.tasks):
            raise UserError(
                f"{self.path} holds the tasks {names}: choose one by --task_name=NAME (in Python task_name=NAME)"
            )

    @property
    def fills_masks(self) -> bool:
        """Whether it has an MLM head on its trunk; that of an encoder with a decoder belongs to the decoder."""
        return self.has("heads/mlm/") and not self.has("heads/decoder/")

    def check_mlm_head(self, use: str) -> None:
        """Raises UserError for a model without an MLM head; `use` says what it is for, as "fills masks"."""
        if not self.fills_masks:
            self.check_single()
            raise UserError(f"{self.path} has no MLM head, which {use}; it was made without one")

    def of(self, name: str) -> "Opened":
        """Returns the model of one of several tasks, as a run of that task alone would have saved it. Raises UserError
        if there is none of this name."""
        with naming(str(self.path)):
            config = of_task(self.config, name)
            description = description_of(self.run["task"], name)
        run = self.run | {"task": description, "config": config.to_dict()}
        return replace(self, config=config, parameters=of_one_task(self.parameters, name), run=run)

    def members(self) -> dict[str, "Opened"]:
        """Returns the models of several tasks by name, which share their trunk in memory; {} for a model of one."""
        like = self.at_work if self.config.tasks else None
        shared = like if isinstance(like, PredictionModel) else None
        return {name: replace(self.of(name), like=shared) for name in sorted(self.config.tasks)}

    @cached_property
    def at_work(self) -> PredictionModel:
        """The task's model prepared for prediction, shared by all tools. What the checkpoint lacks is zero, except in
        the embeddings and layers, which must be whole. If the task is a class that may not be imported, the trunk and
        the MLM head, which need no class."""
        dtype = self.bert_config.dtype if backend.current().bfloat16_is_fast else "float32"
        if self.config.predict.backend == "openvino":
            return openvino_model(self._whole_model("float32"), dtype)
        return PredictionModel(self._whole_model(dtype), self.like)

    def _whole_model(self, dtype: str) -> nnx.Module:
        """Returns the model with `dtype` in place of its own."""
        config = copy.deepcopy(self.config)
        config.model.dtype = dtype
        other = replace(self, config=config)
        build = other.task.init if may_import(self.config, self.users_task) else other._without_task
        return unflatten(*other.fit(build, absent="^(?!embeddings/|encoder/)", dropped="^heads/"))

    def _without_task(self, rngs: nnx.Rngs) -> Model:
        trunk = Bert(self.bert_config, rngs=rngs)
        return Model(trunk, {"mlm": MaskedLMHead(self.bert_config, rngs=rngs)} if self.has("heads/mlm/") else {})

    def has(self, part: str) -> bool:
        """Returns whether the checkpoint has parameters whose names begin with `part`."""
        return any(name.startswith(part) for name in self.parameters)

    def without_parameters(self) -> "Opened":
        """Returns this with shapes in place of the parameters, whose memory is free once nobody else holds them; what
        `at_work` made of them stays."""
        shapes: Any = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self.parameters.items()}
        light = replace(self, parameters=shapes)
        vars(light)["at_work"] = self.at_work  # where cached_property keeps it
        return light

    def fit(
        self, build: Callable[[nnx.Rngs], nnx.Module], *, absent: str = "", dropped: str = ""
    ) -> tuple[nnx.GraphDef, Parameters]:
        """Returns structure and parameters of the model that `build` describes, which need not be the task's own.

        `absent` and `dropped` are patterns (see `config.pattern`) of parameters that the checkpoint may lack (they are
        zero), or has in vain. Raises UserError for any other name without a counterpart, and for a
        shape that is not the one of the config.
        """
        (graphdef, shapes), origin = structure(build), str(self.path)
        dropped = "|".join(filter(None, (dropped, f"^heads/{DISTILLATION}/")))
        parameters, report = take_over(shapes, self.parameters, new=absent, dropped=dropped, origin=origin)
        zeros = {name: jnp.zeros(parameters[name].shape, parameters[name].dtype) for name in report.missing}
        return graphdef, parameters | zeros


def openvino_model(model: nnx.Module, dtype: str) -> "OpenVinoModel":
    """Returns a model whose programs OpenVINO, an optional package, runs."""
    from bert_jax.inference.openvino_model import OpenVinoModel

    return OpenVinoModel(model, dtype)


def open_model(
    path: str | Path,
    *,
    overrides: Mapping[str, object] | None = None,
    which: str = "best",
    users_task: str = "",
    task_name: str = "",
    shardings: checkpoint.Shardings = checkpoint.on_one_device,
) -> Opened:
    """Opens the checkpoint that `choose_checkpoint(path, which, task_name)` finds, or a model in another format.

    Its config is the run's own with those `overrides`, {"model.dtype": "float32", …}, that are in INFERENCE.
    `users_task` is the one class outside bert_jax that the checkpoint may name as its task. `task_name` chooses one of
    several tasks. Parameters go directly where `shardings` wants them. Raises UserError if there is no model, if it is
    damaged, and for overrides that ask for another model.
    """
    path = local(str(path))
    if _is_foreign(Path(path)):
        opened = _open_foreign(str(path), users_task, shardings)
    else:
        folder, saved = _read(str(path), which, task_name, shardings)
        config = from_json_dict(saved.run["config"])
        opened = Opened(folder, saved.run["step"], config, saved.tokenizer, saved.parameters, saved.run, users_task)
    opened = opened.of(task_name) if task_name else opened
    check_alike(opened.bert_config, overrides or {}, opened.path)
    for key in INFERENCE:
        if overrides and key in overrides:
            group, _, name = key.partition(".")
            opened.config[group][name] = overrides[key]
    del vars(opened)["bert_config"]  # it was made from the config as it was
    if opened.config.predict.backend == "openvino" and importlib.util.find_spec("openvino") is None:
        raise UserError(f"predict.backend=openvino needs the extra openvino: {install('openvino')}")
    return opened


def _read(path: str, which: str, task_name: str, shardings: checkpoint.Shardings) -> tuple[Path, checkpoint.Saved]:
    """Returns the chosen checkpoint. A run that is training may delete it meanwhile; then the choice is made again."""
    for attempts_left in (3, 2, 1, 0):
        folder = None
        try:
            folder = checkpoint.choose_checkpoint(path, which, task_name)
            return folder, checkpoint.read_checkpoint(folder, shardings=shardings)
        except Damaged:
            if not attempts_left or (folder is not None and folder.exists()):
                raise
            logging.info("%s: a checkpoint was deleted by its run while it was read; choosing again", path)
    raise AssertionError("the last attempt returns or raises")


def opened_of(model: str | Path | Opened, **options: Any) -> Opened:
    """Returns a model that is opened already as it is; opens the others with the options of `open_model`."""
    return model if isinstance(model, Opened) else open_model(model, **options)


def meant(workdir: str | Path, init_from: str = "") -> str:
    """Returns whose model a command uses: 1. the workdir's; 2. if it has no checkpoint, the one that `init_from` names.
    Raises UserError if there is neither."""
    if init_from and not checkpoint.has_checkpoint(str(workdir)):
        return init_from
    checkpoint.find_checkpoint(str(workdir))
    return str(workdir)


def check_alike(model: BertConfig, wanted: Mapping[str, object], folder: Path) -> None:
    """Raises UserError if `wanted`, dotted keys with their values, asks for another model than the one in `folder`."""
    pairs = [(f"model.{name}", getattr(model, name)) for name in SHAPE]
    differing = [f"{key} was {own!r}, is {wanted[key]!r}" for key, own in pairs if wanted.get(key) not in (None, own)]
    if differing:
        raise UserError(
            f"{folder} holds another model ({'; '.join(differing)}); leave these keys as they were in its run"
        )


def _is_foreign(path: Path) -> bool:
    """Returns whether a path has to be a model in another format: its folder has such files, or it is not there and may
    be a name of the Hugging Face Hub."""
    if checkpoint.has_checkpoint(str(path)) or (path / "metrics.jsonl").exists():
        return False
    if path.is_dir():
        return any(next(path.glob(pattern), None) for pattern in ("config.json", "modules.json", "*.index"))
    return True


def _open_foreign(path: str, users_task: str, shardings: checkpoint.Shardings) -> Opened:
    # A later room: converters write checkpoints, and read ours through this file. What they read of others is needed
    # here, so they are imported when they are needed.
    from bert_jax.convert.conversion import open_source

    source = open_source(path)
    model, config = source.model, from_json_dict(source.run["config"])
    logging.info("%s: %s", path, model.report)
    parameters = jax.tree.map(jax.device_put, model.parameters, shardings(model.parameters))
    return Opened(Path(path), source.run["step"], config, model.tokenizer, parameters, source.run, users_task)
