"""A small classifier on disk, shared by the tests of what can be done with one."""

import json

import numpy as np
import pytest
from flax import nnx

from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.sharding import make_mesh
from bert_jax.tasks.classification import Classification
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.evaluation import make_evaluation
from bert_jax.training.parameters import flatten
from experiments import classify

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "good", "bad", "##s"]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], "test", True, None, True)


def sentences(count, seed=0):
    """Between 3 and 21 letters with one word among them, in column `sentence`; the label is that word."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = random.choice(WORDS[:26], random.integers(3, 21)).tolist()
        label = ("bad", "good")[i % 2]
        words[int(random.integers(len(words)))] = label
        rows.append({"sentence": " ".join(words), "label": label})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """(config, workdir, rows of validation, their metrics by the evaluation of training)

    The parameters are random, and so large that predictions differ widely: nothing here asks for good ones.
    """
    folder = tmp_path_factory.mktemp("tuned")
    config = classify.get_config()
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(dtype="float32", max_position_embeddings=64, initializer_range=0.5)
    config.data.update(sequence_length=24, text="sentence", prefetch=2, buckets=1)
    rows = sentences(70, seed=1)
    config.data.train = write_rows(folder / "train.jsonl", sentences(20))
    config.data.validation = write_rows(folder / "dev.jsonl", rows)
    config.eval.batch_size = 16
    config.mesh.data = 1
    task = Classification(config, TOKENIZER, None)
    task.load()
    model = task.init(nnx.Rngs(params=0))
    evaluate = make_evaluation(task, nnx.split(model)[0], config, make_mesh(config.mesh), {})
    metrics = evaluate(flatten(model), "validation", task.description()).metrics
    run = {"step": 7, "config": config.to_dict(), "task": task.description()}
    write_checkpoint(folder / "run" / "checkpoints" / "7", flatten(model), run, TOKENIZER)
    return config, folder / "run", rows, metrics
