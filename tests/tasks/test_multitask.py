"""Several tasks, one encoder: each head as that of a single task, turns, resuming, what moves and what does not."""

import json
import re

import jax
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.entries import add_entry, of_task
from bert_jax.inference.open import open_model
from bert_jax.inference.predictor import Predictor
from bert_jax.run import inherit, run, start_run
from bert_jax.sharding import make_mesh
from bert_jax.tasks import task_class
from bert_jax.tasks.multitask import MultiTask
from bert_jax.tasks.task import Source
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.evaluation import make_evaluation
from bert_jax.training.metrics_log import read_metrics
from bert_jax.training.parameters import flatten, of_one_task, structure
from experiments import finetune

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
TOKENIZER = make_wordpiece(VOCABULARY, "test", True, None, True)
KINDS = {"first": "classification", "lm": "pretraining", "pick": "multiple_choice", "qa": "span_qa", "tags": "tagging"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Examples of every family, by the names of KINDS: `data` of its task."""
    folder, random = tmp_path_factory.mktemp("multitask"), np.random.default_rng(0)
    words = [random.choice(LETTERS, random.integers(3, 8)).tolist() for _ in range(48)]
    texts = [{"text": " ".join(one), "label": "late" if one[0] > "m" else "early"} for one in words]
    tags = [{"words": one, "tags": ["B-V" if word in "aeiou" else "O" for word in one]} for one in words]
    picks = [{"text": "a", "e0": " ".join(one), "e1": " ".join(one[::-1]), "label": i % 2} for i, one in enumerate(words)]
    questions = [
        {"id": str(i), "question": "a b", "context": " ".join(one), "answers": [{"text": one[1], "answer_start": 2}]}
        for i, one in enumerate(words)
    ]
    squad = {"data": [{"title": "t", "paragraphs": [{"context": q["context"], "qas": [q]} for q in questions]}]}
    (folder / "qa.json").write_text(json.dumps(squad))
    corpus = "\n\n".join("\n".join(" ".join(random.choice(LETTERS, 9)) + "." for _ in range(20)) for _ in range(24))
    (folder / "corpus.txt").write_text(corpus)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    files = {"first": write(folder / "texts.jsonl", texts), "tags": write(folder / "tags.jsonl", tags)}
    files |= {"pick": write(folder / "pick.jsonl", picks), "qa": str(folder / "qa.json")}
    own = {name: {"train": file, "validation": file} for name, file in files.items()}
    own["first"] |= {"test": files["first"]}
    own["tags"] |= {"text": "words", "label": "tags", "long_texts": "windows"}
    own["pick"] |= {"choices": "e0,e1"}
    own["lm"] = {"corpus": "text", "files": str(folder / "corpus.txt"), "pairing": "none", "validation_share": 0.2}
    own["lm"] |= {"packing": True, "prepared": str(folder / "prepared"), "workers": 1, "max_predictions_per_sequence": 4}
    own["folder"] = folder
    return own


def make_config(data, *names, steps=24, **weights):
    config = finetune.get_config("multitask", "mean")
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(dtype="float32", max_position_embeddings=32)
    config.data.update(sequence_length=16, buckets=1, prefetch=2, packing=False)
    config.data.update(vocab_file=str(data["folder"] / "vocab.txt"), max_query_length=3, window_stride=4)
    config.optimizer.update(learning_rate=3e-3)
    config.train.update(epochs=None, steps=steps, batch_size=8, log_every=4, peak_tflops=1.0)
    config.eval.update(batch_size=16, every=12)
    config.checkpoint.update(every=12, keep=3)
    config.mesh.data = 1
    for name in names:
        add_entry(config, f"tasks.{name}", task=KINDS[name], data=data[name], weight=weights.get(name, 1.0))
    return config


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "mt"
    return run(make_config(data, "first", "lm", "tags"), workdir)


def test_first(trained):
    print(trained)
    for line in read_metrics(trained.workdir / "metrics.jsonl"):
        print(line)
