"""Vocabularies learned from text: what they hold, that they come out the same twice, and what they are learned from."""

import logging
import pickle

import pytest
from tokenizers import models, trainers

from bert_jax.data.text.corpus import Corpus, Document, Source, open_corpus, split_sentences
from bert_jax.data.tokenizers.encoding import SPECIAL_TOKENS as SPECIAL
from bert_jax.data.tokenizers.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    _sample,
    load_tokenizer,
    tokenizer_from_config,
    train_tokenizer,
)
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from experiments.base import get_config

PROSE = ["The quick brown fox jumps over the lazy dog.", "A lazy dog sleeps; the quick fox runs.", "Quickly, the fox!"]


def data_config(**changes):
    data = get_config().data
    for key, value in changes.items():
        data[key] = value
    return data


def names(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token(i) for i in ids]


def test_trained_wordpiece_holds_the_special_tokens_and_all_words_seen():
    tokenizer = train_tokenizer(data_config(vocab_size=80), iter(PROSE * 3))
    assert names(tokenizer, [0, 1, 2, 3, 4]) == SPECIAL and tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size == 80
    rows = tokenizer.encode_words(PROSE)
    assert names(tokenizer, rows[0][:2]) == ["the", "quick"]
    assert not any(tokenizer.unk_id in row for row in rows)
    assert tokenizer.decode(rows[0]) == PROSE[0].lower()


def test_trained_wordpiece_is_the_library_s_up_to_ties():
    """Against tokenizers.WordPieceTrainer, whose ties fall by chance: the same alphabet, nearly the same pieces."""
    texts = [document.text for document in open_corpus(get_config().data).documents()][:200]
    ours = train_tokenizer(data_config(vocab_size=2000), iter(texts))
    backend = make_wordpiece(SPECIAL, "test", True, None, True)._backend
    backend.model = models.WordPiece({}, unk_token="[UNK]")  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    shared = set(backend.get_vocab()) & {ours.token(i) for i in range(ours.vocab_size)}
    assert len(shared) >= 0.97 * 2000


def test_training_is_deterministic_and_knows_its_options():
    def trained(**changes):
        return train_tokenizer(data_config(vocab_size=300, **changes), iter([*PROSE, "Ünïted Nations, naïve café"] * 5))

    assert trained().content_hash == trained().content_hash
    found = trained(lowercase=False, strip_accents=False)
    assert {"T", "ï", "Ü"} < {found.token(i) for i in range(found.vocab_size)}
    assert names(found, found.encode_words(["The café"])[0]) == ["The", "café"]


def test_chinese_characters_are_all_in_the_vocabulary():
    characters = "".join(chr(0x4E00 + i) for i in range(1500))
    tokenizer = train_tokenizer(data_config(vocab_size=2000), iter([characters, characters[::-1] + "。"]))
    assert tokenizer.vocab_size == 5 + 1500 + 1 and not tokenizer.is_continuation.any()
    assert tokenizer.unk_id not in tokenizer.encode_words([characters])[0]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece(kind, tmp_path):
    data = data_config(tokenizer=kind, vocab_size=120)
    tokenizer = train_tokenizer(data, iter(PROSE * 20))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert names(tokenizer, [0, 1, 2, 3, 4]) == SPECIAL
    (row,) = tokenizer.encode(["The  lazy [MASK]!"], ["quick fox"], max_length=100)
    assert row.ids.count(tokenizer.mask_id) == 1 and row.type_ids[-1] == 1
    text = "The  lazy [MASK]!quick fox"
    spans = row.offsets[1 : row.ids.index(tokenizer.sep_id)]
    assert "".join(text[start:end] for start, end in spans) == "Thelazy[MASK]!"
    assert tokenizer.decode(tokenizer.encode(["The lazy dog"])[0].ids) == "the lazy dog"
    assert tokenizer.encode_words(["the lazy"])[0] == tokenizer.encode(["the lazy"])[0].ids[1:-1]
    begins = [not continues for continues in tokenizer.is_continuation[tokenizer.encode_words(["the lazy"])[0]]]
    assert sum(begins) == 2 and begins[0]
    tokenizer.save(tmp_path)
    copy = pickle.loads(pickle.dumps(tokenizer))
    for loaded in (load_tokenizer(tmp_path), load_tokenizer(tmp_path / "spm.model"), copy):
        assert loaded.content_hash == tokenizer.content_hash
    assert train_tokenizer(data, iter(PROSE * 20)).content_hash == tokenizer.content_hash


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_a_small_corpus_gives_a_smaller_vocabulary_and_a_warning(kind, caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = train_tokenizer(data_config(tokenizer=kind), iter(PROSE * 20))
    assert tokenizer.vocab_size < 1000
    assert f"gave {tokenizer.vocab_size} tokens, fewer than data.vocab_size=30522" in caplog.text


def test_the_training_sample_is_spread_over_the_corpus():
    texts = [f"{'word' * 24} {i:03}" for i in range(1000)]  # 100 bytes each
    kept = [int(text[-3:]) for text in _sample(texts, 30_000)]
    assert kept == list(range(0, 1000, 4))
    assert len(_sample(texts, 10**9)) == 1000


def test_from_config_loads_or_trains(tmp_path):
    small = make_wordpiece([*SPECIAL, "a"], "test", True, None, True)
    small.save(tmp_path)
    corpus = Corpus("test", None, "", [Source(0, lambda: (Document("d", text, False) for text in PROSE * 3))])
    loaded = tokenizer_from_config(data_config(vocab_file=str(tmp_path / "vocab.txt")), corpus)
    assert loaded.content_hash == small.content_hash
    assert tokenizer_from_config(data_config(vocab_size=80), corpus).vocab_size == 80


def test_the_sample_has_hardly_any_unknown_words():
    corpus = open_corpus(get_config().data)
    tokenizer = tokenizer_from_config(data_config(vocab_size=4000), corpus)
    rows = [row for document in corpus.documents() for row in tokenizer.encode_words(split_sentences(document))]
    unknown, total = sum(row.count(tokenizer.unk_id) for row in rows), sum(map(len, rows))
    assert tokenizer.vocab_size == 4000 and total > 300_000 and unknown < 0.001 * total
