"""Pruning: what heads and layers are worth, computed in other ways; and smaller checkpoints, used as any other."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bert_jax
from bert_jax.config import UserError
from bert_jax.convert.conversion import convert
from bert_jax.convert.resize import fill_heads
from bert_jax.inference.predictor import all_good
from bert_jax.inference.prepared import FusedAttention
from bert_jax.lab.inspect.heads import LabelledExamples, head_gradients
from bert_jax.lab.prune import prune
from bert_jax.lab.prune.__main__ import main
from bert_jax.lab.prune.prune import Chosen, Left, Pruning, choose, measure, pruned_parameters, write_pruned
from bert_jax.models.attention import Attention
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import Encoder
from bert_jax.run import run
from experiments import classify
from tests.lab.inspect.conftest import CLASSES, fine_tuned

SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 4}
SILENT = ((0, 3), (1, 2), (2, 3))  # heads of each layer whose output is zero
TEXTS = [f"{a} good {b}" for a, b in zip("abcdef", "ghijkl", strict=True)]


def silenced(parameters):
    """Returns parameters in which some heads have no rows of the output kernel."""
    name = "encoder/layers/attention/output/kernel"
    kernel = np.array(parameters[name])
    for layer, heads in enumerate(SILENT):
        for head in heads:
            kernel[layer, 4 * head : 4 * head + 4] = 0
    return parameters | {name: kernel}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prune")


@pytest.fixture(scope="module")
def model(folder):
    """A classifier of 3 layers of 4 heads, two of which in every layer are silent."""
    return fine_tuned(folder / "whole" / "5", classify.get_config(), CLASSES, silenced, **SHAPE)


@pytest.fixture(scope="module")
def examples(folder):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, ["bad", "good", "fair"] * 2, strict=True)]
    path = folder / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def found(model, examples):
    return measure(model, examples)


def probabilities(model):
    return np.asarray(
        [[p["probabilities"][name] for name in CLASSES["labels"]] for p in all_good(model.predict(TEXTS))]
    )


def test_heads_without_output_are_worth_nothing_and_leave_without_a_trace(model, found, folder):
    for layer, heads in enumerate(SILENT):
        assert set(np.flatnonzero(found.importance[layer] == 0)) == set(heads)
    half = next(point for point in found.heads if point.number == 2)
    assert half.metrics == found.heads[0].metrics  # to the bit: the same program, times 0
    chosen = choose(found, heads=0.5)
    assert chosen.layers == (0, 1, 2) and not any(set(k) & set(s) for k, s in zip(chosen.heads, SILENT, strict=True))
    written = write_pruned(str(folder / "whole" / "5"), str(folder / "half"), chosen)
    smaller = bert_jax.load(folder / "half")
    np.testing.assert_allclose(probabilities(smaller), probabilities(model), atol=2e-6)
    assert written["parameters_before"] - written["parameters"] == 3 * (4 * 16 * 8 + 3 * 8)  # kernels, biases of q k v
    assert smaller.config.model.head_size == 4 and smaller.config.model.num_attention_heads == 2


def test_importance_is_the_derivative_of_each_examples_loss(model, examples, folder):
    rows = Path(examples).read_text().splitlines()[:2]
    slopes = []
    for number, row in enumerate(rows):
        path = folder / f"one{number}.jsonl"
        path.write_text(row + "\n")
        on, losses = LabelledExamples(model, str(path), 1), []
        for factor in (1.02, 0.98):
            kept = np.ones((3, 4), np.float32)
            kept[1, 0] = factor
            losses.append(on.with_heads(kept)["loss"])
        slopes.append(abs(losses[0] - losses[1]) / 0.04)
    assert head_gradients(LabelledExamples(model, examples, 2))[1, 0] == pytest.approx(np.mean(slopes), rel=0.02)


def test_a_curve_of_layers_is_that_of_models_with_fewer(found, folder, examples):
    assert [point.number for point in found.layers] == [3, 2, 1] and found.layers[0].share == 0
    two = found.layers[1]
    every = tuple(range(4))
    losses = {}
    for kept in ((0, 1), (0, 2), (1, 2)):
        to = str(folder / "layers{}{}".format(*kept))
        write_pruned(str(folder / "whole" / "5"), to, Chosen((every,) * 2, kept))
        losses[kept] = prune.metrics_of(to, examples, 256)["loss"]
    assert min(losses, key=losses.__getitem__) == two.kept
    assert losses[two.kept] == pytest.approx(two.metrics["loss"], rel=1e-5)


def test_a_head_that_reads_several_layers_ends_the_curve(examples, folder, monkeypatch, caplog):
    """Each depth is compiled as one layer: a loop."""
    config = classify.get_config()
    config.head.layers = "second_to_last"
    description = CLASSES | {"features": {"layers": "second_to_last", "lstm_layers": 0, "lstm_size": 0}}
    on = LabelledExamples(fine_tuned(folder / "features" / "5", config, description, **SHAPE), examples, 2)
    jaxprs = []

    def metrics(_, program):
        jaxprs.append(str(jax.make_jaxpr(program)(on.batches[0])))
        return {"loss": float(len(jaxprs)), "accuracy": 0.5}

    monkeypatch.setattr(LabelledExamples, "metrics", metrics)
    whole = {"loss": 0.5, "accuracy": 0.5}
    layers = prune._curve_of_layers(on, whole)
    assert [point.number for point in layers] == [3, 2] and layers[1].kept == (1, 2)
    assert len(jaxprs) == 3 and all("scan[" in jaxpr for jaxpr in jaxprs)
    assert "the curve of layers ends at 2 of 3: head.layers=second_to_last needs 2 layers" in caplog.text
    every = [Left(4, 0.0, ((0, 1, 2, 3),) * 3, whole)]
    found = Pruning("2 examples", examples, "accuracy", np.ones((3, 4)), every, layers)
    assert choose(found, layers=0.34).layers == (1, 2)
    for chosen in ({"layers": 0.6}, {"take_layers": [1]}):
        with pytest.raises(UserError, match="1 of 3 layers would be left, and the model's head reads 2; keep more"):
            choose(found, **chosen)


def test_a_pruned_layer_is_the_layer_with_those_heads_alone():
    whole = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
    parameters = {"encoder/layers/attention/query/kernel": np.arange(2 * 8 * 8).reshape(2, 8, 8)}
    chosen = Chosen(((0, 3),), (1,))
    cut = pruned_parameters(parameters, chosen, whole.head_width)["encoder/layers/attention/query/kernel"]
    assert cut.tolist() == parameters["encoder/layers/attention/query/kernel"][1:, :, [0, 1, 6, 7]].tolist()
    pruned = BertConfig(**{**vars(whole), "num_attention_heads": 2, "head_size": 2, "num_hidden_layers": 1})
    shapes = jax.tree.map(np.shape, nnx.state(nnx.eval_shape(lambda: Encoder(pruned, rngs=nnx.Rngs(0)))))
    assert shapes["layers"]["attention"]["query"]["kernel"].get_value() == (1, 8, 4)
    assert shapes["layers"]["attention"]["output"]["kernel"].get_value() == (1, 4, 8)


def test_prepared_attention_knows_heads_that_do_not_fill_the_width():
    config = BertConfig(vocab_size=9, hidden_size=16, num_attention_heads=3, head_size=4, num_hidden_layers=1)
    attention = Attention(config, rngs=nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 16)).astype(jnp.bfloat16)
    mask = jnp.ones((1, 1, 2, 5), bool)
    plain = attention(x[:, :2], x, mask)[0]
    fused = FusedAttention(attention)(x[:, :2], x, mask)[0]  # of the last layer, of which two tokens are asked for
    np.testing.assert_allclose(np.float32(fused), np.float32(plain), atol=1e-3)


def test_heads_that_cannot_fill_the_width_are_not_for_hugging_face():
    config = BertConfig(vocab_size=9, hidden_size=18, num_attention_heads=2, head_size=4, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"model\.head_size is 4 and model\.hidden_size 18: .* write another format"):
        fill_heads({}, config)


def test_the_command_writes_page_curves_numbers_and_a_model_that_can_be_used(
    model, found, examples, folder, capsys, look, monkeypatch
):
    monkeypatch.setattr(prune, "measure", lambda *_: found)  # as it was measured before
    page, to = folder / "prune.html", folder / "small"
    flags = [f"--examples={examples}", f"--output={page}", f"--to={to}", "--heads=0.25", "--layers=0.34"]
    assert main([str(folder / "whole" / "5"), *flags]) == 0
    said = capsys.readouterr().out
    report = json.loads(page.with_suffix(".json").read_text())
    kept, written = report["kept"], report["written"]
    assert len(kept["layers"]) == 2 and [len(heads) for heads in kept["heads"]] == [3, 3]
    assert f"wrote {to}: 2 × 3 in place of 3 × 4" in said and written["metrics"].keys() >= {"loss", "accuracy"}
    for what in ("heads", "layers"):
        assert (folder / f"prune_{what}.svg").read_bytes().lstrip().startswith(b"<?xml")
    seen = look(page, "[document.querySelectorAll('svg').length, document.querySelectorAll('table').length]")
    assert seen.result == [2, 4] and len(seen.requests) == 1 and not seen.messages
    # A second time there is something to lose, and the same model again is no loss.
    with pytest.raises(UserError, match=r"--to=.* exists"):
        main([str(folder / "whole" / "5"), *flags])
    # Hugging Face's BERT has heads that fill its width: those that are missing add zero.
    report = convert(str(to), str(folder / "hf"), format="huggingface")
    assert "heads: 3 of 4 became 4" in report
    smaller, exported = bert_jax.load(to), bert_jax.load(folder / "hf", dtype="float32")
    np.testing.assert_allclose(probabilities(exported), probabilities(smaller), atol=2e-6)
    assert exported.config.model.num_attention_heads == 4


@pytest.mark.slow
def test_a_pruned_model_can_be_trained_further(model, examples, folder):
    to = folder / "further"
    write_pruned(str(folder / "whole" / "5"), str(to), Chosen(((0, 1), (1, 3)), (0, 2)))
    config = classify.get_config()
    config.init_from = str(to)
    config.data.update(train=examples, validation=examples, sequence_length=24, buckets=1, labels="bad,fair,good")
    config.train.update(steps=1, epochs=None, batch_size=2, peak_tflops=1.0)
    config.eval.update(every=1, at_start=False)
    config.checkpoint.every = 1
    config.mesh.data = 1
    assert run(config, folder / "trained").step == 1
    trained = bert_jax.load(folder / "trained")
    assert (trained.config.model.num_attention_heads, trained.config.model.head_size) == (2, 4)
    assert trained.config.model.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--heads=1"], "--heads is 1; it must be a share of 0 or more and under 1"),
        (["--heads=-0.5"], "--heads is -0.5"),
        (["--heads=nan"], "--heads is nan"),
        (["--heads=half"], "--heads is 'half'"),
        (["--layers=1.5"], "--layers is 1.5"),
        (["--heads=0.9", "--to=x"], "would leave none of the 4 heads per layer"),
        (["--heads=0.01", "--to=x"], "would leave out none of the 4 heads per layer"),
        (["--layers=0.99", "--to=x"], "would leave none of the 3 layers"),
        (["--take_layers=0,3", "--to=x"], "--take_layers names layer 3; the model has 3 layers"),
        (["--take_layers=0", "--layers=0.5", "--to=x"], "give one of them"),
        (["--heads=0.5"], "--to is missing"),
        (["--to=x"], "--to needs what to prune"),
        (["--output=a.png"], "name it a.html"),
        ([], "no validation data"),
        (["--examples=no/such.jsonl"], "--examples: no/such"),
    ],
)
def test_mistakes_are_said_in_a_line(model, folder, flags, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        main([str(folder / "whole" / "5"), *flags])
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_fine_tuned_has_no_labels(tmp_path):
    from tests.inference.test_open import pretrained

    with pytest.raises(UserError, match="task=pretraining has no labelled examples"):
        main([str(pretrained(tmp_path / "3"))])
