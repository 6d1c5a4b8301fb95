"""Files in an S3 bucket of a local server: found, read, and refused in one line."""

import gzip
import importlib.util
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_jax.config import UserError
from bert_jax.data.labelled.tables import read_rows
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.text import buckets
from bert_jax.data.text.corpus import open_corpus
from bert_jax.data.text.text_files import find_files
from bert_jax.run import check_folders
from experiments.base import get_config

missing = [name for name in ("s3fs", "moto", "flask_cors") if importlib.util.find_spec(name) is None]
needs_server = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
# Those of the S3 libraries; warnings of this package stay errors.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "ResourceWarning")]
FILES = {
    "corpus/a.txt": b"One sentence here.\nAnother one.\n\nThird one.\n",
    "corpus/b.txt.gz": gzip.compress(b"Of a compressed file.\n"),
    "rows/train.csv": b"text,label\ngood,1\nbad,0\n",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Starts a server with FILES in the bucket `texts`; gives its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline and process.poll() is None, "the server did not start"
            time.sleep(0.1)
        import s3fs

        files = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=url)
        files.mkdir("texts")
        for name, content in FILES.items():
            files.pipe_file(f"texts/{name}", content)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    return "s3://texts"


def corpus_of(files: str):
    data = get_config().data
    data.update(corpus="text", files=files)
    return open_corpus(data)


@needs_server
def test_a_corpus_in_a_bucket_is_that_of_local_files(bucket: str, tmp_path: Path):
    for name in ("a.txt", "b.txt.gz"):
        (tmp_path / name).write_bytes(FILES[f"corpus/{name}"])
    local, remote = corpus_of(f"{tmp_path}/*.txt*"), corpus_of(f"{bucket}/corpus/*")
    assert remote.fingerprint == local.fingerprint
    assert [document.text for document in remote.documents()] == [document.text for document in local.documents()]
    assert next(remote.documents()).source == "s3://texts/corpus/a.txt:1"
    assert [source.num_bytes for source in remote.sources] == [source.num_bytes for source in local.sources]
    path = pickle.loads(pickle.dumps(find_files(f"{bucket}/corpus/a.txt")[0]))
    assert str(path) == f"{bucket}/corpus/a.txt" and path.read_bytes() == FILES["corpus/a.txt"]


@needs_server
@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs Apache Beam")
def test_beam_with_corpus_and_parts_in_a_bucket(bucket: str, tmp_path: Path):
    import s3fs

    folders = []
    for runner, changes in (("local", {}), ("beam", {"beam_temp": f"{bucket}/temp"})):
        data = get_config().data
        data.update(corpus="text", files=f"{bucket}/corpus/*", prepared=str(tmp_path / runner), runner=runner)
        data.update(vocab_size=100, sequence_length=16, **changes)
        folders.append(prepare(data, 0, progress=False).directory)
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in folders]
    assert names[0] == names[1] and len(names[0]) > 5
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names[0])
    assert s3fs.S3FileSystem(key="k", secret="s", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).find("texts/temp") == []


@needs_server
def test_labelled_rows_in_a_bucket(bucket: str):
    assert [row.values for row in read_rows(f"{bucket}/rows/train.csv")] == [
        {"text": "good", "label": "1"},
        {"text": "bad", "label": "0"},
    ]


@needs_server
@pytest.mark.parametrize("name", ["corpus/none*", "corpus/none.txt", "corpus"])
def test_what_is_not_there(bucket: str, name: str):
    with pytest.raises(UserError, match=rf"^data\.files: no file matches {re.escape(f'{bucket}/{name}')}: [^\n]*$"):
        find_files(f"{bucket}/{name}")


@needs_server
def test_a_bucket_without_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^data\.files: s3://[^\n]*credentials\): check[^\n]*your credentials$"):
        find_files(f"{bucket}/corpus/*")
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
    with pytest.raises(UserError, match=r"^data\.files: s3://b/x needs s3fs, .*pip install 'bert_jax\[remote\]'$"):
        find_files("s3://b/x")


@pytest.mark.parametrize("name", ["--workdir", "data.prepared", "init_from"])
def test_folders_in_buckets_are_refused(name: str):
    config, workdir = get_config(), Path("runs/mine")
    check_folders(config, workdir)
    if name == "data.prepared":
        config.data.prepared = "gs://b/run"
    elif name == "init_from":
        config.init_from = "gs://b/run"
    else:
        workdir = Path("gs://b/run")
    with pytest.raises(UserError, match=rf"^{name}: gs://b/run is not a folder of this machine .*rsync"):
        check_folders(config, workdir)
