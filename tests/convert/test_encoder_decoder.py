"""A model that writes, exported to Transformers: loaded there whole, with the same logits and the same texts."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bert_jax
from bert_jax.config import UserError
from bert_jax.convert.conversion import convert
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.models.bert import TrunkInputs
from bert_jax.tasks.seq2seq import Seq2Seq
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import translate

TOKENIZER = make_wordpiece(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"], "test", True, None, True
)
TEXTS = ["a b c d e f", "z", "m n o p q r s t u v", "c c c", "q w e r t y"]


def _export(folder, **seq2seq):
    """Returns the folder of a run with random parameters, that of its export, and the report."""
    config = translate.get_config()
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(dtype="float32", max_position_embeddings=40, initializer_range=0.4, hidden_act="gelu")
    config.data.update(sequence_length=24, target_length=10)
    config.seq2seq.update(seq2seq)
    config.generate.min_length = 0  # as in Transformers
    task = Seq2Seq(config, TOKENIZER, None)
    run = {"step": 7, "config": config.to_dict(), "task": task.description()}
    write_checkpoint(folder / "run/checkpoints/7", flatten(task.init(nnx.Rngs(params=0))), run, TOKENIZER)
    report = convert(str(folder / "run"), str(folder / "theirs"), format="huggingface")
    return folder / "run", folder / "theirs", report


@pytest.mark.parity
@pytest.mark.parametrize("share", [False, True], ids=["encoder_decoder", "share"])
def test_transformers_computes_and_writes_the_same(tmp_path, share):
    import torch
    import transformers

    workdir, folder, report = _export(tmp_path, model="encoder_decoder", share=share)
    assert ("the decoder shares parameters, which are written twice" in report) == share
    peer, found = transformers.EncoderDecoderModel.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(found.values())  # missing, unexpected, of another shape
    peer.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    model = bert_jax.load(workdir)
    ids, real = (np.asarray(theirs[name], np.int32) for name in ("input_ids", "attention_mask"))
    places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    targets = np.random.default_rng(0).integers(5, 31, (len(TEXTS), 6)).astype(np.int32)

    def logits(model, source, targets):
        writer = task.writer(model)
        return writer.logits(writer.predict(source, targets)), writer.attention(source, targets)

    task = model._opened.task
    source = TrunkInputs(*(jnp.asarray(x) for x in (ids, ids * 0, places, real)))
    ours, weights = model._opened.at_work.program(logits)(source, targets)
    before = np.concatenate([np.full((len(TEXTS), 1), TOKENIZER.cls_id), targets[:, :-1]], axis=1)
    inputs = {name: theirs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = peer(**inputs, decoder_input_ids=torch.tensor(before), output_attentions=True)
    np.testing.assert_allclose(ours, expected.logits, atol=2e-5)
    for one, other in zip(weights, expected.cross_attentions, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)

    def their_texts(**options):
        written = peer.generate(**inputs, max_new_tokens=10, **options)
        return [TOKENIZER.decode(tokens) for tokens in written.tolist()]

    assert [result["text"] for result in model.generate(TEXTS)] == their_texts(num_beams=1, do_sample=False)
    # A penalty of 0 is the only one that both define alike: theirs divides by n^α.
    search = {"num_beams": 4, "length_penalty": 0.0, "early_stopping": "never"}
    found = model.generate(TEXTS, beams=4, n_best=3, length_penalty=0.0, no_repeat_ngram=2)
    texts = their_texts(num_return_sequences=3, no_repeat_ngram_size=2, **search)
    assert [target["text"] for result in found for target in result["n_best"]] == texts
    found = model.generate(TEXTS, beams=3, length_penalty=0.0, repetition_penalty=1.7, min_length=4)
    texts = their_texts(repetition_penalty=1.7, min_new_tokens=4, **search | {"num_beams": 3})
    assert [result["text"] for result in found] == texts
    found = model.generate(TEXTS, repetition_penalty=1.7)
    assert [r["text"] for r in found] == their_texts(num_beams=1, do_sample=False, repetition_penalty=1.7)


@pytest.mark.parity
def test_transformers_models_are_read(tmp_path):
    """One of random parameters that Transformers made and saved: read here, it writes the same, and comes back
    from an export as it was."""
    import torch
    import transformers

    shape = {"vocab_size": TOKENIZER.vocab_size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 40, "initializer_range": 0.4}
    halves = transformers.BertConfig(**shape), transformers.BertConfig(**shape)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    ids = {"decoder_start_token_id": TOKENIZER.cls_id, "eos_token_id": TOKENIZER.sep_id, "pad_token_id": 0}
    both.update(ids)
    torch.manual_seed(0)
    peer = transformers.EncoderDecoderModel(both).eval()
    peer.save_pretrained(tmp_path / "theirs")
    TOKENIZER.save(tmp_path / "theirs")
    report = convert(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert "unexpected" not in report and "task seq2seq" in report
    model = bert_jax.load(tmp_path / "ours")
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), format="huggingface")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")(TEXTS, return_tensors="pt", padding=True)
    inputs = {name: theirs[name] for name in ("input_ids", "attention_mask")}
    never = {"suppress_tokens": [0, TOKENIZER.cls_id, TOKENIZER.mask_id], "max_new_tokens": 10, "do_sample": False}
    written = peer.generate(**inputs, **ids, num_beams=1, **never)
    found = model.generate(TEXTS, max_length=10, min_length=0)
    assert [result["text"] for result in found] == [TOKENIZER.decode(tokens) for tokens in written.tolist()]

    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "back").state_dict()
    for name, value in peer.state_dict().items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


def tied(settings):
    settings["tie_encoder_decoder"] = True
    return "tie_encoder_decoder is True; only a decoder with parameters of its own can be read"


def other_vocabulary(settings):
    settings["decoder"]["vocab_size"] += 1
    return "vocab_size is 32 in the decoder, 31 in the encoder; it must be the same"


def without_cross_attention(settings):
    settings["decoder"]["add_cross_attention"] = False
    return "the decoder's add_cross_attention is not true; it could not see the source"


def other_start(settings):
    settings["decoder_start_token_id"] = 7
    return "decoder_start_token_id is 7; only 2, as this project writes, can be read"


def no_encoder(settings):
    del settings["encoder"]
    return "no field 'encoder'"


def not_a_bert(settings):
    settings["encoder"]["model_type"] = settings["decoder"]["model_type"] = "gpt2"
    return "model_type is 'gpt2', only 'bert' can be read"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return _export(tmp_path_factory.mktemp("exported"), model="encoder_decoder")[1]


_CHANGES = (tied, other_vocabulary, without_cross_attention, other_start, no_encoder, not_a_bert)


@pytest.mark.parametrize("change", _CHANGES, ids=lambda change: change.__name__)
def test_what_cannot_be_read_is_one_line(exported, tmp_path, change):
    folder = tmp_path / "theirs"
    shutil.copytree(exported, folder)
    settings = json.loads((folder / "config.json").read_text())
    expected = change(settings)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        convert(str(folder), str(tmp_path / "ours"))
    assert "\n" not in str(caught.value) and not (tmp_path / "ours").exists()


def test_unilm_is_written_as_the_bert_that_it_is(tmp_path):
    _, folder, report = _export(tmp_path)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert "another mask than a model that writes (UniLM), which Transformers lacks" in report
    assert not (folder / "generation_config.json").exists()
