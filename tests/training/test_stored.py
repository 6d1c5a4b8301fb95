"""Parameters in fewer bits: what rounding may change, and what it may not."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bert_jax.config import UserError
from bert_jax.training.checkpoint_format import checksums
from bert_jax.training.stored import SCALE, stored, widened

NUMBERS = st.floats(-1e4, 1e4, width=32)
KERNEL, TABLE = "encoder/layers/output/kernel", "embeddings/word/embedding"


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)), elements=NUMBERS))
def test_int8_is_off_by_half_a_step_at_most(x):
    """A step is a 127th of the largest number of an output."""
    found = stored({KERNEL: x}, "int8")
    assert found[KERNEL].dtype == np.int8 and found[KERNEL + SCALE].shape == (x.shape[0], 1, x.shape[2])
    whole = widened(found)
    assert whole.keys() == {KERNEL} and whole[KERNEL].dtype == np.float32
    step = np.max(np.abs(x), axis=1, keepdims=True) / 127
    assert np.all(np.abs(whole[KERNEL] - x) <= step * 0.5001 + 1e-37)
    assert np.array_equal(stored({KERNEL: -x}, "int8")[KERNEL], -found[KERNEL])


def test_what_int8_leaves_in_float32():
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    given = dict.fromkeys((TABLE, "embeddings/position/embedding", "heads/classifier/kernel", "pooler/kernel"), x)
    given["embeddings/layer_norm/scale"] = x[0]
    found = stored(given, "int8")
    assert {name for name, value in found.items() if value.dtype == np.int8} == {TABLE, "pooler/kernel"}
    assert found[TABLE + SCALE].shape == (3, 1), "by row"
    assert found["pooler/kernel" + SCALE].shape == (1, 4), "by output"
    assert widened(found).keys() == given.keys()
    assert stored(given, "float32")[TABLE] is x, "nothing is copied in vain"


def test_a_number_beyond_float16_is_refused():
    with pytest.raises(UserError, match="--dtype=float16: pooler/kernel has numbers beyond 65504"):
        stored({"pooler/kernel": np.asarray([70000.0])}, "float16")
    assert np.isfinite(stored({"pooler/kernel": np.asarray([70000.0])}, "bfloat16")["pooler/kernel"]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_checksums_see_every_bit_of_short_numbers(dtype):
    """On the host and on a device alike."""
    [x] = (stored({"pooler/kernel": np.linspace(-0.5, 0.5, 8).reshape(2, 4)}, dtype)["pooler/kernel"],)
    other = x.copy()
    other.view(np.uint8)[1, 0] ^= 1
    sums = [checksums({"x": one})["['x']"] for one in (x, other)]
    assert sums[0] != sums[1]
    from bert_jax.training.checkpoint_format import _sums_of_bits

    assert int(_sums_of_bits({"x": jax.numpy.asarray(x)})["x"]) == sums[0]
