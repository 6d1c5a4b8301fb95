"""Retrieval of translations: accuracies by hand, the metric of pretraining equals the command, and bad files."""

import json

import numpy as np
import pytest
from flax import nnx

from bert_jax import main
from bert_jax.config import UserError
from bert_jax.sharding import make_mesh
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.tasks.pretraining_text import prepared_corpus
from bert_jax.tasks.retrieval import Translations, accuracy, read_translations
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.evaluation import make_evaluation
from bert_jax.training.parameters import flatten

FOUR = Translations("", ["a", "b", "c", "d"], ["w", "x", "y", "z"])


def at(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3


def test_the_nearest_text_of_the_other_side_by_hand():
    """w is at 5°, x at 40°, y at 42°, z at 95°: c at 44° finds y, b at 30° finds x, and d at 60° finds y, not z. Back,
    x at 40° is nearer to c than to b."""
    found = accuracy(FOUR, (at(0, 30, 44, 60), at(5, 40, 42, 95)))
    assert found == (3 / 4, 3 / 4) and found.mean == 0.75


def test_a_text_that_equals_the_translation_counts_as_it():
    pairs = Translations("", ["a", "b"], ["same", "same"])
    assert accuracy(pairs, (at(0, 1), at(0, 1))).forward == 1
    assert accuracy(Translations("", ["a", "b"], ["x", "y"]), (at(0, 0), at(0, 0))).forward == 0.5


def test_the_ratio_takes_back_texts_that_are_near_to_all():
    """Of n queries around 0°, all are nearest to a hub at 0°, and by the ratio to their own translations."""
    random = np.random.default_rng(0)
    texts = random.normal(size=(40, 16)) * 0.4 + np.eye(16)[0]
    translations = texts + random.normal(size=texts.shape) * 0.25
    translations[0] = np.eye(16)[0]
    pairs = Translations("", list(map(str, range(40))), list(map(str, range(100, 140))))
    cosine, ratio = (accuracy(pairs, (texts, translations), score) for score in ("cosine", "ratio"))
    assert ratio.forward > cosine.forward
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    cosines = unit(texts) @ unit(translations).T
    near = np.sort(cosines, axis=0)[::-1][:4].mean(axis=0)  # of each translation
    own = np.sort(cosines, axis=1)[:, -4:].mean(axis=1)
    margin = cosines / ((own[:, None] + near[None]) / 2)
    assert ratio.forward == np.mean(margin.argmax(axis=1) == np.arange(40))


def test_files_and_tables(tmp_path):
    (tmp_path / "t.en").write_text("one\ntwo\n")
    (tmp_path / "t.de").write_text("eins\nzwei\n")
    (tmp_path / "t.tsv").write_text("one\tuno\n")
    files = f"{tmp_path}/t.en+{tmp_path}/t.de"
    assert read_translations(files, "x") == [Translations("", ["one", "two"], ["eins", "zwei"])]
    both = read_translations(f"en_de={files},en_es={tmp_path}/t.tsv", "x")
    assert both[0]._replace(name="") == read_translations(files, "x")[0]
    assert both[1] == Translations("en_es", ["one"], ["uno"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("t.en+short", r"t.en:2: this line has no partner, short ends after line 1"),
        ("t.en+blank", r"t.en:2: a text or its translation is empty: leave out both"),
        ("t.en.txt", r"eval.retrieval: t.en.txt is one file: name two, one\+other, or a .tsv of two columns"),
        ("en=t.en+short", r"t.en:2: this line has no partner"),
        ("three.tsv", r"three.tsv:1: 3 columns, where a text and its translation should be"),
        ("t.jsonl+t.en", r"eval.retrieval: t.jsonl is JSONL: give two files with a text per line, or a .tsv file"),
        ("nothing+nothing", r"nothing and nothing have no lines"),
        ("t.en+missing", r"missing does not exist"),
    ],
)
def test_files_that_are_no_translations(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    contents = {"t.en": "a\nb\n", "t.en.txt": "a\n", "short": "x\n", "blank": "x\n \n", "three.tsv": "a\tb\tc\n"}
    for name, content in (contents | {"nothing": ""}).items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_translations(spec, "eval.retrieval")


def test_the_metric_of_pretraining_equals_the_command_on_its_checkpoint(small_config, tmp_path, capsys):
    random = np.random.default_rng(0)
    words = ["the", "value", "name", "class", "object", "is", "a", "list", "of", "module"]
    sides = [[" ".join(random.choice(words, random.integers(2, 9))) for _ in range(21)] for _ in range(2)]
    for name, lines in zip(("t.en", "t.de"), sides, strict=True):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    files = f"en_de={tmp_path}/t.en+{tmp_path}/t.de"
    small_config.model.update(dtype="float32", initializer_range=0.5)
    small_config.eval.update(retrieval=files, retrieval_layer=1)
    task = Pretraining.over(small_config, prepared_corpus(small_config, None))
    model = task.init(nnx.Rngs(0))
    evaluate = make_evaluation(task, nnx.split(model)[0], small_config, make_mesh(small_config.mesh), {})
    metrics = evaluate(flatten(model), "validation", task.description()).metrics
    assert set(task.metric_names("validation")) == set(metrics)
    assert 0 < metrics["en_de/retrieval_forward"] < 1
    assert metrics["retrieval"] == pytest.approx(
        (metrics["en_de/retrieval_forward"] + metrics["en_de/retrieval_backward"]) / 2
    )
    run = {"step": 3, "config": small_config.to_dict(), "task": {}, "data": {}}
    write_checkpoint(tmp_path / "run" / "checkpoints" / "3", flatten(model), run, task.tokenizer)
    command = ["--config=experiments/multilingual.py", "--mode=retrieve", f"--workdir={tmp_path}/run"]
    output = tmp_path / "found.jsonl"
    given = [f"--input={files}", "--layer=all", f"--output={output}"]
    assert main.main([*command, *given, "--config.data.sequence_length=32"]) == 0
    first, second = map(json.loads, output.read_text().splitlines())
    assert (first["name"], first["layer"], first["texts"]) == ("en_de", "1", 21) and second["layer"] == "2"
    for direction in ("forward", "backward"):
        assert first[direction] == pytest.approx(metrics[f"en_de/retrieval_{direction}"])
    assert "en_de        layer 1" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--mode=retrieve needs --input: translations, as test.en\+test.de"):
        main.main(command)
