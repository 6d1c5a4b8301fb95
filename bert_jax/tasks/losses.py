"""Losses as sums with weights, and the probabilities that logits stand for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bert_jax.config import UserError
from bert_jax.tasks.task import Sums


def cross_entropy_sums(
    name: str,
    logits: Float[Array, "*N C"],
    labels: Int[Array, "*N"],
    weights: Float[Array, "*N"],
    *,
    smoothing: float = 0.0,
    z_loss: bool = False,
) -> Sums:
    """Returns `{name}_loss` (in nats) and `{name}_accuracy` as (weighted sum, weight), in float32. With `z_loss`, also
    `{name}_z_loss`: the square of the logarithm of the softmax's denominator (Chowdhery et al. 2022, section 5).

    With label smoothing a share of the target is spread evenly over all classes (Szegedy et al. 2016, section 7).
    XLA writes the gradient over the logits: a step holds one array of their size.
    """
    correct_logit = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    total = jax.nn.logsumexp(logits, axis=-1)
    loss = jnp.sum((total - correct_logit) * weights)
    if smoothing:
        uniform = total - jnp.mean(logits, axis=-1)
        loss = (1 - smoothing) * loss + smoothing * jnp.sum(uniform * weights)
    # logsumexp knows the largest logit already; argmax would read all logits again, a fifth of a small model's step.
    correct = (correct_logit >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    weight = jnp.sum(weights)
    sums = {f"{name}_loss": (loss, weight), f"{name}_accuracy": (jnp.sum(correct * weights), weight)}
    return sums | ({f"{name}_z_loss": (jnp.sum(jnp.square(total) * weights), weight)} if z_loss else {})


class Logits(NamedTuple):
    """The logits that a loss is made of, for soft targets in place of labels: of a `softmax` over the last axis, of a
    `sigmoid` each, or a `value` itself."""

    values: Float[Array, "*N C"]
    weights: Float[Array, "*N"]
    kind: str = "softmax"


def soft_sums(student: Logits, teacher: Float[Array, "*N C"], temperature: float) -> tuple[Array, Array]:
    """Returns the divergence of the student's probabilities from the teacher's, as (weighted sum, weight), in nats.

    Both logits are divided by the temperature, and the result is multiplied by its square, so that gradients keep their
    scale (Hinton et al. 2015, section 2): Kullback–Leibler for a softmax, the mean of those of all outputs for
    sigmoids. Of values it is the squared difference.
    """
    own, weights = student.values.astype(jnp.float32), student.weights
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    if student.kind == "value":
        losses = jnp.mean(jnp.square(own - teacher), axis=-1)
    else:
        own, teacher = own / temperature, teacher / temperature
        if student.kind == "softmax":
            one, other = jax.nn.log_softmax(teacher), jax.nn.log_softmax(own)
            losses = jnp.sum(jnp.exp(one) * (one - other), axis=-1)
        else:
            yes = jax.nn.log_sigmoid(teacher), jax.nn.log_sigmoid(own)
            no = jax.nn.log_sigmoid(-teacher), jax.nn.log_sigmoid(-own)
            losses = jnp.mean(sum(jnp.exp(one) * (one - other) for one, other in (yes, no)), axis=-1)
        losses *= temperature**2
    return jnp.sum(losses * weights), jnp.sum(weights)


def balanced_weights(labels: Sequence[int], count: int) -> Float[np.ndarray, " C"]:
    """Returns a weight for each of `count` classes, inversely proportional to its frequency in `labels`; over all
    `labels` the mean weight is 1, so that the loss keeps its scale. A class without example counts as having one."""
    counts = np.bincount(labels, minlength=count)
    return (len(labels) / (count * np.maximum(counts, 1))).astype(np.float32)


def softmax(logits: Float[np.ndarray, "... C"]) -> Float[np.ndarray, "... C"]:
    """Returns probabilities in float64: predictions are compared and sorted, and float32 would make ties."""
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def check_finite(outputs: Mapping[str, Iterable[np.ndarray]]) -> None:
    """Raises UserError for outputs of a head that are not numbers, which would become invalid JSON and false scores."""
    for name, arrays in outputs.items():
        bad = sum(not np.isfinite(array).all() for array in arrays)
        if bad:
            raise UserError(
                f"the model's {name} of {bad:,} examples are NaN or infinite: its parameters are damaged or its "
                "training diverged; use an earlier checkpoint, or train with a lower optimizer.learning_rate"
            )
