"""Trained on one language, evaluated on several: the table by language equals an evaluation of each language alone."""

import json

import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.sharding import make_mesh
from bert_jax.tasks import task_class
from bert_jax.training.evaluation import check_best_metric, make_evaluation
from bert_jax.training.parameters import flatten
from experiments import classify, ner, squad

WORDS = [*"abcdefghijklmnopqrstuvwxyz"]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], "test", True, None, True)
LANGUAGES = ("de", "en", "fr")
LABELS = ("contradiction", "entailment", "neutral")


def small(config, folder, **data):
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(dtype="float32", max_position_embeddings=64, initializer_range=0.5)
    config.data.update(sequence_length=32, buckets=1, prefetch=2)
    config.data.update({name: value.replace("$", str(folder)) for name, value in data.items()})
    config.train.batch_size = config.eval.batch_size = 8
    config.mesh.data = 1
    return config


def evaluated(config, split="validation"):
    """Random parameters, so large that predictions differ widely."""
    task = task_class(config.task)(config, TOKENIZER, None)
    task.load()
    model = task.init(nnx.Rngs(params=0))
    evaluate = make_evaluation(task, nnx.split(model)[0], config, make_mesh(config.mesh), {})
    return task, evaluate(flatten(model), split, task.description())


def letters(random, count):
    return " ".join(random.choice(WORDS, count).tolist())


@pytest.fixture(scope="module")
def xnli(tmp_path_factory):
    """The files of XNLI: all languages in one, by a column; and the same, one file per language."""
    folder, random = tmp_path_factory.mktemp("xnli"), np.random.default_rng(0)
    lines = {language: [] for language in LANGUAGES}
    for number in range(23):
        for language in LANGUAGES:
            label = LABELS[random.integers(3)]
            cells = (language, label, letters(random, 5), letters(random, 4), str(number))
            lines[language].append("\t".join(cells))
    header = "language\tgold_label\tsentence1\tsentence2\tpairID"
    every = [line for group in zip(*lines.values(), strict=True) for line in group]
    (folder / "xnli.tsv").write_text("\n".join([header, *every]) + "\n")
    for language, own in lines.items():
        (folder / f"{language}.tsv").write_text("\n".join([header, *own]) + "\n")
    train = [f"en\t{LABELS[i % 3]}\t{letters(random, 5)}\t{letters(random, 3)}\t{i}" for i in range(12)]
    (folder / "train.tsv").write_text("\n".join([header, *train]) + "\n")
    return folder


def nli(folder, **data):
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "gold_label", "train": "$/train.tsv"}
    return small(classify.get_config(), folder, **columns | data)


def test_the_table_equals_separate_evaluations_of_pairs(xnli):
    whole = evaluated(nli(xnli, validation="$/xnli.tsv", language="language"))
    named = evaluated(nli(xnli, validation="de=$/xnli.tsv,fr=$/xnli.tsv", language="language"))
    files = evaluated(nli(xnli, validation="de=$/de.tsv,fr=$/fr.tsv"))
    alone = {name: evaluated(nli(xnli, validation=f"$/{name}.tsv"))[1].metrics for name in LANGUAGES}
    names = ("accuracy", "macro_f1", "mcc", "majority_accuracy")
    for language, metrics in alone.items():
        for name in names:
            assert whole[1].metrics[f"{language}/{name}"] == metrics[name]
            if language != "en":
                assert named[1].metrics[f"{language}/{name}"] == files[1].metrics[f"{language}/{name}"] == metrics[name]
    assert len({metrics["accuracy"] for metrics in alone.values()}) > 1  # else nothing would be compared
    assert "en/accuracy" not in named[1].metrics
    mean = np.mean([metrics["accuracy"] for metrics in alone.values()])
    assert whole[1].metrics["mean/accuracy"] == pytest.approx(mean) == pytest.approx(whole[1].metrics["accuracy"])
    task, evaluation = whole
    assert set(task.metric_names("validation")) == set(evaluation.metrics)
    table = task.report(evaluation).sections[0]
    assert table.title == "Scores by language" and [row[0] for row in table.body.rows] == [*LANGUAGES, "mean"]
    assert table.body.rows[0][1:3] == ["23", f"{alone['de']['accuracy']:.3f}"] and table.body.rows[3][1] == "69"


def test_the_best_metric_may_be_of_a_language_or_the_mean(xnli):
    config = nli(xnli, validation="$/xnli.tsv", language="language")
    task = task_class(config.task)(config, TOKENIZER, None)
    task.load()
    for name in ("de/accuracy", "mean/mcc"):
        config.checkpoint.best_metric = name
        check_best_metric(config, task)
    config.checkpoint.best_metric = "es/accuracy"
    with pytest.raises(UserError, match=r"best_metric is 'es/accuracy'; of task=classification it can be"):
        check_best_metric(config, task)


def test_translated_training_data_is_one_set(xnli):
    config = nli(xnli, train="en=$/train.tsv,de=$/de.tsv", validation="$/xnli.tsv", language="language")
    with pytest.raises(UserError, match=r"data.train: .*de.tsv has no row of 'fr' in column 'language' \(de\)"):
        evaluated(nli(xnli, train="en=$/train.tsv,fr=$/de.tsv", validation="$/xnli.tsv", language="language"))
    task = task_class(config.task)(config, TOKENIZER, None)
    task.load()
    assert len(task.examples["train"]) == 12 + 23
    (xnli / "mt.tsv").write_text("sentence1\tsentence2\tgold_label\na\tb\tneutral\n")  # as XNLI-MT: one language
    config.data.train = f"en={xnli}/train.tsv,fr={xnli}/mt.tsv"
    task = task_class(config.task)(config, TOKENIZER, None)
    task.load()
    assert len(task.examples["train"]) == 12 + 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"validation": "de=$/xnli.tsv,es=$/xnli.tsv", "language": "language"}, r"no row of 'es' .* \(de, en, fr\)"),
        ({"validation": "de=$/de.tsv,de=$/fr.tsv"}, r"data.validation names 'de', twice"),
        ({"validation": "de=,fr=$/fr.tsv"}, r"data.validation names no file for 'de': write de=FILE"),
        ({"validation": "mean=$/de.tsv"}, r"data.validation names 'mean', which is what the mean over all is called"),
        ({"validation": "de=$/de.tsv,fr=$/de.tsv"}, r"de.tsv:2: is named for 'de' and for 'fr' in data.validation"),
        (
            {"validation": "$/xnli.tsv", "language": "lang"},
            r"no column 'lang'.*\(data.language=lang; where files",
        ),
        ({"validation": "de=$/none.tsv"}, r"none.tsv does not exist"),
        (
            {"validation": "$/xnli.tsv", "language": "sentence1"},
            r"xnli.tsv:2: .* in column 'sentence1' is no name of a",
        ),
    ],
)
def test_lists_of_languages_that_cannot_be(xnli, data, message):
    with pytest.raises(UserError, match=message):
        evaluated(nli(xnli, **data))


def test_wikiann(tmp_path):
    """Every word begins with its language, which is no part of it."""
    random, tags = np.random.default_rng(1), ("O", "B-PER", "I-PER", "B-LOC")
    for language in LANGUAGES:
        sentences = []
        for _ in range(15):
            words = [f"{language}:{random.choice(WORDS)}\t{tags[random.integers(4)]}" for _ in range(6)]
            sentences.append("\n".join([f"{language}:a\tB-PER", f"{language}:b\tB-LOC", *words]))
        (tmp_path / f"{language}.txt").write_text("\n\n".join(sentences) + "\n")
    data = {"text": "0", "label": "-1", "train": "$/en.txt", "validation": "de=$/de.txt,fr=$/fr.txt"}
    task, evaluation = evaluated(small(ner.get_config(), tmp_path, **data))
    assert task.examples["train"][0].words[:2] == ("a", "b")
    for language in ("de", "fr"):
        alone = evaluated(small(ner.get_config(), tmp_path, **data | {"validation": f"$/{language}.txt"}))[1].metrics
        for name in ("entity_f1", "accuracy"):
            assert evaluation.metrics[f"{language}/{name}"] == alone[name] > 0
    (tmp_path / "mixed.txt").write_text("de:a\tB-PER\nde:b\tO\n\nfr:a\tO\n")
    with pytest.raises(UserError, match=r"mixed.txt:4: the word 'fr:a' does not begin with 'de:', as those before do"):
        evaluated(small(ner.get_config(), tmp_path, **data | {"validation": "$/mixed.txt"}))


def test_xquad_whose_questions_have_the_same_ids_in_all_languages(tmp_path):
    random = np.random.default_rng(2)
    for language in LANGUAGES:
        paragraphs = []
        for number in range(9):
            context = letters(random, 12)
            answer = {"text": context[4:7], "answer_start": 4}
            question = {"id": f"q{number}", "question": letters(random, 3), "answers": [answer]}
            paragraphs.append({"context": context, "qas": [question]})
        content = {"data": [{"title": "t", "paragraphs": paragraphs}]}
        (tmp_path / f"xquad.{language}.json").write_text(json.dumps(content))
    data = {"train": "$/xquad.en.json", "validation": "de=$/xquad.de.json,fr=$/xquad.fr.json"}

    def make(**data):
        config = small(squad.get_config(), tmp_path, **data)
        config.data.update(max_query_length=8, window_stride=8)
        return config

    _, evaluation = evaluated(make(**data))
    assert [p["id"] for p in evaluation.predictions[8:10]] == ["de/q8", "fr/q0"]
    for language in ("de", "fr"):
        alone = evaluated(make(**data | {"validation": f"$/xquad.{language}.json"}))[1].metrics
        for name in ("exact_match", "f1"):
            assert evaluation.metrics[f"{language}/{name}"] == pytest.approx(alone[name])
    assert evaluation.metrics["f1"] > 0
