"""Ids, offsets, type ids and truncated pairs as Transformers gives them: 20,000 lines of three languages, and noise."""

import itertools
import json
import random
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.tokenizers.tokenizer import load_tokenizer
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from tests.convert.conftest import TOKENS

FOLDERS = {"uncased": True, "cased": False, "chinese_L-12_H-768_A-12": True}


@pytest.fixture(scope="module")
def both(shared_data, tmp_path_factory):
    """both("cased") → our tokenizer and Transformers', each made from vocab.txt and tokenizer_config.json."""
    import transformers

    made = {}

    def load(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            vocabulary = shared_data("bert_assets") / "bert_assets" / name / "vocab.txt"
            (folder / "vocab.txt").write_bytes(vocabulary.read_bytes())
            options = {"tokenizer_class": "BertTokenizer", "do_lower_case": FOLDERS[name], "model_max_length": 512}
            (folder / "tokenizer_config.json").write_text(json.dumps(options))
            made[name] = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        return made[name]

    return load


@pytest.mark.parity
@pytest.mark.parametrize("vocabulary", FOLDERS)
@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_lines_of_three_languages(both, shared_data, vocabulary, count):
    lines = list(itertools.islice(_lines(shared_data), count))
    assert len(lines) == count
    assert _differences(*both(vocabulary), lines) == []


@pytest.mark.parity
@pytest.mark.parametrize("vocabulary", FOLDERS)
def test_generated_unicode(both, vocabulary):
    ours, theirs = both(vocabulary)
    anything = st.characters(exclude_categories=["Cs"])
    odd = st.sampled_from(
        "\0\t\u00ad\u0130\u0131\u0345\u200b\u200d\u2028\u3000\u302e\ufb01\ufeff\ufffd\U0002b820ßΣςé漢"
    )
    words = st.one_of(st.text(st.one_of(anything, odd, st.sampled_from("aZ9.")), max_size=20), st.just("[MASK]"))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(words, min_size=1, max_size=8))
    def check(texts):
        assert _differences(ours, theirs, [*texts, " ".join(texts)]) == []

    check()


@pytest.mark.parity
def test_every_character_alone_and_inside_a_word(both):
    ours, theirs = both("uncased")
    texts = [f"a{chr(code)}b {chr(code)}" for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = [text for text in texts if unicodedata.category(text[1]) not in ("Cn", "Co")]
    large = ("CJK UNIFIED", "HANGUL SYLLABLE", "TANGUT", "CUNEIFORM")  # a part of them is enough
    texts = [text for i, text in enumerate(texts) if i % 16 == 0 or not unicodedata.name(text[1], "").startswith(large)]
    their_ids = [row.ids for row in theirs.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [t for t, a, b in zip(texts, ours.encode_words(texts), their_ids, strict=True) if a != b] == []


def test_truncation_by_hand():
    """Five and six words; of the odd token, Hugging Face gives it to the longer or to B, the original to A."""
    for original, expected in ((False, (3, 4)), (True, (4, 3))):
        tokenizer = make_wordpiece(TOKENS, "test", True, None, True, original)
        assert tokenizer.truncated(5, 6, 7) == tokenizer.truncated(5, 5, 7) == expected
        assert tokenizer.truncated(6, 5, 7) == (4, 3)
        assert tokenizer.truncated(9, 2, 7) == (5, 2)
        assert tokenizer.truncated(2, 9, 7) == (2, 5)
        assert tokenizer.truncated(2, 3, 7) == (2, 3)


@given(*[st.integers(0, 12)] * 3)
def test_truncation_is_that_of_the_library_and_of_the_original(length_a, length_b, room):
    tokenizer = make_wordpiece(TOKENS, "test", True, None, True)
    backend = tokenizer.backend
    backend.enable_truncation(room + 3)
    types = backend.encode("a " * length_a, "b " * length_b).type_ids
    library = types.count(0) - 2, types.count(1) - 1
    assert tokenizer.truncated(length_a, length_b, room) == library
    a, b = length_a, length_b
    while a + b > room:  # _truncate_seq_pair of run_classifier.py
        a, b = (a - 1, b) if a > b else (a, b - 1)
    original = make_wordpiece(TOKENS, "test", True, None, True, original=True)
    assert original.truncated(length_a, length_b, room) == (a, b)


@pytest.mark.parity
def test_added_tokens_and_switches_wherever_transformers_puts_them(tmp_path):
    import transformers

    def add(content, **flags):
        off = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False, "special": False}
        return {"content": content} | off | flags

    size = len(TOKENS)
    options = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    decoder = {str(size): add("fad-ed", single_word=True), str(size + 1): add("[X]", special=True, normalized=False)}
    cased = {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": False}
    text = "The [X] fad-ed FAD-ED fad-eds É 漢字 a[X]b [unused1]"
    for name, files in {
        "added_tokens.json": {"added_tokens.json": {"fad-ed": size, "[X]": size + 1}, "tokenizer_config.json": options},
        "decoder": {"tokenizer_config.json": options | {"added_tokens_decoder": decoder}},
        "switches": {"tokenizer_config.json": options | cased},
        "accents": {"tokenizer_config.json": options | {"strip_accents": False}},
        "never split": {"tokenizer_config.json": options | {"added_tokens_decoder": {"6": add("[unused1]")}}},
    }.items():
        for with_json in (False, True):  # where both say something, tokenizer_config.json counts
            folder = tmp_path / f"{name}{with_json}"
            make_wordpiece(TOKENS, "test", True, None, True).save(folder)
            if not with_json:
                (folder / "tokenizer.json").unlink()
            for file, content in files.items():
                (folder / file).write_text(json.dumps(content))
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
            assert load_tokenizer(folder).encode([text])[0].ids == theirs(text).input_ids, name


@pytest.mark.parity
def test_what_is_saved_here_is_the_same_tokenizer_there(tmp_path):
    import transformers

    text = "The unable É 漢字 [MASK] a-b"
    for lowercase, accents, cjk in itertools.product((True, False), (None, True, False), (True, False)):
        tokenizer = make_wordpiece(TOKENS, "test", lowercase, accents, cjk)
        tokenizer.save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert _differences(tokenizer, theirs, [text]) == []
        assert theirs.mask_token_id == tokenizer.mask_id and theirs.pad_token_id == tokenizer.pad_id


def test_numbers_of_added_tokens_must_follow(tmp_path):
    make_wordpiece(TOKENS, "test", True, None, True).save(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[X]": 50}))
    with pytest.raises(UserError, match=r"added token '\[X\]' has number 50, but the vocabulary gives it 33"):
        load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{")
    with pytest.raises(UserError, match=r"added_tokens\.json: not JSON"):
        load_tokenizer(tmp_path)


def _lines(shared_data) -> Iterator[str]:
    """English, Chinese, Spanish in turn."""
    sources = [
        _of_files(shared_data("sst2").rglob("*.tsv")),
        _of_files(shared_data("chnsenticorp").rglob("*.tsv")),
        _of_conll(shared_data("conll2002_esp").rglob("esp.*")),
    ]
    while sources:
        for source in list(sources):
            line = next(source, None)
            if line is None:
                sources.remove(source)
            else:
                yield line


def _of_files(paths) -> Iterator[str]:
    for path in sorted(paths):
        yield from (line for line in path.read_text("utf-8").splitlines() if line.strip())


def _of_conll(paths) -> Iterator[str]:
    for path in sorted(paths):
        for sentence in path.read_text("utf-8", "replace").split("\n\n"):
            yield " ".join(line.split()[0] for line in sentence.splitlines() if line.split())


def _differences(ours, theirs, lines: list[str]) -> list[str]:
    """Lines, alone and each with the next one as a pair cut to some length, on which anything differs."""
    rng = random.Random(0)
    different = []
    theirs_alone = theirs(lines, return_offsets_mapping=True)
    for i, row in enumerate(ours.encode(lines)):
        if (
            row.ids != theirs_alone["input_ids"][i]
            or [tuple(span) for span in row.offsets] != [tuple(span) for span in theirs_alone["offset_mapping"][i]]
            or row.type_ids != theirs_alone["token_type_ids"][i]
        ):
            different.append(lines[i])
    pairs = [*lines[1:], lines[0]]
    for start in range(0, len(lines), 500):
        limit = rng.randrange(4, 60)
        part = slice(start, start + 500)
        cut = theirs(lines[part], pairs[part], truncation=True, max_length=limit, return_offsets_mapping=True)
        for i, row in enumerate(ours.encode(lines[part], pairs[part], max_length=limit)):
            spans = [tuple(span) for span in cut["offset_mapping"][i]]
            if (row.ids, row.type_ids, row.offsets) != (cut["input_ids"][i], cut["token_type_ids"][i], spans):
                different.append(f"{lines[start + i]} || {pairs[start + i]} to {limit}")
    return different
