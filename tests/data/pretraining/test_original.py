"""The original script's instances against digests taken from running its own Python (REFERENCE.md, golden values)."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.original import CLS, MASK, SEP, Instance, OriginalSettings, create_instances
from bert_jax.data.pretraining.pipeline import train_batches
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.tokenizers.tokenizer import load_tokenizer
from experiments.base import get_config

GOLDEN = [  # length, predictions, dupes; instances, random-next, tokens, masked, [MASK]; digest
    (128, 20, 5, (60, 32, 6_207, 922, 722), "b87b3ab4e36db7b8338505e9e198dc6fbea6839375d49b61cf022f9c41e19fc7"),
    (64, 10, 3, (57, 38, 3_390, 524, 419), "e06f8ea63365d624d6cc491a9766fd1f0fe0d52f1f441f617144602d5e29b58c"),
]


@pytest.mark.parametrize(("length", "predictions", "dupes", "counts", "digest"), GOLDEN)
def test_prepare_writes_the_instances_of_the_original_script(
    shared_data: Callable[[str], Path], tmp_path: Path, length: int, predictions: int, dupes: int, counts, digest: str
):
    assets = shared_data("bert_assets") / "bert_assets"
    config = get_config()
    config.data.update(corpus="text", files=str(assets / "sample_text.txt"), prepared=str(tmp_path))
    config.data.update(vocab_file=str(assets / "uncased" / "vocab.txt"), masking="static", sequence_length=length)
    config.data.update(max_predictions_per_sequence=predictions, dupe_factor=dupes)
    config.data.update(validation_share=0.0, test_share=0.0)
    prepared = prepare(config.data, 12_345, progress=False)
    source, token = prepared.source("train"), prepared.tokenizer.token
    instances = [
        Instance(
            [token(i) for i in record["input_ids"]],
            record["segment_ids"].tolist(),
            bool(record["next_sentence_labels"]),
            record["masked_lm_positions"].tolist(),
            [token(i) for i in record["masked_lm_ids"]],
        )
        for record in (source[index] for index in range(len(source)))
    ]
    found = (
        len(instances),
        sum(i.is_random_next for i in instances),
        sum(len(i.tokens) for i in instances),
        sum(len(i.labels) for i in instances),
        sum(i.tokens.count(MASK) for i in instances),
    )
    assert found == counts
    assert _digest(instances) == digest

    config.train.batch_size = 4
    batches = train_batches(prepared, config)
    batch = next(batches)
    batches.close()
    assert batch["masked_labels"].shape == batch["masked_weights"].shape == (4, predictions)
    for row in range(4):
        assert batch["input_ids"][row, 0] == prepared.tokenizer.cls_id
        assert batch["sequence_ids"][row].sum() == (batch["input_ids"][row] != 0).sum()
        weights = batch["masked_weights"][row] > 0
        assert (batch["masked_labels"][row][~weights] == 0).all()
        assert (batch["masked_positions"][row][weights] > 0).all()
    config.data.max_predictions_per_sequence = 7
    with pytest.raises(UserError, match=rf"max_predictions_per_sequence={predictions}, the config says 7"):
        train_batches(prepared, config)


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_restore_the_text_and_respect_the_limits(whole_word: bool):
    vocabulary = [CLS, SEP, MASK, *(f"w{i}" for i in range(50)), *(f"##s{i}" for i in range(50))]
    rng = Random(5)
    documents = [
        [
            [f"w{rng.randrange(50)}" if rng.random() < 0.6 else f"##s{rng.randrange(50)}" for _ in range(9)]
            for _ in "abcd"
        ]
        for _ in range(20)
    ]
    settings = OriginalSettings(32, 5, 2, 0.1, 0.15, whole_word)
    instances = create_instances(documents, vocabulary, Random(1), settings)
    assert len(instances) >= 40
    for instance in instances:
        tokens = list(instance.tokens)
        for position, label in zip(instance.positions, instance.labels, strict=True):
            tokens[position] = label
        assert len(tokens) <= 32 and len(instance.positions) <= 5
        assert instance.positions == sorted(set(instance.positions))
        assert [tokens[0], tokens[-1]] == [CLS, SEP] and tokens.count(SEP) == 2
        assert not {0, tokens.index(SEP), len(tokens) - 1} & set(instance.positions)
        if whole_word:  # a piece is predicted with the word it continues, even across [SEP]
            words = _word_numbers(tokens)
            chosen = {words[p] for p in instance.positions}
            assert {p for p in range(len(tokens)) if words[p] in chosen} == set(instance.positions)


def test_original_tokenizer_gives_the_golden_ids(shared_data: Callable[[str], Path]):
    """Static preparation switches to the original's rules; this is the input its digests stand on."""
    assets = shared_data("bert_assets") / "bert_assets"
    tokenizer = load_tokenizer(assets / "uncased" / "vocab.txt")
    lines = (assets / "sample_text.txt").read_text("utf-8").splitlines()
    ids = [token for line in tokenizer.encode_words(lines) for token in line]
    digest = hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()
    assert (len(ids), digest) == (1_019, "ea810c316f6e99b3c5f9475577429057b1533552b866dd7b4029229f6d9adaaa")


def test_a_lone_document_is_its_own_random_next():
    """The original's quirk: after ten draws it takes the same document and still labels it random."""
    instances = create_instances(
        [[["a"], ["b"], ["c"]]], ["a", "b", "c"], Random(0), OriginalSettings(16, 2, 20, 0, 0.15, False)
    )
    assert any(instance.is_random_next for instance in instances)


def _word_numbers(tokens: list[str]) -> list[int | None]:
    numbers: list[int | None] = []
    current = None
    for position, token in enumerate(tokens):
        if token in (CLS, SEP):
            numbers.append(None)
            continue
        if current is None or not token.startswith("##"):
            current = position
        numbers.append(current)
    return numbers


def _digest(instances: Iterable[Instance]) -> str:
    lines = (json.dumps(list(instance), ensure_ascii=False, separators=(",", ":")) + "\n" for instance in instances)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
