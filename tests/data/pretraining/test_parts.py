"""A corpus prepared part by part: the same documents, splits, records and statistics as in one stream."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.pretraining import cleaning, parts
from bert_jax.data.pretraining.chunks import BlockResult, BlockWork, blocks
from bert_jax.data.pretraining.cleaning import Cleaning
from bert_jax.data.pretraining.report import Statistics, make_report
from bert_jax.data.pretraining.splits import SPLITS, Splitter, split_documents
from bert_jax.data.text.corpus import Corpus, Document, Source
from bert_jax.data.tokenizers.encoding import SPECIAL_TOKENS
from bert_jax.data.tokenizers.tokenizer import _sample
from bert_jax.data.tokenizers.wordpiece import make_wordpiece

TOKENIZER = make_wordpiece([*SPECIAL_TOKENS, *"abcdefgh"], "test", True, None, True)
WORK = BlockWork(TOKENIZER, 16, np.dtype("<u2"))


def make_corpus(texts: list[list[str]]) -> Corpus:
    """One source for each list; its documents are texts of one sentence per line."""

    def source(number: int, own: list[str]) -> Source:
        return Source(1, lambda: (Document(f"{number}:{i}", text, True) for i, text in enumerate(own)))

    return Corpus("test", None, "", [source(number, own) for number, own in enumerate(texts)])


def random_texts(seed: int, sources: int = 7, most: int = 30) -> list[list[str]]:
    rng = Random(seed)
    pool = [
        "\n".join(" ".join(rng.choices("abcdefghx", k=rng.randrange(1, 12))) for _ in range(rng.randrange(1, 9)))
        for _ in range(60)
    ]
    return [rng.choices(pool, k=rng.randrange(most)) for _ in range(sources)]


def by_split(results: list[BlockResult]) -> tuple[dict[str, list[bytes]], dict]:
    records: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    statistics = {split: Statistics() for split in SPLITS}
    for result in results:
        for split, found in result.records.items():
            records[split] += found
        for split, found in result.statistics.items():
            statistics[split].merge(found)
    return records, make_report(statistics)


def prepared(
    corpus: Corpus, folder: epath.Path, shares: tuple[float, float], work: BlockWork = WORK
) -> list[BlockResult]:
    cut = parts.cut_parts(corpus)
    for part in cut:
        parts.IndexPart(str(folder), 3, 0, work.cleaning.deduplicates)(part)
    for planned in reversed(parts.plan_parts(folder, cut, Splitter(*shares))):  # in any order
        parts.PreparePart(str(folder), 3, work)(planned)
    parts.raise_error(folder)
    return list(parts.read_results(folder, cut))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    most=st.sampled_from([2, 4, 30]),
    shares=st.sampled_from([(0.0, 0.0), (0.02, 0.0), (0.02, 0.02), (0.3, 0.3)]),
)
def test_the_parts_give_the_records_of_one_stream(tmp_path_factory, monkeypatch, seed, most, shares):
    monkeypatch.setattr(parts, "_PART_BYTES", (2, 2))
    corpus = make_corpus(random_texts(seed, most=most))
    folder = epath.Path(tmp_path_factory.mktemp("parts"))
    expected = list(map(WORK, blocks(split_documents(corpus.documents(), 3, *shares))))
    records, report = by_split(prepared(corpus, folder, shares))
    assert (records, report) == by_split(expected)
    assert len(parts.cut_parts(corpus)) == 4


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), most=st.sampled_from([2, 4, 30]), share=st.sampled_from([0.0, 0.02, 0.3]))
def test_the_parts_leave_out_what_one_stream_leaves_out(tmp_path_factory, monkeypatch, seed, most, share):
    monkeypatch.setattr(parts, "_PART_BYTES", (2, 2))
    monkeypatch.setattr(cleaning, "_LEAST_DUPLICATE", 4)  # of these lines; about a tenth recurs
    corpus, removed = make_corpus(random_texts(seed, most=most)), Statistics()
    folder, work = epath.Path(tmp_path_factory.mktemp("parts")), replace(WORK, cleaning=Cleaning(False, True))
    documents = cleaning.marked(corpus.documents(), 3, removed.removed)
    expected = list(map(work, blocks(split_documents(documents, 3, share, share))))
    expected.append(BlockResult(0, {}, {"train": removed}))
    assert by_split(prepared(corpus, folder, (share, share), work)) == by_split(expected)
    lines = {line for document in corpus.documents() for line in document.text.split("\n") if len(line) >= 4}
    kept = by_split(expected)[1]["splits"]
    short = sum(len(line) < 4 for text in {d.text for d in corpus.documents()} for line in text.split("\n"))
    assert sum(counts["sentences"] for counts in kept.values()) == len(lines) + short  # every other line once


@pytest.mark.parametrize("limit", [1, 300, 5_000, 10**6])
def test_the_sample_is_that_of_one_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int):
    monkeypatch.setattr(parts, "_PART_BYTES", (1, 1))
    corpus, folder = make_corpus(random_texts(5)), epath.Path(tmp_path)
    cut = parts.cut_parts(corpus)
    for part in cut:
        parts.IndexPart(str(folder), 0, limit)(part)
    stride, firsts = parts.sample_stride(folder, cut, limit)
    sample = parts.SamplePart(stride, limit)
    found = [text for part, first in zip(cut, firsts, strict=True) for text in sample(part, first)]
    assert found == _sample((document.text for document in corpus.documents()), limit) and (stride > 1) == (
        limit < 10**6
    )


def test_parts_have_a_size_in_bounds():
    assert [len(part.sources) for part in parts.cut_parts(sized([1 << 19] * 5))] == [2, 2, 1]
    assert len(parts.cut_parts(sized([1 << 24] * 2048))) == 512  # of 64 MB
    assert [len(part.sources) for part in parts.cut_parts(sized([1 << 30, 1, 1]))] == [1, 2]  # a file is never cut


def test_a_part_that_fails_leaves_its_message_and_no_records(tmp_path: Path):
    def documents():
        yield Document("a", "a b", True)
        raise UserError("b.txt:3: not UTF-8")

    corpus, folder = Corpus("test", None, "", [Source(1, documents)]), epath.Path(tmp_path)
    (part,) = parts.cut_parts(corpus)
    parts.IndexPart(str(folder), 0, 0)(part)
    planned = parts.PlannedPart(part, Splitter(0.0, 0.0), 0, 1, True, {})
    parts.PreparePart(str(folder), 0, WORK)(planned)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.error"]
    with pytest.raises(UserError, match=r"^b\.txt:3: not UTF-8$"):
        parts.raise_error(folder)
    assert parts.unfinished(folder, [0], "done") == [0] and list(tmp_path.iterdir()) == []


def test_a_corpus_that_changes_in_between_is_refused(tmp_path: Path):
    texts = [["a b", "c d", "e f"]]
    corpus, folder = make_corpus(texts), epath.Path(tmp_path)
    cut = parts.cut_parts(corpus)
    parts.IndexPart(str(folder), 0, 0)(cut[0])
    planned = parts.plan_parts(folder, cut, Splitter(0.0, 0.0))
    texts[0].append("g h")
    parts.PreparePart(str(folder), 0, WORK)(planned[0])
    with pytest.raises(UserError, match=r"part 0 of the corpus .* changed during preparation"):
        parts.raise_error(folder)


@pytest.mark.parametrize("damage", ["done cut", "records cut", "records gone"])
def test_damaged_results_are_refused(tmp_path: Path, damage: str):
    corpus, folder = make_corpus(random_texts(1)), epath.Path(tmp_path)
    prepared(corpus, folder, (0.0, 0.0))
    path = folder / ("000000.done" if damage == "done cut" else "000000.train")
    if damage == "records gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{path.name}: .*: delete {tmp_path} and prepare again$"):
        list(parts.read_results(folder, parts.cut_parts(corpus)))


def sized(sizes: list[int]) -> Corpus:
    return Corpus("test", None, "", [Source(size, lambda: iter(())) for size in sizes])
