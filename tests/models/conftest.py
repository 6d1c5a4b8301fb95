"""Models for tests: every parameter far from its initial value, and made without compiling an initialiser."""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


@pytest.fixture(scope="session")
def random_model() -> Callable[[Callable[[], M]], M]:
    """random_model(lambda: Bert(config, rngs=nnx.Rngs(0))): kernels and tables σ 0.2, biases σ 0.2, scales 1 ± 0.2.

    The values depend on names only, so that models which differ in an option have the same parameters.
    """

    def build(make: Callable[[], M]) -> M:
        graphdef, state = nnx.split(nnx.eval_shape(make))
        flat = [(path, nnx.Param(_values(path, leaf.shape))) for path, leaf in nnx.to_flat_state(state)]
        return nnx.merge(graphdef, nnx.from_flat_state(flat))

    return build


def _values(path, shape):
    rng = np.random.default_rng(list("/".join(map(str, path)).encode()))
    return jnp.asarray(rng.standard_normal(shape) * 0.2 + (path[-1] == "scale"), jnp.float32)
