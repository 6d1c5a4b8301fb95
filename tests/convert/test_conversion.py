"""The command: from any source to any target, what it says, and what it refuses."""

import json
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bert_jax import modes
from bert_jax.command import exit_status
from bert_jax.config import UserError
from bert_jax.convert import conversion, hub, huggingface
from bert_jax.convert.__main__ import main as convert_command
from bert_jax.convert.model_card import model_card
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.predictor import Predictor
from bert_jax.options import default_config
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
main = partial(exit_status, convert_command)
DESCRIPTIONS = {
    "pretraining": {},
    "classification": {"labels": ["no", "yes"], "thresholds": [], "label_kind": "single"},
    "tagging": {"labels": ["O", "B-X"], "characters": False},
    "span_qa": {"may_have_no_answer": False, "threshold": 0.0},
    "multiple_choice": {},
}


@pytest.fixture
def theirs(tmp_path, make_loaded) -> Path:
    huggingface.write(tmp_path / "theirs", make_loaded())
    return tmp_path / "theirs"


@pytest.fixture
def trained(small_config, tmp_path) -> Path:
    """A workdir of two steps of pretraining."""
    small_config.train.steps = 2
    small_config.optimizer.decay_steps = 50
    small_config.model.dtype = "float32"
    assert modes.train(small_config, tmp_path / "run") == 0
    return tmp_path / "run"


@pytest.mark.parametrize("task", DESCRIPTIONS)
def test_every_task_goes_to_hugging_face_and_back(tmp_path, make_loaded, task, capsys):
    labels = 1 if task == "multiple_choice" else 2
    model = make_loaded(task, labels=labels, description=DESCRIPTIONS[task], hidden_act="gelu")
    huggingface.write(tmp_path / "theirs", model)
    assert main([f"--from={tmp_path / 'theirs'}", f"--to={tmp_path / 'ours'}"]) == 0
    assert main([f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'again'}", "--format=huggingface"]) == 0
    for file in ("model.safetensors", "config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "theirs" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    saved = read_checkpoint(find_checkpoint(str(tmp_path / "ours")))
    assert saved.run["task"] == DESCRIPTIONS[task]
    assert saved.run["config"]["task"] == task
    assert saved.run["config"]["model"]["hidden_act"] == "gelu"
    assert saved.run["config"]["data"]["sequence_length"] == 40
    assert "pooler/kernel" in saved.parameters
    for name, value in model.parameters.items():
        if not (name.startswith("pooler") and task in ("tagging", "span_qa")):
            np.testing.assert_array_equal(saved.parameters[name], value, err_msg=name)
    shown = capsys.readouterr().out
    assert f"read {tmp_path / 'theirs'}: " in shown and f"wrote {tmp_path / 'ours'}: " in shown
    assert ("a pooler was added, as initialised" in shown) == (task in ("tagging", "span_qa"))


def test_the_config_of_a_converted_checkpoint_is_whole(theirs, tmp_path):
    from experiments.base import get_config

    conversion.convert(str(theirs), str(tmp_path / "ours"))
    config = read_checkpoint(tmp_path / "ours").run["config"]
    declared = get_config().to_dict()
    assert {group: sorted(keys) for group, keys in config.items() if isinstance(keys, dict)} == {
        group: sorted(keys) for group, keys in declared.items() if isinstance(keys, dict)
    }
    unset = sorted(key for key, value in config["model"].items() if value is None)
    assert unset == ["head_size", "size"]  # heads that fill the width, as all of theirs do


@pytest.mark.parity
def test_a_run_trained_here_gives_its_logits_in_transformers(trained, tmp_path, ours, tools, small_config):
    import transformers

    report = conversion.convert(str(trained), str(tmp_path / "hf"), format="huggingface")
    assert "left out" not in report
    peer, info = transformers.BertForPreTraining.from_pretrained(
        tmp_path / "hf", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    opened = conversion.open_source(str(trained))
    batch = tools.rows([20, 7], opened.model.config.vocab_size)
    expected, found = peer.eval()(**tools.torch_inputs(batch)), ours(opened.model, batch)
    real = batch["sequence_ids"] > 0
    assert np.abs(found["mlm"][real] - expected.prediction_logits.detach().numpy()[real]).max() <= 2e-5
    assert np.abs(found["nsp"] - expected.seq_relationship_logits.detach().numpy()).max() <= 2e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "The value of a [MASK] expression, in Python."
    assert tokenizer(text).input_ids == opened.model.tokenizer.encode([text])[0].ids
    assert tokenizer.model_max_length == opened.model.config.max_position_embeddings


@pytest.mark.parametrize(
    ("task", "given", "key"),
    [
        ("classification", "the of a b", "label"),
        ("tagging", {"text": ["the", "of"]}, "tags"),
        ("span_qa", {"question": "the a", "context": "the of a b"}, "answer"),
    ],
)
def test_a_head_trained_elsewhere_predicts_here(tmp_path, make_loaded, task, given, key):
    model = make_loaded(task, description=DESCRIPTIONS[task], max_position_embeddings=128)
    huggingface.write(tmp_path / "theirs", model)
    conversion.convert(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    (prediction,) = Predictor(str(tmp_path / "ours"))([given])
    assert prediction[key]


def test_the_card_says_how_the_model_was_trained(trained, tmp_path):
    conversion.convert(str(trained), str(tmp_path / "hf"), format="huggingface")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    assert "| steps | 2 |" in card
    assert "| batch | 16 sequences of up to 32 tokens |" in card
    assert "topics.txt" in card
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "eval"][-1]
    assert last["step"] == 2 and "ledger" not in card
    table = "## eval, step 2\n\n| measure | value | 95 % interval |\n|---|---|---|\n"
    assert f"{table}| mlm_accuracy | {last['mlm_accuracy']:.4g} |  |" in card
    interval = f"{last['nsp_accuracy_low']:.4g} to {last['nsp_accuracy_high']:.4g} (examples)"
    assert f"| nsp_accuracy | {last['nsp_accuracy']:.4g} | {interval} |" in card and "nsp_accuracy_low" not in card
    (start,) = json.loads((trained / "environment.json").read_text())["starts"]
    assert f"commit {start['code']['commit'][:12]}" in card and f"jax {start['packages']['jax']}" in card
    assert all(digest in card for digest in start["data"].values())
    for text in ("| hidden size | 32 |", "| tokenizer | wordpiece, lower case |", "Devlin", "not fine-tuned"):
        assert text in card
    conversion.convert(str(tmp_path / "hf"), str(tmp_path / "ours"))
    conversion.convert(str(tmp_path / "ours"), str(tmp_path / "twice"), format="huggingface")
    assert "Converted from `hf` by bert_jax" in (tmp_path / "twice" / "README.md").read_text()


def test_the_card_has_intervals_over_seeds_or_examples(tmp_path):
    run = {"step": 2, "config": default_config().to_dict(), "task": {"labels": ["a", "b"]}}
    run["config"] |= {"task": "classification", "init_from": "base"}
    folder = tmp_path / "seed0"
    (folder / "predictions").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 2, "split": "eval", "accuracy": 0.8, "f1": 0.5}\n')
    (folder / "predictions" / "validation.jsonl").write_text(
        "".join(json.dumps({"label": "a", "prediction": {"label": "ab"[i >= 40]}}) + "\n" for i in range(50))
    )
    card = model_card(run, folder / "metrics.jsonl", "BertForSequenceClassification", 9)
    assert "| accuracy | 0.8 | 0.6696 to 0.8876 (50 examples) |" in card  # Wilson's, by an independent calculator
    assert "| f1 | 0.5 |  |" in card and "chooses among 2 labels" in card and "the authors of `base`" in card
    (folder / "metrics.jsonl").write_text('{"step": 2, "split": "eval", "accuracy": 0.7, "f1": 0.5}\n')
    card = model_card(run, folder / "metrics.jsonl", "BertForSequenceClassification", 9)
    assert "| accuracy | 0.7 |\n" in card  # the predictions are those of another checkpoint
    spread = {"low": 0.4, "high": 0.6, "values": [0.45, 0.5, 0.55]}
    (tmp_path / "seeds.json").write_text(json.dumps({"splits": {"eval": {"f1": spread}}}))
    card = model_card(run, folder / "metrics.jsonl", "BertForSequenceClassification", 9)
    assert "| f1 | 0.5 | 0.4 to 0.6 (mean of 3 seeds) |" in card
    for damaged in ("", "[]", '{"splits": 3}', '{"splits": {"eval": {"f1": {}}}}', "\0"):
        (tmp_path / "seeds.json").write_text(damaged)
        assert "| f1 | 0.5 |\n" in model_card(run, folder / "metrics.jsonl", "BertForSequenceClassification", 9)


def test_pretraining_goes_on_from_a_converted_checkpoint_with_or_without_heads(trained, tmp_path, small_config, caplog):
    conversion.convert(str(trained), str(tmp_path / "hf"), format="huggingface", architecture="BertModel")
    conversion.convert(str(tmp_path / "hf"), str(tmp_path / "bare"))
    conversion.convert(str(trained), str(tmp_path / "whole"))
    for name, left in (("bare", 7), ("whole", 0)):
        small_config.init_from = str(tmp_path / name)
        small_config.train.steps = 1
        with caplog.at_level(logging.INFO):
            assert modes.train(small_config.copy_and_resolve_references(), tmp_path / f"next_{name}") == 0
        (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("warm start from")]
        assert (f"{left} left as initialised: heads/mlm/" in line) == (left > 0)
        caplog.clear()
    fill = FillMask(str(tmp_path / "whole"))
    assert fill("the [MASK] of a list")[0] == FillMask(str(trained))("the [MASK] of a list")[0]
    with pytest.raises(UserError, match="bare has no MLM head, which fills masks"):
        FillMask(str(tmp_path / "bare"))


def test_an_existing_target_is_replaced_only_when_asked_and_only_by_a_whole_one(theirs, tmp_path, make_loaded):
    target = tmp_path / "ours"
    assert main([f"--from={theirs}", f"--to={target}"]) == 0
    before = sorted((p.relative_to(target), p.stat().st_mtime_ns) for p in target.rglob("*"))
    assert main([f"--from={theirs}", f"--to={target}"]) == 2
    words = tmp_path / "words.txt"
    words.write_text("a" * 101)  # fails after the target was accepted
    assert main([f"--from={theirs}", f"--to={target}", "--overwrite", f"--extend_vocab={words}"]) == 2
    assert sorted((p.relative_to(target), p.stat().st_mtime_ns) for p in target.rglob("*")) == before
    assert main([f"--from={theirs}", f"--to={target}", "--overwrite"]) == 0
    assert sorted((p.relative_to(target), p.stat().st_mtime_ns) for p in target.rglob("*")) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs", "words.txt"]  # nothing half made


def test_a_converted_folder_can_be_moved(theirs, tmp_path):
    conversion.convert(str(theirs), str(tmp_path / "ours"))
    (tmp_path / "ours").rename(tmp_path / "moved")
    assert read_checkpoint(find_checkpoint(str(tmp_path / "moved"))).run["step"] == 0


MISTAKES = {
    "no source": (lambda t: ["--to=x"], "--from is missing; --help lists the flags"),
    "unknown flag": (lambda t: ["--from=a", "--to=b", "--form=c"], "--form is not a flag; did you mean --format?"),
    "unknown format": (
        lambda t: ["--from=a", "--to=b", "--format=tflite"],
        "--format is 'tflite'; it can",
    ),
    "no number": (
        lambda t: ["--from=a", "--to=b", "--max_position_embeddings=many"],
        "is 'many'; it must be a whole number",
    ),
    "bad regex": (
        lambda t: [f"--from={t / 'theirs'}", f"--to={t / 'x'}", "--allow=("],
        "--allow is '(', which is not a regular",
    ),
    "nothing there": (lambda t: [f"--from={t / 'none'}", f"--to={t / 'x'}"], "none does not exist"),
    "a file": (lambda t: [f"--from={t / 'theirs' / 'vocab.txt'}", f"--to={t / 'x'}"], "vocab.txt is a file; give the"),
    "no checkpoint": (lambda t: [f"--from={t}", f"--to={t / 'x'}"], "is not a checkpoint: it has neither config.json"),
    "no checkpoint yet": (
        lambda t: _workdir(t / "run") or [f"--from={t / 'run'}", f"--to={t / 'x'}"],
        "run is a workdir of bert_jax without a checkpoint; train first",
    ),
    "lost config": (
        lambda t: _lose_config(t / "theirs") or [f"--from={t / 'theirs'}", f"--to={t / 'x'}"],
        "config.json: cannot be read (No such file or directory): fetch the checkpoint again",
    ),
    "target exists": (lambda t: [f"--from={t / 'theirs'}", f"--to={t / 'full'}"], "full exists; choose another folder"),
    "not ours": (
        lambda t: [f"--from={t / 'theirs'}", f"--to={t / 'full'}", "--overwrite"],
        "full holds what a conversion does not write",
    ),
    "itself": (
        lambda t: [f"--from={t / 'theirs'}", f"--to={t / 'theirs'}", "--overwrite"],
        "theirs holds --from=",
    ),
    "its parent": (lambda t: [f"--from={t / 'theirs'}", f"--to={t}", "--overwrite"], "holds --from="),
    "below a file": (
        lambda t: [f"--from={t / 'theirs'}", f"--to={t / 'theirs' / 'vocab.txt' / 'x'}"],
        "cannot be written (",
    ),
    "unknown architecture": (
        lambda t: [f"--from={t / 'theirs'}", f"--to={t / 'x'}", "--architecture=Bert"],
        "architecture Bert is not known; --architecture can be BertForPreTraining",
    ),
    "no such head": (
        lambda t: (
            [
                "--architecture=BertForQuestionAnswering",
                "--format=huggingface",
                f"--from={t / 'theirs'}",
                f"--to={t / 'x'}",
            ]
        ),
        "needs heads/span/kernel, which is not among the parameters; choose --architecture",
    ),
    "no words": (
        lambda t: [f"--from={t / 'theirs'}", f"--to={t / 'x'}", "--extend_vocab=none"],
        "none: cannot be read",
    ),
    "vocabulary": (
        lambda t: _cut_vocabulary(t) or [f"--from={t / 'theirs'}", f"--to={t / 'x'}"],
        "the vocabulary has 32 tokens, the word embeddings 33 rows",
    ),
    "truncated": (
        lambda t: _truncate(t / "theirs" / "model.safetensors") or [f"--from={t / 'theirs'}", f"--to={t / 'x'}"],
        "model.safetensors is damaged",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_line_and_status_2(theirs, tmp_path, capsys, mistake):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    flags, message = MISTAKES[mistake]
    assert main(flags(tmp_path)) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and shown[0].startswith("error: ") and message in shown[0]
    assert not (tmp_path / "x").exists() and (tmp_path / "full" / "thesis.txt").exists()


def test_a_damaged_checkpoint_of_ours_is_named(theirs, tmp_path, capsys):
    conversion.convert(str(theirs), str(tmp_path / "ours"))
    data = max((tmp_path / "ours" / "parameters").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 255
    data.write_bytes(bytes(content))
    assert main([f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'x'}", "--architecture=BertModel"]) == 2
    assert "this source says itself what it is" in capsys.readouterr().err
    assert main([f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'x'}", "--format=huggingface"]) == 2
    assert f"checkpoint {tmp_path / 'ours'}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [FileNotFoundError, RuntimeError])  # its own, and those of an HTTP library
def test_without_a_network_a_hub_name_says_how_to_use_a_folder(kind, monkeypatch, tmp_path, capsys):
    import huggingface_hub

    def refuse(name, *, allow_patterns, etag_timeout):
        assert etag_timeout <= 5
        raise kind("Name or service not known\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert main(["--from=bert-base-uncased", f"--to={tmp_path / 'x'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: bert-base-uncased is no folder, and the Hugging Face Hub cannot be reached (Name or service not "
        "known); fetch it elsewhere (`hf download bert-base-uncased`) and give the folder"
    )


def test_a_hub_name_is_fetched_without_files_that_are_not_needed(theirs, monkeypatch, tmp_path):
    import fnmatch

    import huggingface_hub

    asked = []

    def snapshot(name, *, allow_patterns, etag_timeout):
        asked.append((name, allow_patterns))
        return str(theirs)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    conversion.convert("someone/bert", str(tmp_path / "ours"))
    assert [name for name, _ in asked] == ["someone/bert"]

    def wanted(patterns, file):
        return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)

    for file in (
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.json",
        "vocab.txt",
        "1_Pooling/config.json",
    ):
        assert wanted(asked[0][1], file), file
    for file in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "README.md"):
        assert not wanted(asked[0][1], file), file
    (theirs / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        conversion.convert("someone/bert", str(tmp_path / "x"))
    assert wanted(asked[2][1], "pytorch_model.bin")
    read = read_checkpoint(tmp_path / "ours").run
    assert read["converted_from"] == "someone/bert"


@pytest.mark.parametrize(
    ("source", "is_name"),
    [
        ("bert-base-uncased", True),
        ("dbmdz/bert-base", True),
        ("./x", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("../a", False),
    ],
)
def test_what_may_be_a_name_of_the_hub(source, is_name):
    assert hub.is_name(source) == is_name


def test_help_is_complete():
    command = [sys.executable, "-m", "bert_jax.convert", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    for flag in (
        "from",
        "to",
        "format",
        "architecture",
        "extend_vocab",
        "max_position_embeddings",
        "allow",
        "overwrite",
    ):
        assert f"--{flag}" in result.stdout


def test_the_command_shows_a_traceback_when_asked(tmp_path):
    command = [sys.executable, "-m", "bert_jax.convert", f"--from={tmp_path}", f"--to={tmp_path / 'x'}"]
    for flags, shown in (([], False), (["--debug"], True)):
        result = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2
        assert ("Traceback" in result.stderr) == shown
        assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path} is not a checkpoint")


def _workdir(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"task": "pretraining", "model": {"size": "tiny"}, "data": {}}')


def _lose_config(folder):
    (folder / "config.json").unlink()
    (folder / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')


def _cut_vocabulary(folder):
    (folder / "theirs" / "tokenizer.json").unlink()
    vocabulary = folder / "theirs" / "vocab.txt"
    vocabulary.write_text("\n".join(vocabulary.read_text().splitlines()[:-1]) + "\n")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])
