"""Vocabularies learned, loaded and saved; text to ids and back; the word cache against the tokenizer behind it."""

import hashlib
import json
import pickle
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models

from bert_jax.config import UserError
from bert_jax.data.tokenizers import wordpiece
from bert_jax.data.tokenizers.original_wordpiece import OriginalWordPiece
from bert_jax.data.tokenizers.tokenizer import (
    Tokenizer,
    WordPieceTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from experiments.base import get_config

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "un ##aff ##able want ##ed ##want run ##ning , . [ ] ' the a b c ##b ##c σ ##σ ##ς 漢 字 e ##e i ##i mask ##1 1"
PIECES = TEXT.split()
PROSE = ["The quick brown fox jumps over the lazy dog.", "A lazy dog sleeps; the quick fox runs.", "Quickly, the fox!"]

# Where tokenizers disagree: controls, spaces of all kinds, marks, CJK in and out of the ranges, case rules.
NASTY = (
    "ab.,[]'1 \t\n\r\0\x0b\x0c\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad\u1680\u180e\u2000\u200b\u200d\u200e\u2028\u2029\u202f"
    "\u2060\u3000\u0300\u0301\u0345\u05bf\u302e\u0130\u03a3\u03c3\u03c2éÉıßﬁ漢字㐀豈\ufeff\ufffd\uff21\U00020000\U0002b820\U0001f600"
)
nasty_text = st.lists(
    st.one_of(
        st.text(st.sampled_from(NASTY), max_size=12),
        st.sampled_from(
            ["[MASK]", "x[SEP]y", "[ MASK ]", "unaffable", "wanted", "the", "b" * 99, "b" * 101, "b" * 201]
        ),
    ),
    max_size=6,
).map(" ".join)


@pytest.fixture(scope="module")
def small() -> WordPieceTokenizer:
    return make_wordpiece(SPECIAL + PIECES, "test", True, None, True)


@pytest.fixture
def uncased(shared_data) -> WordPieceTokenizer:
    made = load_tokenizer(shared_data("bert_assets") / "bert_assets" / "uncased" / "vocab.txt")
    assert isinstance(made, WordPieceTokenizer)
    return made


def data_config(**changes):
    data = get_config().data
    for key, value in changes.items():
        data[key] = value
    return data


def names(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token(i) for i in ids]


def as_original(tokenizer: WordPieceTokenizer) -> WordPieceTokenizer:
    return WordPieceTokenizer(tokenizer._backend, "test", original=True)


def test_pairs_have_offsets_types_and_a_special_tokens_mask(small):
    (row,) = small.encode(["Unaffable,  WANTED"], ["run[MASK]"])
    expected = ["[CLS]", "un", "##aff", "##able", ",", "want", "##ed", "[SEP]", "run", "[MASK]", "[SEP]"]
    assert names(small, row.ids) == expected
    assert row.offsets == [(0, 0), (0, 2), (2, 5), (5, 9), (9, 10), (12, 16), (16, 18), (0, 0), (0, 3), (3, 9), (0, 0)]
    assert row.type_ids == [0] * 8 + [1] * 3
    assert row.special_tokens_mask == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("limit", "a", "b"), [(99, "a a a a a", "b b b"), (10, "a a a a", "b b b"), (8, "a a a", "b b"), (3, "", "")]
)
def test_truncation_takes_from_the_end_of_the_longer(small, limit, a, b):
    (row,) = small.encode(["a a a a a"], ["b b b"], max_length=limit)
    assert names(small, row.ids) == ["[CLS]", *a.split(), "[SEP]", *b.split(), "[SEP]"]
    assert len({len(field) for field in row}) == 1


def test_no_room_for_special_tokens(small):
    with pytest.raises(UserError, match=r"max_length 2 has no room for \[CLS\] and \[SEP\]: give at least 3"):
        small.encode(["a"], ["b"], max_length=2)


def test_decode_hides_what_is_no_text(small):
    (row,) = small.encode(["unaffable [MASK] runs, wanted"], max_length=9)
    assert small.decode(np.array([*row.ids, small.pad_id])) == "unaffable [MASK] [UNK], want"


def test_continuations(small):
    assert [small.token(i) for i in np.flatnonzero(small.is_continuation)] == [p for p in PIECES if p.startswith("##")]


@settings(max_examples=400, deadline=None)
@given(st.lists(nasty_text, max_size=4), st.booleans())
def test_the_word_cache_changes_nothing(texts, original):
    tokenizer = make_wordpiece(SPECIAL + PIECES, "test", True, None, True, original)
    direct = [ids for ids, _ in tokenizer.pieces(texts)]
    assert tokenizer.encode_words(texts) == direct
    assert tokenizer.encode_words(texts) == direct  # from the cache


@settings(max_examples=200, deadline=None)
@given(nasty_text, st.booleans(), st.booleans(), st.booleans())
def test_options_go_with_the_cache(text, lowercase, strip_accents, split_cjk):
    tokenizer = make_wordpiece(SPECIAL + PIECES, "test", lowercase, strip_accents, split_cjk)
    assert tokenizer.encode_words([text, text]) == [ids for ids, _ in tokenizer.pieces([text, text])]


plain_words = st.lists(st.text(st.sampled_from("abelnrtuwABW1é"), max_size=45).filter(bool), max_size=8).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(plain_words, max_size=4), st.booleans(), st.booleans())
def test_plain_words_get_the_pieces_of_the_library(texts, lowercase, original):
    """Words of ASCII letters and digits do not go through it."""
    tokenizer = make_wordpiece(SPECIAL + PIECES, "test", lowercase, None, True, original)
    direct = [ids for ids, _ in tokenizer.pieces(texts)]
    ids, lengths = tokenizer.encode_flat(texts)
    assert ids.tolist() == [i for row in direct for i in row]
    assert lengths.tolist() == [len(row) for row in direct]


def bare(text: str) -> str:
    """Lower case, no accents, no controls, one sigma."""
    decomposed = unicodedata.normalize("NFD", text.lower()).replace("ς", "σ")
    return "".join(char for char in decomposed if unicodedata.category(char) not in ("Mn", "Cc", "Cf"))


@settings(max_examples=300, deadline=None)
@given(nasty_text)
def test_original_offsets_point_at_their_characters(text):
    tokenizer = make_wordpiece(SPECIAL + PIECES, "test", True, None, True, original=True)
    ((ids, offsets),) = tokenizer.pieces([text])
    assert all(0 <= start < end <= len(text) for start, end in offsets)
    for piece_id, (start, end) in zip(ids, offsets, strict=True):
        if piece_id != tokenizer.unk_id:
            assert bare(text[start:end]) == bare(tokenizer.token(piece_id).removeprefix("##"))


def test_the_cache_is_bounded(small, monkeypatch):
    monkeypatch.setattr(wordpiece, "_CACHE_WORDS", 100)
    tokenizer = make_wordpiece(SPECIAL + PIECES, "test", True, None, True)
    for start in range(0, 5000, 50):
        text = " ".join(f"a{i}" for i in range(start, start + 50)) + " the " + "b" * 60
        assert tokenizer.encode_words([text]) == [tokenizer.pieces([text])[0][0]]
        assert tokenizer._cache is not None and len(tokenizer._cache) <= 100
    assert b"the" in tokenizer._cache and b"a3" not in tokenizer._cache and b"b" * 60 not in tokenizer._cache


def test_threads_share_a_small_cache(monkeypatch):
    """The cache replaces its words all the time; each thread must still get the ids of a tokenizer of its own."""
    monkeypatch.setattr(wordpiece, "_CACHE_WORDS", 16)
    tokenizer = make_wordpiece(SPECIAL + PIECES, "test", True, None, True)
    rows = [[" ".join(f"a{(7 * row + k) % 90}é the" for k in range(40)) for _ in range(3)] for row in range(40)]
    expected = [[ids for ids, _ in tokenizer.pieces(row)] for row in rows]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = [list(pool.map(tokenizer.encode_words, rows * 5)) for _ in range(2)]
    finally:
        sys.setswitchinterval(interval)
    assert found == [expected * 5] * 2
    assert tokenizer._cache is not None and len(tokenizer._cache) <= 16 + 8  # each thread may add one word late


@pytest.mark.parametrize("original", [False, True])
def test_another_prefix_of_continuing_pieces(original):
    """A literal ## is then no continuation, and @@ is one for words, masks by word and decoding alike."""
    tokens = [*SPECIAL, "un", "@@aff", "@@able", "##", "##x", "#", "a"]
    model = models.WordPiece(
        {token: index for index, token in enumerate(tokens)}, unk_token="[UNK]", continuing_subword_prefix="@@"
    )
    backend = make_wordpiece(tokens, "test", True, None, True).backend
    backend.model = model
    tokenizer = WordPieceTokenizer(backend, "test", original)
    assert names(tokenizer, tokenizer.encode_words(["unaffable a ##x"])[0])[:4] == ["un", "@@aff", "@@able", "a"]
    assert tokenizer.encode_words(["unaffable a"]) == [tokenizer.pieces(["unaffable a"])[0][0]]
    assert [tokens[i] for i in np.flatnonzero(tokenizer.is_continuation)] == ["@@aff", "@@able"]
    assert tokenizer.decode(tokenizer.encode_words(["unaffable a"])[0]) == "unaffable a"
    assert tokenizer.continuation_prefix == "@@"


def test_a_tokenizer_with_other_rules_has_no_cache(small, tmp_path):
    backend = tokenizers.Tokenizer.from_str(small._backend.to_str())
    backend.add_tokens([tokenizers.AddedToken("the a", normalized=True)])
    assert WordPieceTokenizer(backend, "test")._cache is None
    assert names(small, small.encode_words(["the a"])[0]) == ["the", "a"]
    assert WordPieceTokenizer(backend, "test").encode_words(["the a"]) == [[len(SPECIAL + PIECES)]]


def test_where_the_original_differs():
    """100 or 200 characters a word; special tokens in raw text; final sigma; U+2028 in both a space."""
    now = make_wordpiece(SPECIAL + PIECES, "test", True, None, True)
    then = as_original(now)
    for text, expected_now, expected_then in [
        ("b" * 150, ["[UNK]"], ["b"] + ["##b"] * 149),
        ("b" * 201, ["[UNK]"], ["[UNK]"]),
        ("[MASK]", ["[MASK]"], ["[", "mask", "]"]),
        ("ΣΣ", ["σ", "##σ"], ["σ", "##ς"]),
        ("a\u2028b", ["a", "b"], ["a", "b"]),
        ("a\x1cb漢c", ["a", "##b", "漢", "c"], ["a", "##b", "漢", "c"]),
    ]:
        assert names(now, now.encode_words([text])[0]) == expected_now
        assert names(then, then.encode_words([text])[0]) == expected_then


def test_original_without_lower_casing_keeps_accents():
    rules = OriginalWordPiece({"É": 1, "E": 2, "##\u0301": 3}, 0, lowercase=False, strip_accents=False, split_cjk=False)
    assert rules.pieces("É E\u0301 漢")[0] == [1, 2, 3, 0]


@pytest.mark.parametrize("original", [False, True])
def test_golden_ids_of_the_sample_text(shared_data, uncased, original):
    """google-research/bert's own tokenizer gives these 1,019 ids; another digest means other pretraining data."""
    lines = (shared_data("bert_assets") / "bert_assets" / "sample_text.txt").read_text("utf-8").split("\n")
    tokenizer = as_original(uncased) if original else uncased
    ids = [i for row in tokenizer.encode_words(lines) for i in row]
    assert len(ids) == 1019
    digest = hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()
    assert digest == "ea810c316f6e99b3c5f9475577429057b1533552b866dd7b4029229f6d9adaaa"
    assert uncased.special_ids == (0, 100, 101, 102, 103) and uncased.vocab_size == 30_522


def test_published_vocabularies_load(shared_data):
    folder = shared_data("bert_assets") / "bert_assets"
    cased = load_tokenizer(folder / "cased" / "vocab.txt", data_config(lowercase=False))
    chinese = load_tokenizer(folder / "chinese_L-12_H-768_A-12" / "vocab.txt")
    assert (cased.vocab_size, chinese.vocab_size) == (28_996, 21_128)
    assert names(cased, cased.encode_words(["Café in Berlin"])[0]) == ["Café", "in", "Berlin"]
    assert names(chinese, chinese.encode_words(["我爱北京。"])[0]) == ["我", "爱", "北", "京", "。"]


def test_save_and_load(small, tmp_path):
    for tokenizer in (small, as_original(small)):
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert loaded.content_hash == tokenizer.content_hash
        assert isinstance(loaded, WordPieceTokenizer) and loaded.original == tokenizer.original
        assert loaded.encode(["[MASK] wanted"]) == tokenizer.encode(["[MASK] wanted"])
    assert load_tokenizer(tmp_path / "vocab.txt").content_hash == small.content_hash
    assert load_tokenizer(tmp_path / "tokenizer.json").content_hash == small.content_hash
    assert load_tokenizer(tmp_path / "vocab.txt", data_config(lowercase=False)).content_hash != small.content_hash
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert names(small, load_tokenizer(tmp_path).encode_words(["a A"])[0]) == ["a", "[UNK]"]
    assert as_original(small).content_hash != small.content_hash


def test_a_pickled_tokenizer_encodes_alike_and_leaves_its_cache(small):
    small.encode_words(PROSE)
    copy = pickle.loads(pickle.dumps(small))
    assert b"fox" in small._cache and b"fox" not in copy._cache
    assert copy.encode_words(PROSE) == small.encode_words(PROSE)


def bpe_json() -> str:
    return tokenizers.Tokenizer(models.BPE()).to_str()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "\n".join([*SPECIAL[:4], "a"]), r"vocab.txt: no \[MASK\] among 5 tokens: add it"),
        ("vocab.txt", "\n".join([*SPECIAL, "a", "b", "a"]), "vocab.txt: token 'a' on line 6 and on line 8"),
        ("vocab.txt", b"[PAD]\n\xff", "vocab.txt: not UTF-8 at byte 6"),
        ("vocab.txt", "", r"vocab.txt: no \[UNK\] among 0 tokens"),
        ("tokenizer.json", "{", "tokenizer.json: not a tokenizer.json"),
        ("tokenizer.json", bpe_json(), "tokenizer.json: a BPE model, expected WordPiece"),
        ("spm.model", b"nonsense", "spm.model: not a SentencePiece model, 8 bytes"),
    ],
)
def test_what_is_wrong_with_a_vocabulary(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_the_options(tmp_path: Path):
    for action, message in [
        (lambda: load_tokenizer(tmp_path / "none.txt"), "none.txt does not exist: name a vocab.txt"),
        (lambda: load_tokenizer(tmp_path), r"no tokenizer.json, vocab.txt or \*.model in this folder"),
        (lambda: train_tokenizer(data_config(), iter([" "])), "no text to learn a vocabulary from"),
        (lambda: train_tokenizer(data_config(tokenizer="bpe"), iter([" "])), "no text to learn a vocabulary from"),
        (
            lambda: train_tokenizer(data_config(tokenizer="bpe", strip_accents=True), iter(PROSE)),
            "strip_accents=True is not offered by data.tokenizer=bpe",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            action()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    ("tokenizer_config.json", ()),
    *(("tokenizer_config.json", (name,)) for name in ("do_lower_case", "strip_accents", "original", "tokenizer_class")),
    *(("tokenizer_config.json", ("added_tokens_decoder", *rest)) for rest in ((), ("5",), ("5", "content"))),
    *(
        ("tokenizer.json", keys)
        for keys in ((), ("model",), ("model", "vocab"), ("model", "unk_token"), ("normalizer",))
    ),
    *(("tokenizer.json", keys) for keys in (("pre_tokenizer",), ("added_tokens",), ("decoder",), ("model", "type"))),
    ("tokenizer.json", ("model", "max_input_chars_per_word")),
    ("added_tokens.json", ()),
    ("added_tokens.json", ("new",)),
]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(FIELDS), value=json_values)
def test_any_value_in_a_tokenizer_file_is_one_line(small, tmp_path, place, value):
    """A folder from somebody else loads and encodes, or ends in one line that begins with its path."""
    small.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{}")
    name, keys = place
    content = json.loads((tmp_path / name).read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    if keys:
        inner[keys[-1]] = value
    (tmp_path / name).write_text(json.dumps(content if keys else value))
    try:
        load_tokenizer(tmp_path).encode(["unaffable [MASK] x"])
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith(str(tmp_path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["vocab.txt", "tokenizer.json", "spm.model", "tokenizer_config.json"]), data=st.data())
def test_any_bytes_in_a_tokenizer_file_are_one_line(small, tmp_path, name, data):
    content = data.draw(st.binary(max_size=40))
    path = tmp_path / name
    path.write_bytes(content)
    try:
        load_tokenizer(path)
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path))


def test_no_file_but_a_device_is_refused():
    with pytest.raises(UserError, match="/dev/zero: is a device, not a regular file"):
        load_tokenizer("/dev/zero")
