"""What is hidden, by a rule that can be computed by hand; the score against a loop over contexts."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.data.pretraining.splits import split_documents
from bert_jax.data.text.corpus import open_corpus
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.inference.open import open_model
from bert_jax.lab.speedrun.held_out import Context, cut, digest, held_out_texts, plain
from bert_jax.lab.speedrun.scoring import UNKNOWN_CHARACTER, batches, check_model, encode, score
from bert_jax.models.bert import TrunkInputs
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import base

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "dog", "##s", "run", "##ning", "a", "cat", ".", ","]
TOKENIZER = make_wordpiece([*SPECIAL, *WORDS], "test", True, None, True)


def context(text: str, *hidden: str) -> Context:
    """A context in which the first occurrence of each of these words is hidden."""
    spans, begin = [], 0
    for word in text.replace(",", " ,").replace(".", " .").split():
        begin = text.index(word, begin)
        spans.append((begin, begin + len(word)))
        begin += len(word)
    words = tuple(span for span in spans if text[slice(*span)].isalnum())
    chosen = tuple(next(span for span in words if text[slice(*span)] == word) for word in hidden)
    return Context(text, words, tuple(sorted(chosen)))


CONTEXTS = [
    context("the dogs run, a cat running.", "dogs", "running"),
    context("a cat", "cat"),
    context("the zebra, the dogs", "zebra", "dogs"),  # zebra is unknown
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose parameters are random, and large."""
    config = base.get_config("tiny")
    config.model.update(hidden_size=32, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32)
    config.model.update(initializer_range=0.5, dtype="float32")
    config.data.sequence_length = 16
    model = Pretraining(config, TOKENIZER, None).init(nnx.Rngs(params=0))
    folder = tmp_path_factory.mktemp("run")
    run = {"step": 7, "config": config.to_dict(), "task": {}}
    write_checkpoint(folder / "checkpoints" / "7", flatten(model), run, TOKENIZER)
    return folder


def test_what_is_hidden_follows_from_text_and_place_alone():
    texts = [" ".join(f"word{number}" for number in range(count)) + " end." for count in (150, 400)]
    contexts = cut(texts)
    assert "".join(one.text for one in contexts) == "".join(texts)
    assert [len(one.words) for one in contexts] == [64, 64, 23, 64, 64, 64, 64, 64, 64, 17]
    for text in texts:
        key, words = hashlib.blake2b(text.encode(), digest_size=16).digest(), text.removesuffix(".").split()
        drawn = (hashlib.blake2b(str(i).encode(), digest_size=8, key=key).digest() for i in range(len(words)))
        wanted = [word for word, x in zip(words, drawn, strict=True) if int.from_bytes(x, "big") / 2**64 < 0.15]
        assert [one.text[slice(*span)] for one in cut([text]) for span in one.hidden] == wanted
    share = sum(len(one.hidden) for one in contexts) / sum(len(one.words) for one in contexts)
    assert 0.1 < share < 0.2
    assert digest(contexts) != digest(contexts[::-1]) and digest(contexts) == digest(cut(texts))


def test_held_out_documents_are_those_of_the_test_split_whatever_an_entry_sets(topics: Path):
    data = base.get_config().data
    data.update(corpus="text", files=str(topics))
    found = held_out_texts(data)
    split = split_documents(open_corpus(data).documents(), data.seed, data.validation_share, data.test_share)
    assert {plain(document.text) for name, document in split if name == "test"} == set(found) and len(found) >= 2
    data.update(seed=1, test_share=0.5, lowercase=False)
    assert held_out_texts(data) == found
    assert all(text == text.lower() and "\n" not in text for text in found)
    assert plain("Café  ÉTÉ\nİstanbul 한국") == "cafe ete istanbul 한국"


def test_score_equals_a_loop_over_contexts(workdir: Path):
    """Contexts of different lengths share a batch; the word zebra (unknown) costs 5 × log 65,536."""
    found = score(workdir, CONTEXTS)
    model = open_model(workdir).task.init(nnx.Rngs(params=0))  # the same parameters
    total = 5 * UNKNOWN_CHARACTER
    pieces = [  # row, and (place, label) of what is scored
        ("[CLS] the [MASK] [MASK] run , a cat [MASK] [MASK] . [SEP]", {2: "dog", 3: "##s", 8: "run", 9: "##ning"}),
        ("[CLS] a [MASK] [SEP]", {2: "cat"}),
        ("[CLS] the [MASK] , the [MASK] [MASK] [SEP]", {5: "dog", 6: "##s"}),
    ]
    for row, labels in pieces:
        ids = jnp.array([[TOKENIZER.id(token) for token in row.split()]], jnp.int32)
        places = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
        hidden = model.trunk.encode(TrunkInputs(ids, jnp.zeros_like(ids), places, jnp.ones_like(ids))).hidden
        logits = model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])
        log_p = np.asarray(jax.nn.log_softmax(logits[0]))
        total -= sum(float(log_p[place, TOKENIZER.id(label)]) for place, label in labels.items())
    characters = len("dogs" + "running" + "cat" + "zebra" + "dogs")
    assert found.characters == characters and found.words == 5 and found.unknown == 1 and found.step == 7
    np.testing.assert_allclose(found.nats_per_character, total / characters, rtol=1e-5)


def test_a_model_with_short_rows_sees_halves_and_the_same_words_are_scored():
    text = "the dogs run, a cat running, the dogs run, a cat running."
    whole = context(text, "dogs", "running")
    (long,) = encode([whole], TOKENIZER, 32)
    parts = list(encode([whole], TOKENIZER, 16))
    assert len(parts) == 1 and len(parts[0].ids) <= 16  # the second half has nothing that is hidden
    scored = [part.ids[part.scored].tolist() for part in parts]
    assert [piece for part in scored for piece in part] == long.ids[long.scored].tolist()
    with pytest.raises(UserError, match="has 6 tokens, over the model's 6; it cannot be scored"):
        list(encode([context("run" + "ning" * 5, "run" + "ning" * 5)], TOKENIZER, 6))


def test_batches_hide_all_pieces_and_weigh_only_those_of_known_words():
    encoded = list(encode(CONTEXTS, TOKENIZER, 16))
    made = list(batches(encoded, TOKENIZER, 16, 48))
    assert [batch["input_ids"].shape for batch in made] == [(12, 4), (6, 8), (4, 12)]  # 48 tokens, in four widths
    last = made[-1]
    assert (last["input_ids"] == TOKENIZER.mask_id).sum(axis=1).tolist() == [4, 0, 0, 0]
    assert last["masked_weights"].sum(axis=1).tolist() == [4.0, 0.0, 0.0, 0.0]
    assert (made[1]["input_ids"] == TOKENIZER.mask_id).sum() == 3 and made[1]["masked_weights"].sum() == 2  # zebra
    assert math.isclose(UNKNOWN_CHARACTER, math.log(65_536))


def test_a_model_that_reads_left_to_right_is_refused(workdir: Path):
    opened = open_model(workdir)
    vars(opened)["bert_config"] = replace(opened.bert_config, causal=True)
    with pytest.raises(UserError, match=r"left to right \(model.causal\)"):
        check_model(opened)
