"""New words of a run's own corpus: which they are, and a run that starts from the extended model and continues."""

import shutil

import jax
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.convert.extend import WORDS, new_words
from bert_jax.data.tokenizers.tokenizer import train_tokenizer
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.entries import add_entry
from bert_jax.lab.report.run_page import describe_run
from bert_jax.run import run
from bert_jax.tasks.sections import Table
from bert_jax.training.checkpoint import EXTENDED, describe_checkpoint, find_checkpoint, read_checkpoint
from bert_jax.training.metrics_log import read_metrics
from experiments.base import get_config

LETTERS = [*"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS], "test", True, None, True)


def test_words_that_save_most_pieces_come_first():
    # abc: 3 × 2, Cafe: 2 × 3 (no é without accents), bad: 2 × 2, gag: 1 × 2; a is whole, d1 and --- are no words
    texts = ["abc café, bad a a a a d1 ---", "Abc bad", "ABC cafe gag a d1 d1 --- ---"]
    assert new_words(TOKENIZER, texts, 9, 1) == ["abc", "cafe", "bad", "gag"]
    assert new_words(TOKENIZER, texts, 1, 2) == ["abc"] and new_words(TOKENIZER, texts, 9, 3) == ["abc"]
    with pytest.raises(UserError, match=r"no word of the corpus that has several pieces occurs 4 times .extend.least."):
        new_words(TOKENIZER, texts, 9, 4)


def test_a_sentencepiece_vocabulary_is_refused():
    config = get_config()
    config.data.update(tokenizer="unigram", vocab_size=120)
    other = train_tokenizer(config.data, ["the cat sat on the mat and looked at the dog " * 20, "a bad fad " * 20])
    with pytest.raises(UserError, match=r"extend.words: the tokenizer of init_from is SentencePiece"):
        new_words(other, ["abc"], 9, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("domain")


def test_a_run_starts_with_new_words_of_its_domain_and_resumes(small_config, folder, topics):
    config = small_config
    config.data.pairing = "none"
    config.train.update(steps=2)
    config.eval.every = config.checkpoint.every = 2
    run(config.copy_and_resolve_references(), folder / "base")
    (folder / "domain.txt").write_text(
        "\n\n".join(f"zyzzyva number {i} eats quokkas.\nQuokkas fear a zyzzyva." for i in range(40)) + "\n"
    )
    further = config.copy_and_resolve_references()
    further.init_from, further.data.files, further.data.corpus = str(folder / "base"), "", "sample"
    further.optimizer.decay_steps = 8
    add_entry(further, "corpora.domain", files=str(folder / "domain.txt"))
    add_entry(further, "corpora.general", files=str(topics), share=0.2)
    further.extend.update(words=2, corpora="domain")
    further.train.steps = 2
    run(further.copy_and_resolve_references(), folder / "run")
    assert (folder / "run" / WORDS).read_text().split() == ["zyzzyva", "quokkas"]
    before, after = (describe_checkpoint(find_checkpoint(str(folder / name)))[1] for name in ("base", "run"))
    assert after.vocab_size == before.vocab_size + 2
    assert [after.token(i) for i in after.encode_words(["Quokkas, zyzzyva"])[0]] == ["quokkas", ",", "zyzzyva"]
    start = read_checkpoint(folder / "run" / EXTENDED).parameters
    own = read_checkpoint(find_checkpoint(str(folder / "base"))).parameters
    table, old = (np.asarray(x["embeddings/word/embedding"]) for x in (start, own))
    pieces = before.encode_words(["zyzzyva"])[0]
    np.testing.assert_allclose(table[after.id("zyzzyva")], old[pieces].mean(0), atol=1e-6)

    lines = list(read_metrics(folder / "run" / "metrics.jsonl"))
    first, last = (next(x for x in lines if x["split"] == "eval" and x["step"] == step) for step in (0, 2))
    metrics = {name: value for name, value in last.items() if name not in ("step", "split")}
    parts = {part.title: part for part in describe_run(None, metrics, further, folder / "run").parts}
    [shown] = parts["Before and after"].blocks
    assert isinstance(shown, Table) and [row[0] for row in shown.rows] == ["all", "domain", "general"]
    of_domain = shown.rows[1]
    assert float(of_domain[1]) == pytest.approx(first["domain/mlm_loss"], abs=1e-4)
    assert float(of_domain[2]) == pytest.approx(last["domain/mlm_loss"], abs=1e-4)
    assert "Before and after" in parts and parts["Before and after"].note

    further.train.steps = 4
    shutil.copytree(folder / "run", folder / "again")
    shutil.rmtree(folder / "again" / EXTENDED)  # no longer read
    results = [run(further.copy_and_resolve_references(), folder / name) for name in ("run", "again")]
    assert [one.step for one in results] == [4, 4]
    one, other = (
        jax.device_get(read_checkpoint(find_checkpoint(str(folder / n))).parameters) for n in ("run", "again")
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_from": ""}, "extend.words needs init_from"),
        ({"init_from": "nowhere/at/all"}, "init_from=nowhere/at/all does not exist"),
        ({"task": "classification"}, "extend.words needs task=pretraining"),
        ({"extend.corpora": "other"}, r"extend.corpora names 'other'; there are no corpora"),
        ({"data.vocab_file": "vocab.txt"}, "data.vocab_file"),
    ],
)
def test_what_is_refused(small_config, folder, change, message):
    config = small_config
    config.init_from, config.extend.words = str(folder / "base"), 5
    for name, value in change.items():
        group, _, key = name.rpartition(".")
        (config[group] if group else config)[key] = value
    with pytest.raises(UserError, match=message):
        run(config, folder / "refused")
