"""English text, prepared: the token ids of every document against the original's tokenizer, a character at a time."""

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from bert_jax.data.pretraining import chunks
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.text.corpus import open_corpus, split_sentences
from bert_jax.data.tokenizers.original_wordpiece import OriginalWordPiece
from bert_jax.data.tokenizers.tokenizer import tokenizer_from_config
from experiments.base import get_config
from tests.conftest import SHARED_DATA

Corpus = tuple[ConfigDict, Counter[tuple[int, ...]]]  # and the ids of each document by the original's rules


@pytest.fixture(scope="module", params=["help texts", "wikipedia"])
def english(request, topics: Path, shared_data: Callable[[str], Path], tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("english")
    data = get_config().data
    data.update(corpus="text", files=str(topics), vocab_size=2_000, validation_share=0.2, test_share=0.0)
    if request.param == "wikipedia":
        data.files = str(_first_article_file(folder))
        data.vocab_file = str(shared_data("bert_assets") / "bert_assets" / "uncased" / "vocab.txt")
    else:
        tokenizer_from_config(data, open_corpus(data)).save(folder / "vocabulary")
        data.vocab_file = str(folder / "vocabulary" / "vocab.txt")
    tokens = Path(data.vocab_file).read_text("utf-8").split("\n")[:-1]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    original = OriginalWordPiece(vocabulary, vocabulary["[UNK]"], lowercase=True, strip_accents=True, split_cjk=True)
    documents = [split_sentences(document) for document in open_corpus(data).documents()]
    ids = Counter(tuple(i for sentence in document for i in original.pieces(sentence)[0]) for document in documents)
    return data, ids


@pytest.mark.parametrize(("workers", "batch"), [(1, None), (2, None), (1, 1_000)])  # the last is less than a document
def test_token_ids_are_the_original_s(
    english: Corpus, workers: int, batch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, expected = english
    if batch is not None:
        monkeypatch.setattr(chunks, "_BATCH_CHARACTERS", batch)
    monkeypatch.setattr(chunks, "_BLOCK", 1 << 17)  # several for each worker
    data.update(workers=workers, prepared=str(tmp_path))
    prepared = prepare(data, 0, progress=False)
    found: dict[int, list[np.ndarray]] = {}
    for split in ("train", "validation"):
        source = prepared.source(split)
        for record in (source[index] for index in range(len(source))):
            found.setdefault(record["document"], []).append(record["tokens"])
    assert Counter(tuple(np.concatenate(tokens).tolist()) for tokens in found.values()) == expected


def _first_article_file(folder: Path) -> Path:
    """A megabyte of Wikipedia from the front of the shared archive; skips the test where there is none."""
    archive = SHARED_DATA / "pretrain_en.tar.xz"
    if not archive.is_file():
        pytest.skip("needs shared data: no pretrain_en.tar.xz in ../shared/data beside the checkout")
    with tarfile.open(archive) as file:
        for member in file:
            if member.name.startswith("enwiki2015/AA/"):
                file.extract(member, folder, filter="data")
                return folder / member.name
    raise AssertionError(f"{archive} holds no enwiki2015/AA/")
