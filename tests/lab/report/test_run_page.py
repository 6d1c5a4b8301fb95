"""The page of results: one file, nothing of the data taken for HTML, the right figures in the right places."""

import base64
import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from bert_jax import modes
from bert_jax.data.labelled.examples import (
    Answer,
    ChoiceExample,
    QuestionExample,
    TaggedExample,
    TextExample,
    WritingExample,
)
from bert_jax.lab import plots
from bert_jax.lab.report import command as report_command
from bert_jax.lab.report.run_page import write_report
from bert_jax.tasks import sections
from bert_jax.tasks.sections import Report
from bert_jax.tasks.text_scores import Scorer
from experiments import classify

EVIL = '<script>alert("x")</script> & <b>bold</b>'


class Page(HTMLParser):
    """Tables as rows of texts, sources of images, every tag closed in order."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.links, self.open, self.seen = [], [], [], [], set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        attributes = dict(attributes)
        self.links += [value for name, value in attributes.items() if name in ("href", "src")]
        if tag == "img":
            self.images.append(attributes["src"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def make_config(kind="single"):
    config = classify.get_config(kind)
    config.model.update(num_hidden_layers=1, hidden_size=16)
    return config


def report(tmp_path, config, found, records=(), *, overrides=None):
    text = write_report(Report(records, found), {"accuracy": 0.5}, config, tmp_path, overrides).read_text()
    page = Page(text)
    assert "http" not in text and "url(" not in text
    assert "script" not in page.seen
    for source in page.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert page.links == page.images
    return page


def of_class(label, probability, labels=("no", "yes")):
    rest = (1 - probability) / (len(labels) - 1)
    return {
        "label": label,
        "probability": probability,
        "probabilities": {name: probability if name == label else rest for name in labels},
    }


def test_classes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 5, "split": "train", "loss": 0.7}\n{"step": 10, "split": "eval", "loss": 0.6, "accuracy": 0.5}\n'
        '{"step": 20, "split": "eval", "loss": 0.5, "accuracy": 0.6}\n{"step": 30, "split": "eval", "accuracy": 0.4}\n'
    )
    examples = [TextExample(f"dev:{i}", text, label=label) for i, (text, label) in enumerate(
        [("fine", "yes"), ("mild error", "yes"), (EVIL, "no"), ("ok", "no")], 1
    )]  # fmt: skip
    predictions = [of_class("yes", 0.9), of_class("no", 0.6), of_class("yes", 0.8), of_class("no", 0.7)]
    found = sections.classes(["no", "yes"], examples, predictions)
    page = report(tmp_path, make_config(), found, overrides={"data.train": "<a>.csv"})
    assert len(page.images) == 2  # learning curve, confusion matrix
    assert ["accuracy", "0.5000", "0.6000", "20"] in page.rows  # the best of the run, and when it was
    assert ["yes", "0.500", "0.500", "0.500", "2"] in page.rows
    first = page.rows.index(["dev:3", EVIL, "no", "0.200", "yes", "0.800"])
    assert page.rows[first + 1] == ["dev:2", "mild error", "yes", "0.400", "no", "0.600"]
    assert page.rows[first - 1][0] == "where" and len(page.rows) == first + 2
    assert "--config.data.train=&lt;a&gt;.csv" in (tmp_path / "report.html").read_text()


def test_labels_of_their_own_thresholds(tmp_path):
    labels = ["a", "b"]
    examples = [
        TextExample("dev:1", "one", label=("a",)),
        TextExample("dev:2", "both", label=("a", "b")),
        TextExample("dev:3", "none", label=()),
    ]
    gold, probabilities = np.asarray([[1, 0], [1, 1], [0, 0]], bool), np.asarray([[0.9, 0.1], [0.8, 0.3], [0.75, 0.01]])
    page = report(tmp_path, make_config(), sections.label_sets(labels, [0.7, 0.2], examples, gold, probabilities))
    assert ["a", "0.667", "1.000", "0.800", "2", "0.700"] in page.rows
    assert ["b", "1.000", "1.000", "1.000", "1", "0.200"] in page.rows
    loss = -(np.log(0.25) + np.log(0.99)) / 2
    assert page.rows[-1] == ["dev:3", "none", "", "a", f"{loss:.3f}"]


def test_numbers(tmp_path):
    examples = [TextExample("dev:1", "x", "y", 1.0), TextExample("dev:2", "x", "z", 3.5)]
    page = report(tmp_path, make_config(), sections.numbers(examples, [{"value": 1.25}, {"value": 2.0}]))
    assert page.rows[-2:] == [["dev:2", "x ‖ z", "3.500", "2.000"], ["dev:1", "x ‖ y", "1.000", "1.250"]]
    assert len(page.images) == 1


def test_entities(tmp_path):
    examples = [
        TaggedExample("dev:1", ("Ada", "met", "<Bob>"), ("B-PER", "O", "B-PER")),
        TaggedExample("dev:5", ("Rome",), ("B-LOC",)),
    ]
    predictions = [
        {"tags": ["B-PER", "O", "O"], "probabilities": [0.9, 0.9, 0.6]},
        {"tags": ["B-PER"], "probabilities": [0.8]},
    ]
    page = report(tmp_path, make_config(), sections.tags([], examples, predictions, has_entities=True))
    assert ["PER", "0.500", "0.500", "0.500", "2"] in page.rows
    assert page.rows[-2:] == [["dev:5", "Rome/B-LOC/B-PER"], ["dev:1", "Ada met <Bob>/B-PER/O"]]


def test_tags_that_are_no_entities(tmp_path):
    examples = [TaggedExample("dev:1", ("a", "b"), ("DET", "NOUN"))]
    predictions = [{"tags": ["DET", "DET"], "probabilities": [0.9, 0.9]}]
    found = sections.tags(["DET", "NOUN"], examples, predictions, has_entities=False)
    page = report(tmp_path, make_config(), found)
    assert ["DET", "0.500", "1.000", "0.667", "1"] in page.rows


def test_questions(tmp_path):
    context = "Ada wrote it in 1843."
    examples = [
        QuestionExample("dev:1", "q1", "Who?", context, (Answer("Ada", 0),)),
        QuestionExample("dev:2", "q2", "When?", context, (Answer("in 1843", 13),)),
        QuestionExample("dev:3", "q3", "Why?", context, (), is_impossible=True),
    ]

    def prediction(name, answer, best, odds):
        n_best = [{"text": best, "probability": 0.9, "start": 0, "end": 1}]
        return {"id": name, "answer": answer, "probability": 0.9, "null_odds": odds, "n_best": n_best}

    predictions = [prediction("q1", "Ada", "Ada", -3.0), prediction("q2", "1843", "1843", -1.0)]
    predictions.append(prediction("q3", "", "it", 2.0))
    page = report(tmp_path, make_config(), sections.questions(examples, predictions))
    assert len(page.images) == 1
    assert page.rows[-1] == ["q2", "When?", "in 1843", "1843", "0.900", "67", context]
    assert page.rows[-2][0] == "id"  # one error only


def test_choices(tmp_path):
    examples = [ChoiceExample("dev:1", "He", "then", ("ran", "<slept>"), 0)]
    found = sections.choices(examples, [{"choice": 1, "text": "<slept>", "probability": 0.75}])
    page = report(tmp_path, make_config(), found)
    assert page.rows[-1] == ["dev:1", "He then", "ran", "<slept>", "0.750"]


def test_written_texts(tmp_path):
    """Source, reference and text from the best to the worst; scores of groups by the length of the source."""
    texts = ["a b c d", "a b", "x"]
    pairs = [(("first", "turn two"), "a b c d"), ((EVIL,), "a c"), (("s",), "y z")]
    examples = [WritingExample(f"dev:{i}", *pair) for i, pair in enumerate(pairs, 1)]
    page = report(tmp_path, make_config(), sections.writing(examples, texts, Scorer("summary")))
    first = page.rows.index(["dev:1", "first ‖ turn two", "a b c d", "a b c d", "100.000"])
    assert page.rows[first + 1] == ["dev:2", EVIL, "a c", "a b", "50.000"]
    assert page.rows[first + 2] == ["dev:3", "s", "y z", "x", "0.000"]
    lengths = [row for row in page.rows if row[0] in ("1 to 1", "16 to 16", f"{len(EVIL)} to {len(EVIL)}")]
    assert [row[1:3] for row in lengths] == [["1", "0.000"], ["1", "100.000"], ["1", "50.000"]]
    assert [row[-1] for row in lengths] == ["0.333", "1.000", "1.000"]


def test_the_worst_come_first_and_are_twenty(tmp_path):
    examples = [TextExample(f"dev:{i}", "x" * 2000, label="no") for i in range(40)]
    predictions = [of_class("yes", 0.5 + i / 100) for i in range(40)]
    page = report(tmp_path, make_config(), sections.classes(["no", "yes"], examples, predictions))
    worst = [row for row in page.rows if row[0].startswith("dev:")]
    assert [row[0] for row in worst] == [f"dev:{39 - i}" for i in range(20)]
    assert worst[0][1] == "x" * 1000 + " …"


def test_many_labels_are_cut_to_the_commonest():
    counts = np.diag(np.arange(1, 61))
    png, note = plots.confusion_matrix(counts, [f"l{i}" for i in range(60)])
    assert png.startswith(b"\x89PNG") and "The 50 commonest of 60 labels" in note
    assert "commonest" not in plots.confusion_matrix(counts[:50, :50], [f"l{i}" for i in range(50)])[1]


def test_a_task_of_ones_own_gets_the_rest_of_the_page(tmp_path):
    page = report(tmp_path, make_config(), [], [{"prediction": {"x": 1}}])
    assert ["accuracy", "0.5000", "", ""] in page.rows
    assert (tmp_path / "predictions" / "validation.jsonl").read_text() == '{"prediction": {"x": 1}}\n'


def test_training_ends_with_a_report(tmp_path, monkeypatch):
    """Of the best checkpoint: its figures are those of metrics.jsonl, though the last evaluation was of the test."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]) + "\n")
    random = np.random.default_rng(0)
    for name, count in (("train", 24), ("validation", 21), ("test", 9)):
        rows = [{"text": " ".join(random.choice([*"abcdefgh"], 5)), "label": "ab"[i % 2]} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = classify.get_config()
    config.model.update(size="tiny", num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=32)
    config.model.update(max_position_embeddings=16)
    config.data.update({name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")})
    config.data.update(vocab_file=str(tmp_path / "vocab.txt"), sequence_length=16, buckets=1)
    config.train.update(epochs=2.0, batch_size=8, peak_tflops=1.0)
    config.eval.batch_size = 8
    config.optimizer.learning_rate = 1e-2
    config.mesh.data = 1
    workdir = tmp_path / "run"
    assert modes.train(config, workdir, overrides={"data.buckets": 1}) == 0
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    best = max(record["accuracy"] for record in records if record["split"] == "eval")
    page = Page((workdir / "report.html").read_text())
    accuracy = next(row for row in page.rows if row[0] == "accuracy")
    assert accuracy[:3] == ["accuracy", f"{best:.4f}", f"{best:.4f}"]  # at the best checkpoint, and of the run
    assert ["devices platform", "cpu"] in page.rows
    assert len(page.images) == 3  # learning curve, confusion matrix, where the time went
    for path in (workdir / "report.html", tmp_path / "page.md", tmp_path / "page.csv"):  # written again, by the command
        path.unlink(missing_ok=True)
        assert report_command.main([str(workdir), f"--output={path}"]) == 0
    assert accuracy in Page((workdir / "report.html").read_text()).rows
    assert f"| accuracy | {best:.4f} |" in (tmp_path / "page.md").read_text()
    [row] = csv.DictReader((tmp_path / "page.csv").read_text().splitlines())
    assert (row["run"], row["task"]) == ("run", "classification") and float(row["accuracy"]) == pytest.approx(best)
    lines = [json.loads(line) for line in (workdir / "predictions" / "validation.jsonl").read_text().splitlines()]
    assert len(lines) == 21
    right = [line["prediction"]["label"] == line["label"] for line in lines]
    assert np.mean(right) == pytest.approx(best, abs=1e-5)
