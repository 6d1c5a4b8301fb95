"""A task without data says what its batches look like: names, shapes and dtypes are those of real batches."""

import json

import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.tasks import task_class
from bert_jax.tasks.finetuning import FineTuning
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.tasks.task import shapes_of
from experiments import classify, multiple_choice, ner, squad, summarize

WORDS = [*"abcdefghijklmnopqrstuvwxyz"]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], "test", True, None, True)
TEXT = " ".join(WORDS)  # longer than a row

SQUAD = {"data": [{"paragraphs": [{"context": TEXT, "qas": []}]}]}
for number in range(6):
    answers = [{"text": WORDS[number], "answer_start": 2 * number}]
    SQUAD["data"][0]["paragraphs"][0]["qas"].append({"id": str(number), "question": "a b", "answers": answers})
TAGS = [["B-LOC", "I-LOC", *["O"] * 24], ["O"] * 26]
ENDINGS = {f"ending{i}": TEXT for i in range(4)}
# experiment, columns of the data, rows of the file
FAMILIES = {
    "single": (classify.get_config("single"), {"text": "t"}, [{"t": TEXT, "label": "xy"[i % 2]} for i in range(6)]),
    "pairs": (
        classify.get_config("single"),
        {"text": "t", "text_pair": "u"},
        [{"t": TEXT, "u": TEXT, "label": "xy"[i % 2]} for i in range(6)],
    ),
    "multi": (
        classify.get_config("multi"),
        {"text": "t", "labels": "x,y,z"},
        [{"t": TEXT, "label": "x|z"} for _ in range(6)],
    ),
    "regression": (classify.get_config("regression"), {"text": "t"}, [{"t": TEXT, "label": i / 2} for i in range(6)]),
    "tags": (
        ner.get_config(),
        {"text": "w", "label": "tags"},
        [{"w": WORDS, "tags": TAGS[i % 2]} for i in range(6)],
    ),
    "span_qa": (squad.get_config("v1"), {"max_query_length": 3, "window_stride": 4}, SQUAD),
    "extractive": (
        summarize.get_config("extractive"),
        {"label": "summary"},
        [{"document": WORDS, "summary": [0]} for _ in range(6)],
    ),
    "choices": (multiple_choice.get_config(), {}, [{"sent1": TEXT, "sent2": "a", "label": 1, **ENDINGS}] * 6),
}


def small(config, path, columns):
    config.model.update(size="tiny", num_hidden_layers=1, max_position_embeddings=16)
    config.data.update({"label": "label", "sequence_length": 16, "packing": False} | columns)
    config.data.update(train=str(path), validation=str(path))
    config.train.update(batch_size=4)
    config.eval.update(batch_size=2)
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_a_real_batch(tmp_path, family):
    config, columns, rows = FAMILIES[family]
    path = tmp_path / ("data.json" if family == "span_qa" else "data.jsonl")
    path.write_text(json.dumps(rows) if family == "span_qa" else "".join(json.dumps(row) + "\n" for row in rows))
    config = small(config.copy_and_resolve_references(), path, columns)
    real = task_class(config.task)(config, TOKENIZER, None)
    real.load()
    task = task_class(config.task).without_data(config, TOKENIZER, None)
    batches = real.train_batches(0, 0, 1)
    assert task.batch_shapes(training=True) == shapes_of(next(batches))
    batches.close()
    assert task.batch_shapes(training=False) == shapes_of(next(real.eval_batches("validation", 0, 1)))
    assert task.flops_per_step == real.flops_per_step
    assert task.tokens_per_step == real.tokens_per_step == (16 if family == "choices" else 4) * 16


def test_the_features_of_a_head_need_no_checkpoint_to_be_counted(tmp_path):
    config = small(FAMILIES["tags"][0].copy_and_resolve_references(), tmp_path / "none", FAMILIES["tags"][1])
    plain = task_class(config.task).without_data(config, TOKENIZER, None)
    config.head.lstm_layers = 1
    more = task_class(config.task).without_data(config, TOKENIZER, None)
    gates = 2 * 4 * 128 * (128 + 128)  # two directions of 128 units that read 128 features
    assert more.flops_per_step - plain.flops_per_step >= 3 * 2 * (4 * 16) * gates


@pytest.mark.parametrize("option", [{}, {"packing": True}, {"masking": "static", "pairing": "nsp"}])
def test_shapes_of_pretraining_are_those_of_a_real_batch(small_config, option):
    small_config.data.update(option)
    small_config.eval.batch_size = 4
    prepared = prepare(small_config.data, small_config.data.seed, progress=False)
    real = Pretraining.over(small_config, prepared)
    task = Pretraining.without_data(small_config, prepared.tokenizer, None)
    batches = real.train_batches(0, 0, 1)
    assert task.batch_shapes(training=True) == shapes_of(next(batches))
    batches.close()
    assert task.batch_shapes(training=False) == shapes_of(next(real.eval_batches("validation", 0, 1)))


def test_a_task_that_does_not_say_what_its_examples_look_like(small_config):
    class Own(FineTuning):
        pass

    Own.__abstractmethods__ = frozenset()
    Own.head = "heads/own/"
    with pytest.raises(UserError, match=r"cannot be compiled without data; define its method stand_in"):
        Own.without_data(small_config, TOKENIZER, None)
