"""Muon: momentum whose matrices are replaced by the nearest orthogonal ones; Adam for all other parameters.

Source: Jordan et al. (2024, https://kellerjordan.github.io/posts/muon/); Liu et al. (2025, arXiv:2502.16982) for the
scale. `optax.contrib.muon` computes the same in the dtype of its momentum, product by product; here the products have
the dtype of the model's, and matrices of one shape share them.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.models.layers import dot, dot_transposed
from bert_jax.sharding import by_slices
from bert_jax.training.parameters import Parameters, first_names, is_stacked, matching

_STEPS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of the iteration that Jordan et al. chose
_OF_DECODER = re.compile("heads/decoder/(layers|cross)/")  # its layers, which are stacked like the encoder's
_RMS = 0.2  # of an update at learning rate 1, like that of Adam's (Liu et al., section 2.2)


class MuonState(NamedTuple):
    """The average gradient of the matrices, and Adam's state of the other parameters."""

    momentum: Parameters
    adam: Any


def scale_by_muon(
    optimizer: ConfigDict, adam: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
    """Returns the orthogonalised Nesterov momentum of the matrices, and what `adam` returns for the other parameters.

    The momentum is not corrected for its start at 0, since only the direction of a matrix counts.
    """

    def split(tree: Parameters) -> tuple[Parameters, Parameters]:
        taken = matching("optimizer.muon", optimizer.muon, tree)
        return {name: tree[name] for name in sorted(taken)}, {n: x for n, x in tree.items() if n not in taken}

    def init(params):
        of_muon, rest = split(cast(Parameters, params))
        return MuonState(cast(Parameters, optax.tree.zeros_like(of_muon)), adam.init(rest))

    def update(updates, state, params=None):
        del params  # which decay and the rest of the chain look at
        grads, rest = split(updates)
        momentum = optax.tree.update_moment(grads, state.momentum, optimizer.muon_momentum, 1)
        ahead = optax.tree.update_moment(grads, momentum, optimizer.muon_momentum, 1)
        adams, adam_state = adam.update(rest, state.adam)
        return orthogonalised(ahead, dtype) | cast(Parameters, adams), MuonState(momentum, adam_state)

    return optax.GradientTransformation(init, update)


def matrices(optimizer: ConfigDict, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns the names of the parameters that Muon takes. Raises UserError if there are none, or if one of them is no
    matrix."""
    names = sorted(matching("optimizer.muon", optimizer.muon, shapes))
    if not names:
        some = first_names(sorted(name for name in shapes if name.endswith("kernel")), 3)
        raise UserError(f"optimizer.muon={optimizer.muon} matches no parameter; names are {some}")
    for name in names:
        shape = shapes[name][1:] if is_stacked(name) or _OF_DECODER.match(name) else shapes[name]
        if len(shape) != 2:
            raise UserError(
                f"optimizer.muon={optimizer.muon} matches {name}, which is not a matrix: its shape is {shape}; choose "
                "a pattern that matches matrices alone, such as kernel$"
            )
    return names


def orthogonalised(updates: Parameters, dtype: str) -> Parameters:
    """Returns matrices with the singular vectors of `updates`, singular values between about 0.7 and 1.2, and a scale
    that makes the root of their mean square about 0.2. Stacked layers are matrices of their own.

    Matrices of one shape, or of its transpose, share the products; on a mesh its devices divide them.
    """
    found, alike = {}, {}
    for name, x in updates.items():
        alike.setdefault(tuple(sorted(x.shape[-2:])), []).append(name)
    for names in alike.values():
        wide = [_wide(updates[name]) for name in names]
        joined = by_slices(_newton_schulz(by_slices(jnp.concatenate(wide)), dtype))
        first = 0
        for name, x in zip(names, wide, strict=True):
            y = joined[first : first + len(x)]
            first += len(x)
            tall = updates[name].shape[-2] > updates[name].shape[-1]
            found[name] = (y.swapaxes(-1, -2) if tall else y).reshape(updates[name].shape)
    return found


def _wide(x: Float[Array, "*N I O"]) -> Float[Array, "M S T"]:
    """Returns the matrices one after another, transposed if they are tall."""
    x = x.reshape(-1, *x.shape[-2:])
    return x.swapaxes(-1, -2) if x.shape[-2] > x.shape[-1] else x


def _newton_schulz(x: Float[Array, "M S T"], dtype: str) -> Float[Array, "M S T"]:
    """Iterates x ← a x + (b x xᵀ + c (x xᵀ)²) x, which moves every singular value towards 1. Expects S <= T: the
    products with x xᵀ are the cheaper ones then."""
    a, b, c = _COEFFICIENTS
    x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)) + 1e-8)
    for _ in range(_STEPS):
        gram = dot_transposed(x, x, dtype, "float32")
        x = a * x + dot(b * gram + c * dot(gram, gram, dtype, "float32"), x, dtype, "float32")
    return x * (_RMS * max(x.shape[-2:]) ** 0.5)
