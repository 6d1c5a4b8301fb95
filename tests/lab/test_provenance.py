"""environment.json: an entry for every start that differs, and what the code is."""

import json
import subprocess
from types import SimpleNamespace

import jax
import pytest

from bert_jax.config import UserError
from bert_jax.lab import provenance
from bert_jax.lab.provenance import Provenance, differences, read_environments
from bert_jax.options import default_config
from bert_jax.sharding import make_mesh


def begin(workdir, step=0, source="", **data):
    task = SimpleNamespace(fingerprints=lambda: data)
    Provenance(workdir, source).begin(
        task, SimpleNamespace(step=step), make_mesh(default_config().mesh, jax.devices()[:1])
    )
    return read_environments(workdir)


def test_a_start_that_differs_is_a_new_entry(tmp_path):
    first = begin(tmp_path, source="abc", corpus="one")
    assert len(first) == 1 and first[0]["data"] == {"corpus": "one", "init_from": "abc"}
    assert len(begin(tmp_path, step=5, corpus="one")) == 1  # it continues, and no longer reads what it started from
    second = begin(tmp_path, step=9, corpus="two")
    assert [entry["step"] for entry in second] == [0, 9]
    assert differences(*second) == [("data.corpus", "one", "two")]


def test_a_long_fingerprint_is_kept_as_a_hash(tmp_path):
    [entry] = begin(tmp_path, shards=str([("file", 1, 2)] * 50))
    assert len(entry["data"]["shards"]) == 32


@pytest.mark.parametrize(
    "content", ["", "[]", '{"starts": {}}', '{"starts": [1]}', '{"starts": [{"data": "x"}]}', "[" * 100_000]
)
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"environment.json is no list of environments; restore it, or move it away"):
        read_environments(tmp_path)


def test_the_commit_and_what_was_not_committed(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance._commit() == ("", "")  # no checkout
    git("init", "-q")
    (tmp_path / "bert_jax").mkdir()
    (tmp_path / "bert_jax" / "a.py").write_text("1\n")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit, changes = provenance._commit()
    assert len(commit) == 40 and changes == ""
    (tmp_path / "notes.md").write_text("no code")
    assert provenance._commit() == (commit, "")
    (tmp_path / "bert_jax" / "a.py").write_text("2\n")
    edited = provenance._commit()[1]
    (tmp_path / "bert_jax" / "b.py").write_text("new")
    added = provenance._commit()[1]
    (tmp_path / "bert_jax" / "b.py").write_text("newer")
    assert len({"", edited, added, provenance._commit()[1]}) == 4


def test_it_holds_no_secrets_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    [entry] = begin(tmp_path)
    assert "secret" not in json.dumps(entry)
    assert entry["devices"]["settings"]["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
