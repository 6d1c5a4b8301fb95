"""Outputs: nothing that was there is lost, whatever the name of the output is and whatever goes wrong."""

import json
import math
import os
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.labelled.tables import InputRow, Row
from bert_jax.inference.glue_submission import add_to_submission, check_submission
from bert_jax.inference.output import check_output, json_line, whole_file, write_answers, write_jsonl

SUFFIXES = (".jsonl", ".npy")


def rows(count, **values):
    return [InputRow(i, Row(f"x:{i}", {"text": "t", **values})) for i in range(1, count + 1)]


def label(stream):
    return ({"label": "a"} for _ in stream)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("precious")
    return tmp_path


def test_the_input_is_never_the_output(folder):
    os.link("in.jsonl", "hard.jsonl")
    os.symlink("in.jsonl", "soft.jsonl")
    Path("in.jsonl.partial").write_text("precious too")
    for output in ("in.jsonl", "./in.jsonl", str(folder / "in.jsonl"), "hard.jsonl", "soft.jsonl"):
        with pytest.raises(UserError, match=r"is the same file as in.jsonl, which it would destroy"):
            check_output(output, SUFFIXES, ["in.jsonl"])
    with pytest.raises(UserError, match="is the same file as -"):
        code = "from bert_jax.inference.output import check_output; check_output('in.jsonl', ('.jsonl',), ['-'])"
        with open("in.jsonl") as stdin:
            found = subprocess.run([sys.executable, "-c", code], stdin=stdin, capture_output=True, text=True)
        raise UserError(found.stderr)
    check_output("new.jsonl", SUFFIXES, ["in.jsonl", "tfds:x@test", "a,b"])
    write_jsonl(rows(2), label, "in.jsonl.partial2.jsonl", skip_bad=False)
    assert Path("in.jsonl").read_text() == "precious" and Path("in.jsonl.partial").read_text() == "precious too"


def test_what_cannot_be_written_is_found_first(folder):
    Path("file").touch()
    Path("sub").mkdir()
    for output, message in (
        ("sub", "is a folder"),
        ("x.doc", r"unknown suffix '.doc'; it can be .jsonl, .npy"),
        ("x", "unknown suffix ''"),
        ("file/x.jsonl", r"cannot be written \(.*\); choose another"),
        ("/proc/x.jsonl", r"cannot be written \(.*\); choose another"),
    ):
        with pytest.raises(UserError, match=message):
            check_output(output, SUFFIXES, [])
    check_output("made/for/it/x.jsonl", SUFFIXES, [])
    assert Path("made/for/it").is_dir()
    assert sorted(os.listdir()) == ["file", "in.jsonl", "made", "sub"] and not os.listdir("made/for/it")


def test_links_stay_and_modes_follow_the_umask(folder):
    Path("sub").mkdir()
    Path("sub/target.jsonl").write_text("old")
    os.symlink("sub/target.jsonl", "link.jsonl")
    before = os.umask(0o027)
    try:
        write_jsonl(rows(2), label, "link.jsonl", skip_bad=False)
    finally:
        os.umask(before)
    assert os.readlink("link.jsonl") == "sub/target.jsonl"
    assert [json.loads(line)["line"] for line in Path("sub/target.jsonl").read_text().splitlines()] == [1, 2]
    assert stat.S_IMODE(os.stat("sub/target.jsonl").st_mode) == 0o640
    assert os.listdir("sub") == ["target.jsonl"]


def test_devices_and_fifos_are_written_in_place(folder):
    check_output("/dev/null", SUFFIXES, ["/dev/null"])
    write_jsonl(rows(1), label, "/dev/null", skip_bad=False)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(UserError, match=r"/dev/full cannot be written \(No space left on device\)"):
        write_jsonl(rows(1), label, "/dev/full", skip_bad=False)
    os.mkfifo("pipe")
    check_output("pipe", SUFFIXES, ["in.jsonl"])
    received = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()))
    reader.start()
    with whole_file(Path("pipe")) as file:  # as a format does that writes its header last
        file.write(b"...two")
        file.seek(0)
        file.write(b"one")
    reader.join(10)
    assert received == [b"onetwo"] and stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_two_predictions_to_one_output_do_not_mix(folder):
    with whole_file(Path("x.jsonl")) as one:
        with whole_file(Path("x.jsonl")) as other:
            one.write(b"one")
            other.write(b"other")
        assert Path("x.jsonl").read_bytes() == b"other"
    assert Path("x.jsonl").read_bytes() == b"one"
    assert sorted(os.listdir()) == ["in.jsonl", "x.jsonl"]


def test_after_an_error_the_old_output_is_there(folder):
    Path("x.jsonl").write_text("old")

    def torn(stream):
        yield {"answer": "a", "id": "1"}
        raise UserError("x:2: torn")

    with pytest.raises(UserError, match=r"torn; what came before it is in x.jsonl.\w+.partial"):
        write_jsonl(rows(2), torn, "x.jsonl", skip_bad=False)
    [kept] = folder.glob("x.jsonl.*.partial")
    assert json.loads(kept.read_text())["line"] == 1
    kept.unlink()
    with pytest.raises(UserError, match=r"torn$"):
        write_answers(rows(2), torn, "x.jsonl", skip_bad=False)
    with pytest.raises(KeyboardInterrupt), whole_file(Path("x.jsonl"), keeps_partial=True):
        raise KeyboardInterrupt
    assert Path("x.jsonl").read_text() == "old" and sorted(os.listdir()) == ["in.jsonl", "x.jsonl"]


@pytest.mark.parametrize(
    ("id", "expected"),
    [(math.nan, None), (math.inf, None), (7, 7), ([math.nan, 1], [None, 1]), (b"x", "b'x'"), ("\ud800", "\ud800")],
)
def test_every_line_is_valid_json(id, expected, folder):
    write_jsonl(rows(1, id=id), label, "x.jsonl", skip_bad=False)
    constants = []
    found = json.loads(Path("x.jsonl").read_text("utf-8"), parse_constant=constants.append)
    assert found["id"] == expected and not constants
    assert json_line({"p": np.float64(math.nan)}) == b'{"p": null}\n'


def test_standard_output_ends_cleanly(folder):
    code = (
        "import sys; from bert_jax.inference.output import *; from bert_jax.data.labelled.tables import Row\n"
        "rows = [InputRow(i, Row('x', {})) for i in range(9999)]\n"
        "try:\n    check_output('-', (), []); write_jsonl(rows, lambda s: ({} for _ in s), '-', skip_bad=False)\n"
        "except UserError as error:\n    print(error, file=sys.stderr); sys.exit(2)\n"
    )
    for redirection, message in ((">/dev/full", "No space left on device"), (">&-", "standard output is closed")):
        shell = f"exec '{sys.executable}' -c \"$CODE\" {redirection}"
        environment = os.environ | {"CODE": code}
        found = subprocess.run(["sh", "-c", shell], env=environment, capture_output=True, text=True, timeout=60)
        assert found.returncode == 2 and message in found.stderr and found.stderr.count("\n") == 1, found.stderr


@pytest.mark.parametrize("member", ["../evil.tsv", "/etc/passwd", "note.txt"])
def test_a_zip_from_elsewhere_stays_as_it_is(member, folder):
    with zipfile.ZipFile("s.zip", "w") as file:
        file.writestr(member, "x")
    before = Path("s.zip").read_bytes()
    description = {"labels": ["entailment", "not_entailment"], "label_kind": "single"}
    for add in (
        lambda: check_submission(Path("s.zip"), "RTE", description),
        lambda: add_to_submission(Path("s.zip"), "RTE", [{"label": "entailment"}], description["labels"]),
    ):
        with pytest.raises(UserError, match="which no submission does; remove it"):
            add()
    assert Path("s.zip").read_bytes() == before


def test_a_zip_that_is_huge_or_damaged_is_refused(folder):
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("RTE.tsv", bytes(1 << 27))
    Path("cut.zip").write_bytes(Path("bomb.zip").read_bytes()[:-40])
    with zipfile.ZipFile("twice.zip", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(20):
            file.writestr("RTE.tsv", "index\tprediction\n")
    description = {"labels": ["entailment", "not_entailment"], "label_kind": "single"}
    wrong = (("bomb.zip", "too many"), ("twice.zip", "holds a file twice"), ("cut.zip", "no zip that can be added to"))
    for name, message in wrong:
        with pytest.raises(UserError, match=message):
            check_submission(Path(name), "RTE", description)
    with pytest.raises(UserError, match="--glue=RTE takes one class per text"):
        check_submission(Path("new.zip"), "RTE", {"labels": [], "label_kind": "regression"})


def test_several_commands_add_to_one_zip(folder):
    names = ["CoLA", "SST-2", "MRPC", "QQP", "WNLI"]
    adding = [
        threading.Thread(target=add_to_submission, args=(Path("s.zip"), name, [{"label": "0"}], ["0", "1"]))
        for name in names
    ]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join(30)
    with zipfile.ZipFile("s.zip") as file:
        assert sorted(file.namelist()) == sorted(f"{name}.tsv" for name in names)
