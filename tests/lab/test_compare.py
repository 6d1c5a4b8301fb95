"""Runs beside each other: differing options, metrics, speed, runs that are not finished, and what is no run."""

import json

import pytest

from bert_jax.config import UserError
from bert_jax.files import only_writer
from bert_jax.lab.compare import main
from experiments import base, classify


@pytest.fixture
def make(tmp_path):
    """make(name, accuracies, rate, …) → the folder of a run with an evaluation every 10 steps."""

    def folder(
        name, accuracies=(0.5, 0.7), rate=1e-4, *, task="classification", steps=20, speed=100.0, data="one", **more
    ):
        path = tmp_path / name
        path.mkdir(parents=True)
        config = classify.get_config() if task == "classification" else base.get_config("tiny")
        config.optimizer.learning_rate, config.train.steps, config.seed = rate, steps, more.get("seed", 0)
        (path / "config.json").write_text(config.to_json())
        lines = []
        for number, accuracy in enumerate(accuracies, 1):
            step = 10 * number
            lines += [
                {"step": step, "split": "train", "loss": 1 / step, "tokens_per_second": speed * number},
                {"step": step, "split": "eval", "loss": 1 - accuracy, "accuracy": accuracy, "majority_accuracy": 0.5},
            ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        entry = {"time": name, "code": {"commit": more.get("commit", "a" * 40)}, "data": {"examples of train": data}}
        (path / "environment.json").write_text(json.dumps({"starts": [entry]}))
        return path

    return folder


def printed(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def row(text, name):
    """Returns the cells of the first line that begins with a name."""
    return next(line.split()[len(name.split()) :] for line in text.splitlines() if line.startswith(name))


def test_options_metrics_and_speed_stand_beside_each_other(make, capsys):
    a, b = make("a", (0.5, 0.8, 0.7), steps=30), make("b", (0.6, 0.7), rate=3e-4, commit="b" * 40)
    text = printed(capsys, a, b)
    assert row(text, "optimizer.learning_rate") == ["0.0001", "0.0003"]
    assert (
        row(text, "train.steps") == ["30", "20"] and "seed " not in text.partition("Validation")[0].partition("What")[2]
    )
    assert row(text, "code.commit") == ["a" * 12, "b" * 12]
    validation = text.partition("\nValidation\n")[2]
    assert row(validation, "step") == ["20", "20"] and row(validation, "accuracy") == [
        "0.8",
        "0.7",
    ]  # a's best: step 20
    last = text.partition("Last evaluation")[2]
    assert row(last, "accuracy") == ["0.7", "0.7"]
    assert row(text, "tokens per second") == ["200", "150"]  # medians of 100, 200, 300 and of 100, 200


def test_the_best_value_is_bold_and_the_page_loads_nothing(make, tmp_path, capsys):
    a, b = make("a"), make("b", (0.5, 0.75))
    printed(capsys, a, b, f"--output={tmp_path / 'c.html'}")
    page = (tmp_path / "c.html").read_text()
    assert '<td class="number best">0.75</td>' in page and '<td class="number best">0.7</td>' not in page
    assert '<td class="number best">0.25</td>' in page  # the lower loss
    assert page.count("<svg") == 1 and not any(word in page for word in ("<script", "<link", "@import", 'src="http'))
    printed(capsys, a, b, f"--output={tmp_path / 'c.md'}")
    assert "| **0.75** |" in (tmp_path / "c.md").read_text() and (tmp_path / "c.curves.svg").exists()


def test_losses_of_other_objectives_have_no_best(make, tmp_path, capsys):
    a, b = make("a"), make("b", (0.5, 0.75))
    lines = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    with_pairs = [line | ({"nsp_loss": 0.1} if line["split"] == "eval" else {}) for line in lines]
    (b / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in with_pairs))
    printed(capsys, a, b, f"--output={tmp_path / 'c.md'}")
    text = (tmp_path / "c.md").read_text()
    assert "**0.75**" in text and "**0.25**" not in text  # the lower loss is one of more parts


def test_runs_that_are_not_finished_are_marked(make, capsys):
    finished, half, none, busy = make("a"), make("b", (0.6,)), make("c", ()), make("d", (0.6,))
    with only_writer(busy):
        text = printed(capsys, finished, half, none, busy)
    assert row(text, "a ")[-1] == "finished" and row(text, "c ")[-2:] == ["not", "begun"]
    assert "unfinished, at step 10 of 20" in text and "running, at step 10 of 20" in text
    assert "Metrics of runs that are not finished are those of their last steps." in text
    assert row(text.partition("\nValidation\n")[2], "accuracy") == ["0.7", "0.6", "–", "0.6"]


def test_different_tasks_and_data_are_said_and_nothing_is_best(make, tmp_path, capsys):
    text = printed(capsys, make("a"), make("b", task="pretraining"), f"--output={tmp_path / 'c.html'}")
    assert "The runs are of different tasks (classification, pretraining)" in text
    assert 'class="number best"' not in (tmp_path / "c.html").read_text()
    assert "different data (examples of train)" in printed(capsys, make("c"), make("d", data="two"))


def test_runs_of_one_name_are_told_apart_by_their_folders(make, capsys):
    text = printed(capsys, make("x/run"), make("y/run"))
    assert row(text, "x/run")[0] == row(text, "y/run")[0] == "classification"


def test_markup_in_a_config_is_text(make, tmp_path, capsys):
    path = make("b")
    config = json.loads((path / "config.json").read_text())
    config["data"]["text"] = "<script>alert(1)</script>\x1b[31m"
    (path / "config.json").write_text(json.dumps(config))
    text = printed(capsys, make("a"), path, f"--output={tmp_path / 'c.html'}")
    assert "\x1b" not in text and "<script" not in (tmp_path / "c.html").read_text()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "x is not a folder; give the workdir of a run"),
        (lambda path: path.mkdir(), "x is not the workdir of a run: there is no config.json"),
        (lambda path: (path.mkdir(), (path / "study.json").write_text("{}")), "x holds a study; .*lab.report"),
        (lambda path: (path.mkdir(), (path / "seeds.json").write_text("{}")), "x holds the runs of several seeds"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("[")), "config.json is not JSON"),
    ],
)
def test_what_is_no_run_is_one_line(prepare, message, make, tmp_path):
    prepare(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        main([str(make("a")), str(tmp_path / "x")])


def test_wrong_words(make, tmp_path):
    a, b = str(make("a")), str(make("b"))
    for words, message in (
        ([a], "1 runs are given; give at least two"),
        ([a, b, a + "/"], "is given twice"),
        ([a, b, "--ouput=x.html"], "--ouput is not a flag; did you mean --output"),
        ([a, b, f"--output={tmp_path / 'x.pdf'}"], "unknown suffix '.pdf'"),
        ([a, b, f"--output={a}/config.json"], "is the same file as"),
    ):
        with pytest.raises(UserError, match=message):
            main(words)
