"""Several texts in a row: losses, gradients and predictions are those of texts with rows of their own."""

import json

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.sharding import make_mesh, to_mesh
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.multiple_choice import MultipleChoice
from bert_jax.tasks.tagging import Tagging
from bert_jax.training.evaluation import make_evaluation
from bert_jax.training.loop import train
from bert_jax.training.parameters import flatten, unflatten
from bert_jax.training.step import abstract_state, init_state, make_train_step
from experiments import classify, multiple_choice, ner

WORDS = [*"abcdefghijklmnopqrstuvwxyz"]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], "test", True, None, True)


def small(config, **data):
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=64)
    config.data.update({"sequence_length": 48, "prefetch": 2} | data)
    config.optimizer.update(learning_rate=3e-3)
    config.train.update(epochs=2.0, batch_size=16, log_every=100, peak_tflops=1.0)
    config.eval.update(batch_size=16, every=100)
    config.mesh.data = 1
    return config


def texts(path, kind, count=70):
    """Mostly short, a few long; the label is about the first letter."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        words = random.choice(WORDS, random.integers(1, 8) if i % 7 else random.integers(20, 40)).tolist()
        words[0] = WORDS[first := i % 3]
        label = {"single": str(first), "multi": "|".join(["x", "y"][:first]), "regression": first / 3}
        tags = [f"T{WORDS.index(word) % 2}" for word in words]
        text = {"text": " ".join(words), "label": label.get(kind)}
        rows.append({"words": words, "tags": tags} if kind == "tags" else text)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(tmp_path, kind, pooling="cls", *, packing=None, **data):
    file = texts(tmp_path / f"{kind}.jsonl", kind)
    if kind == "tags":
        config = small(ner.get_config(), train=file, validation=file, text="words", label="tags", **data)
        config.checkpoint.best_metric = "accuracy"
        task = Tagging(config, TOKENIZER, None)
    else:
        config = small(
            classify.get_config(kind), **{"train": file, "validation": file} | data, text="text", label="label"
        )
        config.model.pooling = pooling
        task = Classification(config, TOKENIZER, None)
    config.data.packing = packing
    task.load()
    return task


def fresh(task):
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: task.init(nnx.Rngs(params=0))))
    return graphdef, jax.jit(lambda: flatten(task.init(nnx.Rngs(params=0))))()


KINDS = [("single", "cls"), ("single", "mean"), ("multi", "max"), ("regression", "cls"), ("tags", "cls")]


@pytest.mark.parametrize(("kind", "pooling"), KINDS)
def test_loss_and_gradients_are_those_of_rows_of_their_own(tmp_path, kind, pooling):
    task = load(tmp_path, kind, pooling)
    graphdef, parameters = fresh(task)
    items, numbers = task.items["train"], [3, 0, 11, 5, 8]

    @jax.jit
    def loss(parameters, batch):
        sums = task.sums(unflatten(graphdef, parameters), batch, None, {})
        return sums["loss"][0] / task.weights(batch)["loss"]

    alone = collate(items, [[i] for i in numbers], Shape(5, 1, 48))
    shared = collate(items, [[3, 5], [], [11, 0, 8]], Shape(3, 1, 64, 4))
    (one, grads), (other, others) = (jax.value_and_grad(loss)(parameters, batch) for batch in (alone, shared))
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    for name, gradient in grads.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradient, others[name], atol=1e-5 * scale + 1e-9, err_msg=name)


@pytest.mark.parametrize(("kind", "pooling"), KINDS)
def test_predictions_and_scores_are_those_of_rows_of_their_own(tmp_path, kind, pooling):
    found = []
    for packing, devices in ((False, 1), (True, 1), (True, 8)):
        task = load(tmp_path, kind, pooling, packing=packing)
        task.config.mesh.data = devices
        task.plan = task.make_plan()  # for so many devices
        if packing:
            assert max(shape.items for shape in task.plan.eval_shapes["validation"]) > 1
            assert all(shape.rows % devices == 0 for shape in task.plan.shapes)
        graphdef, parameters = fresh(task)
        evaluate = make_evaluation(task, graphdef, task.config, make_mesh(task.config.mesh), {})
        evaluation = evaluate(parameters, "validation", task.description())
        numbers = [v for p in evaluation.predictions for v in jax.tree.leaves(p) if isinstance(v, float)]
        found.append((evaluation.metrics | {"real_tokens": 0}, np.asarray(numbers)))
    for metrics, numbers in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-4, abs=1e-3)  # abs: neighbours may change their ranks
        np.testing.assert_allclose(numbers, found[0][1], atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (Shape(8, 1, 64, 8), {"packing": True}),
        (Shape(16, 3, 16), {"long_texts": "windows", "sequence_length": 16, "window_stride": 12, "max_windows": 3}),
    ],
)
def test_micro_batches_and_devices_add_up_to_the_same_step(tmp_path, shape, options):
    """The windows of a text, too, stay in one micro-batch and on one device."""
    results = []
    for accumulation, devices in ((1, 1), (2, 1), (2, 4)):
        task = load(tmp_path, "single", **options)
        task.config.train.accumulation, task.config.mesh.data = accumulation, devices
        task.plan.shapes = [shape]
        optimizer, mesh = optax.sgd(1.0), make_mesh(task.config.mesh)
        graphdef, _ = abstract_state(task, optimizer)
        step = make_train_step(task, graphdef, optimizer, lambda _: 1.0, mesh, accumulation)
        batches = task.train_batches(0, 0, 1)
        batch = next(batches)
        batches.close()
        assert batch["item_weights"].shape == (shape.rows, shape.items) and batch["item_weights"].sum() >= 6
        assert batch["input_ids"].shape == (shape.rows * shape.parts, shape.tokens)
        state, sums = step(init_state(task, optimizer, 0, mesh), {}, to_mesh(mesh, batch), jax.random.key(0))
        results.append((jax.device_get(state.parameters), float(sums["loss"][0])))
    for parameters, loss in results[1:]:
        assert loss == pytest.approx(results[0][1], rel=1e-5)
        for name, value in parameters.items():
            np.testing.assert_allclose(value, results[0][0][name], atol=1e-5, err_msg=name)


def test_packed_training_learns_and_resumes_in_the_middle_of_an_epoch(tmp_path):
    def run(workdir, steps):
        task = load(tmp_path, "single", "mean", packing=True)
        task.config.train.update(epochs=None, steps=steps)
        task.config.optimizer.update(
            learning_rate=1e-3, decay_steps=120, warmup_share=None, warmup_steps=4, schedule="hf"
        )
        task.config.checkpoint.every = 100
        return train(task, task.config, tmp_path / workdir)

    through = run("through", 120)
    assert through.evaluation.metrics["accuracy"] == 1.0
    run("halves", 63)
    resumed = run("halves", 120)
    assert resumed.evaluation.metrics == pytest.approx(through.evaluation.metrics, rel=1e-6)


def test_who_has_rows_of_their_own(tmp_path):
    """Windows of a long text are rows, and so are the choices of a question."""
    with pytest.raises(UserError, match=r"data\.packing: texts of several windows need rows of their own"):
        load(tmp_path, "single", packing=True, long_texts="windows", sequence_length=16)
    file = tmp_path / "choices.jsonl"
    file.write_text('{"context": "a", "start": "", "endings": ["b", "c"], "label": 1}\n' * 4)
    config = small(multiple_choice.get_config(), train=str(file))
    config.data.update(text="context", text_pair="start", choices="endings", label="label", packing=True)
    with pytest.raises(UserError, match="task=multiple_choice needs rows of their own"):
        MultipleChoice(config, TOKENIZER, None).load()


def test_rows_are_shared_where_that_takes_less(tmp_path):
    assert load(tmp_path, "single").plan.is_packed  # a few long texts would make every batch long
    rows = [{"text": " ".join(WORDS[:20]), "label": str(i % 2)} for i in range(64)]
    file = tmp_path / "same.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Classification(small(classify.get_config(), train=str(file), text="text", label="label"), TOKENIZER, None)
    task.load()
    assert not task.plan.is_packed  # all of one length: nothing to gain


@pytest.mark.parametrize("packing", [None, False])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_training_depends_on_training_examples_alone(tmp_path, split, packing):
    """One test text that is longer than any other turned packing off, and gave padded batches other shapes."""
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"text": " ".join(WORDS * 4), "label": "0"}) + "\n")
    options = {"packing": packing, "long_texts": "windows"}
    plain, other = load(tmp_path, "single", **options), load(tmp_path, "single", **options, **{split: str(long)})
    assert len(other.items[split][0].parts) > 1
    assert plain.plan.shapes == other.plan.shapes and plain.plan.is_packed is other.plan.is_packed is (packing is None)
    states, batches = [], []
    for task in (plain, other):
        reader = task.train_batches(3, 0, 1)
        batches.append(next(reader))
        states.append(reader.state())
        reader.close()
    assert states[0] == states[1] and batches[0].keys() == batches[1].keys()
    assert all(np.array_equal(batches[0][name], batches[1][name]) for name in batches[0])
    (batch,) = other.eval_batches(split, 0, 1)
    assert batch["part_weights"].shape[1] > 1 and batch["item_weights"].sum() == 1
