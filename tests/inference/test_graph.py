"""JAX functions as graphs of other formats: the same numbers, operation by operation, for any sizes."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bert_jax.config import UserError
from bert_jax.inference.graph import graph_of

X = np.random.default_rng(0).normal(0, 2, (3, 5)).astype(np.float32)
IDS = np.asarray([[4, 0, 1, 1, -2], [2, 2, 3, 0, 1], [0, 1, 2, 3, 4]], np.int32)
INPUTS = {"x": X, "ids": IDS}


def _rows(x):
    rows, length = x.shape
    return jnp.arange(rows, dtype=jnp.int32)[:, None] * length + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)


def operations(_, batch):
    """Nearly every operation that a builder knows."""
    x, ids = batch["x"], batch["ids"]
    positive, truth = jnp.abs(x) + 0.1, x > 0
    halves = jnp.split(jnp.concatenate([x, -x], axis=1).reshape(x.shape[0], 2, -1).swapaxes(1, 2), 2, axis=-1)
    odd = jnp.where(x > 1.5, jnp.inf, jnp.where(x < -1.5, jnp.nan, x))
    return {
        "algebra": (x + 1) * x - x / positive + jnp.maximum(x, 0.3) + jnp.minimum(x, -x),
        "powers": positive**1.5 + x**3 + jnp.square(x) + jax.lax.rsqrt(positive) + jnp.sqrt(positive),
        "functions": jnp.exp(-positive) + jnp.log(positive) + jnp.log1p(positive) + jnp.tanh(x) + jax.lax.erf(x),
        "waves": jnp.sin(x) + jnp.cos(x) + jax.nn.sigmoid(x) + jnp.sign(x) + jnp.floor(x) + jnp.ceil(x),
        "remainder": jax.lax.rem(ids, jnp.int32(3)) + jax.lax.rem(x, jnp.float32(0.7)).astype(jnp.int32),
        "compared": ((x < 0.5) ^ (ids >= 1)) & ~(ids == 2) | ((x <= -1) & (ids != 0)),
        "finite": jnp.isfinite(odd),
        "chosen": jnp.where(truth, ids > 1, ids == 0),
        "clamped": jax.lax.clamp(jnp.float32(-1), x, jnp.float32(1)),
        "sums": jnp.sum(x, 1) + jnp.max(x, 1) - jnp.min(x, 1) + jnp.argmax(x, axis=1).astype(jnp.float32),
        "first": jnp.argmax(truth, axis=1),
        "truths": jnp.stack([jnp.any(truth, 1), jnp.all(truth, 1)], axis=1),
        "halves": halves[0] * 2 + halves[1],
        "slices": jax.lax.slice(x, (0, 1), (x.shape[0], 4), (1, 2)),
        "numbers": _rows(x),
        "taken": jnp.take(x.T, jax.lax.rem(jnp.abs(ids), jnp.int32(3)), axis=1, mode="clip"),
        "along": jnp.take_along_axis(x[:, None], jax.lax.rem(jnp.abs(ids), jnp.int32(4))[:, None], axis=2, mode="clip"),
        "product": (x[:, :, None] * x[:, None]) @ x[:, :, None],
        "outer": jnp.einsum("bl,cl->bc", x, x),
    }


def _openvino(inputs):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    from bert_jax.inference.openvino_graph import OpenVinoGraph, ov

    graph = graph_of(operations, {}, inputs, OpenVinoGraph("OpenVINO has no {what}"))
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda given: {one.get_any_name(): x for one, x in compiled(given).items()}


def _onnx(inputs):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from bert_jax.convert.onnx_graph import OnnxGraph

    model = graph_of(operations, {}, inputs, OnnxGraph(20))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("engine", [_onnx, _openvino], ids=["onnx", "openvino"])
def test_every_operation_is_that_of_jax(engine):
    rows, length = export.symbolic_shape("rows, length", constraints=["length >= 5"])
    run = engine({name: jax.ShapeDtypeStruct((rows, length), x.dtype) for name, x in INPUTS.items()})
    for wider in (1, 2):  # of one graph
        given = {name: np.tile(x, (wider, wider)) for name, x in INPUTS.items()}
        expected, found = jax.jit(operations)({}, given), run(given)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_says_what_it_cannot_do():
    if importlib.util.find_spec("onnx") is None:
        pytest.skip("needs the extra onnx")
    from bert_jax.convert.onnx_graph import OnnxGraph

    x = {"x": jax.ShapeDtypeStruct((2, 3), np.float32)}
    with pytest.raises(
        UserError, match=r"--format=onnx has no counterpart of JAX's sort .*; choose --format=stablehlo"
    ):
        graph_of(lambda _, batch: {"y": jnp.sort(batch["x"])}, {}, x, OnnxGraph(20))
    with pytest.raises(UserError, match="no counterpart of JAX's outer product"):
        graph_of(lambda _, batch: {"y": jnp.einsum("bl,bm->blm", batch["x"], batch["x"])}, {}, x, OnnxGraph(20))
    with pytest.raises(UserError, match="--opset is 12; it can be 20 to"):
        OnnxGraph(12)
