"""Batches: the same rows for any number of processes, from any step, in threads or in worker processes."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.pretraining.pairs import PairRows, PairSettings
from bert_jax.data.pretraining.pipeline import (
    eval_batches,
    num_eval_examples,
    pairs_per_row,
    train_batches,
)
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.pretraining.prepared import PreparedCorpus
from experiments.base import get_config

WORDS = [
    "sun",
    "moon",
    "star",
    "rain",
    "snow",
    "wind",
    "tree",
    "leaf",
    "stone",
    "river",
    "lake",
    "hill",
    "road",
    "door",
]
KEYS = {
    "input_ids",
    "token_type_ids",
    "position_ids",
    "sequence_ids",
    "first_tokens",
    "next_sentence_labels",
    "next_sentence_weights",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedCorpus, ConfigDict]:
    folder = tmp_path_factory.mktemp("corpus")
    rng = Random(0)
    lines = [json.dumps({"text": " ".join(f"The {rng.choice(WORDS)} saw the {rng.choice(WORDS)}." for _ in range(9))})]
    lines += [
        json.dumps({"text": " ".join(f"A {rng.choice(WORDS)} and {rng.choice(WORDS)} {i} met." for i in range(7))})
        for _ in range(39)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines), "utf-8")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "the", "saw", "a", "and", "met", *WORDS]
    (folder / "vocab.txt").write_text("\n".join([*vocab, *map(str, range(9))]), "utf-8")
    config = get_config()
    config.data.update(corpus="jsonl", files=str(folder / "corpus.jsonl"), vocab_file=str(folder / "vocab.txt"))
    config.data.update(sequence_length=24, prepared=str(folder / "prepared"), workers=1, prefetch=3)
    config.data.update(validation_share=0.2, test_share=0.0)
    config.train.batch_size = 12
    config.eval.batch_size = 8
    return prepare(config.data, config.seed, progress=False), config


@pytest.fixture
def config(made) -> ConfigDict:
    return made[1].copy_and_resolve_references()


@pytest.fixture
def prepared(made) -> PreparedCorpus:
    return made[0]


def read(prepared: PreparedCorpus, config: ConfigDict, count: int, **where) -> list[dict[str, np.ndarray]]:
    batches = train_batches(prepared, config, **where)
    try:
        return list(islice(batches, count))
    finally:
        batches.close()


def assert_same(left: list[dict[str, np.ndarray]], right: list[dict[str, np.ndarray]]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_rows_follow_the_endless_sequence_across_epochs(prepared: PreparedCorpus, config: ConfigDict):
    size, steps = prepared.num_records("train"), 30
    assert size % 12 and steps * 12 > 2 * size  # epochs end inside batches
    settings = PairSettings.from_config(config.data, prepared.tokenizer)
    rows = PairRows(prepared.source("train"), settings, config.seed)
    for step, batch in enumerate(read(prepared, config, steps)):
        assert set(batch) == KEYS
        assert batch["input_ids"].shape == (12, 24) and batch["next_sentence_labels"].shape == (12, 1)
        for row in range(12):
            expected = rows(step * 12 + row)
            for key, value in expected.items():
                np.testing.assert_array_equal(batch[key][row], value)


@pytest.mark.parametrize("start", [1, 7, 8, 23])
def test_resumed_at_any_step_equals_uninterrupted(prepared: PreparedCorpus, config: ConfigDict, start: int):
    assert_same(read(prepared, config, 4, start_step=start), read(prepared, config, start + 4)[start:])


def test_state_says_where_to_go_on(prepared: PreparedCorpus, config: ConfigDict):
    batches = train_batches(prepared, config)
    first = list(islice(batches, 9))
    state = json.loads(json.dumps(batches.state()))
    following = next(batches)
    batches.close()
    epoch, position = divmod(9 * 12, prepared.num_records("train"))
    dataset = prepared.directory.name
    assert state == {"dataset": dataset, "step": 9, "epoch": epoch, "position": position} and len(first) == 9
    assert_same(read(prepared, config, 1, start_step=state["step"]), [following])


def test_packed_rows_resume_and_are_shared_like_the_others(
    prepared: PreparedCorpus, config: ConfigDict, short_stretches: int
):
    config.data.update(packing=True, pairing="sop", short_sequence_rate=1.0)
    whole = read(prepared, config, 8)  # 96 rows: into the second stretch
    assert set(whole[0]) == KEYS and whole[0]["next_sentence_labels"].shape == (12, 2)
    assert_same(read(prepared, config, 2, start_step=6), whole[6:])
    shares = [read(prepared, config, 2, start_step=4, process_index=p, process_count=3) for p in range(3)]
    joined = [{key: np.concatenate([s[step][key] for s in shares]) for key in whole[0]} for step in range(2)]
    assert_same(joined, whole[4:6])  # rows 48 to 71, of both stretches
    batches = train_batches(prepared, config, start_step=6)
    epoch, position = batches.state()["epoch"], batches.state()["position"]
    batches.close()
    size, per_row = prepared.num_records("train"), pairs_per_row(prepared, config)
    assert epoch * size + position == short_stretches * per_row and per_row > 1
    config.data.packing = False
    assert pairs_per_row(prepared, config) == 1.0
    assert next(eval_batches(prepared, config))["next_sentence_labels"].shape == (8, 1)


@pytest.mark.parametrize("processes", [2, 3, 12])
def test_processes_share_the_same_global_batch(prepared: PreparedCorpus, config: ConfigDict, processes: int):
    whole = read(prepared, config, 5)
    shares = [read(prepared, config, 5, process_index=p, process_count=processes) for p in range(processes)]
    joined = [{key: np.concatenate([s[step][key] for s in shares]) for key in KEYS} for step in range(5)]
    assert_same(joined, whole)


def test_worker_processes_give_the_same_batches(made, tmp_path: Path):
    """In a process of its own: Grain's workers need a main module that can be imported."""
    prepared, config = made
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, json, hashlib\nfrom pathlib import Path\nfrom itertools import islice\n"
        "from ml_collections import ConfigDict\n"
        "from bert_jax.data.pretraining.pipeline import train_batches\n"
        "from bert_jax.data.pretraining.prepare import open_prepared\n"
        "if __name__ == '__main__':\n"
        "    config = ConfigDict(json.loads(sys.argv[1]))\n"
        "    for workers in (0, 2):\n"
        "        config.data.read_workers = workers\n"
        "        batches = train_batches(open_prepared(Path(sys.argv[2])), config, start_step=2)\n"
        "        digest = hashlib.sha256()\n"
        "        for batch in islice(batches, 7):\n"
        "            [digest.update(batch[key].tobytes()) for key in sorted(batch)]\n"
        "        batches.close()\n"
        "        print(digest.hexdigest())\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, str(script), config.to_json(), str(prepared.directory)]
    environment = {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    threads, processes = result.stdout.split()
    assert threads == processes


@pytest.mark.parametrize(("limit", "processes"), [(0, 1), (0, 4), (5, 2), (3, 8)])
def test_evaluation_sees_every_example_once(prepared: PreparedCorpus, config: ConfigDict, limit: int, processes: int):
    config.eval.max_examples = limit
    count = num_eval_examples(prepared, config)
    size = prepared.num_records("validation")
    assert count == (min(limit, size) if limit else size) and count % 8
    shares = [list(eval_batches(prepared, config, process_index=p, process_count=processes)) for p in range(processes)]
    assert {len(share) for share in shares} == {-(-count // 8)}
    joined = [
        {key: np.concatenate([share[step][key] for share in shares]) for key in KEYS} for step in range(len(shares[0]))
    ]
    rows = {key: np.concatenate([batch[key] for batch in joined]) for key in KEYS}
    assert (rows["sequence_ids"][:count, 0] == 1).all()
    assert all((rows[key][count:] == 0).all() for key in KEYS)
    settings = PairSettings.from_config(config.data, prepared.tokenizer)
    alone = PairRows(prepared.source("validation"), settings, config.eval.seed)
    for position in range(count):
        np.testing.assert_array_equal(rows["input_ids"][position], alone(position)["input_ids"])


def test_evaluation_is_the_same_each_time_whatever_the_training_seed(prepared: PreparedCorpus, config: ConfigDict):
    first = list(eval_batches(prepared, config))
    config.seed = 99
    assert_same(list(eval_batches(prepared, config)), first)


def test_no_label_without_pairs(prepared: PreparedCorpus, config: ConfigDict):
    config.data.pairing = "none"
    (batch,) = read(prepared, config, 1)
    assert set(batch) == KEYS and not batch["next_sentence_weights"].any() and not batch["token_type_ids"].any()


def test_errors_a_user_can_cause(prepared: PreparedCorpus, config: ConfigDict):
    with pytest.raises(UserError, match=r"train\.batch_size = 12 is not a multiple of the 5 processes: use 15"):
        train_batches(prepared, config, process_count=5)
    with pytest.raises(UserError, match=r"eval\.batch_size = 8 .* 3 processes"):
        next(eval_batches(prepared, config, process_count=3))
    with pytest.raises(UserError, match=r"test split .* is empty"):
        next(eval_batches(prepared, config, split="test"))
    config.data.sequence_length = 128
    with pytest.raises(UserError, match=r"data\.sequence_length=24, the config says 128"):
        train_batches(prepared, config)


def test_an_id_outside_the_vocabulary_reaches_the_caller_as_one_line(prepared: PreparedCorpus, config: ConfigDict):
    class Smaller:
        vocab_size, cls_id, sep_id = 12, 2, 3

    wrong = PreparedCorpus(prepared.directory, prepared.manifest, Smaller())  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"token id \d+ .* record \d+ of .* vocabulary of 12") as caught:
        read(wrong, config, 1)
    assert "\n" not in str(caught.value) and str(prepared.directory) in str(caught.value)


def test_a_split_of_one_document_is_refused_for_nsp_only(prepared: PreparedCorpus, config: ConfigDict):
    splits = {**prepared.manifest["splits"], "validation": {"documents": 1}}
    lone = PreparedCorpus(prepared.directory, {**prepared.manifest, "splits": splits}, prepared.tokenizer)
    with pytest.raises(UserError, match=r"validation split .* one document.*validation_share"):
        next(eval_batches(lone, config))
    config.data.pairing = "sop"
    assert next(eval_batches(lone, config))["next_sentence_weights"].any()
