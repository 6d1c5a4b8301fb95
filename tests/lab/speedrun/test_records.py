"""Entries and their rules, and a file of records that only takes what the rules allow and shows what was edited."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from bert_jax.command import exit_status
from bert_jax.config import UserError
from bert_jax.lab.speedrun.command import main
from bert_jax.lab.speedrun.entries import Entry, config_hash, has_comparable_mlm_loss, load_entry
from bert_jax.lab.speedrun.record_file import add_record, read_records
from bert_jax.lab.speedrun.runs import SCORE_FILE, Figures, Measured, as_study, measure
from bert_jax.lab.speedrun.table import put_into, to_table
from bert_jax.lab.study import plan
from tests.lab import study_folders

REPOSITORY = Path("experiments/speedrun/records.json")
ENTRIES = sorted(path for path in Path("experiments/speedrun").glob("*.py") if path.stem not in ("__init__", "common"))
HELD_OUT = "c0ffee"
ENVIRONMENT = {
    "code": {"commit": "6e382b26eee35b674e9f314fc91415c6975240f2", "changes": ""},
    "packages": {"jax": "0.10.2"},
    "machine": {"processor": "a | processor", "cores": 2},
    "devices": {"platform": "cpu", "count": 1},
}
FIRST = [1.501, 1.512, 1.497, 1.505, 1.493]
SECOND = [1.401, 1.412, 1.397, 1.405, 1.393]


def measured(
    scores: Sequence[float], seconds: float = 1700.0, loss: float | None = 4.2, **environment: Any
) -> Measured:
    figures = [
        Figures(i, 900, seconds + i, 20.0, 8.0, 9.0, 1.0, score, loss, f"model {score}")
        for i, score in enumerate(scores)
    ]
    return Measured(figures, HELD_OUT, ENVIRONMENT | environment)


@pytest.fixture
def entry() -> Callable[..., Any]:
    """entry("name", track) → small_en's entry under another name and in another class."""
    start = load_entry("experiments/speedrun/small_en.py")
    return lambda name="one", track="cpu2-30min": replace(start, name=name, entry=Entry(track, f"{name} <b>"))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.json"
    path.write_text(json.dumps({"held_out": HELD_OUT, "records": []}))
    return path


def add(path: Path, entry: Any, runs: Measured, **more: Any) -> Mapping[str, Any]:
    return add_record(path, entry, runs, date="2026-11-30", **more)


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_entries_keep_the_rules_and_make_five_runs(path: Path):
    loaded = load_entry(f"{path}:some/corpus")
    assert "some/corpus/enwiki2015" in loaded.config.data.files
    assert loaded.config_hash == load_entry(str(path)).config_hash  # where the corpus lies does not matter
    assert [run.overrides for run in plan(as_study(loaded, 5))] == [{"seed": seed} for seed in range(5)]
    text = path.read_text()
    assert f"speedrun run {path}" in text and "Hardware:" in text and "Expect:" in text


def test_the_repository_s_records_are_whole_and_their_entries_still_make_them():
    _, found = read_records(REPOSITORY)
    for record in found:
        assert load_entry(str(REPOSITORY.with_name(f"{record['entry']}.py"))).config_hash == record["config"]
    page = Path("docs/speedrun.md").read_text()
    assert f"<!-- records: begin -->\n\n{to_table(found)}\n<!-- records: end -->" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data.seed": 1}, "data.seed is 1; the rules of the speedrun fix it at 12345"),
        ({"init_from": "x"}, "init_from is 'x'; the rules"),
        ({"distillation.teacher": "x"}, "distillation.teacher is 'x'; the rules"),
        ({"corpora.more.files": "x"}, "corpora has more; the rules fix the corpus, which data.files names"),
        ({"model.causal": True}, "model.causal is True; the score is of masked models"),
        ({"train.epochs": 1.0}, "train.epochs is 1.0; an entry fixes its steps"),
        ({"data.vocab_size": 4000}, "data.vocab_size is 4000; this class compares the MLM loss, which needs 8000"),
    ],
)
def test_an_entry_against_the_rules_is_refused_in_one_line(options: Mapping[str, Any], message: str, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from bert_jax.experiment import set_options\nfrom bert_jax.lab.speedrun.entries import Entry\n"
        "from experiments.speedrun import common\n\ndef get_entry(): return Entry('cpu2-target', 'all')\n\n"
        f"def get_config():\n    config = common.start()\n    set_options(config, {options!r})\n    return config\n"
    )
    with pytest.raises(UserError) as caught:
        load_entry(str(path))
    assert str(caught.value).startswith(f"{path}: {message}")


def test_hash_of_a_config_is_about_what_a_run_learns():
    start = load_entry("experiments/speedrun/small_en.py").config
    same, other = start.copy_and_resolve_references(), start.copy_and_resolve_references()
    with same.unlocked():
        same.update(seed=3)
        same.model.update(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu_tanh")
        same.train.log_every = 7
    other.optimizer.learning_rate = 3e-3
    assert config_hash(same) == config_hash(start) != config_hash(other)
    assert has_comparable_mlm_loss(start)
    other.data.mask_rate = 0.3
    assert not has_comparable_mlm_loss(other)


def test_records_need_a_lower_mean_with_p_below_one_percent(records: Path, entry: Callable):
    first = add(records, entry("one"), measured(FIRST))
    assert first["statistics"]["p"] is None and first["statistics"]["mean"] == pytest.approx(1.5016)
    second = add(records, entry("two"), measured(SECOND))
    p = stats.ttest_ind(SECOND, FIRST, equal_var=False).pvalue
    assert second["statistics"]["p"] == pytest.approx(p) and second["statistics"]["difference"] == pytest.approx(-0.1)
    before = records.read_bytes()
    close = [x - 0.003 for x in SECOND]
    for scores in (close, FIRST):
        with pytest.raises(UserError, match=r"three is no record: .* nats per character against two, p = .*p < 0.01"):
            add(records, entry("three"), measured([x + 1e-4 for x in scores]))
    assert records.read_bytes() == before
    assert [record["entry"] for record in read_records(records)[1]] == ["one", "two"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (measured(FIRST[:4]), "one has 4 complete runs; a record needs 5 seeds: run experiments/.* --seeds=5"),
        (measured(FIRST, 1798.0), "one, seed 3: training took 1801 s, over 1800; take fewer steps"),
        (measured([1.5] * 5), "two runs have the same parameters"),
        (measured(FIRST, code={"commit": "1234", "changes": "5678"}), "code that is not committed"),
        (measured(FIRST, machine={"processor": "x", "cores": 8}), "used 8 of cpu; the class cpu2-30min is for 2"),
        (replace(measured(FIRST), held_out="other"), "scored on other words"),
    ],
)
def test_runs_against_the_rules_are_no_record(runs: Measured, message: str, records: Path, entry: Callable):
    with pytest.raises(UserError, match=message):
        add(records, entry(), runs)
    assert read_records(records)[1] == []


def test_a_target_has_to_be_reached_by_every_seed_and_seconds_are_compared(records: Path, entry: Callable):
    with pytest.raises(UserError, match=r"mlm_loss is 4.25, over the 4.24 of the class"):
        add(records, entry(track="cpu2-target"), measured(FIRST, loss=4.25))
    add(records, entry("slow", "cpu2-target"), measured(FIRST, 1700.0))
    assert add(records, entry("fast", "cpu2-target"), measured(FIRST, 400.0))["statistics"]["mean"] == 402.0


def test_another_machine_needs_the_record_s_runs_on_it(records: Path, entry: Callable):
    add(records, entry("one"), measured(FIRST))
    here = {"machine": {"processor": "a faster one", "cores": 2}}
    with pytest.raises(
        UserError, match=r"one was measured on another machine \(a \| processor, 2 cores\): .*--against"
    ):
        add(records, entry("two"), measured(SECOND, **here))
    with pytest.raises(UserError, match="--against were made on another machine"):
        add(records, entry("two"), measured(SECOND, **here), against=measured(FIRST))
    with pytest.raises(UserError, match="two is no record"):
        add(records, entry("two"), measured(SECOND, **here), against=measured([x + 0.001 for x in SECOND], **here))
    found = add(records, entry("two"), measured(SECOND, **here), against=measured([x - 0.05 for x in FIRST], **here))
    assert found["statistics"]["difference"] == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda all: all[0]["runs"][2].update(nats_per_character=1.2), "record 1: one was edited"),
        (lambda all: all[1].update(changed="more"), "record 2: two was edited"),
        (lambda all: all[1]["statistics"].update(p=1e-30), "record 2: two was edited"),
        (lambda all: all.pop(0), "record 1: two was edited"),
        (lambda all: all[0].pop("hash"), "is no file of records"),
        (lambda all: all.append(3), "is no file of records"),
    ],
)
def test_a_record_edited_by_hand_is_found(edit: Callable, message: str, records: Path, entry: Callable):
    add(records, entry("one"), measured(FIRST))
    add(records, entry("two"), measured(SECOND))
    content = json.loads(records.read_text())
    edit(content["records"])
    records.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_records(records)
    assert "git checkout" in str(caught.value) and "\n" not in str(caught.value)


def test_figures_with_a_new_hash_still_have_to_agree(records: Path, entry: Callable):
    """Somebody who also computes the hash again."""
    from bert_jax.lab.speedrun.record_file import _hash

    add(records, entry("one"), measured(FIRST))
    for edit, message in (
        (lambda one: one["runs"][0].update(nats_per_character=1.0), "the statistics of one are not those of its runs"),
        (lambda one: one["runs"].pop(), "does not follow the record before it with 5 seeds"),
        (lambda one: one["runs"][0].update(training_seconds=9999.0), "training took 9999 s, over 1800"),
        (lambda one: one.update(entry="../../evil"), "its entry or class has no such name"),
    ):
        content = json.loads(records.read_text())
        edit(content["records"][0])
        content["records"][0]["hash"] = _hash(content["records"][0], [])
        other = records.with_name("other.json")
        other.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            read_records(other)


def test_runs_are_measured_from_their_folders(tmp_path: Path):
    loaded = load_entry("experiments/speedrun/small_en.py")
    study = as_study(loaded, 2)
    runs = study_folders.make_folder(tmp_path, study)
    for seed, run in enumerate(runs):
        folder = tmp_path / run.key
        own = loaded.config.copy_and_resolve_references()
        own.seed = seed
        (folder / "config.json").write_text(own.to_json())
        ledger = {"step": 36_000, "split": "ledger", "useful": 100.0, "waiting": 2.0, "lost": 3.0, "compile": 5.0}
        lines = [{"step": 36_000, "split": "eval", "mlm_loss": 4.2 + seed}, ledger | {"start": 7.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        scored = {"step": 36_000, "nats_per_character": 1.5, "words": 9, "unknown": 0, "held_out": "x"}
        (folder / SCORE_FILE).write_text(json.dumps(scored | {"model": str(seed)}))
    found = measure(tmp_path, loaded.file, loaded.config_hash)
    assert found.figures[1] == Figures(1, 36_000, 105.0, 7.0, 5.0, 0.0, 0.0, 1.5, 5.2, "1")
    with pytest.raises(UserError, match="has another config than"):
        measure(tmp_path, loaded.file, "another")
    (tmp_path / runs[1].key / SCORE_FILE).write_text("{}")
    with pytest.raises(UserError, match=f"{SCORE_FILE} is damaged; delete it"):
        measure(tmp_path, loaded.file, loaded.config_hash)
    (tmp_path / runs[1].key / SCORE_FILE).unlink()
    with pytest.raises(UserError, match=r"is not scored; python -m bert_jax.lab.speedrun score"):
        measure(tmp_path, loaded.file, loaded.config_hash)


def test_the_table_has_what_a_reader_asks_and_no_markup_of_others(records: Path, entry: Callable, tmp_path: Path):
    add(records, entry("one"), measured(FIRST))
    add(records, entry("two"), measured(SECOND, loss=None))
    text = to_table(read_records(records)[1])
    rows = [line for line in text.splitlines() if line.startswith("| 2") or line.startswith("| 1")]
    assert [row.split(" | ")[1] for row in rows] == ["two", "one"]  # the newest first
    assert "1.4016 ± 0.0" in rows[0] and "28 min 22 s" in rows[0] and "\\<b\\>" in text and "a \\| processor" in text
    assert text.count("No record yet.") == 3
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- records: begin -->\nold\n<!-- records: end -->\nafter\n")
    put_into(page, text)
    assert page.read_text() == f"before\n<!-- records: begin -->\n\n{text}\n<!-- records: end -->\nafter\n"
    page.write_text("nothing")
    with pytest.raises(UserError, match="lacks the marks"):
        put_into(page, text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the command is missing; give score, run, record, table"),
        (["recrd"], "did you mean record?"),
        (["run"], "run: 0 names are given"),
        (["table", "x"], "table: 1 names are given"),
        (["record", "--records=nothing.json"], "nothing.json does not exist"),
        (["score", "nothing"], "nothing is not the workdir of a run"),
        (["run", "nothing.py"], "entry file nothing.py does not exist"),
        (["record", "experiments/base.py"], "it defines no function get_entry()"),
    ],
)
def test_commands_refuse_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture):
    assert exit_status(main, words) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
