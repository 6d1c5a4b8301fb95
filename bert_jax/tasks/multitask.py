"""Several tasks that share one encoder: heads side by side, each batch of one task (Liu et al. 2019, MT-DNN).

`config.tasks` names the members; each is an ordinary task, of any family, made from the config that it would have
alone. A batch says which member it is of by a key, so that everything that is done with it is decided while its program
is traced: programs are as many as the members' shapes of batches.
"""

import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from flax import nnx
from jax import ShapeDtypeStruct
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError, naming
from bert_jax.data.batching.reader import TrainBatches
from bert_jax.data.batching.turns import BatchesInTurn, Turns, check_shares
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.entries import entries, of_task
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import bert_config
from bert_jax.option import can_be
from bert_jax.tasks import task_class
from bert_jax.tasks.sections import Report, Section, Table
from bert_jax.tasks.task import (
    LOWER_IS_BETTER,
    Batch,
    Constants,
    Description,
    Evaluation,
    HostSums,
    Rows,
    Source,
    Sums,
    Task,
    description_of,
    mean_of_each,
)

_MARK = "task:"  # begin of the key of a batch that names its member; the value is 0 for each group of rows
# The metric of a member that the mean takes, unless tasks.*.metric names another: the first of these that it has.
_USUAL = ("entity_f1", "pearson", "accuracy", "micro_f1", "f1")


class MultiTask(Task):
    """The tasks of `config.tasks`. Names of parameters, objectives, metrics and rows begin with the member's.

    A batch leaves the heads of the other members as they are: neither momentum nor weight decay moves them, as in
    PyTorch a parameter without a gradient (`idle_parameters`). The trunk, its pooler included, is every member's.

    `loss` is the mean of the members' losses times their weights, `mean` that of one metric of each member
    (`main_metrics`), of percentages their hundredth.
    """

    makes_predictions = True
    has_members = True
    makes_vocabulary = True  # where a member does
    dropped_parameters = "heads/"

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, description: Description | None):
        known = _known(config, description)
        members = {}
        for name, alone in configs_of_members(config).items():
            with naming(f"tasks.{name}"):
                members[name] = task_class(alone.task)(alone, tokenizer, known.get(name))
        self._take(config, tokenizer, members)

    @classmethod
    def with_data(cls, config: ConfigDict, source: Source | None) -> Self:
        configs, members = configs_of_members(config), dict[str, Task]()
        check_shares(config.multitask.sampling, _shares(config))  # before any data is read
        known = _known(config, source.description if source is not None and source.task == config.task else None)
        tokenizer = None if source is None else source.tokenizer
        # Without a checkpoint or a file the vocabulary comes from the first member that learns one from its data.
        for name in sorted(configs, key=lambda name: not task_class(configs[name].task).makes_vocabulary):
            alone, its = configs[name], None
            if tokenizer is not None:
                its = Source(tokenizer, alone.task if name in known else "", known.get(name, {}))
            logging.info("task %s: %s", name, alone.task)
            with naming(f"tasks.{name}"):
                members[name] = task_class(alone.task).with_data(alone, its)
            tokenizer = members[name].tokenizer
        assert tokenizer is not None
        task = cls.__new__(cls)
        task._take(config, tokenizer, {name: members[name] for name in configs})
        task._count_steps({name: float(member.steps_per_epoch) for name, member in task.members.items()})
        task.main_metrics = {name: metric for name in task.members if (metric := task._main_metric(name))}
        task.final_splits = tuple(dict.fromkeys(split for one in members.values() for split in one.final_splits))
        return task

    @classmethod
    def without_data(cls, config: ConfigDict, tokenizer: Tokenizer, description: Description | None) -> Self:
        known, members = _known(config, description), dict[str, Task]()
        for name, alone in configs_of_members(config).items():
            with naming(f"tasks.{name}"):
                members[name] = task_class(alone.task).without_data(alone, tokenizer, known.get(name))
        task = cls.__new__(cls)
        task._take(config, tokenizer, members)
        task._count_steps(dict.fromkeys(members, 1.0))
        return task

    def _take(self, config: ConfigDict, tokenizer: Tokenizer, members: Mapping[str, Task]) -> None:
        self.config, self.tokenizer, self.members = config, tokenizer, members
        self.bert_config = bert_config(config.model, tokenizer.vocab_size)
        self.loss_weights = {name: float(entry.weight) for name, entry in entries(config, "tasks").items()}
        self.objectives = {
            f"{name}/{key}": self.loss_weights[name] * share
            for name, member in members.items()
            for key, share in member.objectives.items()
        }
        self.new_parameters = self._patterns("new_parameters")
        self.renewed_parameters = self._patterns("renewed_parameters")
        # A checkpoint of pretraining has its heads beside the trunk: they become those of a member that has the like.
        self.copied_parameters = {}
        for name, member in members.items():
            heads = [f"heads/{head}/" for head in ("mlm", "nsp") if re.search(member.new_parameters, f"heads/{head}/")]
            copied = dict(zip(heads, heads, strict=True)) | dict(member.copied_parameters)
            self.copied_parameters |= {_beside(name, begin): other for begin, other in copied.items()}

    def _patterns(self, attribute: str) -> str:
        texts = ((name, getattr(member, attribute)) for name, member in self.members.items())
        return "|".join(_beside(name, text) for name, text in texts if text)

    def _count_steps(self, sizes: Mapping[str, float]) -> None:
        """Sets what a step costs in the mean over training; `sizes` are batches per epoch."""
        self.sizes = sizes
        # 11 points stand for the whole of training, over which shares may change.
        self.shares = dict(zip(sizes, self.turns(11).shares(np.arange(11)).mean(axis=0).tolist(), strict=True))
        self.steps_per_epoch = round(sum(size for name, size in sizes.items() if self.shares[name] > 0))
        mean = lambda cost: sum(share * getattr(self.members[name], cost) for name, share in self.shares.items())  # noqa: E731
        self.tokens_per_step = round(mean("tokens_per_step"))
        self.flops_per_step, self.bytes_per_step = mean("flops_per_step"), mean("bytes_per_step")

    def turns(self, steps: int) -> Turns:
        """Returns which member each of so many batches is of. One whose loss has weight 0 has none: momentum would move
        the trunk without it. Raises UserError."""
        sizes = {name: size if self.loss_weights[name] else 0.0 for name, size in self.sizes.items()}
        return Turns.from_options(self.config.multitask, sizes, _shares(self.config), self.config.seed, steps)

    def _main_metric(self, name: str) -> str:
        """Returns the metric of a member that `mean` takes; "" if it has no validation examples. Raises UserError."""
        names, wanted = self.members[name].metric_names("validation"), self.config.tasks[name].metric
        better = [one for one in names if not one.endswith(LOWER_IS_BETTER) and one != "real_tokens"]
        if wanted and names and wanted not in better:
            raise UserError(
                f"tasks.{name}.metric is '{wanted}'; of those that are better when higher, {can_be(wanted, better)}"
            )
        return wanted or next((one for one in (*_USUAL, *better) if one in better), "") if names else ""

    def batch_shapes(self, *, training: bool) -> dict[str, ShapeDtypeStruct]:
        """Returns those of the member with the largest batches."""
        found = {name: member.batch_shapes(training=training) for name, member in self.members.items()}
        name = max(found, key=lambda name: found[name]["input_ids"].size)
        groups = min(x.shape[0] for x in found[name].values())
        return found[name] | {_MARK + name: ShapeDtypeStruct((groups,), np.int32)}

    @classmethod
    def splits(cls, config: ConfigDict) -> tuple[str, ...]:
        found = [task_class(alone.task).splits(alone) for alone in configs_of_members(config).values()]
        return tuple(split for split in ("validation", "test") if any(split in splits for splits in found))

    @classmethod
    def predicted_tokens(cls, config: ConfigDict) -> int:
        """Returns that of the member with most."""
        return max(task_class(alone.task).predicted_tokens(alone) for alone in configs_of_members(config).values())

    @classmethod
    def prepared_folders(cls, config: ConfigDict, position: Mapping[str, Any]) -> list[Path]:
        return [
            folder
            for name, alone in configs_of_members(config).items()
            for folder in task_class(alone.task).prepared_folders(alone, position["tasks"][name])
        ]

    def description(self) -> Description:
        parts = ((name, member.config.task, member.description()) for name, member in self.members.items())
        return {"tasks": {name: {"task": kind, "description": description} for name, kind, description in parts}}

    def fingerprints(self) -> dict[str, str]:
        members = self.members.items()
        return {f"{what} ({name})": x for name, member in members for what, x in member.fingerprints().items()}

    def init(self, rngs: nnx.Rngs) -> Model:
        """Returns the trunk that one task alone would begin with, and heads whose values do not depend on which other
        tasks there are."""
        trunk, key, heads = Bert(self.bert_config, rngs=rngs), rngs.params(), {}
        for name, member in self.members.items():
            model = member.init(nnx.Rngs(params=jax.random.fold_in(key, zlib.crc32(name.encode()))))
            if not isinstance(model, Model):
                raise UserError(f"tasks.{name}: the model of {member.config.task} has no trunk that others could share")
            heads[name] = nnx.Dict(model.heads)
        return Model(trunk, heads)

    def constants(self) -> Constants:
        found = {name: member.constants() for name, member in self.members.items()}
        return {name: x for name, x in found.items() if x}

    def train_batches(self, start_step, process_index, process_count) -> TrainBatches:
        turns = self.turns(self.config.optimizer.decay_steps or self.config.train.steps)
        counts = zip(self.members.items(), turns.counts(start_step), strict=True)
        parts = {name: member.train_batches(count, process_index, process_count) for (name, member), count in counts}
        return BatchesInTurn(parts, turns, start_step, _marked)

    def eval_batches(self, split, process_index, process_count) -> Iterator[dict[str, np.ndarray]]:
        for name, member in self.members.items():
            for batch in member.eval_batches(split, process_index, process_count):
                yield _marked(name, batch)

    def idle_parameters(self, batch: Batch) -> str:
        return f"^heads/(?!{self._of(batch)[0]}/)"

    def features(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        name, member, own = self._of(batch)
        return member.features(own, key) | {_MARK + name: batch[_MARK + name]}

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        name, member, own = self._of(batch)
        return _prefixed(name, member.weights(own))

    def sums(self, model: Model, batch: Batch, key: Key[Array, ""] | None, constants: Constants) -> Sums:
        name, member, own = self._of(batch)
        return _prefixed(name, member.sums(_model_of(model, name), own, key, constants.get(name, {})))

    def evaluate(self, model: Model, batch: Batch, constants: Constants) -> tuple[Sums, Rows]:
        name, member, own = self._of(batch)
        sums, rows = member.evaluate(_model_of(model, name), own, constants.get(name, {}))
        return _prefixed(name, sums), _prefixed(name, rows)

    def means(self, sums: HostSums) -> dict[str, float]:
        """Returns the means of each member that the sums are of, of all together, and those that are of no member."""
        of_members = {name: member.means(own) for name, member in self.members.items() if (own := _part(name, sums))}
        metrics = mean_of_each({name: value for name, value in sums.items() if "/" not in name})
        return metrics | self._together(of_members, sums)

    def evaluation(self, split, sums, rows, description) -> Evaluation:
        found, known = dict[str, Evaluation](), description["tasks"]
        for name, member in self.members.items():
            own, its_rows = _part(name, sums), [part for batch in rows if (part := _part(name, batch))]
            if own or its_rows:
                found[name] = member.evaluation(split, own, its_rows, known[name]["description"])
        learned = {
            name: known[name] | {"description": known[name]["description"] | one.learned}
            for name, one in found.items()
            if one.learned
        }
        predictions = [{"task": name, "prediction": x} for name, one in found.items() for x in one.predictions]
        metrics = self._together({name: one.metrics for name, one in found.items()}, sums)
        return Evaluation(split, metrics, predictions, {"tasks": known | learned} if learned else {})

    def _together(self, of_members: Mapping[str, Mapping[str, float]], sums: HostSums) -> dict[str, float]:
        """Returns loss, mean, real_tokens and the metrics of the members by their names."""
        present = {name: metrics for name, metrics in of_members.items() if metrics}
        losses = [self.loss_weights[name] * metrics["loss"] for name, metrics in present.items() if "loss" in metrics]
        mains = [
            present[name][main] / (100 if main.endswith(self.members[name].percentages) else 1)
            for name, main in self.main_metrics.items()
            if main in present.get(name, {})
        ]
        together = {"loss": float(np.mean(losses))} if losses else {}
        together |= {"mean": float(np.mean(mains))} if mains else {}
        tokens = [sums[key] for name in self.members if (key := f"{name}/real_tokens") in sums]
        if tokens and (positions := sum(float(weight) for _, weight in tokens)):
            together["real_tokens"] = sum(float(total) for total, _ in tokens) / positions
        return together | {key: x for name, metrics in present.items() for key, x in _prefixed(name, metrics).items()}

    def metric_names(self, split: str) -> tuple[str, ...]:
        of_members = {name: member.metric_names(split) for name, member in self.members.items()}
        own = ("loss", *(["mean"] if self.main_metrics else []), "real_tokens") if any(of_members.values()) else ()
        return (*own, *(f"{name}/{metric}" for name, metrics in of_members.items() for metric in metrics))

    def report(self, evaluation: Evaluation) -> Report | None:
        records, sections = [], [self._overview()]
        for name, member in self.members.items():
            predictions = [one["prediction"] for one in evaluation.predictions if one["task"] == name]
            metrics = _part(name, evaluation.metrics)
            own = member.report(Evaluation(evaluation.split, metrics, predictions)) if metrics else None
            if own is not None:
                records += [{"task": name, **record} for record in own.records]
                sections += [replace(section, title=f"{name}: {section.title}") for section in own.sections]
        return Report(records, sections)

    def _overview(self) -> Section:
        header = ["task", "kind", "batches per epoch", "share of the batches", "weight of the loss", "metric of mean"]
        rows = []
        for name, member in self.members.items():
            numbers = f"{self.sizes[name]:.0f}", f"{self.shares[name]:.3f}", f"{self.loss_weights[name]:g}"
            rows.append([name, member.config.task, *numbers, self.main_metrics.get(name, "")])
        return Section("Tasks", Table(header, rows, {2, 3, 4}))

    def _of(self, batch: Batch) -> tuple[str, Task, Batch]:
        """Returns the member that a batch is of, by name, and the batch as it knows it."""
        [mark] = (key for key in batch if key.startswith(_MARK))
        name = mark.removeprefix(_MARK)
        return name, self.members[name], {key: x for key, x in batch.items() if key != mark}


def configs_of_members(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config that each member would have alone. Raises UserError if there is none."""
    if not config.tasks:
        raise UserError(
            f"task={config.task} needs tasks: list them in the experiment by bert_jax.entries.add_entry, or give "
            "--config.tasks.NAME.task=… and --config.tasks.NAME.data.train=…"
        )
    return {name: of_task(config, name) for name in entries(config, "tasks")}


def _shares(config: ConfigDict) -> dict[str, float | None]:
    """Returns tasks.*.share, 0 instead where the weight of the loss is 0. Raises UserError if all weights are."""
    tasks = entries(config, "tasks")
    if not any(entry.weight for entry in tasks.values()):
        raise UserError(f"tasks.*.weight is 0 for every task ({', '.join(tasks)}): set one of them above 0")
    return {name: entry.share if entry.weight or entry.share is None else 0.0 for name, entry in tasks.items()}


def _known(config: ConfigDict, description: Description | None) -> dict[str, Description]:
    """Returns what a checkpoint says of the members that it has too, as tasks of the same kind."""
    kinds = {} if description is None else {name: one["task"] for name, one in description.get("tasks", {}).items()}
    same = (name for name, kind in kinds.items() if name in config.tasks and config.tasks[name].task == kind)
    return {name: description_of(description, name) for name in same}


def _beside(name: str, text: str) -> str:
    """Returns a name or pattern of parameters of a member's heads, as this model calls them."""
    return text.replace("heads/", f"heads/{name}/")


def _model_of(model: Model, name: str) -> Model:
    """Returns the model that a member knows."""
    return Model(model.trunk, model.heads[name])


def _marked(name: str, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(batch) | {_MARK + name: np.zeros(min(len(x) for x in batch.values()), np.int32)}


def _prefixed(name: str, values: Mapping[str, object]) -> Json:
    return {f"{name}/{key}": x for key, x in values.items()}


def _part(name: str, values: Mapping[str, object]) -> Json:
    """Returns the values of a member, by the names that it knows."""
    return {key.removeprefix(f"{name}/"): x for key, x in values.items() if key.startswith(f"{name}/")}
