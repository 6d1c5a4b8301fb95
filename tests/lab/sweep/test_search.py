"""Searches: Optuna proposes, our evaluations prune, and nothing is lost when the sweep or a run is killed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="needs the extra lab")

from bert_jax.config import UserError
from bert_jax.lab.records import COMPLETE, FAILED, PRUNED, WAITING, read_run, write_record
from bert_jax.lab.space import Search, integers, log_uniform, one_of
from bert_jax.lab.study import PlannedRun, Stage, Study
from bert_jax.lab.sweep import planning
from bert_jax.lab.sweep.search import STORAGE, OptunaTrials

SPACE = {"optimizer.learning_rate": log_uniform(1e-5, 1e-3), "train.batch_size": integers(8, 64)}
SPACE |= {"optimizer.name": one_of("adamw", "lamb")}


def study(**more) -> Study:
    stage = Stage("tune", "a.py", overrides={"train.steps": 100})
    return Study("?", (stage,), search=Search(**{"space": SPACE, "trials": 12} | more))


def opened(workdir: Path, **more) -> OptunaTrials:
    def admit(one: PlannedRun) -> None:
        (workdir / one.key).mkdir(parents=True, exist_ok=True)

    OPENED.append(OptunaTrials(study(**more), "found", workdir, admit))
    return OPENED[-1]


OPENED: list[OptunaTrials] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """From Python 3.13 on, a connection that nobody closed is a warning in some later test."""
    yield
    while OPENED:
        OPENED.pop().close()


def ended(trials: OptunaTrials, one: PlannedRun, loss: float, status: str = COMPLETE) -> None:
    record = replace(read_run(trials.workdir, one), status=status, result={"eval": {"loss": loss}})
    write_record(record)
    trials.tell(one, record)


def log(workdir: Path, one: PlannedRun, *losses: float) -> None:
    lines = [{"step": 10 * i, "split": "eval", "loss": loss} for i, loss in enumerate(losses, 1)]
    (workdir / one.key / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def states(trials: OptunaTrials) -> list[str]:
    return [trial.state.name for trial in trials.study.get_trials()]


def test_trials_are_runs_of_the_stage_and_as_many_as_were_asked_for(tmp_path: Path):
    trials = opened(tmp_path, trials=3)
    asked = [trials.ask() for _ in range(5)]
    assert asked[3:] == [None, None]
    first = asked[0]
    assert first is not None and first.stage == "tune" and first.name.startswith("trial=0,learning_rate=")
    assert first.overrides.keys() == {"train.steps", *SPACE} and first.overrides["train.steps"] == 100
    assert 1e-5 <= float(first.levels["optimizer.learning_rate"]) <= 1e-3
    assert isinstance(first.overrides["train.batch_size"], int)


def test_the_same_seed_proposes_the_same_and_the_best_is_named(tmp_path: Path):
    def found(folder: Path, seed: int) -> list[dict]:
        folder.mkdir()
        trials, proposed = opened(folder, seed=seed), []
        while (one := trials.ask()) is not None:
            proposed.append(dict(one.overrides))
            ended(trials, one, abs(proposed[-1]["train.batch_size"] - 50))
        best = min(range(12), key=lambda number: abs(proposed[number]["train.batch_size"] - 50))
        assert f"best of 12 complete trials by eval.loss: trial {best}," in trials.best()
        return proposed

    first = found(tmp_path / "a", 0)
    assert found(tmp_path / "b", 0) == first and found(tmp_path / "c", 1) != first


def test_a_search_that_was_killed_keeps_its_trials(tmp_path: Path):
    trials = opened(tmp_path)
    one, two, three = (trials.ask() for _ in range(3))
    assert one and two and three
    ended(trials, one, 1.0)
    write_record(replace(read_run(tmp_path, two), status=COMPLETE, result={"eval": {"loss": 2.0}}))  # nobody was told
    again = opened(tmp_path)
    assert again.planned() == [one, two, three]
    assert states(again) == ["COMPLETE", "COMPLETE", "RUNNING"]
    ended(again, three, 3.0)
    assert states(again) == ["COMPLETE"] * 3
    four = again.ask()
    assert four is not None and four.name.startswith("trial=3,")
    assert {x: four.overrides[x] for x in SPACE} != {x: one.overrides[x] for x in SPACE}  # not the first one once more


def test_a_trial_that_was_killed_while_its_options_were_drawn_gets_all_of_them(tmp_path: Path):
    trials = opened(tmp_path)
    name = next(iter(SPACE))
    trials.study.ask({name: trials._distribution(SPACE[name])})  # and the process ends here
    [one] = opened(tmp_path).planned()
    assert one.overrides.keys() == {"train.steps", *SPACE} and one.name.count("=") == 1 + len(SPACE)
    assert opened(tmp_path).planned() == [one]


def test_any_folder_may_hold_a_search_and_a_damaged_database_is_one_line(tmp_path: Path):
    folder = tmp_path / "what? {x} 50%20 ä#"
    folder.mkdir()
    trials = opened(folder)
    assert trials.ask() is not None and sorted(path.name for path in folder.iterdir()) == [STORAGE, "tune"]
    (tmp_path / STORAGE).write_text("no database" * 1000)
    with pytest.raises(UserError, match=r"cannot be used \(file is not a database\); restore it"):
        opened(tmp_path)


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_hopeless_trials_are_given_up_by_their_evaluations(tmp_path: Path, pruner: str):
    trials = opened(tmp_path, pruner=pruner)
    for number in range(6):
        good = trials.ask()
        assert good is not None
        log(tmp_path, good, 3.0 - 0.01 * number, 2.0 - 0.01 * number, 1.0)
        trials.watch([good])
        ended(trials, good, 1.0)
    bad, fine = trials.ask(), trials.ask()
    assert bad and fine
    log(tmp_path, bad, 9.0)
    log(tmp_path, fine, 0.5)
    assert trials.watch([bad, fine]) == [bad]
    assert trials.watch([fine]) == []
    ended(trials, bad, float("nan"), PRUNED)
    assert states(trials)[6:] == ["PRUNED", "RUNNING"]


def test_without_pruning_nothing_is_given_up(tmp_path: Path):
    trials = opened(tmp_path, pruner="none")
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 99.0):
        one = trials.ask()
        assert one is not None
        log(tmp_path, one, loss)
        assert trials.watch([one]) == []
        ended(trials, one, loss)


def test_the_best_of_none_is_said(tmp_path: Path):
    trials = opened(tmp_path, direction="max", metric="eval.accuracy")
    one = trials.ask()
    assert one is not None
    write_record(replace(read_run(tmp_path, one), status=FAILED, error="a mistake"))
    trials.tell(one, read_run(tmp_path, one))
    assert trials.best() == "no trial is complete" and (tmp_path / STORAGE).is_file()


def test_a_failed_trial_can_be_made_again(tmp_path: Path):
    trials = opened(tmp_path, trials=2)
    one = trials.ask()
    assert one is not None
    ended(trials, one, 1.0, FAILED)
    again = opened(tmp_path, trials=2)
    assert again.planned() == [one] and states(again) == ["RUNNING"]  # open, whatever the record says
    planning.reset(tmp_path, one, from_scratch=False)  # as --rerun=failed does
    assert read_run(tmp_path, one).status == WAITING
    ended(again, one, 2.0)
    assert states(again) == ["COMPLETE"] and "trial 0, 2 (" in again.best()
    assert again.ask() is not None and again.ask() is None
