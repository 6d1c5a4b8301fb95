"""Tagging: learns, scores every word once whatever the length, gives offsets that cut the entities out of the text."""

import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.convert.conversion import convert
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.conll import entities_of, repair, text_to_tag
from bert_jax.data.labelled.examples import TaggedExample
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.inference.open import open_model
from bert_jax.inference.predictor import Predictor
from bert_jax.run import run
from bert_jax.sharding import make_mesh
from bert_jax.tasks.finetuning import by_item
from bert_jax.tasks.tagging import Tagging
from bert_jax.tasks.task import Source
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.loop import make_evaluation, train
from bert_jax.training.parameters import flatten, unflatten
from experiments import ner

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
TOKENIZER = make_wordpiece([*PIECES, "mr", "in", ".", "京", "北", "有"], "test", True, None, True)


def make_config(kind=None, **data):
    config = ner.get_config(kind)
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=64)
    config.data.update({"sequence_length": 32, "buckets": 1, "prefetch": 2} | data)
    config.optimizer.update(learning_rate=3e-3)
    config.train.update(epochs=20.0, batch_size=8, log_every=20, peak_tflops=1.0)
    config.eval.update(batch_size=8, every=80)
    config.mesh.data = 1
    return config


def write(path, sentences):
    path.write_text("\n".join("".join(f"{w} {t}\n" for w, t in sentence) for sentence in sentences), "utf-8")
    return str(path)


def sentences(count, seed=0, length=8):
    """Letters: a to d are places, "mr" and one of e to h a person, the rest is nothing."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sentence = []
        while len(sentence) < length:
            kind = random.integers(3)
            if kind == 0:
                sentence += [("mr", "B-PER"), (random.choice(list("efgh")), "I-PER")]
            else:
                tag, letters = [("B-LOC", "abcd"), ("O", "ijklmnopqrstuvwxyz")][kind - 1]
                sentence.append((random.choice(list(letters)), tag))
        found.append(sentence)
    return found


def load(config, description=None):
    task = Tagging(config, TOKENIZER, description)
    task.load()
    return task


def loaded(tmp_path, train, validation=None, description=None, **keys):
    """A task over these sentences; `keys` are of data.*"""
    files = {"train": write(tmp_path / "train.conll", train)}
    files["validation"] = write(tmp_path / "dev.conll", train if validation is None else validation)
    return load(make_config(**files, **keys), description)


def evaluated(task, parameters=None):
    """Returns the evaluation of a model, untrained unless its parameters are given."""
    parameters = fresh(task) if parameters is None else parameters
    evaluate = make_evaluation(task, shape_of(task), task.config, make_mesh(task.config.mesh), {})
    return evaluate(parameters, "validation", task.description())


def fresh(task):
    return jax.jit(lambda: flatten(task.init(nnx.Rngs(params=0))))()


def shape_of(task):
    return nnx.split(nnx.eval_shape(lambda: task.init(nnx.Rngs(params=0))))[0]


def predicted(task, parameters, examples):
    items = task.encode(examples)
    step = jax.jit(lambda batch: task.evaluate(unflatten(shape_of(task), parameters), batch, {})[1])
    rows = [jax.device_get(step(collate(items, [[i]], Shape(1, 1, 32)))) for i in range(len(items))]
    return task.predict(examples, items, by_item(rows, items, task.token_outputs))


def given_to_words(task, items, count):
    """How often each word of each of `count` examples is scored, and with which label."""
    found = [[] for _ in range(count)]
    for item in items:
        numbers, weights = item.token_values["word_numbers"], item.token_values["label_weights"]
        assert np.array_equal(numbers > 0, weights > 0)
        for at in np.flatnonzero(numbers):
            label = task.labels[item.token_values["labels"][at]]
            found[int(item.values["example"])].append((int(numbers[at]) - 1, label))
    return found


def test_overfits_32_examples(tmp_path):
    path = write(tmp_path / "train.conll", sentences(32))
    config = make_config(train=path, validation=path, test=write(tmp_path / "test.conll", sentences(11, 5, length=50)))
    task = load(config)
    finished = train(task, config, tmp_path / "run")
    assert (
        finished.evaluation.metrics["entity_f1"]
        == 1.0
        == finished.evaluation.metrics["accuracy"]
        == finished.evaluation.metrics["entity_recall"]
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines][-2:] == ["eval", "test"] and 0.3 < lines[-1]["entity_f1"] <= 1
    saved = read_checkpoint(find_checkpoint(str(tmp_path / "run")))
    labels = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
    assert saved.run["task"] == {"labels": labels, "characters": False}
    assert saved.parameters["heads/classifier/kernel"].shape == (32, 5)
    # Round trip: a task made of the description alone tags as the run did.
    again = Tagging(config, TOKENIZER, json.loads(json.dumps(saved.run["task"])))
    assert again.labels == labels and again.description() == task.description()
    rows = [Row("here:1", {"0": "x mr  e i d"}), Row("here:2", {"0": ["b", "mr", "g"]}), Row("here:3", {"0": ""})]
    predictions = predicted(again, saved.parameters, list(again.prediction_examples(rows)))
    assert predictions[0]["tags"] == ["O", "B-PER", "I-PER", "O", "B-LOC"]
    entity = predictions[0]["entities"][0]
    assert 0.5 < entity.pop("probability") <= 1
    assert entity == {"type": "PER", "text": "mr  e", "start": 2, "end": 7, "word_start": 1, "word_end": 3}
    assert [(e["type"], e["text"]) for e in predictions[1]["entities"]] == [("LOC", "b"), ("PER", "mr g")]
    assert predictions[2] == {"words": [], "tags": [], "probabilities": [], "entities": []}


def test_shuffled_tags_teach_nothing(tmp_path):
    """Every word is an entity of one of two types by lot, so a guesser is right half of the time. (Of the lengths and
    numbers of the test above: the programs are compiled once.)"""
    random = np.random.default_rng(3)

    def lots(count, length):
        words = random.choice(list(LETTERS), (count, length)).tolist()
        return [[(word, random.choice(["B-X", "B-Y"])) for word in sentence] for sentence in words]

    config = make_config(
        train=write(tmp_path / "train.conll", lots(32, 8)), validation=write(tmp_path / "dev.conll", lots(20, 40))
    )
    finished = train(load(config), config, tmp_path / "run")
    assert 0.4 < finished.evaluation.metrics["entity_f1"] < 0.6


def test_the_first_piece_speaks_for_its_word(tmp_path):
    """ids by hand: a is 5, ##a 31; "zab" is z ##a ##b; U+0001 leaves nothing and becomes [UNK] = 1."""
    task = loaded(tmp_path, [[("zab", "B-X"), ("\u0001", "O"), ("b", "B-Y")]])
    (item,) = task.items["train"]
    assert item.parts[0].ids.tolist() == [2, 30, 31, 32, 1, 6, 3] and not item.parts[0].type_ids.any()
    assert item.token_values["word_numbers"].tolist() == [0, 1, 0, 0, 2, 3, 0]
    assert item.token_values["label_weights"].tolist() == [0, 1, 0, 0, 1, 1, 0]
    assert [task.labels[i] for i in item.token_values["labels"]] == ["O", "B-X", "O", "O", "O", "B-Y", "O"]


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(1, 12), max_size=40), min_size=1, max_size=4), st.integers(8, 20))
def test_every_word_is_in_one_item_with_its_own_tag(lengths, sequence_length):
    task = Tagging(make_config(), TOKENIZER, {"labels": ["O", "B-X", "I-X"], "characters": False})
    task.config.data.sequence_length = sequence_length
    examples = [
        TaggedExample("here", tuple("q" * n for n in sizes), tuple("O" if n % 2 else "B-X" for n in sizes))
        for sizes in lengths
    ]
    items = task.encode(examples)
    assert all(item.length <= sequence_length for item in items)
    for example, found in zip(examples, given_to_words(task, items, len(examples)), strict=True):
        assert sorted(found) == list(enumerate(example.tags or ()))


def test_long_sentences_are_scored_in_full(tmp_path):
    """150 words in rows of 32, a word of 45 pieces, one of no piece: each counts once in what is reported."""
    gold = [*sentences(5, length=150), [("q" * 45, "B-LOC")], [("\u0001", "O")]]
    task = loaded(tmp_path, sentences(3), gold)
    assert len(task.items["validation"]) > 5 * 150 / 30
    evaluation = evaluated(task)
    pairs = [
        (tag, given)
        for sentence, p in zip(gold, evaluation.predictions, strict=True)
        for (_, tag), given in zip(sentence, p["tags"], strict=True)
    ]
    assert len(pairs) == sum(map(len, gold)) >= 752
    assert evaluation.metrics["accuracy"] == pytest.approx(np.mean([tag == given for tag, given in pairs]))


def test_windows_agree_with_one_row_where_words_are_tagged_by_themselves(tmp_path):
    """A model whose attention is off, so that position and neighbours mean nothing: windows change no tag."""
    gold = sentences(3, length=40)
    task, whole = loaded(tmp_path, gold, sequence_length=16), loaded(tmp_path, gold, sequence_length=64)
    assert len(task.items["validation"]) > len(whole.items["validation"]) == 3
    blind = {
        name: np.zeros_like(x) if re.search("position|attention.*kernel", name) else x
        for name, x in fresh(task).items()
    }
    given = []
    for one in (task, whole):
        evaluation = evaluated(one, blind)
        given.append((evaluation.predictions, evaluation.metrics["loss"]))
    assert [p["tags"] for p in given[0][0]] == [p["tags"] for p in given[1][0]]
    assert len({tag for p in given[0][0] for tag in p["tags"]}) > 1
    assert given[0][1] == pytest.approx(given[1][1], rel=1e-5)


def test_evaluation_is_the_same_on_one_device_and_eight(tmp_path):
    task = loaded(tmp_path, sentences(19, length=40))
    one = evaluated(task)
    task.config.mesh.data = 8
    eight = evaluated(task)
    assert one.metrics == pytest.approx(eight.metrics, rel=1e-5)
    assert [p["tags"] for p in one.predictions] == [p["tags"] for p in eight.predictions]
    assert len(one.predictions) == 19


def test_loss_is_the_mean_over_words(tmp_path):
    """Four words, one in the first sentence and three in the other: the loss is a fourth of their sum."""
    task = loaded(tmp_path, [[("a", "B-X")], [("b", "O"), ("ccc", "B-X"), ("d", "O")]])
    model = unflatten(shape_of(task), fresh(task))
    expected = []
    for item in task.items["train"]:
        batch = collate([item], [[0]], Shape(1, 1, item.length))
        logits = np.asarray(jax.jit(lambda batch: task.outputs(model, batch, None)["logits"])(batch), np.float64)[0]
        for at in np.flatnonzero(item.token_values["word_numbers"]):
            chosen = logits[at, item.token_values["labels"][at]]
            expected.append(np.log(np.exp(logits[at]).sum()) - chosen)
    assert len(expected) == 4
    assert evaluated(task).metrics["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_balanced_weights_and_smoothing(tmp_path):
    """Three O and one B-X of three labels: weights 4 / (3 · 3) and 4 / (3 · 1)."""
    config = make_config(train=write(tmp_path / "t", [[("a", "O"), ("b", "O"), ("c", "O"), ("d", "B-X")]]))
    config.train.class_weights = "balanced"
    task = load(config)
    weights = task.items["train"][0].token_values["label_weights"]
    np.testing.assert_allclose(weights, [0, 4 / 9, 4 / 9, 4 / 9, 4 / 3, 0], rtol=1e-6)
    outputs = {"logits": jnp.asarray([[[[1.0, 2.0, 4.0]]]])}
    batch = {"labels": jnp.zeros((1, 1, 1), jnp.int32), "label_weights": jnp.full((1, 1, 1), 0.5)}
    config.train.label_smoothing = 0.3
    loss, weight = task.losses(outputs, batch)["loss"]
    log_p = np.array([1, 2, 4]) - np.log(np.exp([1, 2, 4]).sum())
    assert float(loss) == pytest.approx(-0.5 * np.dot(log_p, [0.7 + 0.1, 0.1, 0.1]), rel=1e-5) and float(weight) == 0.5


def test_schemes_come_out_as_bio(tmp_path):
    bioes = [[("a", "B-X"), ("b", "E-X"), ("c", "S-Y"), ("d", "O")]]
    iob1 = [[("a", "I-X"), ("b", "I-X"), ("c", "I-Y"), ("d", "O")], [("a", "I-X"), ("b", "B-X")]]
    task = loaded(tmp_path, bioes, iob1, repair_tags=False)
    assert task.examples["train"][0].tags == ("B-X", "I-X", "B-Y", "O") == task.examples["validation"][0].tags
    assert task.labels == ["O", "B-X", "B-Y", "I-X", "I-Y"]


def test_invalid_bio_is_repaired_and_counted_or_an_error(tmp_path, caplog):
    bad = [[("a", "B-X"), ("b", "O")], [("c", "B-X"), ("d", "I-Y"), ("e", "O"), ("f", "I-X")]]
    with caplog.at_level(logging.INFO):
        task = loaded(tmp_path, bad)
    assert task.examples["train"][1].tags == ("B-X", "B-Y", "O", "B-X")
    path = tmp_path / "train.conll"
    assert f"train: 2 tags continue no entity and now begin one (first: {path}:5: I-Y ('d'))" in caplog.text
    assert "train: 2 sentences, 6 words; of a sentence min 2, median 4, max 4; entities: X 3, Y 1" in caplog.text
    assert "validation: 2 sentences repeat" in caplog.text and "0 with other tags (first: " in caplog.text
    with pytest.raises(UserError, match=r"train\.conll:5: I-Y \('d'\) continues no entity"):
        loaded(tmp_path, bad, repair_tags=False)


GOOD = [[("a", "B-X"), ("b", "I-X"), ("c", "O"), ("d", "B-Y")]]


def test_types_that_training_lacks(tmp_path, caplog):
    """I-Y is unknown as a tag but not as a type; Z is, unless it is named."""
    assert loaded(tmp_path, GOOD, [[("a", "B-Y"), ("b", "I-Y")]]).labels[-1] == "I-Y"
    other = [[("a", "O"), ("b", "B-Z")], [("a", "B-Z")]]
    with pytest.raises(UserError, match=r"dev\.conll:2: 'Z' is not among X, Y; correct the tag, or .* data\.labels"):
        loaded(tmp_path, GOOD, other)
    with caplog.at_level(logging.WARNING):
        task = loaded(tmp_path, GOOD, other, labels="X, Y,Z")
    assert caplog.text.count("validation has 'Z', which data.train lacks: the model will miss it") == 1
    assert task.labels == ["O", "B-X", "B-Y", "B-Z", "I-X", "I-Y", "I-Z"]
    assert [task.labels[i] for i in task.items["validation"][0].token_values["labels"]] == ["O", "O", "B-Z", "O"]
    with pytest.raises(UserError, match=r"dev\.conll:1: 'NOUN' is not among X, Y"):
        loaded(tmp_path, GOOD, [[("a", "NOUN")]])
    with pytest.raises(UserError, match=r"train\.conll:1: 'X' is not among Y"):
        loaded(tmp_path, GOOD, labels="Y")


def test_sentences_that_come_again(tmp_path, caplog):
    """In train a repeats itself once, with another tag; validation has it again as it was first, which b is not."""
    train = [[("a", "B-X")], [("a", "O")], [("b", "O")]]
    with caplog.at_level(logging.WARNING):
        loaded(tmp_path, train, [[("a", "B-X")], [("c", "O")]])
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        f"train: 1 sentences repeat earlier ones, 1 with other tags (first: {tmp_path}/train.conll:3)",
        f"validation: 1 sentences repeat earlier ones or those of other splits, 1 with other tags "
        f"(first: {tmp_path}/dev.conll:1)",
    ]


def test_plain_tags(tmp_path):
    tags = [[("a", "DET"), ("b", "NOUN"), ("c", "O")], [("d", "NOUN")]]
    with pytest.raises(UserError, match=r"\(O, DET, NOUN\) are no entities.*choose accuracy"):
        loaded(tmp_path, tags)
    path = write(tmp_path / "t", tags)
    task = load(make_config("plain", train=path, validation=path))
    assert task.labels == ["O", "DET", "NOUN"]
    evaluation = evaluated(task)
    gold = ["DET", "NOUN", "O", "NOUN"]
    given = [tag for prediction in evaluation.predictions for tag in prediction["tags"]]
    assert evaluation.metrics["accuracy"] == np.mean([a == b for a, b in zip(gold, given, strict=True)])
    assert set(evaluation.metrics) == set(task.metric_names("validation"))
    assert evaluation.predictions[0].keys() == {"words", "tags", "probabilities"}
    with pytest.raises(UserError, match=r"ner.py:chunks is not known; it can be entities, plain"):
        ner.get_config("chunks")


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        ("a O\nb B-X\n\nc O extra\n", {}, r"train\.conll:4: 3 columns, where the lines before have 2"),
        ("a O\n", {}, "data.train has one tag only, O"),
        ("a B-X\nb 7\n", {}, r"data\.train=.*train\.conll: tags 'B-X' and '7' belong to no one scheme"),
        ("a B-X\nb O\n", {"label": ""}, r"train\.conll:1: no tags; data\.label names their column \(data\.train\)"),
        ("a B-X\nb O\n", {"label": "2"}, r"train\.conll:1: no column 2"),
        ("a B-X\nb O\n", {"long_texts": "head"}, "data.long_texts is 'head': every word has to get a tag"),
        ("\n\n", {}, "has no words"),
        ("a B-X\n" + "b O\n" * 31, {"long_texts": "error"}, r"train\.conll:1: 34 tokens, over data.sequence_length 32"),
    ],
)
def test_bad_input(tmp_path, content, keys, message):
    (tmp_path / "train.conll").write_text(content)
    config = make_config(train=str(tmp_path / "train.conll"))
    config.data.update(keys)
    with pytest.raises(UserError, match=message):
        load(config)


def test_tags_that_are_numbers_count_the_names(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"words": ["a", "mr", "e"], "ner_tags": [0, 1, 2]}, {"words": ["b", "c"], "ner_tags": [3, 0]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(train=str(path), validation=str(path))
    config.data.update(text="words", label="ner_tags", labels="O,B-PER,I-PER,B-LOC,I-LOC")
    task = load(config)
    assert [example.tags for example in task.examples["train"]] == [("O", "B-PER", "I-PER"), ("B-LOC", "O")]
    assert task.labels == ["O", "B-PER", "B-LOC", "I-PER", "I-LOC"]
    config.data.labels = "O,B-PER,I-PER"
    with pytest.raises(UserError, match=r"train\.jsonl:2: tags in column 'ner_tags' .* 0 to 3, data\.labels names 3"):
        load(config)
    config.data.labels = ""
    with pytest.raises(UserError, match=r"train\.jsonl:1: .* their names are not known: list all tags in their order"):
        load(config)


def test_rows_say_which_word_is_wrong(tmp_path):
    rows = [{"words": ["a", "b"], "tags": ["B-X", "O"]}, {"words": ["a", "b"], "tags": ["O", "I-X"]}]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(train=str(path), repair_tags=False)
    config.data.update(text="words", label="tags")
    with pytest.raises(UserError, match=r"train\.jsonl:2, word 2: I-X \('b'\) continues no entity"):
        load(config)


def test_going_on_from_a_checkpoint(tmp_path):
    description = loaded(tmp_path, GOOD).description()
    assert loaded(tmp_path, GOOD, description=description).renewed_parameters == ""
    one_type = [[("a", "B-X"), ("b", "O")]]
    with pytest.raises(UserError, match=r"knows the tags O, B-X, B-Y.*the data has O, B-X, I-X.*train\.new_head"):
        loaded(tmp_path, one_type, description=description)
    assert loaded(tmp_path, one_type, description=description, labels="X,Y").labels == description["labels"]
    with pytest.raises(UserError, match=r"init_from tags single characters, the data has words.*new_head=True"):
        loaded(tmp_path, GOOD, description=description | {"characters": True})
    config = make_config(train=write(tmp_path / "t", one_type))
    config.train.new_head = True
    task = Tagging.with_data(config, Source(TOKENIZER, "tagging", description))
    assert task.labels == ["O", "B-X", "I-X"] and task.renewed_parameters == "heads/classifier/"


def test_characters(tmp_path):
    """CLUENER's form: offsets count characters of the text, from 0; texts to predict are cut up in the same way."""
    row = {"text": "a 北京 b", "label": {"LOC": {"北京": [[2, 3]]}}}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row))
    config = make_config(train=str(path), validation=str(path))
    config.data.update(text="text", label="label")
    task = load(config)
    assert task.description()["characters"] and task.examples["train"][0].words == tuple("a 北京 b")
    assert task.examples["train"][0].tags == ("O", "O", "B-LOC", "I-LOC", "O", "O")
    assert np.sum(task.items["train"][0].token_values["label_weights"]) == 6  # the spaces count too
    (example,) = task.prediction_examples([Row("in:1", {"text": "北京 x"})])
    assert example.words == tuple("北京 x")
    (entity,) = task._prediction(example, ["B-LOC", "I-LOC", "O", "O"], np.array([0.5, 0.5, 1, 1]))["entities"]
    assert (entity["text"], entity["start"], entity["end"], entity["probability"]) == ("北京", 0, 2, 0.25)
    # The same text in columns, a character a line.
    columns = loaded(tmp_path, [[("北", "B-LOC"), ("京", "I-LOC"), ("有", "O")]])
    assert columns.characters and not columns.examples["train"][0].spaces_between


def test_rows_to_predict(tmp_path):
    task = loaded(tmp_path, GOOD)
    rows = [Row("in:1", {"0": "U.S.\tX-ray"}), Row("in:2", {"1": "x"}), Row("in:3", {"0": [1]})]
    text, missing, numbers = task.prediction_examples(rows)
    assert text.words == ("U", ".", "S", ".", "X", "-", "ray") and text.tags is None
    assert isinstance(missing, UserError) and "in:2: no column '0'" in str(missing)
    assert isinstance(numbers, UserError) and "in:3: column '0' holds" in str(numbers)


@given(
    st.text(alphabet=st.sampled_from("aB é😀.-'\t\u00a0\u3000\u0001\u200d北京\u0301\U00020001"), max_size=30),
    st.booleans(),
)
def test_words_are_slices_of_the_text_and_leave_nothing_visible_out(text, characters):
    example = text_to_tag("here", text, characters)
    assert [text[start:end] for start, end in example.spans] == list(example.words)
    assert all(a[1] <= b[0] for a, b in zip(example.spans, example.spans[1:], strict=False))
    if characters:
        assert "".join(example.words) == text
        return
    left = "".join(c for c in text if not c.isspace() and c not in "\u0001\u200d")
    assert "".join(example.words).replace("\u0001", "").replace("\u200d", "") == left
    assert all(len(word) == 1 for word in example.words if any(c in ".-'北京\U00020001" for c in word))


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), max_size=12))
def test_entities_are_those_of_seqeval(tags):
    """In repaired tags strict seqeval finds what its lenient default finds in the model's own."""
    from seqeval.metrics.sequence_labeling import get_entities

    expected = [(kind, first, last + 1) for kind, first, last in get_entities(tags)]
    assert list(entities_of(repair(tags)[0])) == expected


def test_a_frozen_model_with_an_lstm_learns_predicts_and_continues(tmp_path):
    """Features of the embeddings alone do, since here each word says its tag or that of its left neighbour."""
    config = make_config(train=write(tmp_path / "train.conll", sentences(60)))
    config.data.validation = config.data.test = write(tmp_path / "dev.conll", sentences(30, seed=1))
    TOKENIZER.save(tmp_path / "vocab")
    config.data.vocab_file = str(tmp_path / "vocab")
    config.data.packing = True
    config.head.update(layers="all_weighted", lstm_layers=2, lstm_size=12)
    config.optimizer.update(freeze="^(embeddings|encoder|pooler)/", learning_rate=1e-2)
    config.train.epochs = 30.0
    config.eval.every = 1_000
    result = run(config, tmp_path / "run")
    assert result.test["entity_f1"] > 0.95
    opened = open_model(tmp_path / "run")
    start = jax.jit(lambda: flatten(opened.task.init(nnx.Rngs(params=0))))()
    for name, value in opened.parameters.items():
        assert name.startswith("heads/") or np.array_equal(value, start[name]), name
    assert opened.parameters["heads/features/lstm_1/backward/kernel"].shape == (24, 48)
    words = [["i", "mr", "e"], ["a"]]
    found = Predictor(tmp_path / "run")([{"0": one} for one in words])
    assert [one["tags"] for one in found] == [["O", "B-PER", "I-PER"], ["B-LOC"]]

    again = make_config(train=config.data.train, validation=config.data.validation)
    again.init_from = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"head.layers is last, the checkpoint's head was trained with all_weighted"):
        run(again.copy_and_resolve_references(), tmp_path / "again")
    again.train.update(new_head=True, epochs=1.0)
    assert run(again, tmp_path / "again").ended == "done"
    with pytest.raises(UserError, match=r"head of a BertForTokenClassification reads the last layer.*lstm_layers=2"):
        convert(str(tmp_path / "run"), str(tmp_path / "hf"), format="huggingface")
    convert(str(tmp_path / "run"), str(tmp_path / "hf"), format="huggingface", architecture="BertModel")
