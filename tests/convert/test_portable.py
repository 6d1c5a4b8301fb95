"""Programs that run without this package: the same numbers, any number of rows and tokens, and what is refused."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import bert_jax
from bert_jax.config import UserError
from bert_jax.convert import parity, portable
from bert_jax.convert.__main__ import main
from bert_jax.convert.conversion import convert
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.inference.graph import graph_of
from bert_jax.inference.open import open_model
from bert_jax.tasks import task_class
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from bert_jax.training.stored import stored, widened
from experiments import base, classify, multiple_choice, ner, squad, translate

TOKENIZER = make_wordpiece(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"], "test", True, None, True
)
TEXTS = ["a b c d e f", "z", " ".join(3 * "mnopqrstuvwxyzabcdefghijkl")]  # the last one is longer than any row
DOCS = Path(__file__).parents[2] / "docs/exporting.md"
FORMATS = ("stablehlo", "onnx", "openvino")
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}


def needs(format):
    if format in ENGINES and importlib.util.find_spec(ENGINES[format]) is None:
        pytest.skip(f"pip install -e '.[{format}]'")


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
    "tagging": (ner, {"labels": ["O", "B-X", "I-X"], "characters": False}, ["rows", "length", 3]),
    "span_qa": (squad, {"may_have_no_answer": False, "threshold": 0.0}, ["rows", "length"]),
}

_QUESTIONS = [{"id": str(i), "question": "e f", "answers": [{"text": "c d", "answer_start": 4}]} for i in range(2)]
CHECKED = {  # a labelled file of each family
    "tagging": "a O\nb B-X\n\nc B-X\nd I-X\n",
    "span_qa": json.dumps({"data": [{"paragraphs": [{"context": "a b c d e", "qas": _QUESTIONS}]}]}),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"), classify.get_config(), LABELS)


@pytest.fixture(scope="module")
def expected(workdir):
    """Probabilities of TEXTS."""
    model = bert_jax.load(workdir, overrides={"model.dtype": "float32"})
    return [list(result["probabilities"].values()) for result in model.predict(TEXTS)]


def run_loader(folder, texts, format="stablehlo"):
    """Returns what the loader in docs/exporting.md prints, run without this package and, but for StableHLO, JAX."""
    loaders = re.findall(r"```python\n(import json.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    loader = dict(zip(FORMATS, loaders, strict=True))[format]
    assert len(loader.splitlines()) <= 25
    lacking = ["bert_jax", "flax", "orbax", "ml_collections", "optax", *(["jax"] if format != "stablehlo" else [])]
    without = f"import sys; sys.modules |= dict.fromkeys({lacking})\n"
    command = [sys.executable, "-c", without + loader, *texts]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def difference(report):
    return float(re.findall(r"differs from the model by at most (\S+) on 3 rows", report)[0])


@pytest.mark.parametrize("format", FORMATS)
def test_programs_by_the_loaders_of_the_docs(format, workdir, expected, tmp_path):
    """Logits whose softmax is what `predict` gives, for texts of other lengths than those it was tried with."""
    needs(format)
    report = convert(str(workdir), str(tmp_path / "program"), format=format)
    assert difference(report) <= 1e-5
    found = run_loader(tmp_path / "program", TEXTS, format)
    assert found["labels"] == ["x", "y", "z"]
    logits = np.asarray(found["logits"])
    probabilities = np.exp(logits) / np.sum(np.exp(logits), axis=-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", ["tagging", "span_qa"])
def test_every_family_of_one_row(family, format, tmp_path):
    """Classification is in the test above."""
    needs(format)
    module, description, shape = FAMILIES[family]
    shape_of_model = {"norm": "pre", "position_embedding": "rotary", "gated": True} if family == "tagging" else {}
    # Outputs of the size that trained ones have, not ten times that
    workdir = trained(tmp_path / "run", module.get_config(), description, initializer_range=0.2, **shape_of_model)
    file = tmp_path / ("own.conll" if family == "tagging" else "own.json")
    file.write_text(CHECKED[family])
    # JAX's programs are compiled for each shape, which takes long.
    check = {} if format == "stablehlo" else {"check": str(file)}
    report = convert(str(workdir), str(tmp_path / "program"), format=format, **check)
    assert difference(report) <= 1e-5
    assert not check or ("2 examples" in report and "100.00% of the answers" in report and "f1: model " in report)
    facts = json.loads((tmp_path / "program/program.json").read_text())
    assert set(map(tuple, facts["outputs"].values())) == {tuple(shape)} and facts["learned"] == description


def test_a_bert_without_such_a_head_gives_hidden_states(tmp_path):
    workdir = trained(tmp_path / "run", base.get_config(), None)
    report = convert(str(workdir), str(tmp_path / "program"), format="stablehlo", dtype="bfloat16")
    assert "last_hidden_state [rows, length, 32], pooled [rows, 32]" in report
    assert 0 < difference(report) < 0.2
    found = run_loader(tmp_path / "program", ["a b"])
    expected = bert_jax.load(workdir, overrides={"model.dtype": "float32"}).encode(["a b"])
    np.testing.assert_allclose(found["pooled"], expected.pooled, atol=0.1)
    wide = convert(str(workdir), str(tmp_path / "wide"), format="stablehlo")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("program", "wide")]
    assert sizes[0] < 0.6 * sizes[1] and "in float32" in wide


def test_a_pooler_that_was_never_there_gives_no_output(tmp_path):
    workdir = trained(tmp_path / "run", base.get_config(), None, dtype="float32")
    opened = open_model(workdir)
    for name in [name for name in opened.parameters if name.startswith("pooler/")]:
        del opened.parameters[name]
    graphdef, parameters = opened.fit(opened.task.init, absent="^(pooler|heads)/")
    program = partial(portable._traced(graphdef, portable._function(opened)), parameters)
    assert jax.eval_shape(program, portable._shapes()).keys() == {"last_hidden_state"}


def test_a_program_that_gives_nan_is_not_said_to_be_the_same():
    nan = np.asarray([1.0, np.nan])
    for differences in ([0.0, nan], [nan, np.ones(2)], [np.zeros(1), nan, np.ones(1)]):
        assert np.isnan(parity.largest(differences))
    assert parity.largest([0.5, np.asarray([-2.0, 1.0])]) == 2


def test_one_program_for_all_platforms(workdir, tmp_path):
    """It is replaced by another one, and by none that was not asked for."""
    from jax import export

    target = str(tmp_path / "program")
    convert(str(workdir), target, format="stablehlo")
    program = export.deserialize(bytearray((tmp_path / "program/model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert (tmp_path / "program/model.stablehlo").stat().st_size < 200_000  # no weights in it
    with pytest.raises(UserError, match="exists; choose another folder"):
        convert(str(workdir), target, format="stablehlo")
    (tmp_path / "program/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds what a conversion does not write \(mine.txt\)"):
        convert(str(workdir), target, format="stablehlo", overwrite=True)


@pytest.fixture
def labelled(tmp_path):
    """TEXTS with labels, one of which is not what the model says."""
    file = tmp_path / "dev.tsv"
    file.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in zip(TEXTS, "xyz", strict=True)))
    return file


@pytest.mark.parametrize("format", FORMATS)
def test_int8_is_compared_on_a_file(format, workdir, expected, labelled, tmp_path):
    """Answers, metrics before and after, in the card, which keeps what was written by hand."""
    needs(format)
    target = tmp_path / "program"
    report = convert(str(workdir), str(target), format=format, dtype="int8", check=str(labelled))
    assert 1e-5 < difference(report) < 0.3
    check = json.loads((target / "program.json").read_text())["check"]["file"]
    gold = np.mean(np.argmax(expected, axis=1) == [0, 1, 2])
    assert check["metrics"]["model"]["accuracy"] == pytest.approx(gold)
    assert (check["name"], check["examples"], check["unlabelled"]) == ("dev.tsv", 3, "")
    assert check["labels_equal"] == 1 and 0 < check["difference"] < 0.3
    assert f"accuracy: model {gold:.4f}, program {gold:.4f}" in report
    card = (target / "README.md").read_text()
    assert "dev.tsv, 3 examples" in card and "| weights | int8, " in card and str(tmp_path) not in card
    if format == "onnx":
        (target / "README.md").write_text(card.replace("To be added by who publishes it", "For tests alone."))
        convert(str(workdir), str(target), format=format, overwrite=True)
        card = (target / "README.md").read_text()
        assert "For tests alone." in card and "| weights | float32, " in card and "dev.tsv" not in card


def test_a_check_without_labels(workdir, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("a b c\nd e\n")
    report = convert(str(workdir), str(tmp_path / "program"), format="stablehlo", check=str(file))
    assert "texts.txt, 2 examples: by at most 0, 100.00% of the answers are equal" in report
    assert "no metrics: " in report and "no column 'label'" in report


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.tsv", "", "empty.tsv"),
        ("header.tsv", "text\tlabel\n", "has no rows"),
        ("none.txt", "", "none.txt"),
        ("other.jsonl", '{"question": "a", "context": "b"}\n', "no column 'text'"),
        ("words.conll", "a O\nb B-X\n", "unknown suffix"),
        ("squad.json", '{"data": []}', "--check"),
        ("unknown.tsv", "text\tlabel\na\tw\n", "the label 'w' is not one of the model's"),
    ],
)
def test_files_that_cannot_be_compared_on(name, content, expected, workdir, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(expected)):
        main([f"--from={workdir}", f"--to={tmp_path / 'p'}", "--format=stablehlo", f"--check={tmp_path / name}"])
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_checkpoint_in_fewer_bits(dtype, workdir, expected, tmp_path):
    report = convert(str(workdir), str(tmp_path / "small"), dtype=dtype)
    assert f"parameters in {dtype}" in report
    small, whole = bert_jax.load(tmp_path / "small", overrides={"model.dtype": "float32"}), open_model(workdir)
    kept = widened(stored(whole.parameters, dtype))
    found = open_model(tmp_path / "small").parameters
    assert found.keys() == kept.keys()
    for name, x in found.items():
        np.testing.assert_array_equal(np.asarray(x), kept[name], err_msg=name)
    probabilities = [list(result["probabilities"].values()) for result in small.predict(TEXTS)]
    np.testing.assert_allclose(probabilities, expected, atol=0.05)
    assert not np.array_equal(probabilities, expected)
    if dtype == "float16":
        convert(str(tmp_path / "small"), str(tmp_path / "hf"), format="huggingface", dtype="bfloat16")
        assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == "bfloat16"
        [table] = (x for name, x in load_file(tmp_path / "hf/model.safetensors").items() if "word_embed" in name)
        assert table.dtype.name == "bfloat16"
        np.testing.assert_allclose(table.astype(np.float32), kept["embeddings/word/embedding"], rtol=2**-8)


def test_onnx_has_one_operation_for_a_normalisation_and_for_gelu(workdir, tmp_path):
    """Those that engines have kernels for; and weights by the names of this package."""
    needs("onnx")
    import onnx

    convert(str(workdir), str(tmp_path / "program"), format="onnx", dtype="bfloat16", opset=21)
    model = onnx.load(tmp_path / "program/model.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["LayerNormalization"], kinds["Gelu"], kinds["Softmax"]) == (5, 2, 2)
    assert {len(node.input) for node in model.graph.node if node.op_type == "LayerNormalization"} == {3}
    assert not kinds["Erf"] + kinds["Exp"] + kinds["ReduceSum"]
    assert "encoder/layers/0/attention/query/kernel" in {tensor.name for tensor in model.graph.initializer}
    assert [one.version for one in model.opset_import] == [21]
    [rows, length] = (dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim)
    assert (rows, length) == ("rows", "length")
    onnx.checker.check_model(model, full_check=True)


def test_large_onnx_weights_lie_beside_the_graph(tmp_path):
    needs("onnx")
    import onnxruntime

    from bert_jax.convert.onnx_graph import OnnxGraph, save

    weights, x = {"w": np.ones((64, 2), np.float32)}, {"x": jax.ShapeDtypeStruct((3, 64), np.float32)}
    model = graph_of(lambda given, batch: {"y": batch["x"] @ given["w"]}, weights, x, OnnxGraph(20))
    save(model, tmp_path / "model.onnx", largest=100)
    assert (tmp_path / "model.onnx.data").stat().st_size >= 512 > (tmp_path / "model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(["y"], {"x": np.ones((3, 64), np.float32)})
    np.testing.assert_array_equal(found, np.full((3, 2), 64.0))


@pytest.mark.parametrize(
    ("format", "missing", "words", "expected"),
    [
        ("onnx", "onnx", [], "--format=onnx needs the extra onnx: pip install -e '.[onnx]'"),
        ("onnx", "onnxruntime", ["--check=x.tsv"], "--check runs the program, and it needs onnxruntime: pip install"),
        ("openvino", "openvino", [], "--format=openvino needs the extra openvino: pip install"),
        ("stablehlo", "flatbuffers", [], "--format=stablehlo needs the extra export: pip install"),
    ],
)
def test_what_is_not_installed(format, missing, words, expected, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UserError, match=re.escape(expected)):
        main([f"--from={workdir}", f"--to={tmp_path / 'program'}", f"--format={format}", *words])


def pictures(config):
    config.data.image = "photo"
    return LABELS


def windows(config):
    config.data.long_texts = "windows"
    return LABELS


REFUSED = {
    "choices": (multiple_choice, lambda _: {}, "task=multiple_choice reads more than one row"),
    "writes": (translate, lambda _: {}, "task=seq2seq reads more than one row"),
    "pictures": (classify, pictures, "data.image gives it vectors beside the text"),
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
        (["--format=huggingface", "--dtype=int8"], "Transformers does not read int8 with our scales"),
        (["--format=openvino", "--dtype=bfloat16"], "--dtype=bfloat16 is not for --format=openvino, which can have"),
        (["--format=stablehlo", "--dtype=int4"], "--dtype"),
        (["--format=stablehlo", "--opset=20"], "--opset is for --format=onnx; leave it out for stablehlo"),
        (["--format=onnx", "--opset=12"], "--opset is 12; it can be 20 to"),
        (["--opset=20"], "--opset is for --format=stablehlo, onnx, openvino; leave it out for bert_jax"),
        (["--check=x.tsv"], "--check is for --format=stablehlo, onnx, openvino; leave it out for bert_jax"),
        (["--format=onnxx"], "can be"),
    ],
)
def test_flags_that_do_not_go_together(words, expected, workdir, tmp_path):
    needs(words[0].removeprefix("--format="))
    with pytest.raises(UserError, match=re.escape(expected)):
        main([f"--from={workdir}", f"--to={tmp_path / 'program'}", *words])
    assert not (tmp_path / "program").exists()
