"""Groups of the config whose entries the user names: from an experiment, the command line and a saved config."""

import json
import re

import pytest

from bert_jax.config import UserError, check_options, from_json_dict, write_or_compare
from bert_jax.entries import add_entry, entries, of_task
from bert_jax.experiment import load_experiment, override, set_options
from bert_jax.options import default_config, default_entry, find_option
from bert_jax.options_page import table

EXPERIMENT = """from bert_jax.entries import add_entry
from bert_jax.options import default_config

def get_config():
    config = default_config()
    add_entry(config, "corpora.fr", files="fr.txt", language="fr")
    add_entry(config, "corpora.de", corpus="jsonl")
    add_entry(config, "tasks.sst2", task="classification", data={"train": "a.tsv"}, weight=2.0)
    return config
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    return load_experiment(str(tmp_path / "mine.py"))


def test_entries_of_an_experiment_and_of_the_command_line(config):
    given = override(
        config, ["--config.tasks.ner.task=tagging", "--config.tasks.ner.data.packing", "--config.corpora.de.share=0.5"]
    )
    assert given == {"tasks.ner.task": "tagging", "tasks.ner.data.packing": True, "corpora.de.share": 0.5}
    corpora, tasks = entries(config, "corpora"), entries(config, "tasks")
    assert list(corpora) == ["de", "fr"] and list(tasks) == ["ner", "sst2"]  # whatever the order they came in
    assert corpora["fr"].to_dict() == default_entry("corpora") | {"files": "fr.txt", "language": "fr", "share": None}
    assert corpora["de"].corpus == "jsonl" and corpora["de"].share == 0.5
    own = {"task": "tagging", "data": {"packing": True}, "share": None}
    assert tasks["ner"].to_dict() == default_entry("tasks") | own
    set_options(config, {"tasks.qa.task": "span_qa", "tasks.sst2.data.train": "b.tsv"})
    assert config.tasks.qa.weight == 1.0 and config.tasks.sst2.data.train == "b.tsv"
    assert config.is_locked and config.tasks.qa.is_locked


def test_the_config_of_one_task(config):
    config.data.validation = "all.tsv"
    alone = of_task(config, "sst2")
    assert (alone.task, alone.data.train, alone.data.validation) == ("classification", "a.tsv", "all.tsv")
    assert not alone.tasks and alone.corpora.fr.files == "fr.txt"
    assert config.task == "pretraining" and config.data.train == ""  # the run's own stays as it was
    check_options(alone)
    with pytest.raises(UserError, match=r"^'mrpc' is not one of the run's tasks \(sst2\); choose one of them$"):
        of_task(config, "mrpc")


def test_a_saved_config_keeps_its_entries(config, tmp_path):
    saved = json.loads(config.to_json())
    assert from_json_dict(saved).to_dict() == config.to_dict()
    del saved["corpora"]["fr"]["share"]  # an option that was added since
    assert from_json_dict(saved).to_dict() == config.to_dict()
    for broken in ({"tasks": 3}, {"tasks": {"a": 3}}, {"corpora": {"a": {"share": "x"}}}, {"tasks": {"(a+)+$": {}}}):
        with pytest.raises(UserError, match="saved config"):
            from_json_dict(broken)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(config.to_json())
    write_or_compare(config, tmp_path / "config.json")
    config.tasks.sst2.weight = 1.0
    with pytest.raises(UserError, match=r"\(tasks.sst2.weight was 2.0, is 1.0\)"):
        write_or_compare(config, tmp_path / "config.json")


def test_without_entries_a_saved_config_is_as_before(tmp_path):
    config = default_config()
    saved = config.to_dict()
    del saved["corpora"], saved["tasks"]
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    write_or_compare(config, tmp_path / "config.json")
    assert from_json_dict(saved).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("word", "message"),
    {
        "tasks.a.weigth=1": "tasks.a.weigth is not an option; the nearest is --config.tasks.a.weight",
        "tasks.a.data.trian=x": "tasks.a.data.trian is not an option; the nearest is --config.tasks.a.data.train",
        "tasks.a.train.steps=1": "tasks.a.train.steps is not an option; the nearest is",
        "tasks.a.data.vocab_file=v.txt": "tasks.a.data.vocab_file is not an option; the nearest is",
        "tasks.1a.task=x": "tasks.1a.task is not an option; the nearest is --config.tasks.NAME.task",
        "tasks.a-b.task=x": "tasks.a-b.task is not an option",
        "tasks.a.weight=-1": "tasks.a.weight is -1.0; it must be a number from 0",
        "tasks.a.weight=nan": "tasks.a.weight is nan; it must be a number from 0",
        "tasks.a.task=": "tasks.a.task is empty; it needs a value",
        "tasks.a.weight=1": "tasks.a.task is empty; it needs a value",
        "tasks.sst2=1": "tasks.sst2 is a group of options; set one of them, as --config.tasks.sst2.KEY=VALUE",
        "tasks=1": "tasks is a group of options; set one of them, as --config.tasks.NAME.KEY=VALUE",
        "corpora.de.flies=x": "corpora.de.flies is not an option; the nearest is --config.corpora.de.files",
    }.items(),
)
def test_a_wrong_entry_on_the_command_line_is_one_line(config, word, message):
    with pytest.raises(UserError, match=f"^(--config.)?{re.escape(message)}"):
        override(config, [f"--config.{word}"])


def test_a_wrong_entry_in_an_experiment_is_one_line(config):
    for name in ("tasks", "tasks.", "task.a", "tasks.a b", "tasks.é", "tasks.a.b", "corpora.1"):
        with pytest.raises(UserError, match=r"cannot be the name of an entry: it is corpora.NAME or tasks.NAME"):
            add_entry(config, name)
    with pytest.raises(UserError, match=r"^tasks.sst2 is there already"):
        add_entry(config, "tasks.sst2", task="tagging")
    with pytest.raises(UserError, match=r"^corpora.x.file is not an option; the nearest is corpora.x.files$"):
        add_entry(config, "corpora.x", file="a")
    with pytest.raises(UserError, match=r"^tasks.x.data.packing is 3; it must be True or False"):
        add_entry(config, "tasks.x", task="tagging", data={"packing": 3})
    assert set(config.corpora) == {"de", "fr"} and set(config.tasks) == {"sst2"}  # nothing is half added
    with config.unlocked():
        del config.corpora.de["files"]
    with pytest.raises(UserError, match=r"corpora.de.files is missing"):
        check_options(config)


def test_a_task_of_ones_own_may_have_options_of_its_own(config):
    add_entry(config, "tasks.mine", task="my_task.MyTask", data={"scale": 2})
    check_options(config)
    assert override(config, ["--config.tasks.mine.data.scale=3"]) == {"tasks.mine.data.scale": 3}
    assert of_task(config, "mine").data.scale == 3


def test_what_an_entry_can_be_is_documented():
    assert find_option("tasks.x.data.train").allowed == find_option("data.train").allowed
    assert "## corpora.*" in table() and "| `tasks.*.weight` | 1.0 |" in table()
