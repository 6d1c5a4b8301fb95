"""What becomes of a BERT's parameters in the models that write: warm, shared and new ones; and new ones are trained."""

import logging
import re

import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import bert_config
from bert_jax.models.heads import MaskedLMHead
from bert_jax.models.writer import WriterConfig
from bert_jax.run import run
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint, write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import translate

TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"], "test", True, None, True)
CROSS = "heads/decoder/cross/"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A config whose init_from is a BERT with an MLM head, and the parameters of that."""
    folder = tmp_path_factory.mktemp("bert")
    config = translate.get_config()
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(dtype="float32", max_position_embeddings=24, layers="scan")
    config.data.update(sequence_length=8, target_length=8, train=str(folder / "a.en") + "+" + str(folder / "a.de"))
    (folder / "a.en").write_text("a b c\nd e\nf g h\nb b\n")
    (folder / "a.de").write_text("c b a\ne d\nh g f\nb b\n")
    config.train.update(epochs=None, steps=2, batch_size=4, log_every=1, peak_tflops=1.0)
    config.optimizer.update(learning_rate=1e-3, warmup_share=None, warmup_steps=0)
    config.checkpoint.update(best_metric="loss", best_mode="min")
    config.seq2seq.update(scores="none", model="encoder_decoder")
    config.mesh.data, config.init_from = 1, str(folder / "checkpoint")
    rngs = nnx.Rngs(params=5)  # not the seed of the runs
    shape = bert_config(config.model, TOKENIZER.vocab_size)
    parameters = flatten(Model(Bert(shape, rngs=rngs), {"mlm": MaskedLMHead(shape, rngs=rngs)}))
    of_run = {"step": 1, "config": config.to_dict() | {"task": "pretraining"}, "task": {}}
    kept = {name: np.array(x) for name, x in parameters.items()}
    write_checkpoint(folder / "checkpoint", parameters, of_run, TOKENIZER)
    return config, kept


def _trained(start, workdir, rate=0.0, **seq2seq):
    """Returns the saved parameters after two steps with this learning rate; those of 0 are what a run begins with."""
    config = start[0].copy_and_resolve_references()
    config.seq2seq.update(seq2seq)
    config.optimizer.learning_rate = rate
    run(config, workdir)
    return {name: np.asarray(x) for name, x in read_checkpoint(find_checkpoint(str(workdir))).parameters.items()}


def _bert_of(name: str) -> str:
    """Returns what a BERT calls a parameter of a decoder."""
    own = name.removeprefix("heads/decoder/")
    return f"encoder/{own}" if own.startswith("layers/") else own


def test_a_decoder_starts_as_the_bert_and_its_cross_attention_is_trained(start, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        first = _trained(start, tmp_path / "0")
    assert "16 of them heads/decoder/layers/… from encoder/layers/…" in caplog.text
    assert "5 of them heads/decoder/embeddings/… from embeddings/…" in caplog.text
    assert f"10 left as initialised: {CROSS}attention/key/bias, " in caplog.text
    for name, value in first.items():
        if not name.startswith(CROSS):
            np.testing.assert_array_equal(value, start[1][_bert_of(name)])
    after = _trained(start, tmp_path / "1", rate=1e-3)
    kernels = [name for name in first if name.endswith(("kernel", "embedding")) and "pooler" not in name]
    assert sum(name.startswith(CROSS) for name in kernels) == 4
    for name in kernels:  # encoder and decoder, which no longer agree, and cross-attention
        assert np.abs(after[name] - first[name]).max() > 1e-5
    name = "heads/decoder/layers/output/kernel"
    assert np.abs(after[name] - after[_bert_of(name)]).max() > 1e-5
    # Restored, cross-attention is what was saved, and a task that continues from it copies nothing.
    config = start[0].copy_and_resolve_references()
    config.init_from, config.optimizer.learning_rate = str(tmp_path / "1"), 0.0
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(config, tmp_path / "2")
    assert "parameters loaded" in caplog.text and "of them heads/decoder" not in caplog.text
    again = read_checkpoint(find_checkpoint(str(tmp_path / "2"))).parameters
    assert all(np.array_equal(again[name], value) for name, value in after.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, warm, new",
    [
        ({"decoder": "random"}, "^(embeddings|encoder|pooler)/", "^heads/"),  # BERT2RND
        ({"encoder": "random"}, "^heads/(decoder/(layers|embeddings)|mlm)/", f"^(embeddings|encoder|pooler)/|{CROSS}"),
        ({"encoder": "random", "decoder": "random"}, "^$", "."),  # RND2RND
        ({"share": True}, f"^(?!{CROSS})", CROSS),  # BERTShare
    ],
)
def test_what_is_warm_and_what_is_new(start, tmp_path, options, warm, new):
    found = _trained(start, tmp_path, **options)
    for name, value in found.items():
        if not name.endswith(("kernel", "embedding")):
            continue  # biases and scales begin alike
        assert bool(re.search(warm, name)) != bool(re.search(new, name))
        assert np.array_equal(value, start[1].get(_bert_of(name))) == bool(re.search(warm, name))
    assert any(name.startswith("heads/decoder/layers/") for name in found) != options.get("share", False)


def test_a_shared_decoder_is_either_warm_or_not():
    with pytest.raises(UserError, match=r"seq2seq.share=True: encoder and decoder have the same parameters, but"):
        WriterConfig(2, 4, model="encoder_decoder", decoder="random", share=True)
