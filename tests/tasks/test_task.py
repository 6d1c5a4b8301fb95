"""The interface of all tasks: which classes are loaded, which metrics there are, and the same results everywhere."""

import json
import logging
import sys

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.entries import add_entry
from bert_jax.options import default_config
from bert_jax.tasks import TASKS, known_task, may_import, task_class
from bert_jax.tasks.task import Evaluation, Source
from bert_jax.training.evaluation import check_best_metric
from bert_jax.training.loop import train
from experiments import classify, multiple_choice, ner, squad, summarize

LETTERS = [*"abcdefghijkl"]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS], "test", True, None, True)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def of_family(family, folder):
    """A config of a family with a dozen examples: what is asked for is in the first letter of a text."""
    random = np.random.default_rng(0)
    texts = [random.choice(LETTERS, 6).tolist() for _ in range(12)]
    joined = [" ".join(text) for text in texts]
    kinds, rows = [LETTERS.index(text[0]) % 2 for text in texts], []
    if family == "tagging":
        rows = [{"words": text, "tags": [f"T{LETTERS.index(x) % 2}" for x in text]} for text in texts]
        config = ner.get_config("plain")
        config.data.update(text="words", label="tags")
    elif family == "span_qa":
        answers = [{"text": text[1], "answer_start": 2} for text in texts]
        questions = [
            {
                "context": c,
                "qas": [{"id": str(i), "question": text[0], "answers": [a] * kind, "is_impossible": not kind}],
            }
            for i, (c, text, a, kind) in enumerate(zip(joined, texts, answers, kinds, strict=True))
        ]
        (folder / "data.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": questions}]}))
        config = squad.get_config("v2")
        config.data.update(max_query_length=4, window_stride=4)
    elif family == "multiple_choice":
        rows = [{"text": c, "label": k, "endings": ["a b", "c"]} for c, k in zip(joined, kinds, strict=True)]
        config = multiple_choice.get_config()
        config.data.update(text="text", text_pair="", choices="endings", label="label")
    elif family == "extractive":
        pytest.importorskip("rouge_score", reason="pip install -e '.[generate]'")
        rows = [{"document": text, "summary": [i for i, x in enumerate(text) if x < "d"] or [0]} for text in texts]
        config = summarize.get_config("extractive")
    else:
        kind = family.removeprefix("classification-")
        label = {"single": str, "multi": lambda k: "x|y" if k else "x", "regression": float}[kind]
        rows = [{"text": c, "label": label(k)} for c, k in zip(joined, kinds, strict=True)]
        config = classify.get_config(kind)
        config.data.update(text="text", label="label")
    path = str(folder / "data.json") if family == "span_qa" else write_jsonl(folder / "data.jsonl", rows)
    config.data.update(train=path, validation=path, test=path, sequence_length=16, buckets=1, prefetch=2)
    config.model.update(size="tiny", hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=16)
    config.train.update(epochs=2.0, batch_size=8, log_every=1, peak_tflops=1.0)
    config.eval.update(batch_size=8, every=100)
    config.checkpoint.update(every=100)
    return config


FAMILIES = [
    *("classification-single", "classification-multi", "classification-regression"),
    *("tagging", "span_qa", "multiple_choice", "extractive"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_tests_its_best_checkpoint_alike_on_1_2_and_8_devices(family, tmp_path):
    """On 2 devices one family of one row per item and one of several: tests/training/test_devices.py has the modes."""
    found = {}
    counts = (1, 2, 8) if family in ("classification-multi", "multiple_choice") else (1, 8)
    for devices in counts:
        config = of_family(family, tmp_path)
        config.mesh.data = devices
        make = task_class(config.task)
        task = make.with_data(config, Source(TOKENIZER, "pretraining", {}))
        assert (
            isinstance(task, make) and task.description() == make(config, TOKENIZER, task.description()).description()
        )
        finished = train(task, config, tmp_path / f"run{devices}")
        assert set(finished.evaluation.metrics) == set(task.metric_names("validation"))
        assert len(finished.evaluation.predictions) == 12
        lines = [json.loads(line) for line in (tmp_path / f"run{devices}" / "metrics.jsonl").read_text().splitlines()]
        found[devices] = [(line["split"], line["step"], line["loss"]) for line in lines]
        assert found[devices][-1][0] == "test"
    for devices in counts[1:]:
        assert [line[:2] for line in found[devices]] == [line[:2] for line in found[1]]
        np.testing.assert_allclose([line[2] for line in found[devices]], [line[2] for line in found[1]], rtol=1e-4)


def test_code_outside_the_package_is_loaded_only_if_the_user_names_it(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("class Mine: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    alone, several, saved = default_config(), default_config(), default_config()
    alone.task, several.task = "trap.Mine", "multitask"
    add_entry(several, "tasks.x", task="trap.Mine")
    for users_task in ("", "classification", "trap.Other", "multitask"):
        for config in (alone, several):
            with pytest.raises(UserError, match=r"ckpt: its task is the class 'trap.Mine'.*--config.task=trap.Mine"):
                known_task(config, users_task, "ckpt")
            assert not may_import(config, users_task)
    assert "trap" not in sys.modules
    assert known_task(alone, "trap.Mine", "ckpt").__name__ == "Mine"
    assert may_import(several, "trap.Mine")
    for name in TASKS:
        saved.task = name
        assert known_task(saved, "", "ckpt") is task_class(name)
    with pytest.raises(UserError, match="task is 'taging'; it can be pretraining, classification, tagging"):
        task_class("taging")


def test_best_metric_is_checked_and_a_wrong_mode_is_noticed(tmp_path, caplog):
    config = of_family("classification-single", tmp_path)
    task = task_class(config.task).with_data(config, Source(TOKENIZER, "pretraining", {}))
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        check_best_metric(config, task)
        assert not caplog.records
        config.checkpoint.best_mode = "min"
        check_best_metric(config, task)
    assert "the one with the lowest accuracy; usual is max" in caplog.text
    config.checkpoint.best_metric = "acuracy"
    with pytest.raises(UserError, match=r"best_metric is 'acuracy'; of task=classification it can be accuracy, "):
        check_best_metric(config, task)
    config.data.validation = ""
    check_best_metric(config, task_class(config.task).with_data(config, Source(TOKENIZER, "pretraining", {})))


def test_an_evaluation_of_nothing_is_false():
    assert not Evaluation("validation") and Evaluation("test", {"loss": 0.0})
