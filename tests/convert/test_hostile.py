"""Folders from somebody else: nothing is executed, nothing outside is read, every wrong field is one line."""

import json
import os
import shutil
from functools import partial

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bert_jax.command import exit_status
from bert_jax.config import UserError
from bert_jax.convert import conversion, google_tf, huggingface
from bert_jax.convert.__main__ import main as convert_command
from bert_jax.convert.program_card import _SECTION, kept

main = partial(exit_status, convert_command)
ODD = [None, True, 0, -1, 1.5, 10**30, float("nan"), "", "abc", "../x", [], [1], [[]], {}, {"a": 1}, {"0": None}]
FIELDS = [
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps", "hidden_dropout_prob"),
    *("attention_probs_dropout_prob", "initializer_range", "architectures", "id2label", "label2id", "num_labels"),
    *("problem_type", "model_type", "position_embedding_type", "is_decoder", "tie_word_embeddings", "pruned_heads"),
    *("auto_map", "quantization_config", "classifier_dropout", "add_cross_attention", "model"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    """A classifier with three labels, as Transformers writes it, made once; the tests restore what they change."""
    make = request.getfixturevalue("make_module_loaded")
    path = tmp_path_factory.mktemp("foreign") / "model"
    description = {"labels": ["a", "b", "c"], "thresholds": [], "label_kind": "single"}
    huggingface.write(path, make("classification", labels=3, description=description))
    return path


@pytest.fixture(scope="module")
def make_module_loaded():
    from tests.convert.conftest import make_loaded

    return make_loaded.__wrapped__()


@hypothesis.given(st.sampled_from(FIELDS), st.sampled_from(ODD))
@hypothesis.settings(max_examples=200, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_an_odd_field_of_config_json_is_read_or_refused_in_one_line(folder, field, value):
    path = folder / "config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {field: value}))
        huggingface.read(folder)
    except UserError as error:
        assert "config.json" in str(error) or str(folder) in str(error)
        assert "\n" not in str(error)
    finally:
        path.write_text(before)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"text"', "null", "[" * 100_000, "\x00", "{}"])
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "modules.json", "1_Pooling/config.json"]
)
def test_a_json_file_of_another_shape_is_named(folder, tmp_path, name, content):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    if name.startswith("1_"):
        (copy / "1_Pooling").mkdir()
        (copy / "modules.json").write_text(
            json.dumps([{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}])
        )
    if "index" in name:
        (copy / "model.safetensors").unlink()
    (copy / name).write_text(content)
    if name.startswith("1_") and content == "{}":
        assert huggingface.read(copy).config.pooling == "cls"  # no mode is named there: nothing to keep
        return
    with pytest.raises(UserError, match=r"\.json"):
        huggingface.read(copy)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "", ".", "..", 3, ["x"], None, {}])
def test_shards_lie_beside_their_index(folder, tmp_path, shard):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = load_file(tmp_path / "outside.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(UserError, match="which is no file of this folder"):
        huggingface.read(copy)


@pytest.mark.parametrize("path", ["../secret", "/etc", "a/../../secret", 7, ["x"]])
def test_modules_lie_inside_their_folder(folder, tmp_path, path):
    copy, secret = tmp_path / "model", tmp_path / "secret"
    shutil.copytree(folder, copy)
    shutil.copytree(folder, secret)
    (copy / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": path}]))
    with pytest.raises(UserError, match=r"modules\.json: "):
        huggingface.read(copy)


def test_a_size_that_no_tensor_has_is_refused_before_memory_is_taken(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "config.json").read_text())
    for field, value in (("intermediate_size", 2**31 - 1), ("num_hidden_layers", 2**31 - 1), ("vocab_size", 2**31 - 1)):
        (copy / "config.json").write_text(json.dumps(settings | {field: value}))
        with pytest.raises(UserError):
            huggingface.read(copy)


def test_weights_that_are_not_numbers_are_refused(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    name = "classifier.bias"
    for value in (np.float32([1, np.nan, 0]), np.float32([1, np.inf, 0])):
        save_file(tensors | {name: value}, copy / "model.safetensors")
        with pytest.raises(UserError, match=r"classifier\.bias has values that are not finite"):
            huggingface.read(copy)


def test_an_export_keeps_to_one_mode_and_names_no_place(tmp_path, make_loaded):
    """Files can be read by whom the umask lets; neither card nor config says where files lay."""
    config = {"init_from": "/home/someone/secret/base", "data": dict.fromkeys(("files", "vocab_file"), "")}
    config["data"] |= {"train": "/home/someone/a.csv,~/b/*.csv", "validation": "tfds:glue/sst2@validation"}
    config["data"] |= {"test": "relative/c.csv", "prepared": "prepared"}
    config["tasks"] = {"one": {"data": {"train": "de=/home/someone/de.tsv,en=/x/en.tsv"}}}
    config["corpora"] = {"both": {"files": "/home/someone/a=1/b.en+/home/someone/b.de", "share": 0.5}}
    config["distillation"] = {"teacher": "/home/someone/teacher", "soft": 1.0}
    public = conversion.without_private_paths(config)
    assert public["init_from"] == "base" and public["distillation"] == {"teacher": "teacher", "soft": 1.0}
    assert public["tasks"]["one"]["data"]["train"] == "de=de.tsv,en=en.tsv"
    assert public["corpora"]["both"] == {"files": "b.en+b.de", "share": 0.5}
    assert public["data"]["train"] == "a.csv,*.csv"
    assert public["data"]["validation"] == "tfds:glue/sst2@validation" and public["data"]["test"] == "c.csv"
    huggingface.write(tmp_path / "theirs", make_loaded())
    assert main([f"--from={tmp_path / 'theirs'}", f"--to={tmp_path / 'out'}", "--format=huggingface"]) == 0
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in files)


class TestOverwrite:
    """--overwrite replaces what a conversion wrote, and nothing else."""

    @pytest.fixture
    def theirs(self, tmp_path, make_loaded):
        huggingface.write(tmp_path / "theirs", make_loaded())
        return tmp_path / "theirs"

    @pytest.mark.parametrize("format", conversion.FORMATS)
    def test_a_file_of_the_user_beside_it_stops_it(self, theirs, tmp_path, format, capsys):
        if format in ("onnx", "openvino"):
            pytest.importorskip(format, reason=f"pip install -e '.[{format}]'")
        command = [f"--from={theirs}", f"--to={tmp_path / 'out'}", f"--format={format}", "--overwrite"]
        assert main(command) == 0
        (tmp_path / "out" / "notes.txt").write_text("mine")
        assert main(command) == 2
        assert "holds what a conversion does not write (notes.txt)" in capsys.readouterr().err
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("item", ["optimizer", "metrics"])
    def test_a_checkpoint_of_training_is_kept(self, theirs, tmp_path, item):
        command = [f"--from={theirs}", f"--to={tmp_path / 'out'}", "--overwrite"]
        assert main(command) == 0
        (tmp_path / "out" / item).mkdir()
        assert main(command) == 2
        assert (tmp_path / "out" / item).is_dir()

    def test_a_card_completed_by_hand_is_kept(self, theirs, tmp_path):
        command = [f"--from={theirs}", f"--to={tmp_path / 'out'}", "--format=huggingface", "--overwrite"]
        assert main(command) == 0
        (tmp_path / "out" / "README.md").write_text("completed")
        assert main(command) == 0
        assert (tmp_path / "out" / "README.md").read_text() == "completed"

    def test_a_card_of_another_format_is_neither_kept_nor_lost(self, theirs, tmp_path, capsys):
        out = f"--to={tmp_path / 'out'}"
        assert main([f"--from={theirs}", out, "--format=huggingface"]) == 0
        card = (tmp_path / "out" / "README.md").read_text()
        assert main([f"--from={theirs}", out, "--overwrite"]) == 2  # a checkpoint of ours has no card
        assert "has the model card (README.md) of another format" in capsys.readouterr().err
        assert (tmp_path / "out" / "README.md").read_text() == card
        (tmp_path / "out" / "README.md").unlink()
        for _ in range(2):
            assert main([f"--from={theirs}", out, "--overwrite"]) == 0
        assert kept(f"by hand\n\n{_SECTION}\n", "of Transformers") is None

    def test_a_link_to_a_folder_is_no_target(self, theirs, tmp_path):
        assert main([f"--from={theirs}", f"--to={tmp_path / 'real'}"]) == 0
        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert main([f"--from={theirs}", f"--to={tmp_path / 'link'}", "--overwrite"]) == 2
        assert (tmp_path / "real" / "run").is_dir()

    def test_the_old_target_returns_when_the_new_one_cannot_take_its_place(self, theirs, tmp_path, monkeypatch):
        command = [f"--from={theirs}", f"--to={tmp_path / 'out'}", "--overwrite"]
        assert main(command) == 0
        before = sorted(path.name for path in (tmp_path / "out").iterdir())
        rename = type(tmp_path).rename

        def failing(self, target):
            if self.name == "new":
                raise OSError(28, "No space left on device")
            return rename(self, target)

        monkeypatch.setattr(type(tmp_path), "rename", failing)
        assert main(command) == 2
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


@hypothesis.given(st.sampled_from([*FIELDS[:12], "directionality"]), st.sampled_from(ODD))
@hypothesis.settings(max_examples=100, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_an_odd_field_of_bert_config_json_is_one_line(tmp_path, field, value):
    path = tmp_path / "bert_config.json"
    settings = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"intermediate_size": 64, "max_position_embeddings": 40, "type_vocab_size": 2, "hidden_act": "gelu"}
    settings |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02}
    path.write_text(json.dumps(settings | {field: value}))
    try:
        google_tf._config(path)
    except UserError as error:
        assert "bert_config.json" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("number", [-1, 2**40])
def test_a_number_of_positions_out_of_range_is_refused(tmp_path, number, capsys):
    assert main(["--from=x", f"--to={tmp_path / 'out'}", f"--max_position_embeddings={number}"]) == 2
    assert "--max_position_embeddings" in capsys.readouterr().err
