"""Texts with pictures: learns from both, predicts, resumes to the bit, masks and mismatches by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax.config import UserError
from bert_jax.convert.conversion import convert
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.tables import Row
from bert_jax.inference import modes
from bert_jax.inference.predictor import Predictor
from bert_jax.lab.inspect.page import patch_section
from bert_jax.lab.inspect.patches import words_and_patches
from bert_jax.run import run
from bert_jax.tasks import task_class
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.tasks.visual_pretraining import mismatched
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from experiments import base, visual

WORDS = ["top", "bottom", "is", "bright", "dark"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 pictures of 4 × 4 whose upper or lower half is bright, and a question about each half."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    pictures = random.uniform(0, 0.2, (12, 4, 4)).astype(np.float32)
    rows = []
    for number, picture in enumerate(pictures):
        half = number % 2
        picture[2 * half : 2 * half + 2] += 0.8
        for asked in range(2):
            label = "yes" if asked == half else "no"
            text = f"{WORDS[asked]} is bright" + " is" * (number % 3)
            rows.append({"text": text, "label": label, "image": f"pictures.npy#{number}"})
    np.save(folder / "pictures.npy", pictures)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return folder


def make_config(folder, kind="classify", **data):
    config = visual.get_config(kind)
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32", max_position_embeddings=32)
    config.data.update(train=str(folder / "rows.jsonl"), validation=str(folder / "rows.jsonl"), image="image")
    config.data.update(vocab_file=str(folder / "vocab.txt"), sequence_length=16, buckets=1, prefetch=2, **data)
    config.image.update(height=4, width=4, channels=1, patch_size=2)
    config.model.initializer = "width"
    config.optimizer.update(name="muon", learning_rate=5e-3)
    config.train.update(epochs=60.0, batch_size=8, log_every=60, peak_tflops=1.0)
    config.eval.update(batch_size=8, every=180)
    config.checkpoint.every = 180
    config.mesh.data = 1
    return config


@pytest.fixture(scope="module")
def tuned(folder):
    result = run(make_config(folder), folder / "run")
    return folder / "run", result


def test_needs_both_the_question_and_the_picture(tuned):
    """Neither half says more than chance: each question and each picture has as many yes as no."""
    workdir, result = tuned
    assert result.best["accuracy"] == 1.0
    first = json.loads((workdir / "predictions" / "validation.jsonl").read_text().splitlines()[0])
    assert first["vectors"] == "pictures.npy#0" and first["prediction"]["label"] == "yes"


def test_predicts_files_arrays_and_lists_and_says_which_row_is_wrong(tuned, folder, tmp_path, caplog):
    workdir, _ = tuned
    model = bert_jax.load(workdir)
    pictures = np.load(folder / "pictures.npy")
    np.save(folder / "one.npy", pictures[1])
    values = {"array": pictures[1], "list": pictures[1].tolist(), "file": str(folder / "one.npy")}
    given = [{"text": "bottom is bright", "image": value} for value in values.values()]
    here = bert_jax.load(workdir, overrides={"data.media": str(folder)}).predict(given)
    assert {one["label"] for one in here} == {"yes"} and len({one["probability"] for one in here}) == 1
    assert "leads out of the folder" in str(model.predict(given)[2]), "the current folder is another"
    with pytest.raises(UserError, match="input 0: no column 'image'"):
        model.predict("bottom is bright")

    lines = [{"text": "top is bright", "image": "pictures.npy#1"}, {"text": "top", "image": "no.png"}, given[1]]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = make_config(folder)
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"in.jsonl:2: .*no.png is not there"):
        modes.predict(config, workdir, input=str(folder / "in.jsonl"), output=str(out))
    modes.predict(config, workdir, input=str(folder / "in.jsonl"), output=str(out), bad_lines="skip")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one.get("label") for one in found if "label" in one] == ["no", "yes"]
    Predictor(str(workdir)).warm_up([8, 16])


def test_what_words_look_at_is_drawn(tuned, folder):
    model = bert_jax.load(tuned[0])
    found = words_and_patches(model, "top is bright", None, str(folder / "one.npy"))
    assert found.tokens == ("[CLS]", "top", "is", "bright", "[SEP]") and found.weights.shape == (2, 5, 2, 2)
    assert ((found.shares > 0) & (found.shares < 1)).all()
    section = patch_section(found)
    assert "From words to the picture" in section and section.count("<svg") == 1
    with pytest.raises(UserError, match=r"--media: .*vocab.txt: suffix '.txt' is unknown"):
        words_and_patches(model, "top", None, str(folder / "vocab.txt"))


def test_hugging_face_has_no_such_model(tuned, tmp_path):
    with pytest.raises(UserError, match=r"reads vectors beside its text .heads/vectors/., which no architecture"):
        convert(str(tuned[0]), str(tmp_path / "theirs"), format="huggingface")
    assert not (tmp_path / "theirs").exists()


def parameters(workdir):
    return jax.device_get(read_checkpoint(find_checkpoint(str(workdir))).parameters)


def test_pretraining_learns_resumes_to_the_bit_and_is_what_a_classifier_starts_from(folder):
    config = make_config(folder, "pretrain", max_predictions_per_sequence=4)
    config.train.update(epochs=None, steps=120)
    config.optimizer.update(decay_steps=120)
    config.eval.update(every=60, at_start=True)
    config.checkpoint.every = 60
    whole = run(config.copy_and_resolve_references(), folder / "whole")
    half = config.copy_and_resolve_references()
    half.train.steps = 60
    run(half, folder / "resumed")
    again = run(config.copy_and_resolve_references(), folder / "resumed")
    one, other = parameters(folder / "whole"), parameters(folder / "resumed")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert whole.last == again.last
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line for line in lines if line["split"] == "eval")
    assert last["mlm_loss"] < first["mlm_loss"] and last["vector_loss"] < first["vector_loss"]
    assert 0.4 < last["match_loss"] < 1  # nothing to learn: a question goes with any picture
    assert last["vector_explained"] == pytest.approx(1 - last["vector_loss"] / last["vector_square"], abs=1e-4)
    tuning = make_config(folder)
    tuning.init_from, tuning.train.epochs, tuning.optimizer.learning_rate = str(folder / "whole"), 1.0, 0.0
    run(tuning, folder / "tuned")
    tuned = parameters(folder / "tuned")
    kept = [name for name in tuned if name.startswith("heads/vectors/")]
    assert len(kept) == 4 and all(np.array_equal(tuned[name], one[name]) for name in kept)


def test_masks_and_targets_by_hand(folder):
    config = make_config(folder, "pretrain", max_predictions_per_sequence=4)
    config.vectors.mismatch_rate = 0.0
    task = task_class(config.task).with_data(config, None)
    assert {*task.objectives} == {"mlm_loss", "vector_loss"}
    batch = collate(task.items["train"], [[0], [1], [4], []], Shape(4, 1, 16))
    masked = jax.device_get(task.features({k: jnp.asarray(x) for k, x in batch.items()}, jax.random.key(3)))
    places = masked["vector_positions"]
    assert places.shape == (4, 2) and (masked["vector_weights"].sum(1) == [2, 2, 2, 0]).all(), "half of four patches"
    for row in range(3):
        assert (batch["vector_grid"][row, places[row], 0] > 0).all() and len({*places[row]}) == 2
        assert masked["is_masked"][row].nonzero()[0].tolist() == sorted(places[row])
        own = masked["masked_positions"][row][masked["masked_weights"][row] > 0]
        assert len(own) == 1 and batch["vector_grid"][row, own, 0] == 0, "0.15 of 5 to 7 tokens"
    outputs = {"mlm": jnp.zeros((4, 4, 10)), "vector": jnp.ones((4, 2, 4))}
    sums = task.losses(outputs, {k: jnp.asarray(x) for k, x in masked.items()})
    expected = []
    for row in range(3):
        for place in places[row]:
            x = batch["vectors"][row, place].astype(np.float64)
            expected.append(np.mean((1 - (x - x.mean()) / np.sqrt(x.var() + 1e-6)) ** 2))
    assert float(sums["vector_loss"][0]) == pytest.approx(sum(expected), rel=1e-5) and sums["vector_loss"][1] == 6
    assert float(sums["mlm_loss"][0]) == pytest.approx(3 * np.log(10), rel=1e-5)


def test_a_mismatched_row_has_the_vectors_of_another():
    lengths, sizes = [2, 3, 2, 0], [3, 1, 2, 0]  # tokens, vectors; the last row is padding
    vectors, grid, ids = np.zeros((4, 6, 1), np.float32), np.zeros((4, 6, 2), np.int32), np.zeros((4, 6), np.int32)
    for row, (tokens, count) in enumerate(zip(lengths, sizes, strict=True)):
        vectors[row, tokens : tokens + count, 0] = 10 * (row + 1) + np.arange(count)
        grid[row, tokens : tokens + count] = np.arange(1, count + 1)[:, None]
        ids[row, : tokens + count] = 1
    batch = {"vectors": vectors, "vector_grid": grid, "sequence_ids": ids, "input_ids": ids}
    batch = {name: jnp.asarray(x) for name, x in batch.items()} | {"item_weights": jnp.ones((4, 1)).at[3].set(0)}
    seen, matches = set(), []
    for seed in range(40):
        found = jax.device_get(mismatched(batch, jax.random.key(seed), 0.5))
        matches.append(found["matches"])
        assert found["matches"][3] == 1
        for row in range(3):
            there = found["vector_grid"][row, :, 0] > 0
            values = found["vectors"][row, there, 0].tolist()
            partner = int(values[0]) // 10 - 1
            assert (partner == row) == bool(found["matches"][row])
            count = min(sizes[row], sizes[partner])
            assert values == [10 * (partner + 1) + i for i in range(count)]
            assert found["sequence_ids"][row].sum() == lengths[row] + count
            seen.add((row, partner))
    assert len(seen) == 9 and 0.35 < 1 - np.mean(np.stack(matches)[:, :3]) < 0.65


@pytest.mark.parametrize(
    ("kind", "modalities", "objectives", "shown"),
    [
        ("pretrain", "text", {"mlm_loss"}, 5),
        ("pretrain", "vectors", {"vector_loss"}, 6),
        ("pretrain", "both", {"mlm_loss", "vector_loss", "match_loss"}, 9),
        ("classify", "vectors", {"loss"}, 6),
    ],
)
def test_one_part_may_be_left_out(folder, kind, modalities, objectives, shown):
    config = make_config(folder, kind, modalities=modalities)
    if modalities == "vectors":
        config.data.text = "there is no such column"
    task = task_class(config.task).with_data(config, None)
    assert {*task.objectives} == objectives and task.items["train"][0].length == shown
    shapes = task_class(config.task).without_data(config, task.tokenizer, None).batch_shapes(training=True)
    assert ("vectors" in shapes) == (modalities != "text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": {"sequence_length": 8, "long_texts": "error"}},
            r"rows.jsonl:1: 9 tokens, over data.sequence_length 8",
        ),
        (
            {"image": {"patch_size": 1}},
            r"rows.jsonl:1: its 16 vectors leave no room for a text in data.sequence_length 16",
        ),
        ({"data": {"long_texts": "windows"}}, "data.long_texts=windows is for text alone"),
        ({"image": {"height": 8}}, r"rows.jsonl:1: .*pictures.npy is 4×4; image.height, .* say 8×4×1"),
        ({"data": {"image": "picture"}}, r"rows.jsonl:1: no column 'picture'"),
        ({"task": "tagging"}, "data.image: task=tagging reads text alone; leave it out"),
    ],
)
def test_what_is_refused(folder, change, message):
    config = make_config(folder)
    for group, values in change.items():
        if group == "task":
            config.task = values
        else:
            config[group].update(values)
    with pytest.raises(UserError, match=message):
        task_class(config.task).with_data(config, None)


def test_pretraining_needs_a_column_and_rows_of_their_own(folder):
    for change, message in (({"image": ""}, "needs a column"), ({"packing": True}, "needs rows of their own")):
        config = make_config(folder, "pretrain", **change) if "image" not in change else make_config(folder, "pretrain")
        config.data.update(change)
        with pytest.raises(UserError, match=message):
            task_class(config.task).with_data(config, None)
    task = task_class("visual_pretraining").with_data(make_config(folder, "pretrain"), None)
    assert not task.makes_predictions and isinstance(next(task.prediction_examples([Row("x:1", {})])), UserError)


def test_pretraining_on_text_refuses_pictures_before_it_prepares_anything(tmp_path):
    config = base.get_config()
    config.data.update(image="picture", prepared=str(tmp_path / "prepared"))
    with pytest.raises(UserError, match=r"data\.image: task=pretraining reads text alone"):
        Pretraining.with_data(config, None)
    assert not (tmp_path / "prepared").exists()
