"""Small BERTs of Transformers with every weight random, and ours computed beside them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.convert.mapping import Loaded, Report, parameter_shapes
from bert_jax.convert.names import part_of
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.models.attention import take_places
from bert_jax.models.bert import Bert, Model, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import Classifier, LinearHead, MaskedLMHead, pool_tokens
from bert_jax.training.parameters import flatten, unflatten

PEER = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(5)), *"abcdefghij"]
TOKENS += ["##a", "##b", "##c", "##d", "un", "##able", "the", "of", ".", ",", "-", "漢", "字"]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("parity") and not PEER and "convert" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="needs PyTorch and Transformers: the extra 'parity'"))


@pytest.fixture
def make_peer() -> Callable:
    """make_peer(folder, "BertForMaskedLM", …) → a model of Transformers, also saved in the folder with a vocabulary."""

    def make(folder: Path, architecture: str = "BertForPreTraining", seed: int = 0, **settings):
        import torch
        import transformers

        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 80}
        small |= {"vocab_size": len(TOKENS), "max_position_embeddings": 40, "attn_implementation": "eager"}
        config = transformers.BertConfig(**(small | settings))
        generator = torch.Generator().manual_seed(seed)
        peer = getattr(transformers, architecture)(config).eval()
        with torch.no_grad():
            for name, parameter in peer.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(noise + (1 if "LayerNorm.weight" in name else 0))
        peer.save_pretrained(folder)
        make_wordpiece(TOKENS, "test", True, None, True).save(folder)
        return peer

    return make


@pytest.fixture
def make_loaded() -> Callable:
    """make_loaded("tagging", labels=3) → a model of ours with random weights, as if it had been read from somewhere."""

    def make(task: str = "pretraining", labels: int = 2, description: dict | None = None, **changes) -> Loaded:
        settings = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        settings |= {"intermediate_size": 48, "max_position_embeddings": 40, "dtype": "float32"}
        config = BertConfig(len(TOKENS), **(settings | changes))
        head = {"pretraining": ("mlm", "nsp"), "span_qa": ("span",)}.get(task, ("classifier",))
        rng = np.random.default_rng(0)
        parameters = {
            name: rng.normal(0.3 if name.endswith("scale") else 0, 0.2, shape).astype(np.float32)
            for name, shape in parameter_shapes(config, labels).items()
            if part_of(name) in ("embeddings", "encoder", "pooler", *head)
        }
        tokenizer = make_wordpiece(TOKENS, "test", True, None, True)
        return Loaded(config, parameters, tokenizer, task, description or {}, Report())

    return make


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    """Rows of 24, 9, 1 and 17 tokens in two segments; the rest is padding."""
    return rows([24, 9, 1, 17], len(TOKENS))


@pytest.fixture
def ours() -> Callable:
    """ours(loaded, batch) → everything that our model computes, float32, with arrays by the names used in the tests."""
    return compute


@pytest.fixture
def tools() -> SimpleNamespace:
    return SimpleNamespace(**{f.__name__: f for f in (rows, torch_inputs, graphdef, encode, mlm_logits)}, tokens=TOKENS)


def rows(lengths: list[int], vocab_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (len(lengths), max(lengths))
    positions = np.tile(np.arange(shape[1]), (shape[0], 1))
    return {
        "input_ids": rng.integers(1, vocab_size, shape),
        "token_type_ids": (positions > 5).astype(int),
        "position_ids": positions,
        "sequence_ids": (positions < np.asarray(lengths)[:, None]).astype(int),
    }


def torch_inputs(batch: dict[str, np.ndarray]) -> dict:
    import torch

    names = {"input_ids": "input_ids", "token_type_ids": "token_type_ids", "attention_mask": "sequence_ids"}
    return {theirs: torch.tensor(batch[here]) for theirs, here in names.items()}


def graphdef(loaded: Loaded):
    return nnx.split(nnx.eval_shape(lambda: _build(loaded)))[0]


def encode(model, batch, all_layers=False):
    inputs = TrunkInputs.from_batch({name: jnp.asarray(x) for name, x in batch.items()})
    return model.trunk.encode(inputs, all_layers=all_layers)


def mlm_logits(model, hidden, positions):
    return model.heads["mlm"](take_places(hidden, positions), model.trunk.embeddings.word.embedding[...])


def compute(loaded: Loaded, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    shapes = flatten(nnx.eval_shape(lambda: _build(loaded)))
    empty = {name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes.items()}
    assert loaded.parameters.keys() <= empty.keys()

    @jax.jit
    def run(parameters):
        model = unflatten(graphdef(loaded), parameters)
        encoded = encode(model, batch, all_layers=True)
        found = {"layers": encoded.layers, "hidden": encoded.hidden, "pooled": model.trunk.pool(encoded.hidden)}
        sequence_ids = jnp.asarray(batch["sequence_ids"])
        if loaded.task == "pretraining":
            positions = jnp.broadcast_to(jnp.arange(sequence_ids.shape[1])[None], sequence_ids.shape)
            found["mlm"] = mlm_logits(model, encoded.hidden, positions)
            found["nsp"] = model.heads["nsp"].logits(found["pooled"])
        elif loaded.task in ("classification", "multiple_choice"):
            how = loaded.config.pooling
            vectors = found["pooled"] if how == "cls" else pool_tokens(encoded.hidden, sequence_ids, how)
            found["logits"] = model.heads["classifier"].logits(vectors)
        else:
            (head,) = model.heads.values()
            found["logits"] = head.logits(encoded.hidden)
        return found

    return jax.tree.map(np.asarray, run(empty | loaded.parameters))


def _build(loaded: Loaded) -> Model:
    config, rngs = loaded.config, nnx.Rngs(params=0)
    if loaded.task == "pretraining":
        heads = {"mlm": MaskedLMHead(config, rngs=rngs), "nsp": LinearHead(config, 2, rngs=rngs)}
    elif loaded.task == "span_qa":
        heads = {"span": LinearHead(config, 2, rngs=rngs)}
    else:
        heads = {"classifier": Classifier(config, loaded.parameters["heads/classifier/bias"].shape[0], rngs=rngs)}
    return Model(Bert(config, rngs=rngs), heads)
