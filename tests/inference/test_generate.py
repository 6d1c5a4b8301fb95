"""Texts that a model writes: the same as by hand, in the order of the input, whatever is wrong with some of it."""

import contextlib
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bert_jax
from bert_jax.config import UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.encode import InputError
from bert_jax.inference.generate import Generator
from bert_jax.main import main
from bert_jax.models.bert import TrunkInputs
from bert_jax.tasks.seq2seq import Seq2Seq
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import translate

from .conftest import TOKENIZER, sentences

TEXTS = [row["sentence"] for row in sentences(20, seed=3)]


def _config():
    config = translate.get_config()
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(dtype="float32", max_position_embeddings=40, initializer_range=0.5)
    config.data.update(sequence_length=24, target_length=8)
    config.generate.min_length = 3
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model of two layers whose parameters are random, and so large that what it writes differs widely."""
    config = _config()
    task = Seq2Seq(config, TOKENIZER, None)
    run = {"step": 7, "config": config.to_dict(), "task": task.description()}
    folder = tmp_path_factory.mktemp("writes")
    write_checkpoint(folder / "checkpoints" / "7", flatten(task.init(nnx.Rngs(params=0))), run, TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return bert_jax.load(workdir, batch_size=8)


@contextlib.contextmanager
def _compilations():
    """Yields a list that gets an event for each program that is compiled meanwhile."""
    compiled = []

    def listen(event, duration, **_):
        compiled.extend([event] if event.endswith("compile_duration") else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


def _by_hand(model, text: str) -> str:
    """Writes greedily by what training predicts for a target of 8 tokens, one after the other: nothing is cached."""
    task, opened = model._opened.task, model._opened
    batch = task.tokenizer.row(task.tokenizer.encode_words([text])[0]).ids[None].astype(np.int32)
    places = np.arange(batch.shape[1], dtype=np.int32)[None]
    source = TrunkInputs(*map(jnp.asarray, (batch, batch * 0, places, batch * 0 + 1)))
    program = opened.at_work.program(
        lambda model, targets: task.writer(model).logits(task.writer(model).predict(source, targets))
    )
    targets = np.zeros((1, 8), np.int32)
    never = [TOKENIZER.pad_id, TOKENIZER.cls_id, TOKENIZER.mask_id]
    for place in range(8):
        logits = np.array(program(targets)[0, place])
        logits[never + ([TOKENIZER.sep_id] if place < 3 else [])] = -np.inf
        targets[0, place] = logits.argmax()
        if targets[0, place] == TOKENIZER.sep_id:
            break
    return TOKENIZER.decode(targets[0].tolist())


def test_writes_the_likeliest_tokens_alone_and_among_others(model):
    found = model.generate(TEXTS)
    assert len({result["text"] for result in found}) > 10  # else any order would pass
    for number in (0, 7, 19):
        assert found[number]["text"] == _by_hand(model, TEXTS[number])
        alone = model.generate(TEXTS[number])
        assert alone["text"] == found[number]["text"]
        assert alone["log_probability"] == pytest.approx(found[number]["log_probability"], rel=1e-4)


def test_beams_and_their_scores(model):
    greedy, found = model.generate(TEXTS), model.generate(TEXTS, beams=4, n_best=3, length_penalty=1.0)
    for one, best in zip(greedy, found, strict=True):
        scores = [target["score"] for target in best["n_best"]]
        assert scores == sorted(scores, reverse=True)
        assert len({target["text"] for target in best["n_best"]}) == 3
        assert {key: best[key] for key in ("text", "score", "log_probability")} == best["n_best"][0]
        assert best["log_probability"] < 0
        assert best["score"] > one["log_probability"]  # ÷ a penalty over 1, and a wider search


def test_what_is_drawn_follows_the_seed_and_the_number_of_the_row(model):
    options = {"temperature": 1.0, "top_k": 20, "top_p": 0.95}
    one, again = (model.generate([TEXTS[0]] * 12, seed=1, **options) for _ in range(2))
    assert one == again
    assert len({result["text"] for result in one}) > 6  # the same text in another row
    assert [result["text"] for result in model.generate([TEXTS[0]] * 3, seed=1, **options)] == [
        result["text"] for result in one[:3]
    ]
    with _compilations() as compiled:
        assert one != model.generate([TEXTS[0]] * 12, seed=2**32 - 1, **options)
    assert not compiled and model.tool(Generator, given=tuple(sorted(options.items()))).decoding.top_k == 20


def test_the_program_derives_the_keys_of_a_seed():
    for seed in (0, 7, 2**31, 2**32 - 1):
        assert jax.jit(jax.random.key)(np.uint32(seed)) == jax.random.key(seed)


def test_an_input_that_is_wrong_has_its_error_in_its_place(model):
    found = model.generate([TEXTS[0], " ", {"other": "a"}, TEXTS[1], "\ud800", {"source": ["a", "\ud800"]}])
    assert [isinstance(result, InputError) for result in found] == [False, True, True, False, True, True]
    assert "input 5 is not Unicode text" in str(found[5])
    assert "input 1: column 'source' is empty" in str(found[1])
    with pytest.raises(InputError, match="column 'source' is empty"):
        model.generate("")


def test_threads_write_at_the_same_time(model):
    expected, found = model.generate(TEXTS), {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: model.generate(TEXTS)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(texts == expected for texts in found.values())


def test_nothing_is_compiled_beyond_the_declared_lengths(workdir):
    """Sources of any length and number, targets that end anywhere."""
    generator = Generator(workdir, batch_size=4)
    generator.warm_up([12, 24])
    with _compilations() as compiled:
        for count in (1, 3, 9, 20):
            rows = [Row(str(number), {"source": text}) for number, text in enumerate(TEXTS[:count])]
            assert len(list(generator.stream(rows))) == count
    assert not compiled


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beams": 100}, r"generate.beams=100 is over the vocabulary of 31 tokens that can be written"),
        ({"beam": 5}, "generate.beam is not an option; the nearest is generate.beams"),
        ({"beams": 0}, "generate.beams is 0; it must be a whole number from 1 to 1024"),
        ({"beams": [2]}, r"generate.beams is \[2\]; it must be a whole number"),
        ({"max_length": 17}, "data.sequence_length 24 and generate.max_length 17 make rows of 41 tokens"),
        ({"seed": -1}, "generate.seed is -1"),
        ({"max_length": 3}, "generate.min_length=3 leaves no room for the end"),
    ],
)
def test_options_that_cannot_be(model, options, message):
    with pytest.raises(UserError, match=message):
        model.generate(TEXTS, **options)


def test_a_checkpoint_that_cannot_write(tuned):
    with pytest.raises(UserError, match="was trained for task=classification and cannot write"):
        bert_jax.load(tuned[1]).generate("a")


def test_a_decoder_that_is_not_there_or_has_another_vocabulary(tmp_path):
    config = _config()
    config.seq2seq.model = "encoder_decoder"
    task, table = Seq2Seq(config, TOKENIZER, None), "heads/decoder/embeddings/word/embedding"
    run = {"step": 7, "config": config.to_dict(), "task": task.description()}
    whole = flatten(task.init(nnx.Rngs(params=0)))
    changes = {"absent": {name: x for name, x in whole.items() if "decoder" not in name}}
    changes["other"] = whole | {table: jnp.zeros((50, 32))}
    for name, parameters in changes.items():
        write_checkpoint(tmp_path / name, dict(parameters), run, TOKENIZER)
    with pytest.raises(UserError, match="heads/decoder/cross/attention/key/bias is not in it"):
        Generator(tmp_path / "absent")
    with pytest.raises(UserError, match=rf"{table} is \(50, 32\) there, \({TOKENIZER.vocab_size}, 32\) here"):
        Generator(tmp_path / "other")


def test_a_command_writes_a_line_for_each_row(workdir, model, tmp_path, capsysbinary):
    """In the order of the input, with its ids; what is wrong with a row ends the command, or is its line."""
    command = ["--config=experiments/translate.py", f"--workdir={workdir}", "--mode=generate"]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"id": str(number), "source": text} for number, text in enumerate(TEXTS[:5])]
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:2], {"id": "bad", "source": ""}, *rows[2:]]))
    options = [f"--input={source}", f"--output={target}", "--config.generate.beams=2", "--config.generate.n_best=2"]
    with pytest.raises(UserError, match=r"in.jsonl:3.* is empty.*\(--bad_lines=skip continues without this one\)"):
        main([*command, *options])
    assert not target.exists()
    assert main([*command, *options, "--bad_lines=skip"]) == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "bad", "2", "3", "4"]
    assert "is empty" in lines[2].pop("error")
    expected = model.generate(TEXTS[:5], beams=2, n_best=2)
    texts = [line["text"] for line in lines if "text" in line]
    assert texts == [result["text"] for result in expected]
    assert [target["text"] for target in lines[0]["n_best"]] == [target["text"] for target in expected[0]["n_best"]]
    plain = tmp_path / "in.txt"
    plain.write_text("\n".join(TEXTS[:2]) + "\n")
    capsysbinary.readouterr()
    assert main([*command, f"--input={plain}"]) == 0  # lines of text, to standard output
    found = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [line["text"] for line in found] == [result["text"] for result in model.generate(TEXTS[:2])]
    with pytest.raises(UserError, match="needs --input"):
        main(command)
    with pytest.raises(UserError, match=r"unknown suffix '.txt'"):
        main([*command, f"--input={plain}", f"--output={tmp_path / 'out.txt'}"])
