"""New words are one token with the mean of their old pieces; every other text gives what it gave."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.convert import conversion, huggingface
from bert_jax.convert.mapping import Loaded
from bert_jax.convert.resize import extend_positions, extend_vocabulary, read_words
from bert_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer, make_wordpiece
from experiments.base import get_config

WORDS = ["Abba", "café", "unable", "a", "fad-ed", "漢字", "abba", "the", "cab", "bad", "dab"]
NEW = ["abba", "cafe", "unable", "cab", "bad", "dab", "fad-ed", "漢字"]  # in the order in which they get their numbers


def test_slots_first_then_the_end_with_means_of_the_pieces(make_loaded, tools):
    model, size = make_loaded(), len(tools.tokens)
    tokenizer, parameters, notes = extend_vocabulary(model.tokenizer, model.parameters, WORDS)
    ids = [5, 6, 7, 8, 9, size, size + 1, size + 2]
    assert [tokenizer.token(i) for i in ids] == NEW
    assert tokenizer.vocab_size == size + 3
    assert notes == [
        "8 new words: 5 in [unusedN] slots, 3 appended",
        "already in the vocabulary: a, the",
        "given more than once: abba",
        "2 of them are added tokens, which slows the tokenizer down: fad-ed, 漢字",
    ]
    for word, number in zip(NEW, ids, strict=True):
        pieces = [model.tokenizer.token(i) for i in model.tokenizer.encode_words([word])[0]]
        rows = [tools.tokens.index(piece) for piece in pieces]
        for name in ("embeddings/word/embedding", "heads/mlm/bias"):
            np.testing.assert_allclose(parameters[name][number], model.parameters[name][rows].mean(0), atol=1e-7)
    assert model.tokenizer.encode_words(["abba"])[0] == [tools.tokens.index(p) for p in ("a", "##b", "##b", "##a")]
    for name, value in model.parameters.items():
        untouched = [i for i in range(size) if i not in ids] if parameters[name].shape != value.shape else slice(None)
        np.testing.assert_array_equal(parameters[name][untouched], value[untouched], err_msg=name)


def test_new_words_are_one_token_in_sentences_and_after_saving(make_loaded, tmp_path):
    model = make_loaded()
    tokenizer, _, _ = extend_vocabulary(model.tokenizer, model.parameters, WORDS)
    text = "The ABBA of Café, unable. FAD-ED 漢字 bad-cab"
    tokens = ["the", "abba", "of", "cafe", ",", "unable", ".", "fad-ed", "漢字", "bad", "-", "cab"]
    tokenizer.save(tmp_path)
    for loaded in (tokenizer, load_tokenizer(tmp_path)):
        assert [loaded.token(i) for i in loaded.encode_words([text])[0]] == tokens
        (row,) = loaded.encode([text])
        assert [text[start:end] for start, end in row.offsets[1:-1]][:4] == ["The", "ABBA", "of", "Café"]
    assert load_tokenizer(tmp_path).content_hash == tokenizer.content_hash


@pytest.mark.parity
def test_transformers_gives_the_same_tokens(make_loaded, tmp_path):
    import transformers

    model = make_loaded()
    tokenizer, _, _ = extend_vocabulary(model.tokenizer, model.parameters, WORDS)
    huggingface.write(tmp_path, Loaded(**(vars(make_loaded()) | {"tokenizer": tokenizer})))
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The ABBA of Café, unable.", "FAD-ED 漢字 bad-cab fad-eds 漢 字", "[unused0] [MASK] x"):
        assert peer(text).input_ids == tokenizer.encode([text])[0].ids


def test_cased_vocabularies_keep_the_case_of_new_words():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = make_wordpiece([*special, "A", "a", "##b", "##B"], "test", False, None, True)
    table = {"embeddings/word/embedding": np.arange(9, dtype=np.float32)[:, None]}
    extended, parameters, _ = extend_vocabulary(tokenizer, table, ["Ab", "ab"])
    assert extended.encode_words(["Ab ab AB"]) == [[9, 10, 5, 8]]
    np.testing.assert_array_equal(parameters["embeddings/word/embedding"][9:, 0], [6, 6.5])


def test_the_rules_of_the_original_can_be_extended_too():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
    tokenizer = make_wordpiece([*special, "a", "##b"], "test", True, None, True, original=True)
    table = {"embeddings/word/embedding": np.arange(8, dtype=np.float32)[:, None]}
    extended, _, _ = extend_vocabulary(tokenizer, table, ["Ább"])
    assert extended.original and extended.encode_words(["abb ab"]) == [[5, 6, 7]]
    with pytest.raises(UserError, match=r"'a-b' is 3 words \(a - b\) to the rules of google-research/bert"):
        extend_vocabulary(tokenizer, table, ["a-b"])


def test_tokens_added_before_keep_their_numbers(make_loaded, tmp_path, tools):
    import tokenizers

    model = make_loaded()
    backend = model.tokenizer.backend
    backend.add_tokens([tokenizers.AddedToken("[X]", special=True)])
    before = WordPieceTokenizer(backend, "test")
    table = {"embeddings/word/embedding": np.ones((before.vocab_size, 2), np.float32)}
    extended, parameters, _ = extend_vocabulary(before, table, ["abba", "cab", "bad", "dab", "abc", "bcd", "a.b"])
    extended.save(tmp_path)
    size = len(tools.tokens)
    expected = [[size, 5, size + 1, size + 2, size]]
    for tokenizer in (extended, load_tokenizer(tmp_path)):
        assert tokenizer.encode_words(["[X] abba bcd A.B [X]"]) == expected
    assert len(parameters["embeddings/word/embedding"]) == size + 3


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text("abcdé-漢", min_size=1, max_size=5), min_size=1, max_size=8),
    st.lists(st.text("abcdé-漢 ", max_size=12), max_size=4),
)
def test_each_new_word_is_one_token_and_other_texts_stay(words, texts):
    from tests.convert.conftest import TOKENS

    tokenizer = make_wordpiece(TOKENS, "test", True, None, True)
    table = {"embeddings/word/embedding": np.eye(len(TOKENS), dtype=np.float32)}
    extended, parameters, _ = extend_vocabulary(tokenizer, table, words)
    assert len(parameters["embeddings/word/embedding"]) == extended.vocab_size
    for word in words:
        assert [len(row) for row in extended.encode_words([word, f"a {word} b"])] == [1, 3]
    new = {extended.token(i) for i in range(extended.vocab_size)} - set(TOKENS)
    for text in texts:
        split = extended.split_words([text])[0]
        joined = " ".join(split)
        if not any(word.startswith(entry) for word in split for entry in new) and not any(
            " ".join(extended.split_words([entry])[0]) in joined for entry in new
        ):
            assert extended.encode_words([text]) == tokenizer.encode_words([text])


def test_the_encoder_gives_the_same_for_texts_without_new_words(make_loaded, ours, batch, tools):
    model = make_loaded(tie_embeddings=False)
    words = ["abba", "cab", "bad", "dab", "abc", "bcd", "cafe"]
    model.tokenizer, model.parameters, _ = extend_vocabulary(model.tokenizer, model.parameters, words)
    model.config = replace(model.config, vocab_size=model.tokenizer.vocab_size)
    without_slots = {**batch, "input_ids": np.where(batch["input_ids"] < 10, 12, batch["input_ids"])}
    reference = make_loaded(tie_embeddings=False)
    before, after = ours(reference, without_slots), ours(model, without_slots)
    for name in ("hidden", "pooled", "nsp"):
        assert np.abs(before[name] - after[name]).max() <= 1e-6
    size = len(tools.tokens)
    old = [i for i in range(size) if not 5 <= i < 10]
    assert np.abs(before["mlm"][..., old] - after["mlm"][..., old]).max() <= 1e-6


def test_more_positions_repeat_those_there_are(make_loaded, ours, batch):
    model = make_loaded()
    before = ours(model, batch)
    model.parameters, note = extend_positions(model.parameters, 100)
    table = model.parameters["embeddings/position/embedding"]
    for i in (0, 39, 40, 79, 80, 99):
        np.testing.assert_array_equal(table[i], table[i % 40])
    assert note.startswith("40 positions became 100: position i starts as i mod 40")
    model.config = replace(model.config, max_position_embeddings=100)
    np.testing.assert_array_equal(ours(model, batch)["hidden"], before["hidden"])
    assert extend_positions(model.parameters, 100) == (model.parameters, "100 positions, as before")
    with pytest.raises(UserError, match="--max_position_embeddings=99 is fewer than the 100"):
        extend_positions(model.parameters, 99)


def test_what_is_wrong_with_the_words(tmp_path, make_loaded):
    model = make_loaded()

    def extend(words, tokenizer=model.tokenizer):
        return extend_vocabulary(tokenizer, model.parameters, words)

    with pytest.raises(UserError, match="nothing is left of '\\\\u200b' once"):
        extend(["\u200b"])
    with pytest.raises(UserError, match=r"'a{101}' cannot be held as one token"):
        extend(["a" * 101])
    data = get_config().data
    data.update(tokenizer="bpe", vocab_size=60)
    spm = train_tokenizer(data, iter(["the quick brown fox jumps over the lazy dog"] * 3))
    with pytest.raises(UserError, match="the tokenizer is SentencePiece; only a WordPiece vocabulary"):
        extend(["word"], spm)
    path = tmp_path / "words.txt"
    for content, message in [
        (b"a\nb c\n", "words.txt:2: 'b c' has white space in it"),
        (b"\n \n", "words.txt has no words: give one a line"),
        (b"a\n\xff", "words.txt: not UTF-8 at byte 2"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_words(path)
    path.write_text("\ufeffnew\n\n word \n")
    assert read_words(path) == ["new", "word"]
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        read_words(Path(tmp_path / "none.txt"))


def test_a_converted_checkpoint_has_both(tmp_path, make_loaded, tools):
    huggingface.write(tmp_path / "theirs", make_loaded())
    (tmp_path / "words.txt").write_text("abba\ncab\n")
    options = {"extend_vocab": str(tmp_path / "words.txt"), "max_position_embeddings": 64}
    report = conversion.convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), **options)
    assert "2 new words: 2 in [unusedN] slots, 0 appended" in report
    assert "40 positions became 64" in report
    again = conversion.open_source(str(tmp_path / "ours"))
    assert again.model.config.max_position_embeddings == again.run["config"]["model"]["max_position_embeddings"] == 64
    assert again.model.tokenizer.encode_words(["abba cab"]) == [[5, 6]]
