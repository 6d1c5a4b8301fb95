"""A student and its teacher: the losses by hand, every family, whole runs, and what does not fit."""

import json
import shutil
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx

from bert_jax import modes, teaching
from bert_jax.config import UserError
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.experiment import set_options
from bert_jax.main import main
from bert_jax.models.bert import Bert, TrunkInputs, watched
from bert_jax.models.config import BertConfig
from bert_jax.models.layers import Linear
from bert_jax.run import run
from bert_jax.sharding import current, gathered, make_mesh, place, to_mesh
from bert_jax.tasks import distillation, task_class, teacher_cache
from bert_jax.tasks.distillation import Distillation, Recipe, Teacher
from bert_jax.tasks.losses import Logits, soft_sums
from bert_jax.training.checkpoint import choose_checkpoint, read_checkpoint
from bert_jax.training.metrics_log import read_metrics
from bert_jax.training.parameters import flatten, unflatten
from bert_jax.training.step import abstract_state, init_state, make_train_step
from experiments import classify, multiple_choice, ner, squad, translate

WORDS = ["red", "green", "blue", "warm", "cold"]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], "test", True, None, True)


def bert(width, layers, heads=2, **more):
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": 2 * width, "embedding_size": width, "vocab_size": 10}
    return BertConfig(**sizes, max_position_embeddings=16, dtype="float32", initializer_range=0.5, **more)


def rows():
    ids = np.asarray([[2, 5, 6, 7, 3, 0, 0], [2, 8, 3, 2, 9, 9, 3]], np.int32)
    sequences = np.asarray([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 2, 2, 2, 2]], np.int32)
    positions = np.asarray([[0, 1, 2, 3, 4, 0, 0], [0, 1, 2, 0, 1, 2, 3]], np.int32)
    return TrunkInputs(*(jnp.asarray(x) for x in (ids, ids * 0, positions, sequences)))


def encoded(config, seed):
    trunk = Bert(config, rngs=nnx.Rngs(params=seed))
    with watched() as seen:
        hidden = trunk.encode(rows()).hidden
    return trunk, seen[0], hidden


@pytest.mark.parametrize("shape", [{}, {"norm": "pre", "position_embedding": "rotary"}], ids=["bert", "pre_rotary"])
def test_watching_changes_nothing_and_sees_every_state(shape):
    config = bert(8, 3, **shape)
    trunk, seen, hidden = encoded(config, 0)
    plain = trunk.encode(rows(), all_layers=True)
    np.testing.assert_array_equal(hidden, plain.hidden)
    assert plain.layers is not None and len(seen.states) == 4
    for one, other in zip(seen.states[1:], plain.layers, strict=True):
        np.testing.assert_array_equal(one, other)
    assert trunk.encode(rows()).layers is None


def relation(x, y, heads, real):
    """log softmax(x · yᵀ / √d) of one sequence in float64: [R, n, n]."""
    x, y = (np.asarray(z, np.float64)[real].reshape(np.sum(real), heads, -1).transpose(1, 0, 2) for z in (x, y))
    return scipy.special.log_softmax(x @ y.transpose(0, 2, 1) / np.sqrt(x.shape[-1]), axis=-1)


@pytest.mark.parametrize("kinds", [("queries", "keys", "values"), ("attention", "values")], ids=["minilm2", "minilm"])
def test_relations_by_hand(kinds):
    """Of a narrow student and a wide teacher; each sequence of a shared row by itself, padding left out."""
    heads = 2 if "attention" in kinds else 4
    (student, own, _), (teacher, other, _) = encoded(bert(8, 1), 0), encoded(bert(12, 3), 1)
    recipe = Recipe({"relations": 1.0}, 1.0, kinds, heads, 2, ())
    total, weight = distillation._relation_sums(recipe, (student, own), (teacher, other))
    expected, sequences = 0.0, np.asarray(rows().sequence_ids)
    both = student.projections(1, own), teacher.projections(2, other)
    for row in range(2):
        for number in (1, 2):
            real = sequences[row] == number
            for kind in kinds if real.any() else ():
                first, second = distillation.RELATIONS[kind]
                mine, theirs = (relation(p[first][row], p[second][row], heads, real) for p in both)
                expected += np.sum(np.exp(theirs) * (theirs - mine)) / heads
    assert float(total) == pytest.approx(expected, rel=1e-5) and float(weight) == 12
    same, _ = distillation._relation_sums(recipe, (teacher, other), (teacher, other)) if kinds[0] == "x" else (0.0, 0)
    assert same == 0.0


def test_attention_is_the_models_own():
    """The relation "attention" is the softmax that the layer itself multiplies its values by, rotary positions too."""
    trunk, seen, _ = encoded(bert(8, 2, position_embedding="rotary"), 3)
    mask = jnp.asarray(
        np.asarray(rows().sequence_ids)[:, None, :, None] == np.asarray(rows().sequence_ids)[:, None, None]
    )
    found = jnp.exp(distillation._log_relation("float32", trunk.projections(2, seen), "attention", 2, mask))
    from bert_jax.models.attention import Angles
    from bert_jax.models.encoder import rotary_angles

    angles = rotary_angles(trunk.config, rows().position_ids)
    layer = trunk.encoder.unstacked()[1]
    expected = layer.attention.weights(seen.states[1], seen.states[1], mask, Angles(angles, angles))
    real = np.asarray(rows().sequence_ids) > 0
    np.testing.assert_allclose(found.swapaxes(1, 2)[real], expected.swapaxes(1, 2)[real], atol=1e-6)


def test_hidden_states_by_hand():
    """The student's 1 layer learns from the embeddings and the last of the teacher's 3."""
    (_, own, _), (_, other, _) = encoded(bert(8, 1), 0), encoded(bert(12, 3), 1)
    recipe = Recipe.of(_options(hidden=1.0, soft=0.0), bert(8, 1), bert(12, 3))
    assert recipe.layers == (0, 3)
    projection = Linear(8, 12, stddev=0.3, rngs=nnx.Rngs(params=2))
    total, weight = distillation._hidden_sums(recipe, projection, own, other)
    kernel, real = np.asarray(projection.kernel[...], np.float64), np.asarray(rows().sequence_ids) > 0
    differences = [own.states[i] @ kernel - other.states[j] for i, j in ((0, 0), (1, 3))]
    expected = sum(np.sum(np.mean(np.square(d), axis=-1)[real]) for d in differences) / 2
    assert float(total) == pytest.approx(expected, rel=1e-5) and float(weight) == 12


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "value"])
def test_soft_targets_by_hand(kind):
    random = np.random.default_rng(0)
    own, other, weights = random.normal(0, 2, (3, 4)), random.normal(0, 2, (3, 4)), np.asarray([1.0, 0.0, 0.5])
    logits = Logits(jnp.asarray(own, jnp.float32), jnp.asarray(weights, jnp.float32), kind)
    total, weight = soft_sums(logits, jnp.asarray(other, jnp.float32), 3.0)
    if kind == "softmax":
        p, q = scipy.special.softmax(other / 3, -1), scipy.special.softmax(own / 3, -1)
        losses = 9 * np.sum(scipy.special.rel_entr(p, q), axis=-1)
    elif kind == "sigmoid":
        p, q = scipy.special.expit(other / 3), scipy.special.expit(own / 3)
        losses = 9 * np.mean(scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q), axis=-1)
    else:
        losses = np.mean((own - other) ** 2, axis=-1)
    assert float(total) == pytest.approx(np.sum(losses * weights), rel=1e-5) and float(weight) == 1.5


def _options(**given):
    options = classify.get_config().distillation
    options.update(given)
    return options


def small(config, width=16):
    config.model.update(size="tiny", hidden_size=width, num_attention_heads=2, num_hidden_layers=2)
    config.model.update(intermediate_size=32, dtype="float32", hidden_dropout=0.0, attention_dropout=0.0)
    config.data.update(sequence_length=16, buckets=1)
    config.train.update(batch_size=4, log_every=1, epochs=1.0, peak_tflops=1.0)
    config.eval.batch_size = 4
    config.mesh.data = 1
    return config


def examples(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def family(name, folder):
    """Returns a small config of the family with data."""
    if name == "tagging":
        config, data = ner.get_config(), [{"w": ["red", "warm"], "t": ["O", "B-X"]}, {"w": ["cold"], "t": ["B-X"]}]
        config.data.update(text="w", label="t")
    elif name == "multiple_choice":
        config = multiple_choice.get_config()
        data = [
            {"text": "red", "a": "warm", "b": "cold", "label": 0},
            {"text": "blue", "a": "warm", "b": "cold", "label": 1},
        ]
        config.data.update(text="text", text_pair="", choices="a,b", label="label")
    elif name == "span_qa":
        config = squad.get_config()
        config.data.max_query_length = 4
        answer = {"text": "warm", "answer_start": 4}
        question = {"id": "1", "question": "blue", "answers": [answer]}
        data = {"data": [{"title": "", "paragraphs": [{"context": "red warm cold", "qas": [question]}]}]}
    elif name == "seq2seq":
        config, data = (
            translate.get_config(),
            [{"text": "red warm", "label": "blue"}, {"text": "cold", "label": "green"}],
        )
        config.data.update(text="text", label="label", target_length=4)
        config.seq2seq.scores = "translation"
    else:
        config = classify.get_config()
        config.data.label_kind = name
        labels = {"single": ["x", "y"], "multi": ["x|y", "y"], "regression": [0.25, 1.0]}[name]
        data = [{"text": "red warm", "label": labels[0]}, {"text": "cold", "label": labels[1]}]
    config = small(config)
    file = examples(folder, data) if isinstance(data, list) else str(folder / "squad.json")
    if not isinstance(data, list):
        (folder / "squad.json").write_text(json.dumps(data))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    config.data.update(train=file, validation=file, vocab_file=str(folder / "vocab.txt"), packing=False)
    return config


FAMILIES = ["single", "multi", "regression", "tagging", "multiple_choice", "span_qa", "seq2seq"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_nothing_from_itself_and_something_from_another(name, tmp_path):
    """A student with the teacher's parameters has no soft or relation loss; the gradient of another one has numbers."""
    config = family(name, tmp_path)
    config.distillation.update(soft=1.0, hard=0.5, relations=0.0 if name == "seq2seq" else 1.0)
    task = task_class(config.task).with_data(config, None)
    graphdef, _ = nnx.split(task.init(nnx.Rngs(params=0)))
    parameters = flatten(task.init(nnx.Rngs(params=0)))
    teacher = Teacher(task, parameters, lambda given: unflatten(graphdef, dict(given)), "itself")
    student = Distillation(task, teacher)
    batches = student.train_batches(0, 0, 1)
    batch = student.features({name: jnp.asarray(x) for name, x in next(batches).items()}, jax.random.key(0))
    batches.close()
    weights, constants = student.weights(batch), student.constants()

    def loss(parameters):
        sums = student.sums(unflatten(graphdef, parameters), batch, None, constants)
        parts = {name: sums[name][0] / weights[name] for name in student.objectives}
        return sum(student.objectives[name] * part for name, part in parts.items()), parts

    (total, parts), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters)
    own = task.sums(unflatten(graphdef, parameters), batch, None, task.constants())["loss"]
    assert float(parts["loss"]) == pytest.approx(float(own[0]) / float(weights["loss"]), rel=1e-5)
    assert float(parts["soft_loss"]) == pytest.approx(0.0, abs=1e-6)
    assert float(total) == pytest.approx(0.5 * float(parts["loss"]), abs=1e-5)
    assert name == "seq2seq" or float(parts["relations_loss"]) == pytest.approx(0.0, abs=1e-5)
    other = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), parameters)
    (_, parts), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(other)
    assert float(parts["soft_loss"]) > 1e-6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher for two labels, in a workdir, and the config that made it."""
    folder = tmp_path_factory.mktemp("teacher")
    pairs = [f"{one} {other}" for one in WORDS for other in WORDS]
    file = examples(folder, [{"text": text, "label": "hot" if "red" in text else "not"} for text in pairs])
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    config = small(classify.get_config(), width=32)
    config.data.update(train=file, validation=file, test=file, vocab_file=str(folder / "vocab.txt"), packing=False)
    config.train.epochs = 40.0
    config.optimizer.learning_rate = 3e-3
    config.eval.every = config.checkpoint.every = 1000
    result = run(config.copy_and_resolve_references(), folder / "run")
    assert result.last["accuracy"] == 1.0
    return folder, config


def student_config(taught, **options):
    config = small(taught[1].copy_and_resolve_references(), width=16)
    config.model.num_hidden_layers = 1
    config.data.vocab_file = ""
    config.train.epochs = 1.0
    config.distillation.teacher = str(taught[0] / "run")
    config.distillation.update(options)
    return config


def test_a_student_of_a_run_from_start_to_prediction(taught, tmp_path):
    """Every part at once; the vocabulary comes from the teacher. Killed after a checkpoint and started again it
    computes the same bits."""
    config = student_config(taught, relations=0.3, hidden=0.1)
    config.eval.every = config.checkpoint.every = 3
    whole = run(config.copy_and_resolve_references(), tmp_path / "whole")
    names = {"loss", "hard_loss", "soft_loss", "relations_loss", "hidden_loss", "accuracy"}
    assert (
        names <= whole.last.keys() and names - {"accuracy"} <= read_metrics(tmp_path / "whole/metrics.jsonl")[0].keys()
    )
    parts = [whole.last[name] for name in ("hard_loss", "soft_loss", "relations_loss", "hidden_loss")]
    assert whole.last["loss"] == pytest.approx(np.dot(parts, [1.0, 1.0, 0.3, 0.1]), rel=1e-6)
    half = config.copy_and_resolve_references()
    half.train.update(epochs=None, steps=3)
    half.optimizer.decay_steps = whole.step
    run(half, tmp_path / "again")
    half.train.steps = whole.step
    run(half, tmp_path / "again")
    one, other = (
        read_checkpoint(choose_checkpoint(str(tmp_path / name), "newest")).parameters for name in ("whole", "again")
    )
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)

    (tmp_path / "texts.jsonl").write_text('{"text": "red cold"}\n{"text": "blue"}\n')
    config = tmp_path / "student.py"
    config.write_text("from experiments.classify import get_config\n")
    words = [
        "--mode=predict",
        f"--config={config}",
        f"--workdir={tmp_path / 'whole'}",
        f"--input={tmp_path / 'texts.jsonl'}",
    ]
    assert main([*words, f"--output={tmp_path / 'found.jsonl'}"]) == 0
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 2


def test_a_student_learns_without_labels(taught, tmp_path):
    """From soft targets alone, the labels of its data all wrong."""
    rows = [json.loads(line) for line in (taught[0] / "rows.jsonl").read_text().splitlines()]
    other = {"hot": "not", "not": "hot"}
    config = student_config(taught, hard=0.0, temperature=1.0)
    config.data.train = examples(tmp_path, [row | {"label": other[row["label"]]} for row in rows])
    config.data.test = ""
    config.model.num_hidden_layers = 2
    config.train.epochs = 60.0
    config.optimizer.learning_rate = 1e-2
    assert run(config, tmp_path / "run").last["accuracy"] >= 0.9


def test_relations_alone_for_pretraining(small_config, tmp_path):
    """A narrow student of a wide teacher: nothing but relations is learned, and they come nearer."""
    config = small_config
    config.train.update(steps=4)
    run(config.copy_and_resolve_references(), tmp_path / "teacher")
    config.model.update(hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    config.distillation.update(teacher=str(tmp_path / "teacher"), relations=1.0, soft=0.0, hard=0.0)
    config.train.update(steps=30)
    config.eval.every = config.checkpoint.every = 30
    config.optimizer.update(learning_rate=3e-3, warmup_steps=1)
    config.checkpoint.best_metric = "relations_loss"
    result = run(config, tmp_path / "student")
    first = read_metrics(tmp_path / "student/metrics.jsonl")[0]
    assert {"mlm_loss", "nsp_loss"}.isdisjoint(result.last) and result.last["loss"] == result.last["relations_loss"]
    assert result.last["relations_loss"] < 0.9 * first["relations_loss"]


def test_every_part_for_pretraining(small_config, tmp_path):
    config = small_config
    config.train.update(steps=2)
    run(config.copy_and_resolve_references(), tmp_path / "teacher")
    config.distillation.update(teacher=str(tmp_path / "teacher"), relations=1.0, hidden=1.0)
    result = run(config, tmp_path / "student")
    assert {
        "mlm_loss",
        "soft_mlm_loss",
        "soft_nsp_loss",
        "relations_loss",
        "hidden_loss",
        "hard_loss",
    } <= result.last.keys()


SAME, MORE = "same.txt", "more.txt"  # the teacher's vocabulary, and one with a word more
BAD = {
    "vocabulary": ({"data.vocab_file": MORE}, "has another vocabulary than the student"),
    "labels": ({"data.labels": "not,hot", "data.vocab_file": SAME}, "both need the same, in one order"),
    "layer": ({"distillation.teacher_layer": 3, "distillation.relations": 1.0}, "layer is 3; the teacher has 2"),
    "nothing": ({"distillation.soft": 0.0, "distillation.hard": 0.0}, "are 0: there is nothing to learn"),
    "kind": ({"distillation.relation_kinds": "query"}, "'query' is not known; it can be attention"),
    "heads": ({"distillation.relation_heads": 3, "distillation.relations": 1.0}, "relation_heads 3 does not divide"),
    "own": (
        {"distillation.relation_kinds": "attention", "distillation.relations": 1.0, "model.num_attention_heads": 4},
        "attention is of a model's own heads",
    ),
    "depth": ({"distillation.hidden": 1.0, "model.num_hidden_layers": 3}, "do not divide"),
    "absent": ({"distillation.teacher": "nowhere/at/all"}, "nowhere/at/all"),
    "long": ({"data.sequence_length": 600}, "600"),
    "task": ({"data.label_kind": "regression"}, "label_kind"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_line(taught, tmp_path, name):
    known = (taught[0] / "vocab.txt").read_text()
    (tmp_path / SAME).write_text(known)
    (tmp_path / MORE).write_text(known + "new\n")
    options, expected = BAD[name]
    config = student_config(taught)
    set_options(config, {k: str(tmp_path / v) if k == "data.vocab_file" else v for k, v in options.items()})
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "run")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_teacher_that_cannot_teach_is_refused_before_a_cache_is_made(taught, tmp_path):
    config = student_config(taught)
    (tmp_path / SAME).write_text((taught[0] / "vocab.txt").read_text())
    config.data.update(labels="not,hot", vocab_file=str(tmp_path / SAME), packing=False)
    config.distillation.cache = str(tmp_path / "cache")
    with pytest.raises(UserError, match="both need the same, in one order"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_a_teacher_without_its_head_has_no_soft_targets(tmp_path):
    task = task_class("classification").with_data(family("single", tmp_path), None)
    with pytest.raises(UserError, match="the teacher ckpts/trunk has no heads/classifier/kernel"):
        Distillation(task, Teacher(task, {}, lambda given: None, "ckpts/trunk", ("heads/classifier/kernel",)))
    task.config.distillation.update(soft=0.0, hidden=1.0)
    Distillation(task, Teacher(task, {}, lambda given: None, "ckpts/trunk", ("heads/classifier/kernel",)))


def test_evaluate_mode_needs_no_teacher(taught, tmp_path, capsys):
    config = student_config(taught, hidden=0.5)
    run(config.copy_and_resolve_references(), tmp_path / "run")
    config.distillation.teacher = "gone"
    assert modes.evaluate(student_config(taught, hidden=0.5), tmp_path / "run") == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2)])
def test_the_same_on_a_mesh(tmp_path, axes):
    """Loss and gradients of every part on eight devices are those on one; the teacher is split as the student is."""
    config = family("single", tmp_path)
    config.distillation.update(relations=1.0, hidden=1.0)
    config.train.batch_size = config.eval.batch_size = 8
    config.mesh.smallest = 0
    task = task_class(config.task).with_data(config, None)
    graphdef, _ = nnx.split(task.init(nnx.Rngs(params=1)))
    teacher = Teacher(task, flatten(task.init(nnx.Rngs(params=1))), partial(_on_mesh, graphdef), "another")
    student = Distillation(task, teacher)

    def step(devices, axes):
        config.mesh.update(dict(zip(("data", "fsdp", "tensor"), axes, strict=True)))
        mesh, optimizer = make_mesh(config.mesh, jax.devices()[:devices]), optax.sgd(1.0)
        abstract = abstract_state(student, optimizer)
        batches = student.train_batches(0, 0, 1)
        batch, constants = to_mesh(mesh, next(batches)), place(mesh, student.constants())
        batches.close()
        take = make_train_step(student, abstract[0], optimizer, lambda _: 1.0, mesh)
        state, sums = take(init_state(student, optimizer, 0, mesh), constants, batch, jax.random.key(0))
        return student.means(jax.device_get(sums))["loss"], jax.device_get(state.parameters), constants

    (loss, parameters, _), (expected, others, _) = step(8, axes), step(1, (1, 1, 1))
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, value in parameters.items():
        np.testing.assert_allclose(value, others[name], atol=1e-5, err_msg=name)
    split = step(8, axes)[2]["teacher"]["encoder/layers/output/kernel"].sharding
    assert split.is_fully_replicated == (axes == (8, 1, 1))


def _on_mesh(graphdef, parameters):
    mesh = current()
    assert mesh is not None
    return unflatten(graphdef, gathered(mesh, parameters))


def test_a_teacher_of_another_task_is_named_as_such(taught, small_config, tmp_path):
    small_config.train.steps = 1
    run(small_config, tmp_path / "pretrained")
    config = student_config(taught)
    config.distillation.teacher = str(tmp_path / "pretrained")
    with pytest.raises(UserError, match="was trained for task=pretraining, the student is for task=classification"):
        run(config, tmp_path / "run")


def learned(workdir):
    return jax.device_get(read_checkpoint(choose_checkpoint(str(workdir), "newest")).parameters)


@pytest.fixture(scope="module")
def cached(taught, tmp_path_factory):
    """A student of two epochs with a cache, and of one without; the folder of both, and the config."""
    folder = tmp_path_factory.mktemp("cached")
    config = student_config(taught)
    config.train.epochs = 2.0
    config.train.log_every = 1
    without = config.copy_and_resolve_references()
    without.train.update(epochs=None, steps=3)
    without.optimizer.decay_steps = 14
    run(without, folder / "without")
    config.distillation.cache = str(folder / "cache")
    run(config.copy_and_resolve_references(), folder / "with")
    return folder, config


def test_a_run_with_a_cache_learns_what_one_without_does_whatever_it_holds(cached, tmp_path, monkeypatch):
    folder, config = cached
    lines, others = (read_metrics(folder / name / "metrics.jsonl") for name in ("without", "with"))
    for line, other in zip(lines[:3], others[:3], strict=True):
        for name in ("loss", "soft_loss", "hard_loss", "grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-5), (name, line["step"])
    expected = learned(folder / "with")
    [first] = (folder / "cache").glob("*.rows")

    # Of rows that come again, the teacher would compute the same bits at other places of other batches.
    task = teaching.trained_task(config.copy_and_resolve_references(), teaching.source_of_teacher(config))
    batches, again = task.train_batches(14, 0, 1), 0
    for _ in range(7):  # a third epoch
        batch = next(batches.batches)
        if all(key in task.cache.known for key in teacher_cache._keys(batch)[0]):
            again += 1
            for name, logits in task.cache.teacher(batch).items():
                np.testing.assert_array_equal(logits, task.cache.with_logits(batch)[name])
    batches.close()
    assert again > 0

    # A second run finds everything, needs the teacher for nothing, and writes nothing.
    def refused(*_):
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(teacher_cache.TeachersLogits, "__call__", refused)
    run(config.copy_and_resolve_references(), tmp_path / "again")
    again = learned(tmp_path / "again")
    for name, value in expected.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert [path.name for path in (folder / "cache").glob("*.rows")] == [first.name]


def test_a_cache_that_was_cut_off_is_completed_and_a_damaged_one_is_refused(cached, tmp_path):
    folder, config = cached
    [path] = (folder / "cache").glob("*.rows")
    whole = dict(teacher_cache._read(path))
    copy = tmp_path / "copy.rows"
    for cut in (0, 5, 24, 30, path.stat().st_size - 1):
        copy.write_bytes(path.read_bytes()[:cut])
        kept = dict(teacher_cache._read(copy))
        assert len(kept) < len(whole) and all(np.array_equal(whole[key], row) for key, row in kept.items())
    content = bytearray(path.read_bytes())
    content[26] ^= 1  # a bit of the first value
    shutil.copytree(folder / "cache", tmp_path / "cache")
    (tmp_path / "cache" / path.name).write_bytes(content)
    config = config.copy_and_resolve_references()
    config.distillation.cache = str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"is damaged at byte 0: delete this file"):
        run(config, tmp_path / "run")


CACHES = {
    "foreign": ({}, '{"teacher": "another"}', "is of another teacher (another, here "),
    "no cache": ({}, None, "holds something else; name a new folder"),
    "half written": ({}, '{"teacher": ', "is damaged; delete the folder"),
    "relations": ({"distillation.relations": 1.0}, "", "for distillation.relations it takes about 0.000154 GB"),
    "hidden": ({"distillation.hidden": 1.0}, "", "for distillation.hidden it takes about"),
    "hard alone": ({"distillation.soft": 0.0}, "", "distillation.soft is 0: leave the cache out"),
}


@pytest.mark.parametrize("name", CACHES)
def test_what_a_cache_cannot_do_is_one_line(taught, tmp_path, name):
    options, about, expected = CACHES[name]
    folder = tmp_path / "cache"
    folder.mkdir()
    if about is None:
        (folder / "thesis.tex").write_text("mine")
    elif about:
        (folder / teacher_cache.ABOUT).write_text(about)
    config = student_config(taught)
    set_options(config, options | {"distillation.cache": str(folder)})
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "run")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_pretraining_has_nothing_to_cache(small_config):
    """Nor has any task whose rows are new in every step."""
    small_config.train.update(steps=2, batch_size=16)
    student = types.SimpleNamespace(config=small_config)
    with pytest.raises(UserError, match=r"rows of task=pretraining are new in every step \(32 in this run\)"):
        teacher_cache.check_cached(student, ["soft"], 2, 32)


def test_runs_may_make_a_cache_at_the_same_time(tmp_path):
    (tmp_path / f".{teacher_cache.ABOUT}.0123456789ab").write_text("")  # another run is about to write it
    for _ in range(2):
        teacher_cache.TeacherCache(tmp_path, {"teacher": "a"}, types.SimpleNamespace())
    assert (tmp_path / teacher_cache.ABOUT).is_file()


def test_a_teacher_is_its_parameters_and_how_they_are_used():
    parameters = {"x": np.ones(2, np.float32)}
    configs = [BertConfig(vocab_size=9, hidden_act=act) for act in ("gelu", "gelu", "gelu_tanh")]
    digests = [teacher_cache.digest_of(parameters, repr(config)) for config in configs]
    assert digests[0] == digests[1] != digests[2]


def test_a_teacher_that_numbers_languages_otherwise_is_refused():
    def of(languages):
        model = BertConfig(vocab_size=9, languages=languages)
        data = types.SimpleNamespace(sequence_length=8)
        config = types.SimpleNamespace(task="pretraining", data=data)
        return types.SimpleNamespace(config=config, bert_config=model, tokenizer=types.SimpleNamespace(content_hash=1))

    for own, theirs in (("en,de", "en,de"), ("", "en,de"), ("en,de", "")):
        distillation._check_alike(of(own), types.SimpleNamespace(task=of(theirs), origin="t"), {"relations": 1.0})
    with pytest.raises(
        UserError, match=r"distillation\.teacher=t needs model\.languages=de,en of the student, which has en,de"
    ):
        distillation._check_alike(of("en,de"), types.SimpleNamespace(task=of("de,en"), origin="t"), {"relations": 1.0})


def test_logits_that_do_not_fit_are_refused_with_their_size(tmp_path):
    class Wide:
        def shapes(self, batch):
            return {"taught/loss/0": jax.ShapeDtypeStruct((2, 30_000), jnp.float32)}

    cache = teacher_cache.TeacherCache(tmp_path / "cache", {"teacher": "a"}, Wide())
    cache.expect(10**9)
    batch = {"item_ids": np.zeros((2, 1), np.int32), "input_ids": np.zeros((2, 4), np.int32)}
    with pytest.raises(UserError, match=r"1,000,000,000 rows take about 1.2e\+05 GB, over half of the memory"):
        cache.with_logits(batch)
