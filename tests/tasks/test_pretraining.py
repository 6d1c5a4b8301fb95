"""Pretraining with several pairs in a row: the same losses and gradients as with a row for each pair."""

import json
import shutil
from dataclasses import replace
from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax import modes
from bert_jax.backend import CPU, use_backend
from bert_jax.config import UserError, validate
from bert_jax.data.pretraining import pipeline
from bert_jax.data.pretraining.packing import PackedRows, Packing
from bert_jax.data.pretraining.pairs import PairRows, PairSettings
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.models.bert import TrunkInputs
from bert_jax.models.heads import padded_decoder, vocabulary_logits
from bert_jax.tasks.losses import cross_entropy_sums
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.tasks.pretraining_text import prepared_corpus
from bert_jax.training.loop import train
from bert_jax.training.observer import LEDGER


@pytest.fixture
def packed_config(small_config, tmp_path, short_stretches):
    """Documents of a few short sentences: most pairs are shorter than a row."""
    random, words = (
        Random(0),
        [f"{a}{b}" for a in ("sun", "moon", "star", "rain", "wind") for b in ("", "s", "y", "ing")],
    )
    documents = [
        "\n".join(
            " ".join(["The", *random.choices(words, k=random.randint(2, 5))]) + "." for _ in range(random.randint(1, 3))
        )
        for _ in range(90)
    ]
    (tmp_path / "short.txt").write_text("\n\n".join(documents) + "\n")
    small_config.model.update(hidden_dropout=0.0, attention_dropout=0.0, dtype="float32")
    small_config.data.update(files=str(tmp_path / "short.txt"), packing=True)
    small_config.data.update(sequence_length=64, max_predictions_per_sequence=10)
    return small_config


@pytest.fixture
def task(packed_config) -> Pretraining:
    return Pretraining.over(packed_config, prepare(packed_config.data, packed_config.data.seed, progress=False))


def packed_and_unpacked(task: Pretraining, rows: int) -> tuple[dict, dict]:
    """A masked batch of packed rows, and the same sequences, masked alike, in rows of their own."""
    config = task.config
    batches = task.train_batches(0, 0, 1)
    batch = {name: jnp.asarray(value[:rows]) for name, value in next(batches).items()}
    batches.close()
    packed = {name: np.asarray(value) for name, value in task.features(batch, jax.random.key(1)).items()}
    length, predictions = config.data.sequence_length, config.data.max_predictions_per_sequence
    unpacked = []
    for row in range(rows):
        of = packed["sequence_ids"][row]
        for number in range(of.max()):
            start, tokens = packed["first_tokens"][row, number], int((of == number + 1).sum())
            alone = {name: np.zeros(length, np.int32) for name in ("input_ids", "token_type_ids", "position_ids")}
            for value in alone:
                alone[value][:tokens] = packed[value][row, start : start + tokens]
            alone["sequence_ids"] = (np.arange(length) < tokens).astype(np.int32)
            positions = packed["masked_positions"][row]
            its = (packed["masked_weights"][row] > 0) & (of[positions] == number + 1)
            for name, shift in (("masked_positions", start), ("masked_labels", 0)):
                alone[name] = np.zeros(predictions, np.int32)
                alone[name][: its.sum()] = packed[name][row][its] - shift
            alone["masked_weights"] = (np.arange(predictions) < its.sum()).astype(np.float32)
            for name in ("next_sentence_labels", "next_sentence_weights"):
                alone[name] = packed[name][row, number : number + 1]
            alone["first_tokens"] = np.zeros(1, np.int32)
            unpacked.append(alone)
    return packed, {name: np.stack([row[name] for row in unpacked]) for name in unpacked[0]}


def loss_sums_and_gradients(task: Pretraining, model, batch: dict):
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    weights = task.weights(batch)

    @jax.jit
    def run(state):
        def loss(state):
            sums = task.sums(nnx.merge(graphdef, state), batch, None, {})
            return sum(sums[name][0] / weights[name] for name in task.objectives), sums

        return jax.value_and_grad(loss, has_aux=True)(state)

    graphdef, state = nnx.split(model)
    (_, sums), gradients = run(state)
    return jax.device_get((sums, nnx.to_pure_dict(gradients)))


def test_masks_of_evaluation_depend_on_the_record_alone(packed_config):
    """Neither on eval.batch_size nor on which process reads the record; another eval.seed gives other masks."""

    def masks(size, processes=1, seed=None):
        packed_config.eval.batch_size = size
        packed_config.eval.seed = packed_config.eval.seed if seed is None else seed
        task = Pretraining.over(packed_config, prepare(packed_config.data, packed_config.data.seed, progress=False))
        features = jax.jit(task.features)
        rows = {}
        for process in range(processes):
            for batch in task.eval_batches("validation", process, processes):
                batch = jax.device_get(features(batch, jax.random.key(packed_config.eval.seed)))
                for i, record in enumerate(batch["records"].tolist()):
                    if batch["masked_weights"][i].any():
                        rows[record] = {name: batch[name][i] for name in ("input_ids", "masked_positions")}
        assert sorted(rows) == list(range(task.prepared.num_records("validation"))) and len(rows) > 2
        return rows

    first = masks(2)
    jax.tree.map(np.testing.assert_array_equal, first, masks(8))
    jax.tree.map(np.testing.assert_array_equal, first, masks(4, processes=2))
    assert len({row["masked_positions"].tobytes() for row in first.values()}) > 1
    other = masks(2, seed=packed_config.eval.seed + 1)
    assert any((other[record]["input_ids"] != row["input_ids"]).any() for record, row in first.items())


LOUD = """
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.tasks.pretraining_text import prepared_corpus

class Loud(Pretraining):
    objectives = {"mlm_loss": 1.0, "nsp_loss": 0.5}
"""


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] != LEDGER]


def test_a_subclass_named_in_the_config_trains_resumes_evaluates_and_fills_masks(
    small_config, tmp_path, monkeypatch, capsys
):
    (tmp_path / "loud_task.py").write_text(LOUD)
    monkeypatch.syspath_prepend(str(tmp_path))
    small_config.task = "loud_task.Loud"
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert modes.train(small_config.copy_and_resolve_references(), whole) == 0
    lines = losses(whole)
    for line in lines:
        assert line["loss"] == pytest.approx(line["mlm_loss"] + 0.5 * line["nsp_loss"], rel=1e-5)
    shutil.copytree(whole, halves)
    shutil.rmtree(halves / "checkpoints" / "8")
    assert modes.train(small_config.copy_and_resolve_references(), halves) == 0
    assert [line["loss"] for line in losses(halves)] == [line["loss"] for line in lines]
    assert modes.evaluate(small_config.copy_and_resolve_references(), whole) == 0
    assert modes.fill_mask(small_config, whole, text=["the [MASK] is"], top_k=2) == 0
    assert "mask 1:" in capsys.readouterr().out


def test_losses_and_gradients_equal_those_of_rows_of_their_own(task: Pretraining):
    packed, unpacked = packed_and_unpacked(task, 8)
    pairs = len(unpacked["input_ids"])
    assert packed["sequence_ids"].max() >= 2 and pairs > 10 and set(unpacked["next_sentence_labels"][:, 0]) == {0, 1}
    # Embeddings ten times as large as at the start: attention that strayed into a neighbour would show.
    model = jax.tree.map(lambda x: 10 * x, task.init(nnx.Rngs(0)))
    (sums, gradients), (alone, alone_gradients) = (
        loss_sums_and_gradients(task, model, batch) for batch in (packed, unpacked)
    )
    for name in ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy", "label_counts"):
        for value, expected in zip(sums[name], alone[name], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)
    assert sums["nsp_loss"][1] == pairs
    assert sums["real_tokens"][0] == alone["real_tokens"][0] and sums["real_tokens"][1] < alone["real_tokens"][1]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(alone_gradients))
    for (path, value), expected in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(alone_gradients), strict=True
    ):
        np.testing.assert_allclose(value, expected, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))


def test_logits_of_a_sequence_do_not_see_its_neighbours(task: Pretraining):
    packed, _ = packed_and_unpacked(task, 8)
    row = int(packed["sequence_ids"].max(1).argmax())
    model = jax.tree.map(lambda x: 10 * x, task.init(nnx.Rngs(0)))
    names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    trunk = [jnp.asarray(packed[name][row : row + 1]) for name in names]
    first = jnp.asarray(packed["first_tokens"][row : row + 1])

    @jax.jit
    def logits(ids):
        hidden = model.trunk.encode(TrunkInputs(ids, *trunk[1:])).hidden
        return model.heads["nsp"].logits(model.trunk.pool(hidden, first)), hidden

    nsp, hidden = logits(trunk[0])
    other, other_hidden = logits(jnp.where(trunk[3] == 2, 7, trunk[0]))  # all of the second sequence replaced
    np.testing.assert_array_equal(nsp[0, 0], other[0, 0])
    assert (nsp[0, 1] != other[0, 1]).all()
    np.testing.assert_array_equal(hidden[trunk[3] == 1], other_hidden[trunk[3] == 1])


def test_a_pair_has_as_many_predictions_packed_or_not(task: Pretraining):
    config = task.config
    settings = PairSettings.from_config(config.data, task.tokenizer)
    source = task.prepared.source("train")
    rows = PackedRows(source, settings, Packing.from_config(config.data), config.seed)
    alone = PairRows(source, settings, config.seed)
    instances = [alone(number) for number in range(64)]
    names = ("input_ids", "sequence_ids", "first_tokens")
    pairs = {name: np.stack([pair[name] for pair in instances]) for name in names}
    alone = task.features({name: jnp.asarray(value) for name, value in pairs.items()}, jax.random.key(0))
    lengths, counts = pairs["sequence_ids"].sum(1).tolist(), np.asarray(alone["masked_weights"].sum(1)).tolist()
    of_length = dict(zip(lengths, counts, strict=True))
    assert len(of_length) > 10
    made = [rows(number) for number in range(256)]
    batch = {name: jnp.asarray(np.stack([row[name] for row in made])) for name in names}
    packed = jax.device_get(task.features(batch, jax.random.key(0)))
    compared = 0
    for ids, positions, weights in zip(
        packed["sequence_ids"], packed["masked_positions"], packed["masked_weights"], strict=True
    ):
        predicted = ids[positions[weights > 0]]
        for number in range(1, ids.max() + 1):
            tokens = int((ids == number).sum())
            if tokens in of_length:
                assert (predicted == number).sum() == of_length[tokens]
                compared += 1
    assert compared > 200


def test_a_run_packs_its_training_and_not_its_evaluation(task: Pretraining, tmp_path):
    task.config.train.steps = 4
    train(task, task.config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    real = {split: [line["real_tokens"] for line in lines if line["split"] == split] for split in ("train", "eval")}
    assert min(real["train"]) > 0.85 and max(real["eval"]) < 0.6
    pairs = task.config.train.batch_size * pipeline.pairs_per_row(task.prepared, task.config)
    assert pairs > 20 and task.steps_per_epoch == -(-task.prepared.num_records("train") // pairs)


def decoding(dtype: str, multiple: int):
    """A compiled function, with its arguments, of sums and of gradients with regard to vectors, table and bias."""
    random = np.random.default_rng(0)
    vectors, table = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((3, 7, 16), (101, 16)))
    bias, labels = jnp.asarray(random.standard_normal(101), jnp.float32), jnp.asarray(random.integers(0, 101, (3, 7)))
    weights = jnp.asarray(random.integers(0, 2, (3, 7)), jnp.float32)

    def loss(vectors, table, bias):
        logits = vocabulary_logits(vectors, *padded_decoder(table, bias, multiple), dtype)
        sums = cross_entropy_sums("mlm", logits, labels, weights)
        return sums["mlm_loss"][0], sums

    arguments = vectors, table, bias
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    return run.lower(*arguments).compile(), arguments


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_padded_vocabulary_changes_neither_loss_nor_gradient(dtype):
    (run, arguments), (run_padded, _) = decoding(dtype, 1), decoding(dtype, 128)
    (_, sums), gradients = run(*arguments)
    (_, padded_sums), padded_gradients = run_padded(*arguments)
    assert "f32[3,7,128]" in str(run_padded.as_text()) and "f32[3,7,128]" not in str(run.as_text())
    for name in ("mlm_loss", "mlm_accuracy"):
        np.testing.assert_allclose(padded_sums[name], sums[name], rtol=1e-6)
    for value, expected in zip(padded_gradients, gradients, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-6 * np.abs(expected).max())


def test_a_step_pads_the_vocabulary_where_products_are_made_of_tiles(task: Pretraining):
    packed, _ = packed_and_unpacked(task, 8)
    model = task.init(nnx.Rngs(0))
    sums, gradients = loss_sums_and_gradients(task, model, packed)
    with use_backend(replace(CPU, vocabulary_multiple=128)):
        padded_sums, padded_gradients = loss_sums_and_gradients(task, model, packed)
    np.testing.assert_allclose(padded_sums["mlm_loss"], sums["mlm_loss"], rtol=1e-6)
    assert task.bert_config.vocab_size % 128
    table, padded = (x["trunk"]["embeddings"]["word"]["embedding"] for x in (gradients, padded_gradients))
    assert padded.shape == table.shape == (task.bert_config.vocab_size, 32)
    np.testing.assert_allclose(padded, table, atol=1e-6 * np.abs(table).max())


def test_a_step_holds_one_float32_array_of_logits():
    """At P × V it is XLA that writes their gradient over them; what comes on top is the gradient in bfloat16, twice."""
    predictions, size, width = (8, 20), 5_000, 16
    vectors, table = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*predictions, width), (size, width)))
    labels, weights = (jax.ShapeDtypeStruct(predictions, dtype) for dtype in (jnp.int32, jnp.float32))

    def loss(vectors, table, labels, weights):
        logits = vocabulary_logits(vectors, table, jnp.zeros(size), "bfloat16")
        return cross_entropy_sums("mlm", logits, labels, weights)["mlm_loss"][0]

    run = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(vectors, table, labels, weights).compile()
    logits = 4 * 8 * 20 * size
    memory = run.memory_analysis()
    assert memory is not None and logits <= memory.temp_size_in_bytes < 2.2 * logits


def test_several_processes_do_not_start_beam(packed_config, monkeypatch):
    packed_config.data.runner = "beam"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"^data\.runner=beam .* 2 processes run: run --mode=prepare in one process"):
        prepared_corpus(packed_config, None)


def test_accuracy_on_minimal_pairs_is_a_metric_of_every_evaluation(small_config, tmp_path):
    """Found on four devices; `--mode=blimp` finds the same on one. It may choose the best checkpoint."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for uid, bad in (("order", "value the of name a"), ("word", "the value of of name")):
        row = {"sentence_good": "the value of a name", "sentence_bad": bad, "UID": uid, "field": "syntax"}
        lines = [row | {"linguistics_term": uid, "sentence_good": f"the value of a {x}"} for x in "abcdefghij"]
        (folder / f"{uid}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    small_config.model.dtype = "float32"
    small_config.eval.update(blimp=str(folder), blimp_pairs=4)
    small_config.checkpoint.update(best_metric="blimp", best_mode="max")
    small_config.train.steps = small_config.eval.every = small_config.checkpoint.every = 2
    small_config.mesh.data = 4
    modes.train(small_config, tmp_path / "run")
    lines = [line for line in losses(tmp_path / "run") if line["split"] == "eval"]
    assert [line["step"] for line in lines] == [0, 2]
    for line in lines:
        assert line["blimp"] == pytest.approx((line["blimp/order"] + line["blimp/word"]) / 2)
    options = {"overrides": {"eval.blimp_pairs": 4}, "checkpoint": "newest"}
    modes.blimp(small_config, tmp_path / "run", input=str(folder), output=str(tmp_path / "found.json"), **options)
    rows = json.loads((tmp_path / "found.json").read_text())["accuracies"]
    assert [row["pairs"] for row in rows if row["level"] == "paradigm"] == [4, 4]
    for name, level in (("blimp", "overall"), ("blimp/order", "phenomenon"), ("blimp/word", "phenomenon")):
        [row] = [row for row in rows if row["level"] == level and name.endswith((row["name"], "blimp"))]
        assert row["accuracy"] == lines[-1][name]
    task = Pretraining.over(small_config, prepared_corpus(small_config, None))
    assert "minimal pairs" in task.fingerprints() and "blimp/order" in task.metric_names("validation")
    assert "blimp" not in task.metric_names("test")

    def batches(process, count):
        return [batch for batch in task.eval_batches("validation", process, count) if "text_ids" in batch]

    for whole, *parts in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        jax.tree.map(lambda x, *own: np.testing.assert_array_equal(x, np.concatenate(own)), whole, *parts)


def test_without_isolation_sequences_of_a_row_see_each_other(packed_config):
    """The loss of a row's first sequence depends on the second one then, and only then."""
    prepared = prepare(packed_config.data, packed_config.data.seed, progress=False)
    packed_config.model.initializer_range = 0.5
    losses = {}
    for isolated in (True, False):
        packed_config.data.isolated = isolated
        task = Pretraining.over(packed_config, prepared)
        batches = task.train_batches(0, 0, 1)
        batch = {name: jnp.asarray(value[:4]) for name, value in next(batches).items()}
        batches.close()
        batch = dict(task.features(batch, jax.random.key(1)))
        assert int(batch["sequence_ids"].max()) > 1
        own = jnp.take_along_axis(batch["sequence_ids"], batch["masked_positions"], axis=1) == 1
        batch["masked_weights"] = batch["masked_weights"] * own.astype(jnp.float32)
        model = task.init(nnx.Rngs(params=0))
        run = jax.jit(lambda model, batch, task=task: task.sums(model, batch, None, {})["mlm_loss"][0])
        other = batch | {"input_ids": jnp.where(batch["sequence_ids"] == 2, 7, batch["input_ids"])}
        losses[isolated] = float(run(model, batch)), float(run(model, other))
    assert losses[True][0] == losses[True][1]
    assert abs(losses[False][0] - losses[False][1]) > 1e-3
    packed_config.data.packing = False
    with pytest.raises(UserError, match=r"data\.isolated=False is .* it needs data\.packing=True"):
        validate(packed_config, 1)
