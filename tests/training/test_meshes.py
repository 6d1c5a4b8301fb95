"""Meshes of three axes: the same losses and parameters as on one device, memory as predicted, and no more traffic than
the theory wants."""

import json
import math
from collections import Counter
from functools import cache

import jax
import numpy as np
import optax
import pytest

from bert_jax.config import UserError, axis_sizes, validate
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.lab.collectives import collectives
from bert_jax.options import default_config
from bert_jax.sharding import check_heads, make_mesh, to_mesh, tree_shardings
from bert_jax.tasks import task_class
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.memory import peak_bytes
from bert_jax.training.parameters import is_stacked, structure
from bert_jax.training.step import abstract_state, init_state, make_eval_step, make_train_step
from experiments import classify, multiple_choice, ner, squad, visual

FACTORISATIONS = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]
BASIC = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
WORDS = ["red", "green", "blue", "warm", "cold"]
OTHER_SHAPE = {"position_embedding": "rotary", "gated": True, "use_bias": False, "tie_embeddings": False}


def small(config):
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=8, num_hidden_layers=2, intermediate_size=64)
    config.model.update(hidden_dropout=0.1, attention_dropout=0.1, dtype="float32", max_position_embeddings=64)
    config.mesh.smallest = 0
    return config


def one_step(task, devices, axes=(1, 1, 1)):
    """Returns (loss, parameters, sums of an evaluation, compiled program, shapes and shardings as they went in) of one
    step of gradient descent."""
    task.config.mesh.update(dict(zip(("data", "fsdp", "tensor"), axes, strict=True)))
    mesh = make_mesh(task.config.mesh, jax.devices()[:devices])
    optimizer = optax.chain(optax.trace(0.9), optax.scale(-1.0))
    graphdef, _ = abstract_state(task, optimizer)
    step = make_train_step(task, graphdef, optimizer, lambda _: 1.0, mesh)
    evaluate = make_eval_step(task, graphdef, 0, mesh)
    batches = task.train_batches(0, 0, 1)
    batch = to_mesh(mesh, next(batches))
    batches.close()
    state = init_state(task, optimizer, 0, mesh)
    before = [(x.shape, x.sharding) for x in jax.tree.leaves(state)]
    sums, _ = evaluate(state.parameters, {}, batch)
    program = step.lower(state, {}, batch, jax.random.key(0)).compile()  # type: ignore[attr-defined]
    state, trained = step(state, {}, batch, jax.random.key(0))
    after = [x.sharding for x in jax.tree.leaves(state)]
    assert all(here.is_equivalent_to(there, len(shape)) for (shape, there), here in zip(before, after, strict=True))
    means = task.means(jax.device_get(trained))
    return means["loss"], jax.device_get(state.parameters), task.means(jax.device_get(sums)), program, before


def assert_alike(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, value in found[1].items():
        np.testing.assert_allclose(value, expected[1][name], atol=1e-5, err_msg=name)
    assert found[2] == pytest.approx(expected[2], rel=1e-5)


@pytest.fixture(scope="module")
def make_task(topics, prepared_folder):
    """make_task(**options of the model) → the task of pretraining over the same small corpus."""
    return lambda **model: pretraining(topics, prepared_folder, model)


def pretraining(topics, prepared_folder, model):
    config = small(default_config())
    config.model.update(model)
    config.data.update(corpus="text", files=str(topics), prepared=str(prepared_folder), vocab_size=603, workers=1)
    config.data.update(sequence_length=32, max_predictions_per_sequence=5, validation_share=0.15, test_share=0.1)
    config.train.batch_size = 16
    return Pretraining.over(config, prepare(config.data, config.data.seed, progress=False))


@pytest.fixture(scope="module")
def task(make_task):
    return make_task()


@pytest.fixture(scope="module")
def on(task):
    """on(axes) → `one_step` on a mesh with these axes, computed once."""

    @cache
    def step(axes):
        return one_step(task, math.prod(axes), axes)

    return step


@pytest.mark.parametrize(
    "axes", [axes if axes in BASIC else pytest.param(axes, marks=pytest.mark.slow) for axes in FACTORISATIONS]
)
def test_pretraining_is_the_same_on_every_mesh(on, axes):
    """Dropout included. The vocabulary of 603 does not split evenly."""
    assert_alike(on(axes), on((1, 1, 1)))


def test_pretraining_of_another_shape_is_the_same_on_a_mesh_of_all_axes(make_task):
    task = make_task(**OTHER_SHAPE)
    assert_alike(one_step(task, 8, (2, 2, 2)), one_step(task, 1))


def test_another_shape_is_split_like_its_likes(make_task):
    """A gate like the product beside it, the table of an untied output like that of the words."""
    mesh = default_config().mesh
    mesh.update(data=2, fsdp=2, tensor=2, smallest=0)
    split = {
        name: tuple(x.spec)
        for name, x in tree_shardings(make_mesh(mesh), structure(make_task(**OTHER_SHAPE).init)[1]).items()
    }
    assert split["encoder/layers/gate/kernel"] == split["encoder/layers/intermediate/kernel"]
    assert split["encoder/layers/gate/kernel"] == (None, "fsdp", "tensor")
    assert split["heads/mlm/decoder/embedding"] == split["embeddings/word/embedding"] == (None, ("fsdp", "tensor"))


def rows(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return folder


def classification(folder):
    pairs = [(word, other) for word in WORDS for other in WORDS]
    config = classify.get_config()
    examples = [{"text": f"{word} {other}", "label": "hot" if word == "red" else "not"} for word, other in pairs]
    config.data.train = config.data.validation = rows(folder, "classes.jsonl", examples)
    return config


def tagging(folder):
    config = ner.get_config()
    (folder / "tags.txt").write_text(
        "\n".join(f"{w} {'B-HOT' if w == 'red' else 'O'}\n{v} O\n" for w in WORDS for v in WORDS)
    )
    config.data.train = config.data.validation = str(folder / "tags.txt")
    return config


def with_lstm(folder):
    config = tagging(folder)
    config.head.update(layers="all_weighted", lstm_layers=1, lstm_size=8)
    return config


def span_qa(folder):
    config = squad.get_config("v1")
    context = " ".join(WORDS)
    answers = [{"text": word, "answer_start": context.index(word)} for word in WORDS]
    asked = [{"id": f"{i}", "question": "warm", "answers": [answers[i % 5]]} for i in range(16)]
    data = {"version": "1.1", "data": [{"title": "", "paragraphs": [{"context": context, "qas": asked}]}]}
    (folder / "squad.json").write_text(json.dumps(data))
    config.data.train = config.data.validation = str(folder / "squad.json")
    config.data.update(max_query_length=3, window_stride=4)
    return config


def choices(folder):
    config = multiple_choice.get_config()
    endings = {f"ending{i}": WORDS[i] for i in range(4)}
    examples = [{"sent1": "red", "sent2": word, "label": i % 4, **endings} for i, word in enumerate(WORDS * 4)]
    config.data.train = config.data.validation = rows(folder, "choices.jsonl", examples)
    return config


def pictures(folder, kind="classify"):
    config = visual.get_config(kind)
    np.save(folder / "pictures.npy", np.random.default_rng(0).random((25, 4, 6), np.float32))
    asked = [f"{word} {other}" for word in WORDS for other in WORDS]
    examples = [
        {"text": text, "label": "hot" if "red" in text else "not", "image": f"pictures.npy#{i}"}
        for i, text in enumerate(asked)
    ]
    config.data.train = config.data.validation = rows(folder, "pictures.jsonl", examples)
    config.data.image = "image"
    config.image.update(height=4, width=6, channels=1, patch_size=2)
    return config


def masked_pictures(folder):
    return pictures(folder, "pretrain")


FAMILIES = (classification, tagging, span_qa, choices, pytest.param(with_lstm, marks=pytest.mark.slow))
FAMILIES = (*FAMILIES, masked_pictures, pytest.param(pictures, marks=pytest.mark.slow))


def compared(folder, family, meshes, shape):
    config = small(family(folder))
    config.model.update(shape)
    config.data.update(vocab_file=str(folder / "vocab.txt"), sequence_length=16, buckets=1)
    if config.task != "visual_pretraining":
        config.data.packing = None
    config.train.batch_size = config.eval.batch_size = 16
    config.mesh.data = 8  # for the number of rows
    task = task_class(config.task).with_data(config, None)
    expected = one_step(task, 1)
    for axes in meshes:
        assert_alike(one_step(task, 8, axes), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_is_the_same_on_a_mesh_of_all_axes(folder, family):
    """Every second family with another shape of the model."""
    compared(folder, family, [(2, 2, 2)], OTHER_SHAPE if family in (tagging, choices) else {})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_is_the_same_on_every_mesh(folder, family):
    compared(folder, family, [axes for axes in FACTORISATIONS if axes != (2, 2, 2)], {})


def traffic(program):
    exchanged = collectives(program.as_text())
    return {kind: sum(one.bytes for one in exchanged if one.kind == kind) for kind, *_ in exchanged}


def test_fsdp_gathers_a_layer_twice_and_adds_up_each_gradient_once(task, on):
    """On a CPU a scatter is an all-reduce, of which each device keeps its part."""
    *_, program, before = on((1, 8, 1))
    sizes = {name: x.size * 4 for name, x in structure(task.init)[1].items()}
    whole = [name for name in sizes if name.endswith(("bias", "scale"))]
    split = {name: size for name, size in sizes.items() if name not in whole}
    kernels = sum(size for name, size in split.items() if is_stacked(name))
    found = traffic(program)
    assert found.keys() <= {"all-gather", "all-reduce"}
    assert sum(split.values()) + kernels <= found["all-gather"] < sum(split.values()) + kernels + 2000  # and masks
    assert sum(sizes.values()) <= found["all-reduce"] < sum(sizes.values()) + 1000
    held = sum(math.prod(sharding.shard_shape(shape)) * 4 for shape, sharding in before)
    assert held == pytest.approx(4 + 2 * (sum(split.values()) / 8 + sum(sizes[name] for name in whole)))  # and momentum
    assert peak_bytes(program) < peak_bytes(on((1, 1, 1))[3]) / 2


def test_tensor_adds_up_the_activations_of_a_layer_four_times_and_never_gathers_the_logits(task, on):
    *_, program, _ = on((1, 1, 8))
    shape = task.bert_config
    activations = 16 * 32 * shape.hidden_size * 4
    found = traffic(program)
    # After attention and after the feed-forward part, forward and backward, and the words' vectors.
    assert found["all-reduce"] >= (4 * shape.num_hidden_layers + 1) * activations
    gradients = sum(x.size * 4 for name, x in structure(task.init)[1].items() if not is_stacked(name))
    assert found["all-reduce"] < (4 * shape.num_hidden_layers + 1) * activations + gradients
    assert found.get("all-gather", 0) < 16 * 5 * shape.vocab_size  # a quarter of the logits


def test_small_arrays_and_the_configs_own_rules_are_respected(task):
    shapes = structure(task.init)[1]
    mesh = default_config().mesh
    mesh.update(preset="fsdp", smallest=32 * 64 * 2, rules="embeddings/word=-;query/kernel=tensor,-,fsdp")
    split = {name: x.spec for name, x in tree_shardings(make_mesh(mesh), shapes).items() if any(x.spec)}
    layers = "encoder/layers"
    assert split.keys() == {f"{layers}/intermediate/kernel", f"{layers}/output/kernel"}
    mesh.smallest = 0
    split = {name: tuple(x.spec) for name, x in tree_shardings(make_mesh(mesh), shapes).items() if any(x.spec)}
    assert split[f"{layers}/attention/query/kernel"] == (None, None, "fsdp")
    assert split[f"{layers}/attention/key/kernel"] == (None, "fsdp", None)
    assert "embeddings/word/embedding" not in split


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, (8, 1, 1)),
        ({"preset": "fsdp"}, (1, 8, 1)),
        ({"preset": "fsdp_tensor"}, (1, 4, 2)),
        ({"fsdp": -1}, (1, 8, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"preset": "fsdp", "data": 2}, (2, 4, 1)),
        ({"data": 1}, (1, 1, 1)),
        ({"data": 2, "tensor": 4}, (2, 1, 4)),
    ],
)
def test_a_preset_fills_in_the_axes_that_the_config_leaves_open(given, sizes):
    mesh = default_config().mesh
    mesh.update(given)
    assert axis_sizes(mesh, 8) == sizes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": 3}, r"mesh\.data=3, mesh\.fsdp=1, mesh\.tensor=1: the axes must multiply to the 8 devices"),
        ({"data": 4, "fsdp": 4}, "multiply to the 8 devices"),
        ({"data": 16}, "multiply to the 8 devices"),
        ({"data": 0}, "multiply to the 8 devices"),
        ({"data": -1, "fsdp": -1}, "only one axis can be -1"),
        ({"preset": "zero"}, r"mesh\.preset is 'zero'; it can be data, fsdp, fsdp_tensor"),
        ({"rules": "kernel=rows"}, r"mesh\.rules has 'kernel=rows'; a rule is pattern=axis"),
        ({"rules": "kernel"}, "a rule is pattern=axis"),
        ({"rules": "(=fsdp"}, "not a regular expression"),
        ({"fsdp": 8, "rules": "word/embedding$=fsdp,-"}, r"mesh\.fsdp=8 does not divide 603"),
        ({"tensor": 8, "fsdp": 1}, r"mesh\.tensor=8 does not divide the 4 attention heads"),
        ({"fsdp": 8}, "train.batch_size 12 is not a multiple of 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(task, given, message):
    config = default_config()
    config.mesh.update({"smallest": 0} | given)
    config.train.batch_size = 12 if "batch_size" in message else 16
    with pytest.raises(UserError, match=message):
        validate(config, 8)
        mesh = make_mesh(config.mesh)
        check_heads(mesh, 4)
        tree_shardings(mesh, structure(task.init)[1])


def test_gradients_travel_once_under_data_parallelism(task, on):
    *_, program, _ = on((8, 1, 1))
    kinds = Counter(one.kind for one in collectives(program.as_text()))
    gradients = sum(x.size * 4 for x in structure(task.init)[1].values())
    assert kinds.keys() <= {"all-reduce", "all-gather"}
    assert gradients <= traffic(program)["all-reduce"] < gradients + 1000
