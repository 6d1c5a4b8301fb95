"""A run made again: the same bits, and which difference is found where."""

import json
import shutil

import pytest

from bert_jax.config import UserError
from bert_jax.lab.provenance import ENVIRONMENT, read_environments
from bert_jax.lab.reproduce import main, reproduce
from bert_jax.run import run


@pytest.fixture(scope="module")
def made(tmp_path_factory, topics, prepared_folder):
    """A run of 8 steps with two checkpoints."""
    from experiments.base import get_config

    config = get_config("tiny")
    config.model.update(hidden_size=32, num_attention_heads=2, intermediate_size=64)
    config.data.update(corpus="text", files=str(topics), prepared=str(prepared_folder), vocab_size=600, workers=1)
    config.data.update(sequence_length=32, max_predictions_per_sequence=5, validation_share=0.15)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2)
    config.train.update(steps=8, batch_size=16, log_every=2, peak_tflops=1.0)
    config.eval.update(every=4, batch_size=16)
    config.checkpoint.update(every=4)
    config.mesh.data = 1
    folder = tmp_path_factory.mktemp("runs") / "made"
    run(config, folder)
    return folder


@pytest.fixture(scope="module")
def again(made, tmp_path_factory):
    """The folder in which the run was made again, whole: to compare it once more costs no step."""
    folder = tmp_path_factory.mktemp("runs") / "again"
    reproduce(made, folder)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the run without its checkpoints, to be changed."""
    folder = tmp_path / "made"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "plots"))
    return folder


def test_a_run_says_where_its_figures_come_from(made):
    [entry] = read_environments(made)
    assert entry["step"] == 0 and len(entry["code"]["hash"]) == 32 and entry["packages"]["jax"]
    assert entry["devices"]["platform"] == "cpu" and entry["devices"]["mesh"] == "1×1×1"
    assert entry["data"]["prepared corpus"].startswith("text-32-")


def test_the_whole_run_gives_the_same_numbers_and_bits(made, again, capsys):
    reproduce(made, again)
    *groups, verdict = capsys.readouterr().out.splitlines()
    assert [line.split() for line in groups] == [[name, "the", "same"] for name in
            ("code", "packages", "machine", "devices", "data")]  # fmt: skip
    assert verdict.startswith("the same: all ") and verdict.endswith("to step 8, and the same bits in checkpoint 4, 8")
    numbers = [set(json.loads(line)) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert any({"mlm_loss", "learning_rate", "tokens_per_second"} <= names for names in numbers)


def test_the_first_steps_alone_have_the_learning_rates_of_the_whole_run(made, tmp_path, capsys):
    reproduce(made, tmp_path / "again", steps=5)
    assert capsys.readouterr().out.endswith("up to step 5, and the same bits in checkpoint 4\n")


def test_the_first_difference_is_named_with_its_size(copied, again):
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if (line["step"], line["split"]) == (4, "train"):
            line["mlm_loss"] *= 1.001
        if (line["step"], line["split"]) == (4, "eval"):
            line["loss"] *= 1.01
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"differs from .* from step 4 on: step 4, eval loss: .* 0.0099 apart; 2 of"):
        reproduce(copied, again)


def test_bits_are_compared_where_the_figures_are_the_same(made, copied, again):
    shutil.copytree(made / "checkpoints" / "8", copied / "checkpoints" / "4")  # the bits of another step
    with pytest.raises(UserError, match=r"numbers up to step 8 are the same, but not all bits: parameters\S+ of check"):
        reproduce(copied, again)


def test_what_has_changed_since_is_listed(copied, again, capsys):
    content = json.loads((copied / ENVIRONMENT).read_text())
    content["starts"][0]["packages"]["jax"] = "0.0.1"
    content["starts"][0]["code"]["commit"] = "f" * 40
    (copied / ENVIRONMENT).write_text(json.dumps(content))
    reproduce(copied, again)
    output = capsys.readouterr().out
    assert f"code      commit was {'f' * 40}, is " in output and "packages  jax was 0.0.1, is " in output
    assert "machine   the same" in output


def test_the_copy_in_a_bucket_and_the_trackers_of_the_run_are_left_alone(copied, again):
    config = json.loads((copied / "config.json").read_text())
    config["checkpoint"]["mirror"], config["train"]["trackers"] = "s3://nobody/made", "wandb"
    (copied / "config.json").write_text(json.dumps(config))
    reproduce(copied, again)
    used = json.loads((again / "config.json").read_text())
    assert used["checkpoint"]["mirror"] == used["train"]["trackers"] == ""


def test_changed_data_is_refused_before_the_first_step(copied, tmp_path):
    content = json.loads((copied / ENVIRONMENT).read_text())
    content["starts"][0]["data"]["prepared corpus"] = "topics-of-yesterday"
    (copied / ENVIRONMENT).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the data of \S+made has changed since \(prepared corpus\)"):
        reproduce(copied, tmp_path / "again")
    assert not (tmp_path / "again" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"data": {"files": "gone.txt"}}, "data.files: gone.txt does not exist"),
        ("config.json", {"colour": 1}, r"was written by other code \(colour is not an option.*its commit, \w{40}"),
        ("config.json", {"task": "os.System"}, "is the class os.System; if you trust it, give --task=os.System"),
        ("config.json", {"init_from": "gone"}, "init_from=gone does not exist"),
        ("metrics.jsonl", None, "has no step in metrics.jsonl to compare with"),
        ("config.json", None, "is not the workdir of a run: there is no config.json"),
        (ENVIRONMENT, {"starts": 1}, "environment.json is no list of environments"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_again_is_one_line(name, change, message, copied, tmp_path):
    path = copied / name
    if change is None:
        path.unlink()
    else:
        content = json.loads(path.read_text())
        for key, value in change.items():
            content[key] = content[key] | value if isinstance(value, dict) else value
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        reproduce(copied, tmp_path / "again")


def test_the_second_folder_is_new_or_of_this_code(made, copied, tmp_path):
    with pytest.raises(UserError, match="is the run itself"):
        main([str(made), f"--workdir={made}"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    with pytest.raises(UserError, match="notes was not made by this code; delete it, or give another"):
        main([str(made), f"--workdir={tmp_path / 'notes'}"])
    content = json.loads((copied / ENVIRONMENT).read_text())
    content["starts"][0]["code"]["hash"] = "0" * 32
    (copied / ENVIRONMENT).write_text(json.dumps(content))
    with pytest.raises(UserError, match="was not made by this code"):
        main([str(made), f"--workdir={copied}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "0 runs are given"),
        (["a", "b"], "2 runs"),
        (["a", "--step=1"], "--step is not a flag; did you mean --steps"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(UserError, match=message):
        main(words)
