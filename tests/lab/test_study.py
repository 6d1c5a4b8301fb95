"""Studies as files: points, names, the graph of stages, and every mistake in a study file as one line."""

from pathlib import Path

import pytest

from bert_jax.config import UserError
from bert_jax.lab.space import Search, integers, log_uniform, one_of, uniform
from bert_jax.lab.study import (
    Point,
    Published,
    Stage,
    Study,
    choice,
    grid,
    listed,
    plan,
    probes,
    run_name,
    sampled,
    seeds,
    values,
    zipped,
)
from bert_jax.lab.sweep.command import load_study

OBJECTIVE = choice("objective", {"MLM + NSP": {}, "MLM": {"data.pairing": "none"}})
RATES = values("optimizer.learning_rate", [1e-4, 3e-4])


def levels(points):
    return [dict(point.levels) for point in points]


def test_a_grid_has_every_combination_and_a_zip_the_pairs():
    assert grid() == (Point(),)
    assert levels(grid(OBJECTIVE, seeds(2))) == [
        {"objective": "MLM + NSP", "seed": "0"},
        {"objective": "MLM + NSP", "seed": "1"},
        {"objective": "MLM", "seed": "0"},
        {"objective": "MLM", "seed": "1"},
    ]
    assert grid(OBJECTIVE, seeds(2, first=10))[3].overrides == {"data.pairing": "none", "seed": 11}
    assert levels(zipped(OBJECTIVE, RATES)) == [
        {"objective": "MLM + NSP", "optimizer.learning_rate": "0.0001"},
        {"objective": "MLM", "optimizer.learning_rate": "0.0003"},
    ]
    with pytest.raises(UserError, match="axes of 2, 3 levels"):
        zipped(OBJECTIVE, seeds(3))


def test_lists_and_samples_can_be_crossed_with_axes():
    points = grid(listed({"a": {"train.steps": 1}, "b": {"train.steps": 2}}), seeds(2))
    assert [point.overrides for point in points][:2] == [{"train.steps": 1, "seed": 0}, {"train.steps": 1, "seed": 1}]


def test_a_sample_depends_on_its_seed_alone_and_grows_at_its_end():
    space = {"optimizer.learning_rate": log_uniform(1e-5, 1e-3), "train.batch_size": integers(8, 64)}
    space |= {"optimizer.name": one_of("adamw", "lamb"), "model.hidden_dropout": uniform(0.0, 0.5)}
    few, many = sampled(20, 7, space), sampled(50, 7, space)
    assert many[:20] == few and sampled(20, 8, space) != few
    rates = sorted(point.overrides["optimizer.learning_rate"] for point in many)
    assert 1e-5 <= rates[0] < 1e-4 < rates[-1] <= 1e-3  # as many below 1e-4 as above it, not a tenth
    assert 15 <= sum(rate < 1e-4 for rate in rates) <= 35
    assert all(point.overrides["train.batch_size"] in range(8, 65) for point in many)
    assert {point.overrides["optimizer.name"] for point in many} == {"adamw", "lamb"}
    assert all(float(point.levels["model.hidden_dropout"]) == point.overrides["model.hidden_dropout"] for point in many)


def test_stages_multiply_and_inherit_levels_and_seed():
    pretrain = Stage("pretrain", "experiments/tiny.py", grid(OBJECTIVE, seeds(2, first=5)))
    tuned = Stage("sst2", "experiments/classify.py", grid(RATES), after="pretrain", overrides={"train.epochs": 1.0})
    runs = plan(Study("?", (pretrain, tuned)))
    assert len(runs) == 4 + 8
    last = runs[-1]
    assert last.key == "sst2/objective=MLM,seed=6,learning_rate=0.0003"
    assert last.after == "pretrain/objective=MLM,seed=6" and last.after in {run.key for run in runs}
    assert last.overrides == {"seed": 6, "train.epochs": 1.0, "optimizer.learning_rate": 3e-4}
    assert last.levels == {"objective": "MLM", "seed": "6", "optimizer.learning_rate": "0.0003"}


def test_seeds_of_a_later_stage_are_its_own_and_the_earlier_ones_keep_a_name():
    pretrain = Stage("pretrain", "a.py", grid(seeds(2)))
    runs = plan(Study("?", (pretrain, Stage("tune", "b.py", grid(seeds(3)), after="pretrain"))))[2:]
    assert len(runs) == len({run.name for run in runs}) == 6
    assert runs[-1].levels == {"pretrain.seed": "1", "seed": "2"} and runs[-1].overrides == {"seed": 2}


def test_names_are_of_what_differs_and_safe_as_folders():
    assert run_name({}) == "run"
    assert run_name({"objective": "MLM + NSP", "seed": "0"}) == "objective=MLM_+_NSP,seed=0"
    hostile = run_name({"x": "../../etc/passwd\0\n<b>"})
    assert "/" not in hostile and "\0" not in hostile and "\n" not in hostile
    long = [run_name({"x": "ä" * 500 + end}) for end in "ab"]
    assert long[0] != long[1] and all(len(name.encode()) <= 120 for name in long)


def test_a_search_names_no_runs_but_the_ends_of_its_space():
    search = Search({"optimizer.learning_rate": log_uniform(1e-5, 1e-3), "optimizer.b2": one_of(0.9, 0.98, 0.99)}, 4)
    stage = Stage("tune", "a.py", overrides={"train.steps": 5})
    assert plan(Study("?", (stage,), search=search)) == []
    assert [run.overrides for run in probes(search, stage)] == [
        {"train.steps": 5, "optimizer.learning_rate": 1e-5, "optimizer.b2": 0.9},
        {"train.steps": 5, "optimizer.learning_rate": 1e-3, "optimizer.b2": 0.98},
        {"train.steps": 5, "optimizer.learning_rate": 1e-3, "optimizer.b2": 0.99},
    ]


A, B = Stage("a", "x.py", grid(OBJECTIVE)), Stage("b", "x.py", after="a")
SEARCH = Search({"train.steps": integers(1, 9)}, 3)
BAD = {
    "has no stages": lambda: Study("?", ()),
    "stage b is after 'c'; it can be a, b": lambda: Study("?", (A, Stage("b", "x.py", after="c"))),
    "a, b come after each other in a circle": lambda: Study("?", (Stage("a", "x.py", after="b"), B)),
    "two stages have the name a": lambda: Study("?", (A, A)),
    "'a/b': the name becomes a folder": lambda: Study("?", (Stage("a/b", "x.py"),)),
    "stage a has no points": lambda: Study("?", (Stage("a", "x.py", ()),)),
    "axis seed has no levels": lambda: Study("?", (Stage("a", "x.py", grid(seeds(0))),)),
    "has two runs of the name x=a_b": lambda: Study(
        "?", (Stage("a", "x.py", grid(choice("x", {"a b": {}, "a_b": {}}))),)
    ),
    "values of train.steps contain 5 2 times": lambda: Study(
        "?", (Stage("a", "x.py", grid(values("train.steps", [5, 5]))),)
    ),
    "two axes set seed": lambda: Study("?", (Stage("a", "x.py", grid(seeds(2), values("seed", [1], "other"))),)),
    "two axes have the name seed": lambda: Study("?", (Stage("a", "x.py", grid(seeds(2), choice("seed", {"a": {}}))),)),
    "sets init_from, which after='a' sets": lambda: Study(
        "?", (A, Stage("b", "x.py", grid(choice("i", {"1": {"init_from": "x"}})), after="a"))
    ),
    "levels must be {label: {option: value}}": lambda: Study("?", (Stage("a", "x.py", grid(choice("x", {"a": 1}))),)),
    "factor is 'objektive', which is no axis; it can be objective (did you mean objective?)": lambda: Study(
        "?", (A,), "objektive"
    ),
    "baseline: 'NSP' is no level of 'objective'; it can be MLM, MLM + NSP": lambda: Study(
        "?", (A,), "objective", "NSP"
    ),
    "the row of MLM is (1.0,); it must have a number, or None, for each of SST-2, MRPC": lambda: Study(
        "?", (A,), published=Published("", "", ("SST-2", "MRPC"), {"MLM": (1.0,)})
    ),
    "two of 3 sampled points are alike (train.batch_size=": lambda: Study(
        "?", (Stage("a", "x.py", sampled(3, 0, {"train.batch_size": one_of(8, 16)})),)
    ),
    "metrics name the stage 'c'": lambda: Study("?", (A,), metrics={"c": "eval.loss"}),
    "is 'accuracy'; it must be SPLIT.METRIC": lambda: Study("?", (A,), metrics={"a": "accuracy"}),
    "'X' is no level of 'objective'": lambda: Study("?", (A,), "objective", expected=[("X", "MLM", "a")]),
    "the metric of stage a is 'loss'": lambda: Study("?", (A,), metrics={"a": "eval.accuracy, loss"}),
    "it can be a, a accuracy, a loss": lambda: Study(
        "?",
        (A,),
        "objective",
        metrics={"a": "eval.accuracy,eval.loss"},
        expected=[("MLM", "MLM + NSP", "a f1")],
    ),
    "expected names the stage 'z'": lambda: Study("?", (A,), "objective", expected=[("MLM", "MLM + NSP", "z")]),
    "has one stage, without points": lambda: Study("?", (A,), search=SEARCH),
    "a test must not choose anything": lambda: Study("?", (B_ALONE,), search=Search(SEARCH.space, 3, metric="test.f1")),
    "the search's pruner is 'hyperband'": lambda: Study(
        "?", (B_ALONE,), search=Search(SEARCH.space, 3, pruner="hyperband")
    ),
    "it needs one or more": lambda: Study("?", (B_ALONE,), search=Search({}, 3)),
    "a distribution from 0 to 1 is empty or endless": lambda: Study(
        "?", (A,), search=Search({"x": log_uniform(0, 1)}, 1)
    ),
}
B_ALONE = Stage("b", "x.py")


def test_columns_of_a_stage_have_different_names():
    def columns(metrics):
        return Study("?", (A,), metrics={"a": metrics}).columns("a")

    assert columns("eval.loss") == {"a": "eval.loss"}
    assert columns("eval.loss, test.f1") == {"a loss": "eval.loss", "a f1": "test.f1"}
    by_split = {"a eval.loss": "eval.loss", "a test.loss": "test.loss", "a f1": "test.f1"}
    assert columns("eval.loss,test.loss,test.f1") == by_split
    assert Study("?", (A,)).columns("a") == {}


@pytest.mark.parametrize("message", BAD)
def test_a_study_that_cannot_be_made_is_one_line(message):
    with pytest.raises(UserError) as error:
        plan(BAD[message]())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "it defines no function get_study()"),
        ("def get_study(): return 1", "get_study() returns int; it must be a Study"),
        ("def get_study(:", "study.py:1: "),
        ("def get_study():\n    raise SystemExit", "the file ends the program"),
        ("def get_study():\n    return 1 / 0", "study.py:2: ZeroDivisionError"),
        ("from bert_jax.lab.study import Study\ndef get_study(): return Study('?', ())", "the study has no stages"),
    ],
)
def test_a_study_file_that_is_wrong_is_named(tmp_path: Path, text: str, message: str):
    file = tmp_path / "study.py"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_study(str(file))
    assert message.replace("it must be a", "it must return a") in str(error.value) and str(file) in str(error.value)


def test_a_study_file_that_is_missing_or_a_folder(tmp_path: Path):
    with pytest.raises(UserError, match=r"study file .*none\.py does not exist"):
        load_study(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match=r"is a folder; give a file in it, e\.g\. experiments/studies"):
        load_study(str(tmp_path))
