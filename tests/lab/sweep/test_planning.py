"""What of a study is already on disk: runs that stay, that changed, that are made again; records that are damaged."""

import fcntl
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from bert_jax.config import UserError
from bert_jax.lab.records import (
    COMPLETE,
    FAILED,
    RUNNING,
    STALE,
    STUDY,
    UNFINISHED,
    WAITING,
    read_run,
    read_study,
    write_record,
    write_study,
)
from bert_jax.lab.space import Search, log_uniform, one_of, uniform
from bert_jax.lab.study import PlannedRun, Published, Stage, Study, choice, grid, plan, seeds
from bert_jax.lab.sweep.command import main, planning, sweep

BASE = "experiments/tiny.py"


def study(*levels: str, rate: float = 1e-3, count: int = 2) -> Study:
    objective = choice("objective", {level: {"optimizer.learning_rate": rate} for level in levels or ("a", "b")})
    return Study("?", (Stage("pretrain", BASE, grid(objective, seeds(count))), Stage("tune", BASE, after="pretrain")))


def made(workdir: Path, of: Study, status: str = COMPLETE) -> list[PlannedRun]:
    """Writes a study of which every run has this status."""
    planned = plan(of)
    workdir.mkdir(exist_ok=True)
    write_study(workdir, "study", "study.py", of, planned)
    configs = planning.resolve(of, planned, workdir)
    for one in planned:
        planning.write_request(workdir, one, configs[one.key], "")
        record = read_run(workdir, one)
        write_record(replace(record, status=status, result={"eval": {"loss": 1.0}}, attempts=1))
        (record.folder / "checkpoints" / "10").mkdir(parents=True)
    return planned


def changes(workdir: Path, of: Study) -> dict[str, str]:
    planned = plan(of)
    return planning.changed_keys(workdir, planned, planning.resolve(of, planned, workdir))


def test_configs_are_the_base_with_the_overrides_and_the_run_before(tmp_path: Path):
    planned = plan(study(rate=3e-4))
    configs = planning.resolve(study(rate=3e-4), planned, tmp_path)
    first, last = configs["pretrain/objective=a,seed=0"], configs["tune/objective=b,seed=1"]
    assert first.optimizer.learning_rate == 3e-4 and first.model.size == "tiny" and first.init_from == ""
    assert last.seed == 1 and last.init_from == str(tmp_path / "pretrain/objective=b,seed=1")
    assert last.optimizer.learning_rate == 5e-3  # overrides are not inherited


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.pairng": "none"}, "stage s, x = bad: data.pairng is not an option; the nearest is data.pairing"),
        ({"data": 1}, "stage s, x = bad: data is a group of options; set one of them, as data.KEY=VALUE"),
        ({"train.steps": "ten"}, "stage s, x = bad: train.steps is 'ten'; it must be a whole number"),
        ({"train.steps": 0}, "stage s, x = bad: train.steps is 0; it must be"),
        (
            {"data.pairing": "nps"},
            "stage s, x = bad: data.pairing is 'nps'; it can be nsp, sop, none (did you mean nsp?)",
        ),
    ],
)
def test_a_wrong_override_names_stage_and_level(tmp_path: Path, overrides: dict, message: str):
    wrong = Study("?", (Stage("s", BASE, grid(choice("x", {"good": {}, "bad": overrides}))),))
    with pytest.raises(UserError) as error:
        sweep(wrong, "w", "w.py", tmp_path)
    assert message in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_base_that_fails_names_its_stage(tmp_path: Path):
    with pytest.raises(UserError, match=r"stage s: config file experiments/tinny\.py does not exist; did you mean"):
        sweep(Study("?", (Stage("s", "experiments/tinny.py"),)), "w", "w.py", tmp_path)


def test_a_base_is_found_from_the_study_wherever_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beside the study, then in the folders above it, then in the current folder."""
    experiment = "from bert_jax.options import default_config\ndef get_config(seed='1'):\n"
    experiment += "    config = default_config()\n    config.seed = int(seed) + %d\n    return config\n"
    for number, folder in enumerate(("", "lab", "lab/studies", "elsewhere")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "other.py").write_text(experiment % (10 * number))
    monkeypatch.chdir(tmp_path / "elsewhere")
    of = Study("?", (Stage("s", "other.py:4"),))

    def seed(file: str) -> int:
        [config] = planning.resolve(of, plan(of), tmp_path, file).values()
        return config.seed

    assert seed(f"{tmp_path}/lab/studies/study.py:argument") == 24 and seed("../lab/deeper/study.py") == 14
    (tmp_path / "lab" / "other.py").unlink()
    assert seed("../lab/study.py") == 4
    (tmp_path / "other.py").unlink()
    assert seed("../lab/study.py") == 34


def test_a_changed_study_keeps_its_runs_and_leaves_stale_ones_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    made(tmp_path, study("a", "b"))
    changed = study("a", "c")
    assert changes(tmp_path, changed) == {}
    with caplog.at_level(logging.INFO):
        planning.tell_changes(plan(changed), planning.read_before(tmp_path, "study"))
    assert "4 runs stay, 4 are new, 4 no longer belong to it (pretrain/objective=b,seed=0, " in caplog.text
    write_study(tmp_path, "study", "study.py", changed, plan(changed))
    runs = read_study(tmp_path).runs
    assert [run.status for run in runs] == [
        *[COMPLETE] * 2,
        *[WAITING] * 2,
        *[COMPLETE] * 2,
        *[WAITING] * 2,
        *[STALE] * 4,
    ]
    assert runs[-1].levels == {"objective": "b", "seed": "1"}
    assert [run.name for run in read_study(tmp_path).of("tune")] == [one.name for one in plan(changed)[4:]]


def test_a_run_that_was_made_under_another_config_is_named_with_the_key(tmp_path: Path):
    made(tmp_path, study("a"))
    found = changes(tmp_path, study("a", rate=5e-4))
    assert found.keys() == {"pretrain/objective=a,seed=0", "pretrain/objective=a,seed=1"}
    assert found["pretrain/objective=a,seed=0"] == "optimizer.learning_rate was 0.001, is 0.0005"
    with pytest.raises(UserError) as error:
        sweep(study("a", rate=5e-4), "study", "study.py", tmp_path)
    assert "pretrain/objective=a,seed=0 was made with another config (optimizer.learning_rate" in str(error.value)
    assert "--rerun='pretrain/objective=a,seed=0'" in str(error.value)


def test_what_has_not_begun_may_change_and_so_may_what_only_restarts(tmp_path: Path):
    planned = made(tmp_path, study("a"), FAILED)
    for one in planned:
        (tmp_path / one.key / "checkpoints" / "10").rmdir()
    assert changes(tmp_path, study("a", rate=5e-4)) == {}
    other = Study("?", (Stage("pretrain", BASE, overrides={"train.log_every": 7}),))
    made(tmp_path / "other", other)
    assert changes(tmp_path / "other", Study("?", (Stage("pretrain", BASE),))) == {}


def test_a_run_that_would_start_from_another_one_is_named(tmp_path: Path):
    of = study("a", count=1)
    made(tmp_path, of)
    pretrain, tune = of.stages
    adapt = Stage("adapt", BASE, after="pretrain")
    found = changes(tmp_path, replace(of, stages=(pretrain, adapt, replace(tune, after="adapt"))))
    assert list(found) == ["tune/objective=a,seed=0"] and "init_from was " in found["tune/objective=a,seed=0"]


def test_a_study_that_was_moved_is_the_same_and_its_runs_continue(tmp_path: Path):
    of, old, new = study("a", count=1), tmp_path / "old", tmp_path / "new"
    *_, tune = made(old, of)
    started = planning.resolve(of, plan(of), old)[tune.key]
    (old / tune.key / "config.json").write_text(started.to_json())
    old.rename(new)
    assert changes(new, of) == {}
    planning.write_request(new, tune, planning.resolve(of, plan(of), new)[tune.key], "")
    request = json.loads((new / tune.key / planning.REQUEST).read_text())
    assert request["config"]["init_from"] == started.init_from == str(old / tune.after)


def test_a_workdir_of_something_else_is_refused(tmp_path: Path):
    made(tmp_path, study("a"))
    with pytest.raises(UserError, match="holds the study study, not masking; choose another --workdir"):
        sweep(study("a"), "masking", "masking.py", tmp_path)
    for file, what in (("config.json", "a single run"), ("seeds.json", "the runs of several seeds")):
        folder = tmp_path / file.partition(".")[0]
        folder.mkdir()
        (folder / file).write_text("{}")
        with pytest.raises(UserError, match=f"holds {what}; choose another --workdir for the study"):
            sweep(study("a"), "study", "study.py", folder)


def test_two_sweeps_of_one_workdir_are_refused(tmp_path: Path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another process; wait for its end, or stop it"):
            sweep(study("a"), "study", "study.py", tmp_path)


def test_what_is_made_again(tmp_path: Path):
    planned = made(tmp_path, study("a", "b"))
    write_record(replace(read_run(tmp_path, planned[1]), status=FAILED, error="it diverged"))
    assert planning.to_make_again(planned, tmp_path, "") == frozenset()
    assert planning.to_make_again(planned, tmp_path, "failed") == {planned[1].key}
    assert planning.to_make_again(planned, tmp_path, "pretrain/*seed=0") == {
        *("pretrain/objective=a,seed=0", "pretrain/objective=b,seed=0"),
        *("tune/objective=a,seed=0", "tune/objective=b,seed=0"),  # they start from the others
    }
    with pytest.raises(UserError, match=r"--rerun=\*seed=7 matches no run, such as pretrain/objective=a,seed=0"):
        planning.to_make_again(planned, tmp_path, "*seed=7")
    assert planning.with_parents(planned, planning.matching(planned, "tune/*b,seed=1", "--only")) == {
        *("tune/objective=b,seed=1", "pretrain/objective=b,seed=1"),
    }


def test_a_failed_run_continues_and_any_other_is_moved_aside(tmp_path: Path):
    first, second, *_ = made(tmp_path, study("a"), FAILED)
    planning.reset(tmp_path, first, from_scratch=False)
    record = read_run(tmp_path, first)
    assert (record.status, record.attempts, record.result) == (WAITING, 0, {})
    assert (record.folder / "checkpoints" / "10").is_dir()
    planning.reset(tmp_path, second, from_scratch=True)
    assert not (tmp_path / second.key).exists()
    kept = tmp_path / "pretrain" / f".{second.name}.1"
    assert (kept / "checkpoints" / "10").is_dir()
    assert kept.name not in {run.name for run in read_study(tmp_path).runs}  # not even as a stale one


def test_a_study_is_read_as_it_was_written(tmp_path: Path):
    table = Published("Table 5", "Devlin et al.", ["SST-2"], {"a": [92.7], "b": [None]})
    search = Search({"optimizer.learning_rate": log_uniform(1e-5, 1e-3), "optimizer.b2": one_of(0.9, 0.99)}, 4)
    written = replace(study(), published=table, expected=[("a", "b", "tune")], search=search, factor="objective")
    write_study(tmp_path, "study", "s.py:x", written, plan(study()))
    record = read_study(tmp_path)
    assert (record.name, record.file, len(record.runs)) == ("study", "s.py:x", 8)
    assert record.study.expected == [("a", "b", "tune")] and record.study.factor == "objective"
    assert record.study.published == table and record.study.stages == written.stages
    assert record.study.search is not None and list(record.study.search.space["optimizer.b2"].choices) == [0.9, 0.99]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "eval.accuracy"}, "whose metric was eval.loss, and is eval.accuracy"),
        ({"direction": "max"}, "whose direction was min, and is max"),
        ({"space": {"a": one_of(1, 2, 3)}}, "whose a was one of 1, 2, and is one of 1, 2, 3"),
        ({"space": {"b": log_uniform(1, 9)}}, "whose b was a number, and is a number by its logarithm"),
        ({"space": {"b": uniform(5, 6), "c": one_of(1)}, "trials": 9, "seed": 3, "pruner": "asha"}, ""),
    ],
)
def test_trials_of_another_search_are_not_mixed_in(tmp_path: Path, change: dict, message: str):
    search = Search({"a": one_of(1, 2), "b": uniform(1, 9)}, 4)
    write_study(tmp_path, "study", "s.py", replace(study(), search=search), [])
    before = planning.read_before(tmp_path, "study")
    planning.check_search(before, search)
    if message:
        with pytest.raises(UserError, match=f"{message}: trials of both cannot be compared; restore it, or choose"):
            planning.check_search(before, replace(search, **change))
    else:
        planning.check_search(before, replace(search, **change))


def test_a_run_is_running_only_while_a_process_has_its_lock(tmp_path: Path):
    first, *_ = made(tmp_path, study("a"), RUNNING)
    assert {run.status for run in read_study(tmp_path).runs} == {UNFINISHED}
    with open(tmp_path / first.key / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [run.status for run in read_study(tmp_path).runs].count(RUNNING) == 1
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert {run.status for run in read_study(tmp_path).runs} == {RUNNING}


def test_without_a_result_nothing_is_complete(tmp_path: Path):
    first, *_ = made(tmp_path, study("a"))
    write_record(replace(read_run(tmp_path, first), result={}))
    assert read_run(tmp_path, first).status == UNFINISHED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "{", "is not a JSON object"),
        (lambda _: "[]", "is not a JSON object"),
        (
            lambda content: json.dumps(content | {"runs": [content["runs"][0] | {"name": "../../etc"}]}),
            "not the name of a",
        ),
        (
            lambda content: json.dumps(content | {"runs": [content["runs"][0] | {"stage": ".."}]}),
            "not the name of a folder",
        ),
        (
            lambda content: json.dumps({k: v for k, v in content.items() if k != "runs"}),
            "is damaged (KeyError: 'runs')",
        ),
        (lambda content: json.dumps(content | {"stages": 3}), "is damaged (TypeError"),
        (
            lambda content: json.dumps(
                content | {"runs": [one | {"after": f"{one['stage']}/{one['name']}"} for one in content["runs"]]}
            ),
            "pretrain/objective=a,seed=0 starts from itself",
        ),
        (
            lambda content: json.dumps(
                content | {"published": {"title": "", "source": "", "columns": ["x"], "rows": {"a": ["?"]}}}
            ),
            "the row of a is ['?']",
        ),
    ],
)
def test_a_damaged_study_is_one_line(tmp_path: Path, change, message: str):
    made(tmp_path, study("a"))
    content = json.loads((tmp_path / STUDY).read_text())
    (tmp_path / STUDY).write_text(change(content))
    with pytest.raises(UserError) as error:
        read_study(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_study_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not the workdir of a study: there is no study\.json"):
        read_study(tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--study is missing"),
        (["--study=x.py", "--jbos=2"], "--jbos is not a flag; did you mean --jobs?"),
        (["--study=x.py", "--jobs=0"], "--jobs"),
        (["--study=none.py"], "study file none.py does not exist"),
    ],
)
def test_a_wrong_command_is_one_line(words: list[str], message: str):
    with pytest.raises(UserError) as error:
        main(words)
    assert message in str(error.value)
