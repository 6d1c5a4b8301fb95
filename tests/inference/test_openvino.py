"""predict.backend=openvino gives what JAX gives, for everything that predicts."""

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.backend import CPU, use_backend
from bert_jax.config import UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.embeddings import Embedder
from bert_jax.inference.encode import TextEncoder
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.gaps import Infilling
from bert_jax.inference.infill import Infiller
from bert_jax.inference.open import Opened, open_model
from bert_jax.inference.predictor import Predictor
from bert_jax.inference.score import Scorer
from bert_jax.options import default_config
from bert_jax.tasks import task_class
from bert_jax.training.parameters import flatten

from .conftest import TOKENIZER, sentences

pytest.importorskip("openvino", reason="needs the extra openvino")

TEXTS = [row["sentence"] for row in sentences(9)]
LABELS = ["x", "y", "z"]
QUESTIONS = [{"question": "a b", "context": f"{text} good"} for text in TEXTS]
CHOICES = [{"text": text, "choices": ["a good", "b c d", "e"][: 2 + i % 2]} for i, text in enumerate(TEXTS)]
# Every task, and between them every shape of a trunk and every way to read it.
TASKS = {
    "classes": ("classification", {}, {"labels": LABELS, "thresholds": [], "label_kind": "single"}, TEXTS),
    "several labels, long texts": (
        "classification",
        {"data.label_kind": "multi", "data.long_texts": "windows", "data.window_pooling": "attention"}
        | {"data.sequence_length": 12, "data.window_stride": 6, "model.pooling": "max", "model.norm": "pre"},
        {"labels": LABELS, "thresholds": [0.5] * 3, "label_kind": "multi"},
        TEXTS,
    ),
    "numbers": (
        "classification",
        {"data.label_kind": "regression", "head.layers": "all_weighted", "model.position_embedding": "sinusoidal"},
        {"labels": [], "thresholds": [], "label_kind": "regression"}
        | {"features": {"layers": "all_weighted", "lstm_layers": 0, "lstm_size": 0}},
        TEXTS,
    ),
    "tags": (
        "tagging",
        {"model.embedding_size": 16, "model.hidden_act": "gelu"},
        {"labels": ["O", "B-X", "I-X"], "characters": False},
        TEXTS,
    ),
    "answers": (
        "span_qa",
        {"data.max_query_length": 3, "model.causal": True},
        {"may_have_no_answer": True, "threshold": 0.0},
        QUESTIONS,
    ),
    "choices": ("multiple_choice", {"data.choices": "choices", "model.pooling": "mean"}, {}, CHOICES),
}


def opened(task="pretraining", options=(), description=None, dtype="float32"):
    """Returns a function from a backend to a model in memory, whose parameters are random."""
    config = default_config()
    config.task = task
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    config.model.update(size="tiny", dtype=dtype, max_position_embeddings=64, initializer_range=0.3, **shape)
    config.data.sequence_length = 32
    for key, value in dict(options).items():
        group, _, name = key.partition(".")
        config[group][name] = value
    made = task_class(task)(config, TOKENIZER, description)
    parameters = flatten(made.init(nnx.Rngs(params=0)))
    model = Opened(Path("model"), 0, config, TOKENIZER, parameters, {"task": made.description()})

    def by(backend):
        own = config.copy_and_resolve_references()
        own.predict.backend = backend
        return replace(model, config=own)

    return by


def alike(one, other, tolerance):
    """Asserts that two predictions agree, numbers up to a tolerance."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            alike(value, other[name], tolerance)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            alike(*pair, tolerance)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    else:
        assert one == other


@pytest.mark.parametrize("kind", TASKS)
def test_predictions_are_those_of_jax(kind):
    task, options, description, inputs = TASKS[kind]
    by = opened(task, options, description)
    expected, found = (Predictor(by(backend), batch_size=4)(inputs) for backend in ("jax", "openvino"))
    assert len({str(one) for one in expected}) > 5, "inputs differ in their predictions"
    alike(found, expected, 1e-5)


@pytest.fixture(scope="module")
def pretrained():
    return opened(options={"model.num_hidden_layers": 4})


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean", "normalize": True},
        {"pooling": "max", "layer": "last4_concat"},
        {"pooling": "cls", "layer": 2},
    ],
)
def test_vectors_are_those_of_jax(pretrained, options):
    expected, found = (Embedder(pretrained(backend), **options)(TEXTS) for backend in ("jax", "openvino"))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found.dtype == np.float32 and np.std(found) > 0.05


def test_what_an_mlm_head_says_is_what_jax_says(pretrained):
    jax_model, model = pretrained("jax"), pretrained("openvino")
    text = "a [MASK] c [MASK] good [MASK]"
    alike(FillMask(model)(text), FillMask(jax_model)(text), 1e-5)
    scores = [
        list(Scorer(one, batch_size=2).stream(Row("", {"text": text}) for text in TEXTS[:3]))
        for one in (jax_model, model)
    ]
    alike(scores[1], scores[0], 1e-5)
    beams = [Infiller(one)([text, "a [MASK]"], Infilling("beam", beams=2)) for one in (model, jax_model)]
    greedy = [Infiller(one)([text], Infilling("confidence")) for one in (model, jax_model)]
    alike(beams[0] + greedy[0], beams[1] + greedy[1], 1e-4)


def test_hidden_states_and_attentions_are_those_of_jax(pretrained):
    asked = {"max_length": None, "hidden_states": True, "attentions": True}
    expected, found = (TextEncoder(pretrained(backend), 4)(TEXTS, None, **asked) for backend in ("jax", "openvino"))
    for name in ("pooled", "hidden_states", "attentions"):
        for one, other in zip(
            jax.tree.leaves(getattr(found, name)), jax.tree.leaves(getattr(expected, name)), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=5e-5)


def test_bfloat16_differs_by_roundings():
    """Relative to the exact vectors: at most a hundredth. Asked for as on a CPU where bfloat16 is fast."""
    by = opened(dtype="bfloat16")
    exact = Embedder(opened()("jax"))(TEXTS)
    with use_backend(replace(CPU, bfloat16_is_fast=True)):
        found = Embedder(by("openvino"))(TEXTS)
    assert 0 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 1e-2
    with use_backend(replace(CPU, bfloat16_is_fast=False)):
        np.testing.assert_allclose(Embedder(by("openvino"))(TEXTS), exact, atol=2e-5)


def test_a_layer_is_a_few_of_openvinos_own_operations(pretrained):
    """Those that it has kernels for; parts of them would take longer, and be as right."""
    embedder = Embedder(pretrained("openvino"))
    batch = {
        name: jax.ShapeDtypeStruct((2, 8), np.int32)
        for name in ("input_ids", "sequence_ids", "token_type_ids", "position_ids")
    }
    graph = pretrained("openvino").at_work.graph(embedder._of_sentences, batch)
    kinds = Counter(operation.get_type_name() for operation in graph.get_ops())
    assert (kinds["ScaledDotProductAttention"], kinds["Gelu"], kinds["MVN"]) == (4, 4, 9)
    assert not kinds["Exp"] + kinds["Erf"] + kinds["Tanh"]


def test_threads_share_a_model(pretrained):
    embedder, wrong = Embedder(pretrained("openvino")), []
    expected = [embedder([text]) for text in TEXTS]

    def work():
        for text, one in zip(TEXTS, expected, strict=True):
            wrong.extend([] if np.array_equal(embedder([text]), one) else [text])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_says_what_it_cannot_do(monkeypatch, tuned):
    features = {"layers": "last", "lstm_layers": 1, "lstm_size": 8}
    description = {"labels": LABELS, "thresholds": [], "label_kind": "single", "features": features}
    by = opened("classification", {"head.lstm_layers": 1, "head.lstm_size": 8}, description)
    with pytest.raises(
        UserError, match=r"predict\.backend=openvino has no counterpart of JAX's \w+ .*; set predict\.backend=jax"
    ):
        Predictor(by("openvino"))(TEXTS)
    with pytest.raises(UserError, match=r"predict\.backend=openvino only predicts"):
        by("openvino").at_work.program(lambda model, x: x)(np.zeros(1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"predict\.backend=openvino needs the extra openvino: pip install"):
        open_model(tuned[1], overrides={"predict.backend": "openvino"})
