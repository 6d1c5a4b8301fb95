"""Files in an S3 bucket of a local server: found, read, and refused in one line."""

import gzip
import importlib.util
import os
import pickle
import re
import time
from pathlib import Path

import pytest

from bert_jax.checks import check_folders
from bert_jax.config import UserError
from bert_jax.data.labelled.tables import read_rows
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.text import buckets
from bert_jax.data.text.corpus import open_corpus
from bert_jax.data.text.text_files import find_files
from experiments.base import get_config
from tests import s3

pytestmark, server, bucket = s3.pytestmark, s3.server, s3.bucket
FILES = {
    "corpus/a.txt": b"One sentence here.\nAnother one.\n\nThird one.\n",
    "corpus/b.txt.gz": gzip.compress(b"Of a compressed file.\n"),
    "rows/train.csv": b"text,label\ngood,1\nbad,0\n",
}


@pytest.fixture
def texts(bucket: str) -> str:
    """The URL of a bucket with FILES in it."""
    for name, content in FILES.items():
        buckets.Bucket(bucket, "test").write(name, content)
    return bucket


def corpus_of(files: str):
    data = get_config().data
    data.update(corpus="text", files=files)
    return open_corpus(data)


@s3.needed
def test_a_corpus_in_a_bucket_is_that_of_local_files(texts: str, tmp_path: Path):
    for name in ("a.txt", "b.txt.gz"):
        (tmp_path / name).write_bytes(FILES[f"corpus/{name}"])
    local, remote = corpus_of(f"{tmp_path}/*.txt*"), corpus_of(f"{texts}/corpus/*")
    assert remote.fingerprint == local.fingerprint
    assert [document.text for document in remote.documents()] == [document.text for document in local.documents()]
    assert next(remote.documents()).source == "s3://texts/corpus/a.txt:1"
    assert [source.num_bytes for source in remote.sources] == [source.num_bytes for source in local.sources]
    path = pickle.loads(pickle.dumps(find_files(f"{texts}/corpus/a.txt")[0]))
    assert str(path) == f"{texts}/corpus/a.txt" and path.read_bytes() == FILES["corpus/a.txt"]


@s3.needed
@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs Apache Beam")
def test_beam_with_corpus_and_parts_in_a_bucket(texts: str, tmp_path: Path):
    import s3fs

    folders = []
    for runner, changes in (("local", {}), ("beam", {"beam_temp": f"{texts}/temp"})):
        data = get_config().data
        data.update(corpus="text", files=f"{texts}/corpus/*", prepared=str(tmp_path / runner), runner=runner)
        data.update(vocab_size=100, sequence_length=16, **changes)
        folders.append(prepare(data, 0, progress=False).directory)
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in folders]
    assert names[0] == names[1] and len(names[0]) > 5
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names[0])
    assert s3fs.S3FileSystem(key="k", secret="s", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).find("texts/temp") == []


@s3.needed
def test_labelled_rows_in_a_bucket(texts: str):
    assert [row.values for row in read_rows(f"{texts}/rows/train.csv")] == [
        {"text": "good", "label": "1"},
        {"text": "bad", "label": "0"},
    ]


@s3.needed
@pytest.mark.parametrize("name", ["corpus/none*", "corpus/none.txt", "corpus"])
def test_what_is_not_there(texts: str, name: str):
    with pytest.raises(UserError, match=rf"^data\.files: no file matches {re.escape(f'{texts}/{name}')}: [^\n]*$"):
        find_files(f"{texts}/{name}")


@s3.needed
def test_a_bucket_without_credentials(texts: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    importlib.import_module("s3fs").S3FileSystem.clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^data\.files: s3://[^\n]*credentials\): check[^\n]*your credentials$"):
        find_files(f"{texts}/corpus/*")
    assert time.monotonic() - started < buckets._FIRST_ANSWER


def test_a_bucket_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(buckets, "_FIRST_ANSWER", 0.2)
    monkeypatch.setattr(buckets, "_names", lambda *_: time.sleep(30))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"^data\.files: gs://b/x: no answer for 0 s: check the name, the network"):
        find_files("gs://b/x")


def test_other_schemes_and_a_missing_extra(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"^data\.files: http://x/y: http:// is not read: use gs://, s3://"):
        find_files("http://x/y")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^data\.files: s3://b/x needs s3fs, .*pip install -e '\.\[remote\]'$"):
        find_files("s3://b/x")


@pytest.mark.parametrize("name", ["--workdir", "data.prepared"])
def test_folders_in_buckets_are_refused(name: str):
    config, workdir = get_config(), Path("runs/mine")
    check_folders(config, workdir)
    if name == "data.prepared":
        config.data.prepared = "gs://b/run"
    else:
        workdir = Path("gs://b/run")
    with pytest.raises(UserError, match=rf"^{name}: gs://b/run is not a folder of this machine .*use a local folder"):
        check_folders(config, workdir)
