"""Several corpora: one vocabulary for all, a prepared dataset of each, rows of all; and what cannot be."""

import json
from random import Random

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining import corpora as module
from bert_jax.data.pretraining import packing, pipeline
from bert_jax.data.pretraining.corpora import _thinned, _training_texts, languages_of, prepare_corpora
from bert_jax.data.pretraining.mixture import sampling_shares
from bert_jax.data.text.corpus import Corpus, Document, Source
from bert_jax.entries import add_entry, set_option
from bert_jax.models.config import bert_config
from bert_jax.options import default_config
from bert_jax.run import check_run

WORDS = {
    "en": ["sun", "moon", "star", "rain", "snow", "wind", "tree", "leaf"],
    "de": ["sonne", "mond", "stern", "regen", "schnee", "wind", "baum", "blatt"],
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """80 documents of English, 20 of German, and 40 pairs of sentences."""
    folder, random = tmp_path_factory.mktemp("texts"), Random(0)
    sentence = lambda language: " ".join(random.choices(WORDS[language], k=6)).capitalize() + "."  # noqa: E731
    for language, count in (("en", 80), ("de", 20)):
        documents = ["\n".join(sentence(language) for _ in range(6)) for _ in range(count)]
        (folder / f"{language}.txt").write_text("\n\n".join(documents) + "\n")
        (folder / f"pairs.{language}").write_text("".join(f"{sentence(language)}\n" for _ in range(400)))
    return folder


@pytest.fixture
def config(texts):
    config = default_config()
    add_entry(config, "corpora.en", files=f"{texts}/en.txt")
    add_entry(config, "corpora.de", files=f"{texts}/de.txt", corpus="text")
    pairs = {"files": f"{texts}/pairs.en+{texts}/pairs.de", "corpus": "parallel", "language": "en+de"}
    add_entry(config, "corpora.en_de", **pairs)
    config.data.update(prepared=f"{texts}/prepared", vocab_size=160, sequence_length=32, pairing="none", workers=1)
    config.data.update(validation_share=0.2, test_share=0.1, max_predictions_per_sequence=5)
    config.train.batch_size = config.eval.batch_size = 8
    return config


def read(mixture, config, steps, **where):
    batches = pipeline.train_batches(mixture, config, **where)
    found = [next(batches) for _ in range(steps)]
    batches.close()
    return found


def test_every_corpus_has_a_dataset_of_its_own_and_all_have_one_vocabulary(config):
    mixture = prepare_corpora(config, None, progress=False)
    assert [one.name for one in mixture.members] == ["de", "en", "en_de"]
    assert {one.prepared.tokenizer.content_hash for one in mixture.members} == {mixture.tokenizer.content_hash}
    assert mixture.name.split("+") == [one.prepared.directory.name for one in mixture.members]
    assert [one.languages for one in mixture.members] == [("de", "de"), ("en", "en"), ("en", "de")]
    tokens = np.asarray([one.prepared.manifest["splits"]["train"]["tokens"] for one in mixture.members])
    assert [one.share for one in mixture.members] == pytest.approx(tokens**0.7 / np.sum(tokens**0.7))


def test_what_is_prepared_is_found_again(config, monkeypatch, caplog):
    first = prepare_corpora(config, None, progress=False)
    monkeypatch.setattr(module, "train_tokenizer", None)  # which would be called for a new vocabulary
    again = prepare_corpora(config, None, progress=False)
    assert again.name == first.name
    config.corpora.en.share = 0.5  # is of the rows alone
    assert prepare_corpora(config, None, progress=False).name == first.name


def test_an_epoch_does_not_count_a_corpus_that_is_not_trained_on(config):
    every = prepare_corpora(config, None, progress=False)
    config.corpora.en.share = 0.0
    fewer = prepare_corpora(config, None, progress=False)
    records = {one.name: one.prepared.num_records("train") for one in fewer.members}
    assert every.num_records("train") == sum(records.values())
    assert fewer.num_records("train") == sum(records.values()) - records["en"] > 0
    assert fewer.num_records("validation") == every.num_records("validation")


def test_a_corpus_of_another_language_is_refused_before_its_files_are_read(config):
    config.model.languages, config.corpora.de.files = "en,fr", "none.txt"
    with pytest.raises(UserError, match=r"corpora.de is of 'de', which model.languages=en,fr lacks"):
        check_run(config, 160)


def test_a_mistake_in_a_parallel_corpus_shows_before_the_others_are_prepared(config, tmp_path):
    (tmp_path / "short.de").write_text("Sonne.\n")
    config.corpora.en_de.files = config.corpora.en_de.files.partition("+")[0] + f"+{tmp_path}/short.de"
    config.data.prepared = str(tmp_path / "prepared")
    with pytest.raises(UserError, match=r"corpora.en_de: .*pairs.en:2: this line has no partner"):
        prepare_corpora(config, None, progress=False)
    assert {path.name.partition("-")[0] for path in (tmp_path / "prepared").iterdir() if path.is_dir()} == {
        "vocabulary"
    }


def test_languages_of_no_corpora(config):
    with config.unlocked():
        config.corpora = {}
    assert languages_of(config) == []
    config.model.languages = "auto"
    with pytest.raises(UserError, match=r"model.languages=auto takes the languages of corpora, and there are none"):
        languages_of(config)


def test_a_damaged_vocabulary_is_made_again(config):
    first = prepare_corpora(config, None, progress=False)
    reports = [
        path
        for path in first.members[0].prepared.directory.parent.glob("vocabulary-*/report.json")
        if json.loads(path.read_text())["tokenizer_hash"] == first.tokenizer.content_hash
    ]
    reports[0].write_text("{}")
    assert prepare_corpora(config, None, progress=False).tokenizer.content_hash == first.tokenizer.content_hash
    report = json.loads(reports[0].read_text())
    assert [row["corpus"] for row in report["corpora"]] == ["de", "en"]  # translations teach no vocabulary
    for row in report["corpora"]:
        assert row["unknown_share"] == 0 and 1 <= row["pieces_per_word"] < 4 and 0.05 < row["vocabulary_share"] < 1


def test_one_batch_has_rows_of_all_corpora_by_their_shares(config):
    mixture = prepare_corpora(config, None, progress=False)
    batches = read(mixture, config, 128)
    numbers = np.concatenate([batch["corpus_ids"] for batch in batches])
    assert np.bincount(numbers) / len(numbers) == pytest.approx([one.share for one in mixture.members], abs=3 / 1024)
    german = set(mixture.members[0].prepared.source("train")[0]["tokens"].tolist())
    of_german = np.concatenate([batch["input_ids"][batch["corpus_ids"] == 0] for batch in batches])
    assert german <= set(of_german.ravel().tolist())
    for batch in batches[:20]:
        of_pairs = batch["corpus_ids"] == 2
        languages, types = batch["language_ids"], batch["token_type_ids"]
        assert (languages[batch["corpus_ids"] == 0] == 0).all() and (languages[batch["corpus_ids"] == 1] == 1).all()
        np.testing.assert_array_equal(languages[of_pairs], 1 - types[of_pairs])  # English first


def test_rows_are_the_same_after_a_restart_and_for_any_number_of_processes(config):
    mixture = prepare_corpora(config, None, progress=False)
    whole = read(mixture, config, 6)
    for name, expected in read(mixture, config, 2, start_step=4)[1].items():
        np.testing.assert_array_equal(whole[5][name], expected)
    shares = [read(mixture, config, 6, process_index=i, process_count=4)[5] for i in range(4)]
    for name, expected in whole[5].items():
        np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), expected)


def test_packed_rows_are_of_one_corpus(config, short_stretches, monkeypatch):
    monkeypatch.setattr(packing, "_SAMPLE", 64)  # to shuffle so few records takes long
    config.data.packing = True
    mixture = prepare_corpora(config, None, progress=False)
    for batch in read(mixture, config, 3):
        assert batch["first_tokens"].shape[1] > 1 and set(batch["corpus_ids"]) <= {0, 1, 2}
    assert pipeline.pairs_per_row(mixture, config) > 1
    before = config.copy_and_resolve_references()
    config.data.mask_rate = 0.3
    with pytest.raises(UserError, match=r"train.phases: with corpora and data.packing all phases have one mask_rate"):
        pipeline.following_row(mixture, before, 100, config)


def test_static_masks(config):
    with config.unlocked():
        del config.corpora.en_de
    config.data.update(masking="static", pairing="nsp", dupe_factor=1)
    (batch,) = read(prepare_corpora(config, None, progress=False), config, 1)
    assert batch["masked_weights"].sum() > 0 and set(batch["corpus_ids"]) == {0, 1}


def test_evaluation_has_the_rows_of_each_corpus_as_if_it_were_alone(config):
    mixture = prepare_corpora(config, None, progress=False)
    batches = list(pipeline.eval_batches(mixture, config))
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.corpora = {}
    german = list(pipeline.eval_batches(mixture.members[0].prepared, alone))
    of_german = [batch for batch in batches if batch["corpus_ids"][0] == 0][: len(german)]
    for one, other in zip(german, of_german, strict=True):
        for name, x in one.items():
            np.testing.assert_array_equal(x, other[name])
    records = sum(min(one.prepared.num_records("validation"), 10_000) for one in mixture.members)
    assert sum(int((batch["sequence_ids"].sum(axis=1) > 0).sum()) for batch in batches) == records


def test_a_batch_of_padding_has_the_shapes_of_one_with_data(config):
    mixture = prepare_corpora(config, None, progress=False)
    (batch,) = read(mixture, config, 1)
    padding = pipeline.padding_batch(config, mixture.tokenizer, training=True)
    assert {name: (x.shape, x.dtype) for name, x in padding.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }


@pytest.mark.parametrize(("exponent", "ratio"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_a_vocabulary_sees_as_much_of_each_language_as_the_exponent_says(config, exponent, ratio):
    """English has 4 times the characters of German; where it gives less than its own, German gives its text again."""
    corpora = {"en": _corpus(["a" * 10] * 400), "de": _corpus(["b" * 10] * 100)}
    sizes = {"en": 4000, "de": 1000}
    shares = sampling_shares(sizes, {}, exponent)
    text = "".join(_training_texts(config.data, corpora, sizes, shares))
    assert text.count("a") + text.count("b") == pytest.approx(5000, abs=20)
    assert text.count("a") / text.count("b") == pytest.approx(ratio, rel=0.01)


def _corpus(texts):
    documents = [Document("test", text, True) for text in texts]
    return Corpus("test", None, "", [Source(0, lambda: iter(documents))])


def test_texts_are_thinned_evenly():
    texts = ["a" * 10] * 100
    assert len(list(_thinned(texts, 0.25))) == 25 and len(list(_thinned(texts, 0.0))) == 0
    assert list(_thinned(texts, 1.0)) == texts


def test_sentencepiece_learns_from_all_languages(config):
    config.data.update(tokenizer="unigram", vocab_size=60)
    mixture = prepare_corpora(config, None, progress=False)
    for words in WORDS.values():
        (ids,) = mixture.tokenizer.encode_words([" ".join(words)])
        assert mixture.tokenizer.unk_id not in ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpora.de.files": ""}, r"corpora.de.files is empty: name the files"),
        ({"corpora.de.files": "none.txt"}, r"corpora.de.files: none.txt does not exist"),
        ({"corpora.de.corpus": "csv"}, r"corpora.de.corpus='csv': choose"),
        ({"corpora.de.language": "de+en"}, r"corpora.de.language is 'de\+en'; of corpus=text it must be one language"),
        ({"corpora.en_de.language": ""}, r"corpora.en_de.language is ''; of corpus=parallel it must be two languages"),
        ({"corpora.de.language": "EN"}, r"corpora.en.language is 'en' and another one 'EN': write it one way"),
        ({"data.files": "x.txt"}, r"data.files names one corpus, and corpora.de another: leave out one"),
        ({"data.runner": "beam"}, r"corpora.en_de is parallel, which needs data.runner=local, not beam"),
        ({"data.masking": "static"}, r"corpora.en_de is parallel, which needs data.masking=dynamic, not static"),
        ({"corpora.de.share": 0.5, "corpora.en.share": 0.7}, r"corpora.de.share=0.5 \+ corpora.en.share=0.7 is 1.2"),
        ({"model.languages": "de,en,de"}, r"model.languages is 'de,en,de'; name each language once, as en,de"),
        ({"model.languages": "en,fr"}, r"corpora.de is of 'de', which model.languages=en,fr lacks"),
    ],
)
def test_what_cannot_be(config, options, message):
    for name, value in options.items():
        set_option(config, name, value)
    with pytest.raises(UserError, match=message):
        bert_config(config.model, 160)
        languages_of(config)
        prepare_corpora(config, None, progress=False)


def test_a_corpus_that_is_there_twice(config, texts):
    add_entry(config, "corpora.german", files=f"{texts}/de.txt", language="de")
    with pytest.raises(UserError, match=r"corpora.de and corpora.german have the same text: leave out one of them"):
        prepare_corpora(config, None, progress=False)


def test_a_corpus_without_text(config, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n\n")
    add_entry(config, "corpora.xx", files=f"{tmp_path}/blank.txt")
    with pytest.raises(UserError, match=r"corpora.xx has no text: check corpora.xx.files"):
        prepare_corpora(config, None, progress=False)
