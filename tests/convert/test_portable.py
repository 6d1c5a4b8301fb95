"""Programs that run without this package: the same numbers, any number of rows and tokens, and what is refused."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import bert_jax
from bert_jax.config import UserError
from bert_jax.convert.__main__ import main
from bert_jax.convert.conversion import convert
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.tasks import task_class
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import base, classify, multiple_choice, ner, squad, translate

TOKENIZER = make_wordpiece(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"], "test", True, None, True
)
TEXTS = ["a b c d e f", "z", "m n o p q r s t u v w x y z a b"]
DOCS = Path(__file__).parents[2] / "docs/exporting.md"
# What a machine without this package lacks.
WITHOUT = "import sys; sys.modules |= dict.fromkeys(('bert_jax', 'flax', 'orbax', 'ml_collections', 'optax'))\n"


def _needs_openvino():
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("pip install -e '.[openvino]'")


def trained(folder, config, description, **model):
    """Returns the workdir of a run with random parameters."""
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update({"dtype": "bfloat16", "max_position_embeddings": 64, "initializer_range": 0.4} | model)
    config.data.update(sequence_length=32, max_query_length=8, target_length=8)
    task = task_class(config.task)(config, TOKENIZER, description)
    run = {"step": 7, "config": config.to_dict(), "task": description or {}}
    write_checkpoint(folder / "checkpoints/7", flatten(task.init(nnx.Rngs(params=0))), run, TOKENIZER)
    return folder


LABELS = {"labels": ["x", "y", "z"], "thresholds": [], "label_kind": "single"}
FAMILIES = {
    "classification": (classify, LABELS, ["rows", 3]),
    "tagging": (ner, {"labels": ["O", "B-X", "I-X"], "characters": False}, ["rows", "length", 3]),
    "span_qa": (squad, {"may_have_no_answer": False, "threshold": 0.0}, ["rows", "length"]),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"), classify.get_config(), LABELS)


def run_loader(folder, texts):
    """Returns what the loader in docs/exporting.md prints, run without this package."""
    [loader] = re.findall(r"```python\n(import json.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    command = [sys.executable, "-c", WITHOUT + loader, *texts]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_stablehlo_by_the_loader_of_the_docs(workdir, tmp_path):
    """Logits whose softmax is what `predict` gives, for texts of other lengths than those it was tried with."""
    report = convert(str(workdir), str(tmp_path / "program"), format="stablehlo")
    assert float(re.findall(r"differs from the model by at most (\S+) on 3 rows", report)[0]) <= 1e-5
    found = run_loader(tmp_path / "program", TEXTS)
    assert found["labels"] == ["x", "y", "z"]
    logits = np.asarray(found["logits"])
    probabilities = np.exp(logits) / np.sum(np.exp(logits), axis=-1, keepdims=True)
    model = bert_jax.load(workdir, overrides={"model.dtype": "float32"})
    expected = [list(result["probabilities"].values()) for result in model.predict(TEXTS)]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("format", ["stablehlo", "openvino"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_one_row(family, format, tmp_path):
    if format == "openvino":
        _needs_openvino()
    module, description, shape = FAMILIES[family]
    shape_of_model = {"norm": "pre", "position_embedding": "rotary", "gated": True} if family == "tagging" else {}
    workdir = trained(tmp_path / "run", module.get_config(), description, **shape_of_model)
    report = convert(str(workdir), str(tmp_path / "program"), format=format)
    assert float(re.findall(r"by at most (\S+) on", report)[0]) <= 2e-5
    facts = json.loads((tmp_path / "program/program.json").read_text())
    assert set(map(tuple, facts["outputs"].values())) == {tuple(shape)} and facts["learned"] == description


def test_a_bert_without_such_a_head_gives_hidden_states(tmp_path):
    workdir = trained(tmp_path / "run", base.get_config(), None)
    report = convert(str(workdir), str(tmp_path / "program"), format="stablehlo", dtype="bfloat16")
    assert "last_hidden_state [rows, length, 32], pooled [rows, 32]" in report
    assert 0 < float(re.findall(r"by at most (\S+) on", report)[0]) < 0.2
    found = run_loader(tmp_path / "program", ["a b"])
    expected = bert_jax.load(workdir, overrides={"model.dtype": "float32"}).encode(["a b"])
    np.testing.assert_allclose(found["pooled"], expected.pooled, atol=0.1)
    wide = convert(str(workdir), str(tmp_path / "wide"), format="stablehlo")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("program", "wide")]
    assert sizes[0] < 0.6 * sizes[1] and "in float32" in wide


def test_one_program_for_all_platforms(workdir, tmp_path):
    from jax import export

    convert(str(workdir), str(tmp_path / "program"), format="stablehlo")
    program = export.deserialize(bytearray((tmp_path / "program/model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert (tmp_path / "program/model.stablehlo").stat().st_size < 200_000  # no weights in it


def test_a_program_is_replaced_by_another(workdir, tmp_path):
    target = str(tmp_path / "program")
    convert(str(workdir), target, format="stablehlo")
    with pytest.raises(UserError, match="exists; choose another folder"):
        convert(str(workdir), target, format="stablehlo")
    convert(str(workdir), target, format="stablehlo", overwrite=True)
    (tmp_path / "program/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds what a conversion does not write \(mine.txt\)"):
        convert(str(workdir), target, format="stablehlo", overwrite=True)


def windows(config):
    config.data.long_texts = "windows"
    return LABELS


REFUSED = {
    "choices": (multiple_choice, lambda _: {}, "task=multiple_choice reads more than one row"),
    "writes": (translate, lambda _: {}, "task=seq2seq reads more than one row"),
    "windows": (classify, windows, "data.long_texts=windows joins several rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_program_of_rows_cannot_hold(name, tmp_path, capsys):
    module, describe, expected = REFUSED[name]
    config = module.get_config()
    workdir = trained(tmp_path / "run", config, describe(config))
    with pytest.raises(UserError, match=re.escape(expected)):
        main([f"--from={workdir}", f"--to={tmp_path / 'program'}", "--format=stablehlo"])
    assert not (tmp_path / "program").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--format=stablehlo", "--architecture=BertModel"], "--architecture is not for --format=stablehlo"),
        (["--format=stablehlo", "--max_position_embeddings=99"], "--max_position_embeddings is not for"),
        (["--format=huggingface", "--dtype=float16"], "--dtype is for --format=stablehlo and openvino"),
        (["--format=openvino", "--dtype=bfloat16"], "OpenVINO's files have float32 or float16"),
        (["--format=onnxx"], "can be"),
    ],
)
def test_flags_that_do_not_go_together(words, expected, workdir, tmp_path):
    if "--format=openvino" in words:
        _needs_openvino()
    with pytest.raises(UserError, match=re.escape(expected)):
        main([f"--from={workdir}", f"--to={tmp_path / 'program'}", *words])
    assert not (tmp_path / "program").exists()
