"""Gaps of texts: candidates by hand, constraints, the choice of a length by brute force, what is refused, the mode."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import bert_jax
from bert_jax.command import exit_status
from bert_jax.config import UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.inference.encode import InputError
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.gaps import STRATEGIES, Grammar, Infilling, Template
from bert_jax.inference.infill import Infiller
from bert_jax.main import main, read_command

from .test_open import pretrained

WORDS = ["play", "##ing", "##s", "dog", "big", "!", "[unused1]", "über"]
TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], "test", True, False, True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("pretrained") / "x")


@pytest.fixture(scope="module")
def model(checkpoint):
    return bert_jax.load(checkpoint)


def candidates(text, max_length=20, **options):
    grammar = Grammar(TOKENIZER, Infilling(**options))
    found = Template.of_row(Row("in.txt:1", {"text": text}), "text", grammar).candidates(max_length)
    return [(" ".join(map(TOKENIZER.token, blank.ids[1:-1])), blank, sizes) for blank, sizes in found], grammar


def test_a_gap_has_every_length_and_neighbouring_marks_are_one_run():
    found, _ = candidates("dog [MASK] [GAP] big [GAP]", gap=2)
    assert [shown for shown, *_ in found] == [
        "dog [MASK] [MASK] big [MASK]",
        "dog [MASK] [MASK] big [MASK] [MASK]",
        "dog [MASK] [MASK] [MASK] big [MASK]",
        "dog [MASK] [MASK] [MASK] big [MASK] [MASK]",
    ]
    assert [sizes for *_, sizes in found] == [[2, 1], [2, 2], [3, 1], [3, 2]]


def allowed(grammar, kind):
    return [TOKENIZER.token(i) for i in np.flatnonzero(grammar.tables[kind])]


def test_what_may_stand_at_a_mask():
    [(_, blank, _)], grammar = candidates("play[MASK][MASK] big [MASK]")
    pieces = ["play", "##ing", "##s", "dog", "big", "!", "über"]
    begins = ["play", "dog", "big", "!", "über"]
    assert [allowed(grammar, kind) for kind in blank.kinds] == [pieces, pieces, begins]
    [(_, blank, _)], grammar = candidates("play[MASK] [MASK]", whole_words=True)
    assert [allowed(grammar, kind) for kind in blank.kinds] == [["play", "dog", "big", "über"]] * 2
    [(_, blank, _)], grammar = candidates("[MASK] [MASK]", allowed=("dog", "##s"))
    assert [allowed(grammar, kind) for kind in blank.kinds] == [["##s", "dog"]] * 2
    [(_, blank, _)], grammar = candidates("[MASK] [MASK]", allowed=(("dog",), ("big", "!")))
    assert [allowed(grammar, kind) for kind in blank.kinds] == [["dog"], ["big", "!"]]


def test_words_that_must_occur_are_put_everywhere_they_fit():
    found, grammar = candidates("dog [MASK] [MASK] [MASK] ! play[MASK]", contains=("playing", "big"))
    assert [shown for shown, *_ in found] == [
        "dog play ##ing big ! play [MASK]",
        "dog big play ##ing ! play [MASK]",
    ], "each within a run, and not where it would continue another word"
    [(_, blank, _)], grammar = candidates("[MASK] [MASK]", contains=("dog",))[0][:1], grammar
    assert blank.places == (2,) and allowed(grammar, blank.kinds[0])[0] == "play", "dog is not continued"


def test_every_strategy_fills_every_mask_with_what_is_allowed(model):
    texts = ["a [MASK] b [MASK][MASK] c", "good [GAP] x.", "[MASK]"]
    for strategy in STRATEGIES:
        found = model.infill(texts, strategy, gap=2, iterations=2, beams=2)
        assert all("[" not in record["text"] for record in found)
        assert found[0]["text"].startswith("a ") and found[0]["text"].endswith(" c")
        assert len(found[0]["tokens"]) == 3 and len(found[0]["fillings"]) == 2
        assert all(0 < p <= 1 for record in found for _, p in record["tokens"])
        logs = [sum(np.log(p) for _, p in record["tokens"]) for record in found]
        assert [record["score"] for record in found] == pytest.approx(logs, rel=1e-4)
        assert "likelihood" in found[1] and ("others" in found[0]) == (strategy == "beam")
        assert [model.infill(text, strategy, gap=2, iterations=2, beams=2)["text"] for text in texts] == [
            record["text"] for record in found
        ], "a text does not depend on the others"
    words = model.infill("a [MASK] [MASK]", whole_words=True, contains=["bad"])
    assert "bad" in words["fillings"][0].split() and not any(piece.startswith("##") for piece, _ in words["tokens"])
    assert model.infill("a [MASK]", allowed=["good"])["text"] == "a good"


def test_one_mask_gets_the_likeliest_token_that_is_allowed(model, checkpoint):
    likeliest = FillMask(checkpoint)("a [MASK] b", top_k=model.tokenizer.vocab_size)[0]
    token, probability = next(one for one in likeliest if not one[0].startswith(("[", "##")))
    [found] = model.infill("a [MASK] b")["tokens"]
    assert found == (token, pytest.approx(probability, rel=1e-4))


def test_the_length_of_a_gap_is_the_one_whose_text_is_most_probable_per_token(model):
    """Against filling each length by itself and scoring the texts."""
    texts = {size: model.infill("a good " + "[MASK] " * size + "x", "left_to_right")["text"] for size in (1, 2, 3)}
    means = {text: model.rank([text], per_token=True)[0][1] for text in texts.values()}
    best = max(means, key=lambda text: means[text])
    found = model.infill("a good [GAP] x", "left_to_right", gap=3)
    assert found["text"].split() == best.split()
    assert found["likelihood"] == pytest.approx(means[best], rel=1e-5)
    assert [other["likelihood"] for other in found["others"]] == pytest.approx(sorted(means.values())[1::-1], rel=1e-5)


REFUSED = [
    ("", {}, r"no \[MASK\] and no \[GAP\] in ''; put one where text is missing"),
    ("a b", {}, r"no \[MASK\] and no \[GAP\] in 'a b'"),
    ("[MASK] " * 65, {}, r"65 masks, over 64; fill them in parts"),
    ("[MASK] " + "a " * 30, {}, r"33 tokens, over 32, the model's positions; shorten it"),
    ("[GAP] [GAP] [GAP]", {"gap": 7}, r"3 gaps of 1 to 7 tokens are 343 candidates, over 256"),
    ("[MASK]", {"contains": ("a", "b")}, r"no run of masks has room for a, b; put more \[MASK\] there"),
    ("[MASK]" * 20, {"contains": ("a",) * 21}, r"no run of masks has room for a, a, a"),  # 20 ^ 21 ways
    ("[MASK]" * 20, {"contains": ("a",) * 12}, "over 256 ways to place the words that must occur; name fewer"),
    ("[MASK] [MASK]", {"allowed": (("a",), ("b",), ("c",))}, "3 lists of allowed pieces for 2 marks"),
]


@pytest.mark.parametrize(("text", "options", "message"), REFUSED)
def test_what_is_wrong_with_a_text_is_its_result(model, text, options, message):
    with pytest.raises(InputError, match=message):
        model.infill(text, **options)


def test_wrong_options_are_refused_before_anything_is_filled(model, tmp_path):
    with pytest.raises(UserError, match="has no MLM head, which fills gaps"):
        bert_jax.load(pretrained(tmp_path / "headless", "heads/mlm/")).infill("a [MASK]")
    for options, message in (
        ({"strategy": "sampling"}, "strategy 'sampling' is unknown; it can be left_to_right, confidence"),
        ({"gap": 0}, "gap is 0; it can be 1 to 256"),
        ({"temperature": 0.0}, r"temperature is 0.0; it must be a number over 0"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"seed": 1.5}, "seed is 1.5; it must be 0 or more"),
        ({"iterations": 2.5}, "iterations is 2.5; it can be 1 to 256"),
        ({"gap": "3"}, "gap is '3'; it can be 1 to 256"),
        ({"contains": "good"}, "contains is 'good'; it must be a list of words"),
        ({"contains": [5]}, r"contains is \(5,\); it must be a list of words"),
        ({"contains": ["\ud800"]}, r"contains is \('\\ud800',\); it must be a list of words"),
        ({"allowed": "good"}, "allowed is a list of pieces, or a list of such lists, none of them empty"),
        ({"allowed": [5]}, "allowed is a list of pieces, or a list of such lists, none of them empty"),
        ({"contains": ["Ω"]}, "contains names 'Ω', which the vocabulary cannot spell"),
        ({"allowed": ["[MASK]"]}, r"allowed names '\[MASK\]', which is not one piece"),
        ({"allowed": ["\ud800"]}, "allowed is a list of pieces, or a list of such lists, none of them empty"),
        ({"allowed": [[]]}, "allowed is a list of pieces, or a list of such lists, none of them empty"),
        ({"gaps": 3}, "infill takes the options gap, iterations, beams"),
    ):
        with pytest.raises(UserError, match=message):
            model.infill("a [MASK]", **options)


def test_the_mode_writes_lines_in_order(checkpoint, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("a [MASK] b\nnothing\n[MASK] [MASK]\n")
    command = ["--mode=fill_mask", "--config=experiments/base.py", f"--config.init_from={checkpoint}"]
    command += [f"--workdir={tmp_path / 'none'}"]
    model = bert_jax.load(checkpoint)

    def jointly(text):
        return model.infill(text, "mask_predict", iterations=2)

    def likeliest(text):
        found = model.fill_mask(text, 2)
        return {"masks": [[{"token": token, "probability": pytest.approx(p)} for token, p in one] for one in found]}

    for flags, name, expected in (
        (["--strategy=mask_predict", "--iterations=2"], "text", jointly),
        (["--top_k=2"], "masks", likeliest),
    ):
        output = tmp_path / "out.jsonl"
        words = [*command, *flags, f"--input={tmp_path / 'in.txt'}", f"--output={output}"]
        assert exit_status(main, [*words, "--bad_lines=skip"]) == 0
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert [line["line"] for line in lines] == [1, 2, 3] and "in.txt:2: no [MASK]" in lines[1]["error"]
        assert [lines[0][name], lines[2][name]] == [expected(text)[name] for text in ("a [MASK] b", "[MASK] [MASK]")]
        capsys.readouterr()
        assert exit_status(main, words) == 2 and "in.txt:2: no [MASK]" in capsys.readouterr().err
    assert exit_status(main, [*command, "--text=a [MASK]", "--strategy=beam"]) == 0
    assert capsys.readouterr().out == f"a [MASK]\n  {model.infill('a [MASK]')['text']}\n"
    for flags, message in (
        (["--text=a [MASK]", "--gap=2"], "--gap is about masks that are filled jointly: give a --strategy"),
        (["--text=a", "--input=x"], "--mode=fill_mask needs a text"),
        (["--text=a [MASK]", "--strategy=best"], "--strategy is 'best'; it can be"),
    ):
        assert exit_status(main, [*command, *flags]) == 2 and message in capsys.readouterr().err


def test_the_flags_have_the_defaults_of_the_options():
    _, _, _, flags = read_command(["--mode=fill_mask", "--config=experiments/base.py"])
    assert {name: flags[name] for name in ("gap", "iterations", "seed")} == {
        name: getattr(Infilling, name) for name in ("gap", "iterations", "seed")
    }
    for strategy in STRATEGIES:
        read_command(["--mode=fill_mask", "--config=experiments/base.py", f"--strategy={strategy}"])


def test_threads_get_what_one_gets(model):
    texts = [f"a [MASK] {'b ' * size}[GAP]" for size in range(8)]
    serial = [model.infill(text, gap=2) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: model.infill(text, gap=2), texts))
    assert [record["text"] for record in found] == [record["text"] for record in serial]


def test_texts_of_many_lengths_share_programs(model):
    infiller = model.tool(Infiller)
    texts = ["a " * size + "[MASK] b" for size in range(1, 24)]
    assert [record["text"] for record in infiller(texts)] == [model.infill(text)["text"] for text in texts]
