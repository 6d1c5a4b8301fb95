"""Distillation: a student learns what a teacher computes for the same rows, in any task.

    relations   how the tokens of one layer relate to each other (Wang et al. 2020, MiniLM; Wang et al. 2021, MiniLMv2)
    soft        the teacher's probabilities, by a temperature (Hinton et al. 2015; Sanh et al. 2019, DistilBERT)
    hidden      the hidden states of the layers, through a projection (Jiao et al. 2020, TinyBERT)
    hard        the task's own loss, with the labels of the data

Each has its weight in the options `distillation.*`; the loss is their weighted sum. Teacher and student read the same
rows, in pretraining with the same masks, and so need one vocabulary. The student may have any width and depth: a
relation is between two tokens and has no width.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError
from bert_jax.data.batching.reader import TrainBatches
from bert_jax.models.attention import attention_mask
from bert_jax.models.bert import Bert, Model, Seen, TrunkInputs, watched
from bert_jax.models.config import BertConfig
from bert_jax.models.cost import training_flops
from bert_jax.models.layers import Linear, accumulator, dot
from bert_jax.tasks.losses import soft_sums
from bert_jax.tasks.task import Batch, Constants, Evaluation, HostSums, Phase, Sums, Task, mean_of_each
from bert_jax.tasks.teacher_cache import TAUGHT, TaughtBatches, TeacherCache, check_cached, soft_targets

HEAD = "distillation"  # the head that holds the projection; nothing but distillation uses it
PARTS = ("relations", "soft", "hidden", "hard")
RELATIONS = {"attention": (0, 1), "queries": (0, 0), "keys": (1, 1), "values": (2, 2)}  # of queries, keys and values


@dataclass(frozen=True)
class Teacher:
    """A trained model whose parameters do not change; `model` makes it of them, inside a program."""

    task: Task
    parameters: Mapping[str, Array]
    model: Callable[[Mapping[str, Array]], Model]
    origin: str  # for messages
    lacking: tuple[str, ...] = ()  # parameters that its checkpoint does not have: outputs of these heads mean nothing


class Recipe(NamedTuple):
    """What a student learns from its teacher: the weights above 0 of PARTS, and the options that belong to them."""

    weights: dict[str, float]
    temperature: float
    kinds: tuple[str, ...]  # of RELATIONS
    heads: int  # into which queries, keys and values are cut for a relation, whatever a model's own number
    layer: int  # the teacher's, from 1, whose relations the student's last layer learns
    layers: tuple[int, ...]  # the teacher's, from 0 for the embeddings, for each hidden state of the student

    @classmethod
    def of(cls, options: ConfigDict, student: BertConfig, teacher: BertConfig) -> "Recipe":
        """Raises UserError for options that do not fit the two models."""
        weights = {part: options[part] for part in PARTS if options[part]}
        if not weights:
            raise UserError(f"distillation: all of {', '.join(PARTS)} are 0: there is nothing to learn")
        kinds = tuple(kind.strip() for kind in options.relation_kinds.split(","))
        for kind in kinds:
            if kind not in RELATIONS:
                known = ", ".join(RELATIONS)
                raise UserError(f"distillation.relation_kinds: '{kind}' is not known; it can be {known}")
        heads = options.relation_heads or _usual_heads(kinds, student, teacher)
        layer = options.teacher_layer or teacher.num_hidden_layers
        if layer > teacher.num_hidden_layers:
            raise UserError(
                f"distillation.teacher_layer is {layer}; the teacher has {teacher.num_hidden_layers} layers"
            )
        if "relations" in weights:
            _check_relations(kinds, heads, student, teacher)
        depth, depth_of_teacher = student.num_hidden_layers, teacher.num_hidden_layers
        if "hidden" in weights and depth_of_teacher % depth:
            raise UserError(
                f"distillation.hidden: the student's {depth} layers do not divide the teacher's {depth_of_teacher}: "
                "choose another model.num_hidden_layers, or relations, which are of one layer"
            )
        layers = tuple(depth_of_teacher * i // depth for i in range(depth + 1))
        return cls(weights, options.temperature, kinds, heads, layer, layers)


class Distillation:
    """A task whose model is the student of a teacher.

    It wraps a task instead of inheriting from one, so that any can be distilled, a user's own too: all but the loss and
    what an evaluation says of it is the task's. Among the metrics `loss` is the sum of all parts, `hard_loss` what the
    task itself calls its loss, and each other part is there by its name.
    """

    def __init__(self, student: Task, teacher: Teacher, cache: TeacherCache | None = None):
        """`cache` has the teacher's logits in place of the teacher. Raises UserError if this teacher cannot teach this
        student."""
        self.student, self.teacher, self.cache = student, teacher, cache
        self.recipe = Recipe.of(student.config.distillation, student.bert_config, teacher.task.bert_config)
        weights = self.recipe.weights
        _check_alike(student, teacher, weights)
        if cache is not None:
            of_teacher = teacher.task.bert_config
            cache.expect(check_cached(student, weights, of_teacher.num_hidden_layers, of_teacher.hidden_size))
        self.uses_heads = bool(weights.keys() & {"soft", "hard"})
        self.makes_predictions = student.makes_predictions and self.uses_heads
        self.taught = {f"{part}_loss": weights[part] for part in ("relations", "hidden") if part in weights}
        own = student.objectives.items()
        self.taught |= {_soft(name): share * weights["soft"] for name, share in own if "soft" in weights}
        hard = {name: share * weights["hard"] for name, share in own if "hard" in weights}
        self.objectives = self.taught | hard
        if hasattr(student, "flops_per_step"):
            forward = 0.0 if cache else forward_flops(teacher.task.bert_config, student)
            self.flops_per_step = student.flops_per_step + forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.student, name)

    def phases(self) -> list[Phase]:
        phases = self.student.phases()
        return [Phase(end, cast(Task, Distillation(task, self.teacher, self.cache))) for end, task in phases]

    @property
    def new_parameters(self) -> str:
        return "|".join(filter(None, (self.student.new_parameters, f"^heads/{HEAD}/")))

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        model = cast(Model, self.student.init(rngs))
        if "hidden" in self.recipe.weights:
            own, size = self.student.bert_config, self.teacher.task.bert_config.hidden_size
            projection = Linear(own.hidden_size, size, stddev=own.initializer_range, rngs=rngs)
            model.heads = nnx.Dict({**model.heads, HEAD: projection})
        return model

    def constants(self) -> Constants:
        teacher = {} if self.cache else dict(self.teacher.parameters)
        return {"own": self.student.constants(), "teacher": teacher}

    def train_batches(self, start_step: int, process_index: int, process_count: int) -> TrainBatches:
        batches = self.student.train_batches(start_step, process_index, process_count)
        return batches if self.cache is None else TaughtBatches(batches, self.cache)

    def eval_batches(self, split: str, process_index: int, process_count: int) -> Iterator[dict[str, np.ndarray]]:
        batches = self.student.eval_batches(split, process_index, process_count)
        return batches if self.cache is None else map(self.cache.with_logits, batches)

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        tokens = jnp.maximum(jnp.sum(_real(batch)), 1.0)
        own = self.student.weights(batch)
        soft = {_soft(name): own[name] for name in self.student.objectives}
        return own | soft | {"relations_loss": tokens, "hidden_loss": tokens}

    def sums(self, model: Model, batch: Batch, key: Key[Array, ""] | None, constants: Constants) -> Sums:
        sums, outputs, student = {}, {}, cast(Any, self.student)
        with watched() as seen:
            if not self.uses_heads:
                model.trunk.encode(TrunkInputs.from_batch(batch), key=key)
            elif "soft" in self.recipe.weights:
                outputs = student.outputs(model, batch, key)
                sums = student.sums_of(outputs, batch, key, constants["own"])
            else:
                sums = student.sums(model, batch, key, constants["own"])
        return sums | self._taught(model, outputs, seen, batch, constants)

    def evaluate(self, model: Model, batch: Batch, constants: Constants) -> tuple[Sums, dict[str, Array]]:
        if not self.uses_heads:
            return self.sums(model, batch, None, constants), {}
        sums, rows = self.student.evaluate(model, batch, constants["own"])
        if not self.student.objectives.keys() & sums.keys():  # a batch of something else, such as minimal pairs
            return sums, rows
        taught = self.sums(model, batch, None, constants)  # whose passes XLA finds to be those above
        return sums | {name: taught[name] for name in self.taught}, rows

    def means(self, sums: HostSums) -> dict[str, float]:
        own = self.student.means(self._own(sums)) if self.uses_heads else {}
        return self._with_loss(own, sums)

    def evaluation(self, split: str, sums: HostSums, rows, description) -> Evaluation:
        if not self.uses_heads:
            return Evaluation(split, self.means(sums))
        found = self.student.evaluation(split, self._own(sums), rows, description)
        return replace(found, metrics=self._with_loss(found.metrics, sums))

    def metric_names(self, split: str) -> tuple[str, ...]:
        own = self.student.metric_names(split)
        names = ("loss", *self.taught) if own else ()
        return (*names, *("hard_loss" if name == "loss" else name for name in own)) if self.uses_heads else names

    def _own(self, sums: Mapping[str, object]) -> Json:
        return {name: value for name, value in sums.items() if name not in self.taught}

    def _with_loss(self, own: Mapping[str, float], sums: HostSums) -> dict[str, float]:
        """Returns the task's own metrics and those of the parts, with `loss` as the sum of all."""
        parts = mean_of_each({name: sums[name] for name in self.objectives if name in sums})
        if not parts:
            return dict(own)
        found = {"hard_loss" if name == "loss" else name: value for name, value in own.items()}
        found |= {name: parts[name] for name in self.taught if name in parts}
        return found | {"loss": sum(share * parts[name] for name, share in self.objectives.items() if name in parts)}

    def _taught(self, model: Model, outputs: object, seen: Sequence[Seen], batch: Batch, constants: Constants) -> Sums:
        """Returns the sums of the parts that the teacher has a part in. `outputs` are the student's, for "soft"."""
        weights, recipe, found = self.recipe.weights, self.recipe, {}
        if not weights.keys() - {"hard"}:
            return found
        theirs, by_teacher, teacher = batch, [], cast(Model, None)  # with a cache the batch has the logits
        if self.cache is None:
            teacher = self.teacher.model(constants["teacher"])
            with watched() as by_teacher:
                if "soft" in weights:
                    theirs = soft_targets(self.teacher.task, teacher, batch)
                else:
                    teacher.trunk.encode(_only(seen, self.student).inputs)
        if "soft" in weights:
            for name, logits in cast(Any, self.student).soft(outputs, batch).items():
                others = (theirs[f"{TAUGHT}{name}/{i}"] for i in range(len(logits)))
                each = [soft_sums(own, other, recipe.temperature) for own, other in zip(logits, others, strict=True)]
                found[_soft(name)] = (sum(total for total, _ in each) / len(each), each[0][1])
            for name in self.student.objectives.keys() - {*cast(Any, self.student).soft(outputs, batch)}:
                found[_soft(name)] = (jnp.float32(0), jnp.float32(0))
        if weights.keys() & {"relations", "hidden"}:
            own, other = _only(seen, self.student), _only(by_teacher, self.teacher.task)
            if "relations" in weights:
                found["relations_loss"] = _relation_sums(recipe, (model.trunk, own), (teacher.trunk, other))
            if "hidden" in weights:
                found["hidden_loss"] = _hidden_sums(recipe, model.heads[HEAD], own, other)
        return found


def forward_flops(teacher: BertConfig, student: Task) -> float:
    """Returns the floating-point operations of a teacher for the rows of one of the student's steps."""
    length = student.config.data.sequence_length
    return training_flops(teacher, student.tokens_per_step / length, length, 0) / 3


def _soft(objective: str) -> str:
    return "soft_loss" if objective == "loss" else f"soft_{objective}"


def _real(batch: Mapping[str, Array]) -> Float[Array, "B L"]:
    return (batch["sequence_ids"] > 0).astype(jnp.float32)


def _only(seen: Sequence[Seen], task: Task) -> Seen:
    """Returns what was seen of the one call of the trunk, whose rows the other model can read as well."""
    if len(seen) != 1 or seen[0].inputs.input_ids is None:
        raise UserError(f"distillation: task={task.config.task} has no relations or hidden states to learn: use soft")
    return seen[0]


def _relation_sums(recipe: Recipe, student: tuple[Bert, Seen], teacher: tuple[Bert, Seen]) -> tuple[Array, Array]:
    """Returns the divergence of the student's relations from the teacher's, a mean over heads, summed over kinds and
    real tokens, and the number of these (Wang et al. 2021, equations 4 to 6)."""
    inputs = student[1].inputs
    mask = attention_mask(inputs.sequence_ids, causal=False)
    real = (inputs.sequence_ids > 0).astype(jnp.float32)
    last = student[0].config.num_hidden_layers
    both = ((*student, last), (*teacher, recipe.layer))
    models = [(trunk, trunk.projections(layer, seen)) for trunk, seen, layer in both]
    total = jnp.float32(0)
    for kind in recipe.kinds:
        one, other = (
            _log_relation(trunk.config.dtype, projected, kind, recipe.heads, mask) for trunk, projected in models
        )
        other = jax.lax.stop_gradient(other)
        divergence = jnp.sum(jnp.exp(other) * (other - one), axis=-1)
        total += jnp.sum(jnp.mean(divergence, axis=1) * real)
    return total, jnp.sum(real)


def _log_relation(
    dtype: str, projected: Sequence[Float[Array, "B L H K"]], kind: str, heads: int, mask: Bool[Array, "B 1 L L"]
) -> Float[Array, "B R L L"]:
    """Returns the logarithm of softmax(x · yᵀ / √d) between the tokens of a sequence, for each of R heads of size d."""
    first, second = RELATIONS[kind]
    x, y = (projected[i].reshape(*projected[i].shape[:2], heads, -1).swapaxes(1, 2) for i in (first, second))
    products = dot(x * x.shape[-1] ** -0.5, y.swapaxes(-1, -2), dtype, accumulator(dtype)).astype(jnp.float32)
    return jax.nn.log_softmax(jnp.where(mask, products, -1e30), axis=-1)


def _hidden_sums(recipe: Recipe, projection: Linear, student: Seen, teacher: Seen) -> tuple[Array, Array]:
    """Returns the squared differences of projected hidden states, a mean over layers and values, summed over real
    tokens, and the number of these (Jiao et al. 2020, equations 8 and 9)."""
    real, total = (student.inputs.sequence_ids > 0).astype(jnp.float32), jnp.float32(0)
    for own, layer in zip(student.states, recipe.layers, strict=True):
        other = jax.lax.stop_gradient(teacher.states[layer].astype(jnp.float32))
        projected = projection(own, own.dtype.name).astype(jnp.float32)
        total += jnp.sum(jnp.mean(jnp.square(projected - other), axis=-1) * real)
    return total / len(recipe.layers), jnp.sum(real)


def _usual_heads(kinds: Sequence[str], student: BertConfig, teacher: BertConfig) -> int:
    """Returns the teacher's number of heads, or the next lower one that divides both widths."""
    heads, both = teacher.num_attention_heads, math.gcd(student.attention_width, teacher.attention_width)
    return heads if "attention" in kinds else max(count for count in range(1, heads + 1) if both % count == 0)


def _check_relations(kinds: Sequence[str], heads: int, student: BertConfig, teacher: BertConfig) -> None:
    for who, model in (("student", student), ("teacher", teacher)):
        if model.attention_width % heads:
            raise UserError(
                f"distillation.relation_heads {heads} does not divide the {who}'s model.hidden_size "
                f"{model.attention_width}; set it to a number that divides both"
            )
        if "attention" in kinds and model.num_attention_heads != heads:
            raise UserError(
                f"distillation.relation_kinds: attention is of a model's own heads, {model.num_attention_heads} of the "
                f"{who}'s, {heads} here: make them the same, or use queries,keys,values"
            )


def _check_alike(student: Task, teacher: Teacher, weights: Mapping[str, float]) -> None:
    """Raises UserError unless both read the same rows and, for soft targets, give the same outputs."""
    task, other, origin = student.config.task, teacher.task.config.task, teacher.origin
    if student.tokenizer.content_hash != teacher.task.tokenizer.content_hash:
        raise UserError(
            f"distillation.teacher={origin} has another vocabulary than the student: leave out data.vocab_file and "
            "init_from, or give those with the teacher's"
        )
    longest, length = teacher.task.bert_config.max_position_embeddings, student.config.data.sequence_length
    if length > longest:
        raise UserError(
            f"data.sequence_length {length} is over the {longest} positions of distillation.teacher={origin}"
        )
    own, theirs = student.bert_config.languages, teacher.task.bert_config.languages
    if own and theirs and own != theirs:  # a batch numbers languages as the student does
        raise UserError(f"distillation.teacher={origin} needs model.languages={theirs} of the student, which has {own}")
    if "soft" not in weights:
        return
    if not all(hasattr(one, "soft") and hasattr(one, "outputs") for one in (student, teacher.task)):
        raise UserError(f"distillation.soft: task={task} has no soft targets; set it to 0")
    if other != task:
        raise UserError(
            f"distillation.soft: the teacher {origin} was trained for task={other}, the student is for task={task}: "
            "fine-tune the teacher first, or set soft to 0 and learn its relations"
        )
    if teacher.lacking:
        raise UserError(
            f"distillation.soft: the teacher {origin} has no {teacher.lacking[0]}, so its outputs mean nothing: "
            "take one that has it, or set soft to 0 and learn its relations"
        )
    if (ours := student.description()) and ours.get("labels") != (theirs := teacher.task.description()).get("labels"):
        raise UserError(
            f"distillation.teacher={origin} has the labels {theirs.get('labels')}, the student {ours.get('labels')}; "
            "both need the same, in one order (data.labels)"
        )
