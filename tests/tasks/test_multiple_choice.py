"""Multiple choice: learns, learns nothing from noise, rows by hand, any number of choices, what is refused."""

import json
import logging

import jax
import numpy as np
import optax
import pytest

from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.examples import ChoiceExample
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.sharding import make_mesh
from bert_jax.tasks.multiple_choice import MultipleChoice
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.loop import make_evaluation, train
from bert_jax.training.parameters import unflatten
from bert_jax.training.step import abstract_state, init_state
from experiments import multiple_choice

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS], "test", True, None, True)
COLUMNS = ("ending0", "ending1", "ending2", "ending3")


def make_config(**data):
    config = multiple_choice.get_config()
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=32)
    config.data.update(sequence_length=16, buckets=2, prefetch=2, **data)
    config.optimizer.update(learning_rate=3e-3)
    config.train.update(epochs=30.0, batch_size=8, log_every=60, peak_tflops=1.0)
    config.eval.update(batch_size=8, every=60)
    config.mesh.data = 1
    return config


def load(config, description=None):
    task = MultipleChoice(config, TOKENIZER, description)
    task.load()
    return task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(count, seed=0):
    """The right ending has a z, the others have none."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        label = int(random.integers(4))
        endings = [random.choice(LETTERS[:25], 3).tolist() for _ in COLUMNS]
        endings[label][int(random.integers(3))] = "z"
        row = {"sent1": " ".join(random.choice(LETTERS[:25], 4)), "sent2": "a b", "label": label}
        yield row | {name: " ".join(words) for name, words in zip(COLUMNS, endings, strict=True)}


def test_overfits_32_questions(tmp_path):
    config = make_config(
        train=write(tmp_path / "train.jsonl", rows_of(32)), validation=write(tmp_path / "dev.jsonl", rows_of(32))
    )
    task = load(config)
    finished = train(task, config, tmp_path / "run")
    assert finished.evaluation.metrics["accuracy"] == finished.evaluation.metrics["choice_accuracy"] == 1.0
    for row, prediction in zip(rows_of(32), finished.evaluation.predictions, strict=True):
        assert prediction["choice"] == row["label"] and prediction["text"] == row[f"ending{row['label']}"]
        assert prediction["probability"] == max(prediction["probabilities"]) > 0.5
    assert read_checkpoint(find_checkpoint(str(tmp_path / "run"))).run["task"] == {}
    assert MultipleChoice(config, TOKENIZER, {}).renewed_parameters == ""  # a run that goes on keeps the head
    assert MultipleChoice(config, TOKENIZER, None).renewed_parameters == "heads/classifier/"


def test_shuffled_labels_teach_nothing(tmp_path):
    labels = np.random.default_rng(5).integers(4, size=64).tolist()
    noise = [row | {"label": label} for row, label in zip(rows_of(64), labels, strict=True)]
    config = make_config(
        train=write(tmp_path / "train.jsonl", noise), validation=write(tmp_path / "dev.jsonl", rows_of(200, seed=1))
    )
    config.train.epochs = 8.0
    finished = train(load(config), config, tmp_path / "run")
    assert 0.1 < finished.evaluation.metrics["accuracy"] < 0.4  # chance is 0.25, its standard error 0.03


def test_rows_by_hand():
    task = MultipleChoice(make_config(), TOKENIZER, None)
    (item,) = task.encode([ChoiceExample("", "a b", "c", ("d e", "", "f"), 2)])
    cls, sep = TOKENIZER.cls_id, TOKENIZER.sep_id
    a, b, c, d, e, f = map(TOKENIZER.id, "abcdef")
    assert [part.ids.tolist() for part in item.parts] == [
        [cls, a, b, sep, c, d, e, sep],
        [cls, a, b, sep, c, sep],
        [cls, a, b, sep, c, f, sep],
    ]
    assert item.parts[0].type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert item.values["labels"] == 2
    (item,) = task.encode([ChoiceExample("", "a", "", ("b", "c"))])
    assert item.parts[1].ids.tolist() == [cls, a, sep, c, sep]


def test_long_rows_are_cut_at_the_longer_end_and_counted(caplog):
    task = MultipleChoice(make_config(), TOKENIZER, None)
    long = ChoiceExample("dev.jsonl:3", "a " * 12, "b", ("c", "d e f g h i"), 0)
    short = ChoiceExample("dev.jsonl:4", "a", "b", ("c", "d"), 0)
    with caplog.at_level(logging.WARNING):
        first, _ = task.encode([long, short])
    assert "1 of 2 examples (50.0 %) lose tokens to data.long_texts=head" in caplog.text
    # 13 places: 12 + 2 tokens lose an a; of 12 + 7 five a go until both have 7, then the ending loses its last
    assert [TOKENIZER.decode(part.ids) for part in first.parts] == ["a " * 11 + "b c", "a " * 7 + "b d e f g h"]
    task.config.data.long_texts = "error"
    with pytest.raises(UserError, match=r"dev.jsonl:3: 17 tokens, over data.sequence_length 16"):
        task.encode([short, long])


def test_a_question_has_as_many_choices_as_it_has():
    """Two choices beside a question of four: no probability goes to rows that are not there, and no gradient is nan."""
    task = MultipleChoice(make_config(), TOKENIZER, None)
    two = ChoiceExample("", "a b c", "d", ("e", "f"), 1)
    four = ChoiceExample("", "a", "b", ("c", "d", "e", "f"), 3)
    items = task.encode([two, four])
    graphdef, _ = abstract_state(task, optax.sgd(0.1))
    state = init_state(task, optax.sgd(0.1), 0, make_mesh(task.config.mesh))

    def loss(parameters, batch):
        outputs = task.outputs(unflatten(graphdef, parameters), batch, None)
        total, weight = task.losses(outputs, batch)["loss"]
        return total / weight, outputs["logits"]

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    found = {}
    for parts, numbers in ((2, [0]), (4, [0, 1])):
        rows = [[number] for number in numbers] + [[]] * (4 - len(numbers))
        batch = collate(items, rows, Shape(4, parts, 16))
        (value, logits), grads = step(state.parameters, batch)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        found[parts] = task.predict(
            [two, four][: len(numbers)], items, {"logits": list(np.asarray(logits)[: len(numbers), 0])}
        )
        by_hand = [-np.log(p["probabilities"][e.label]) for p, e in zip(found[parts], (two, four), strict=False)]
        assert float(value) == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert found[2][0]["probabilities"] == pytest.approx(found[4][0]["probabilities"], abs=1e-6)
    assert [len(p["probabilities"]) for p in found[4]] == [2, 4]
    assert all(sum(p["probabilities"]) == pytest.approx(1) for p in found[4])


def test_eight_devices_score_like_one(tmp_path):
    path = write(tmp_path / "dev.jsonl", rows_of(11))
    found = []
    for devices in (1, 8):
        config = make_config(train=path, validation=path)
        config.mesh.data = devices
        task, mesh = load(config), make_mesh(config.mesh)
        graphdef, _ = abstract_state(task, optax.sgd(0.1))
        state = init_state(task, optax.sgd(0.1), 0, mesh)
        evaluation = make_evaluation(task, graphdef, config, mesh, {})(state.parameters, "validation", {})
        found.append((evaluation.metrics, [p["probabilities"] for p in evaluation.predictions]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


def test_rows_to_predict_and_choices_in_one_column():
    rows = [
        Row("in.jsonl:1", {"prompt": "a", "answers": ["b", "c", "d"]}),
        Row("in.jsonl:2", {"prompt": "a"}),
        Row("in.jsonl:3", {"prompt": "a", "answers": []}),
    ]
    task = MultipleChoice(make_config(text="prompt", text_pair="", choices="answers"), TOKENIZER, {})
    first, missing, empty = task.prediction_examples(rows)
    assert first == ChoiceExample("in.jsonl:1", "a", "", ("b", "c", "d"))
    assert isinstance(missing, UserError) and "in.jsonl:2: no column 'answers'" in str(missing)
    assert isinstance(empty, UserError) and "in.jsonl:3: column 'answers' has no choices" in str(empty)
    (found,) = task.predict([first], task.encode([first]), {"logits": [np.asarray([0.0, 1.0, 0.0, -9e37])]})
    assert found["choice"] == 1 and found["text"] == "c"
    assert found["probability"] == pytest.approx(np.e / (np.e + 2))
    assert json.loads(json.dumps(found)) == found


GOOD = next(rows_of(1))


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        ([GOOD, GOOD | {"label": None}], {}, r"train.jsonl:2: no label in column 'label' \(data.train\)"),
        ([GOOD, GOOD | {"label": 4}], {}, r"train.jsonl:2: column 'label' holds 4; .* 0 to 3"),
        ([GOOD, {"sent1": "a"}], {}, r"train.jsonl:2: no column"),
        ([GOOD], {"choices": ""}, "data.choices is empty"),
        ([GOOD], {"choices": "ending9"}, r"no column 'ending9'"),
        ([GOOD], {"long_texts": "windows"}, "data.long_texts=windows is not for multiple choice"),
    ],
)
def test_what_is_refused(tmp_path, rows, change, message):
    config = make_config(train=write(tmp_path / "train.jsonl", rows))
    config.data.update(change)
    with pytest.raises(UserError, match=message):
        load(config)


def test_options_of_classes_are_refused():
    config = make_config()
    config.train.label_smoothing = 0.1
    with pytest.raises(UserError, match=r"train.label_smoothing is 0.1; task=multiple_choice has no classes"):
        MultipleChoice(config, TOKENIZER, None)


@pytest.mark.parametrize("choices", ["ending0,ending1", "endings"])
def test_the_example_of_an_input_is_one(choices):
    task = MultipleChoice(make_config(choices=choices), TOKENIZER, {})
    [example] = task.prediction_examples([Row("x", task.input_example)])
    assert isinstance(example, ChoiceExample) and example.choices == ("a", "a")
