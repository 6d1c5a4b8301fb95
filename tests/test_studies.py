"""The studies of experiments/studies/: each can be planned, every run's config is valid, and it says what to expect."""

import ast
import re
from pathlib import Path

import pytest

from bert_jax.config import UserError, validate
from bert_jax.lab.study import Study, plan
from bert_jax.lab.sweep.command import load_study
from bert_jax.lab.sweep.planning import resolve
from bert_jax.models.config import bert_config
from bert_jax.tasks import task_class
from experiments import study_finetuning
from experiments.studies.common import TASKS

FILES = sorted(path for path in Path("experiments/studies").glob("*.py") if path.stem not in ("__init__", "common"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder that looks like the data of the studies."""
    folder = tmp_path_factory.mktemp("study_data")
    for name in (
        "corpus",
        "pages",
        "blimp",
        "reviews",
        "sst2_texts",
        "sts",
        "minilm",
        "news",
        "bbc_100",
        "bbc_500",
        *TASKS,
    ):
        (folder / name).mkdir()
    (folder / "images.npy").touch()
    return folder


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_run_of_a_study_is_valid(file, data, tmp_path):
    study = load_study(f"{file}:{data}")
    assert isinstance(study, Study)
    runs = plan(study)
    configs = resolve(study, runs, tmp_path)
    by_key = {one.key: one for one in runs}
    for key, config in configs.items():
        parent = by_key[key].after
        if parent:  # as `inherit` does with the checkpoint of the run before it
            before = configs[parent]
            for name, value in before.model.items():
                if config.model[name] is None:
                    config.model[name] = value
        validate(config, 1)
        model = bert_config(config.model, 100)
        assert config.data.sequence_length <= model.max_position_embeddings, key
        assert config.task in ("pretraining", "classification", "tagging", "seq2seq", "multitask")
        assert task_class(config.task)
        if config.task == "pretraining":
            assert config.eval.every == config.checkpoint.every == config.train.steps, key
    assert study.factor and study.baseline and study.metrics
    seeds = {config.seed for config in configs.values()}
    assert seeds == set(range(5))
    assert len({tuple(sorted(one.levels.items())) for one in runs if one.stage == runs[0].stage}) > 1


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_docstring_names_source_scale_orderings_and_time(file):
    text = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())
    assert text.partition("?")[1], "it begins with the question"
    of_their_own = {"translation": "translation_data", "multilingual": "multilingual_data", "visual": "digits"}
    folder = of_their_own.get(file.stem, "study_data")
    assert f"--study=experiments/studies/{file.name}:{folder}" in text
    assert re.search(r"et al\. \((19|20)\d\d|Gimpel \(2016\)|Conneau \(2019\)", text), "the source"
    for words in ("Scaled down:", "Orderings that may be expected:", "on two cores"):
        assert words in text


def test_published_figures_stand_in_the_docstring_too():
    for file in FILES:
        tree = ast.parse(file.read_text())
        text = ast.get_docstring(tree) or ""
        numbers = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, float)}
        figures = {number for number in numbers if 1 < number < 100}
        assert all(f"{number:g}" in text or f"{number:.1f}" in text for number in figures), file


@pytest.mark.parametrize("argument", ["", ":nowhere"])
def test_missing_data_is_one_line_that_says_how_to_make_it(argument, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"objectives.py: .* is not the data of the studies; make it with python bench"):
        load_study(f"experiments/studies/objectives.py{argument or ':' + str(tmp_path)}")


def test_a_task_that_is_not_known_is_refused():
    with pytest.raises(UserError, match=r"study_finetuning.py:treck is not known; .* \(did you mean trec\?\)"):
        study_finetuning.get_config("study_data/treck")


def test_a_domain_of_ones_own_is_six_models_each_fine_tuned_with_five_seeds(tmp_path):
    for name in ("model", "domain", "general", "task"):
        (tmp_path / name).mkdir()
    file = "experiments/studies/domain_adaptive.py"
    with pytest.raises(UserError, match=r"train.jsonl is missing; the docstring of domain_adaptive.py says what"):
        load_study(f"{file}:{tmp_path}")
    for split in ("train", "validation", "test"):
        (tmp_path / "task" / f"{split}.jsonl").touch()
    study = load_study(f"{file}:{tmp_path}")
    runs = plan(study)
    configs = resolve(study, runs, tmp_path / "runs")
    assert [sum(one.stage == stage for one in runs) for stage in ("dapt", "tapt", "task")] == [3, 6, 30]
    for one in runs:
        config = configs[one.key]
        validate(config, 1)
        unchanged = one.levels.get("TAPT" if one.stage == "tapt" else "domain") in ("as it is", "no")
        if one.stage != "task":
            assert (config.optimizer.learning_rate == 0) == (config.train.steps == 1) == unchanged
    of_domain = [configs[one.key] for one in runs if one.stage == "dapt"]
    assert sorted(config.extend.words for config in of_domain) == [0, 0, 1000]
    assert {config.corpora.general.share for config in of_domain} == {0.2}
    assert all(config.init_from == str(tmp_path / "model") for config in of_domain)
