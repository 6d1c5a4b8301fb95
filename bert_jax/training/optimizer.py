"""BERT's optimizer and its relatives as optax chains; learning rates as functions of the step.

Source: google-research/bert optimization.py, You et al. (2020) for LAMB. Parameters are flat: {name: array}. A name
under `encoder/layers/` has one slice per layer along its first axis.
"""

from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from bert_jax.config import UserError, pattern
from bert_jax.training.muon import matrices, scale_by_muon
from bert_jax.training.parameters import LAYERS, global_norm, is_stacked, matching

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]
Multipliers = Mapping[str, np.ndarray]  # parameter → [1], or [layers] where layers are stacked


def make_optimizer(
    optimizer: ConfigDict, schedule: Schedule, multipliers: Multipliers | None = None, dtype: str = "float32"
) -> optax.GradientTransformation:
    """Returns: clip by global norm → Adam moments (Muon: of what it does not take) → decoupled weight decay → (LAMB:
    trust ratio) → −learning rate.

    The original clips on each TPU replica before the gradients are added up; here the norm is the global batch's,
    so that the number of devices does not change the result. `multipliers` are those of `learning_rate_multipliers`
    (None: 1 for every parameter). Frozen parameters have no state, no gradient and no part in the norm: `init` leaves
    them out, and `update` must be called without them. `dtype` is that of Muon's products.
    """
    no_decay = pattern("optimizer.no_decay", optimizer.no_decay)
    multipliers = multipliers or {}
    frozen = frozen_names(multipliers)

    def decays(params):
        return {name: no_decay.search(name) is None for name in params}

    scaled = scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps, optimizer.bias_correction)
    if optimizer.name == "muon":
        scaled = scale_by_muon(optimizer, scaled, dtype)
    chain = optax.chain(
        _per_layer({name: np.sign(values) for name, values in multipliers.items()}),  # nor has a frozen layer
        clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity(),
        scaled,
        optax.add_decayed_weights(optimizer.weight_decay, mask=decays),
        scale_by_layer_trust_ratio(decays) if optimizer.name == "lamb" else optax.identity(),
        optax.scale_by_schedule(lambda count: -schedule(jnp.asarray(count))),
        _per_layer(multipliers),
    )

    def init(params):
        return chain.init({name: x for name, x in cast(dict, params).items() if name not in frozen})

    return optax.GradientTransformation(init, chain.update)


def learning_rate_multipliers(optimizer: ConfigDict, shapes: Mapping[str, tuple[int, ...]]) -> Multipliers:
    """Returns the factors of the learning rate of each parameter: one number, or one per layer of stacked parameters.

    optimizer.layer_decay d (Clark et al. 2020, section 3.1, appendix B): heads and pooler 1, the top layer d, the one
    under it d², …, the embeddings d^(N + 1). optimizer.freeze: 0 where it is found in a name, in which a layer has its
    number, as in encoder/layers/3/attention/query/kernel. The matrices that Muon takes: times
    optimizer.muon_learning_rate ÷ optimizer.learning_rate. Names that optimizer.head is found in: times
    optimizer.head_learning_rate ÷ optimizer.learning_rate. Raises UserError for a pattern that is found in none.
    """
    by_muon = matrices(optimizer, shapes) if optimizer.name == "muon" else ()
    ratio = optimizer.muon_learning_rate / optimizer.learning_rate if optimizer.muon_learning_rate else 1.0
    head = optimizer.head_learning_rate / optimizer.learning_rate if optimizer.head_learning_rate else 1.0
    depth = next((shape[0] for name, shape in shapes.items() if is_stacked(name)), 0)
    multipliers, frozen, new = {}, set(), set()
    for name, shape in shapes.items():
        if is_stacked(name):
            names = [f"{LAYERS}{i}/{name.removeprefix(LAYERS)}" for i in range(shape[0])]
            above = np.arange(depth, 0, -1)
        else:
            names, above = [name], np.asarray([depth + 1 if name.startswith("embeddings/") else 0])
        matched = matching("optimizer.freeze", optimizer.freeze, names)
        thawed = np.asarray([each not in matched for each in names])
        own = matching("optimizer.head", optimizer.head if head != 1 else "", names)
        frozen, new = frozen | matched, new | own
        multipliers[name] = np.asarray(optimizer.layer_decay**above * thawed, np.float32)
        multipliers[name] *= np.float32(ratio if name in by_muon else 1)
        multipliers[name] *= np.asarray([head if each in own else 1 for each in names], np.float32)
    for key, is_used, found in (("freeze", bool(optimizer.freeze), frozen), ("head", head != 1, new)):
        if is_used and not found:
            some = ", ".join(list(shapes)[:3])
            raise UserError(f"optimizer.{key}={optimizer[key]} matches no parameter; names are {some}, …")
    return multipliers


def frozen_names(multipliers: Multipliers) -> frozenset[str]:
    """Returns the parameters that do not change at all; of stacked layers, those of which every layer is frozen."""
    return frozenset(name for name, values in multipliers.items() if not np.any(values))


def make_schedule(optimizer: ConfigDict, train_steps: int) -> Schedule:
    """Returns the learning rate of update `s` (from 0); W = warmup_steps, N = decay_steps or train_steps.

    bert      lr·s/W, then lr·(1 − s/N): it drops at W, as the original's does
    hf        lr·s/W, then a line from lr at W to 0 at N
    electra   lr·(1 − s/N)·min(1, s/W)
    cosine    lr·s/W, then half a cosine from lr at W to 0 at N
    constant  lr·s/W, then lr
    """
    peak, warmup = optimizer.learning_rate, max(optimizer.warmup_steps, 1)
    total = optimizer.decay_steps or train_steps

    def schedule(step):
        # float32 would do; but 1 − s/N near N is a difference of near-equal numbers, so subtract integers first.
        s = jnp.asarray(step, jnp.int32)
        ramp = jnp.minimum(s / warmup, 1.0) if optimizer.warmup_steps else jnp.float32(1)
        left = jnp.maximum(total - s, 0)
        after = left / max(total - optimizer.warmup_steps, 1)
        decayed = {
            "bert": jnp.where(s < optimizer.warmup_steps, ramp, left / total),
            "hf": jnp.minimum(ramp, after),
            "electra": left / total * ramp,
            "cosine": jnp.where(s < optimizer.warmup_steps, ramp, 0.5 * (1 - jnp.cos(jnp.pi * jnp.minimum(after, 1)))),
            "constant": ramp,
        }
        return jnp.asarray(peak * decayed[optimizer.schedule], jnp.float32)

    return schedule


def _per_layer(multipliers: Multipliers) -> optax.GradientTransformation:
    """Multiplies the updates of each parameter, or of each of its layers."""
    if all(np.all((values == 1) | (not np.any(values))) for values in multipliers.values()):
        return optax.identity()  # nothing to multiply: the rest is frozen and does not come here

    def update(updates, _):
        along_first = {name: (-1, *(1,) * (x.ndim - 1)) for name, x in updates.items()}
        return {name: x * jnp.asarray(multipliers[name]).reshape(along_first[name]) for name, x in updates.items()}

    return optax.stateless(update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Multiplies all gradients by one factor, as the original does; optax's divides each array, which is then written
    once more."""

    def update(updates, _):
        norm = global_norm(updates)
        factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return jax.tree.map(lambda g: g * factor, updates)

    return optax.stateless(update)


def scale_by_adam(b1: float, b2: float, eps: float, bias_correction: bool) -> optax.GradientTransformation:
    """Returns m / (√v + eps). Without bias correction, as in the original, the first update is about 3.16 times Adam's;
    optax has the corrected form only."""
    corrected = optax.scale_by_adam(b1, b2, eps)
    if bias_correction:  # optax raises b1 to the power of an integer array, which strict promotion (in tests) refuses
        with_promotion = jax.numpy_dtype_promotion("standard")
        return optax.GradientTransformation(corrected.init, with_promotion(corrected.update))

    def update(updates, state, params=None):
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(corrected.init, update)


def scale_by_layer_trust_ratio(decays: Callable) -> optax.GradientTransformation:
    """Multiplies each layer's update by ‖parameter‖ / ‖update‖ (LAMB), by 1 where either is 0 or nothing decays;
    optax's transformation would take one norm over all stacked layers."""

    def scaled(name: str, update: Array, parameter: Array) -> Array:
        axes = tuple(range(1 if is_stacked(name) else 0, update.ndim))
        p, u = (jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True)) for x in (parameter, update))
        return update * jnp.where((p > 0) & (u > 0), p / jnp.where(u > 0, u, 1), 1)

    def update(updates, params):
        adapted = decays(params)
        return {name: scaled(name, u, params[name]) if adapted[name] else u for name, u in updates.items()}

    return optax.stateless(update)
