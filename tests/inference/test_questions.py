"""SQuAD's own file in, SQuAD's own file out."""

import json

import pytest
from flax import nnx

from bert_jax import modes
from bert_jax.config import UserError
from bert_jax.data.labelled.squad import question_examples
from bert_jax.inference.predictor import Predictor
from bert_jax.tasks.span_qa import SpanQA
from bert_jax.tasks.squad_scores import squad_scores
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import squad

from .conftest import TOKENIZER

CONTEXTS = {"a b good c d e f g h": ["a b", "h"], "bad x y z good a": ["z"]}


def squad_file(path, indent=None, ids=("q1", "q2", "q3")):
    names = iter(ids)
    paragraphs = [
        {
            "context": context,
            "qas": [
                {"id": next(names), "question": q, "answers": [{"text": context[:3].strip(), "answer_start": 0}]}
                for q in questions
            ],
        }
        for context, questions in CONTEXTS.items()
    ]
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}, indent=indent))
    return str(path)


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """(config, workdir) of a model with random parameters."""
    config = squad.get_config("v1")
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64)
    config.model.update(dtype="float32", max_position_embeddings=64, initializer_range=0.5)
    config.data.update(sequence_length=16, max_query_length=3, window_stride=4)
    task = SpanQA(config, TOKENIZER, {"may_have_no_answer": False, "threshold": 0.0})
    run = {"step": 1, "config": config.to_dict(), "task": task.description()}
    workdir = tmp_path_factory.mktemp("answering")
    write_checkpoint(workdir / "checkpoints" / "1", flatten(task.init(nnx.Rngs(params=0))), run, TOKENIZER)
    return config, workdir


@pytest.mark.parametrize("indent", [None, 2])
def test_answers_by_id_as_the_scorer_reads_them(answering, tmp_path, indent):
    config, workdir = answering
    source, output = squad_file(tmp_path / "dev.json", indent), tmp_path / "predictions.json"
    assert modes.predict(config, workdir, input=source, output=str(output)) == 0
    found = json.loads(output.read_text())
    rows = [{"question": q, "context": context} for context, questions in CONTEXTS.items() for q in questions]
    assert found == dict(zip(("q1", "q2", "q3"), (p["answer"] for p in Predictor(str(workdir))(rows)), strict=True))
    assert all(answer in context for answer, context in zip(found.values(), ["a b good c d e f g h"] * 2, strict=False))
    assert squad_scores(list(question_examples(source)), found)["total"] == 3


def test_lines_keep_the_ids_too(answering, tmp_path):
    config, workdir = answering
    output = tmp_path / "out.jsonl"
    modes.predict(config, workdir, input=squad_file(tmp_path / "dev.json"), output=str(output))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["line"], line["id"]) for line in lines] == [(1, "q1"), (2, "q2"), (3, "q3")]


def test_what_is_refused(answering, tuned, tmp_path):
    config, workdir = answering
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"id": 1, "question": "x", "context": "y"}\n' * 2)
    with pytest.raises(UserError, match=r"row 2: id '1' for the second time; make ids unique"):
        modes.predict(config, workdir, input=str(twice), output=str(tmp_path / "p.json"))
    assert not (tmp_path / "p.json").exists()
    with pytest.raises(UserError, match=r"\.json is SQuAD's form of answers; of classification use .jsonl"):
        modes.predict(tuned[0], tuned[1], input=str(twice), output=str(tmp_path / "p.json"))
