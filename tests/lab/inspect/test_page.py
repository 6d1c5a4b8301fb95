"""The page and its command: everything is there, nothing of a text is taken for HTML, mistakes are one line."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.tokenizers.encoding import Part
from bert_jax.lab.inspect import page
from bert_jax.lab.inspect.__main__ import PARTS, main
from bert_jax.lab.inspect.heads import Attention
from bert_jax.lab.inspect.reading import Reading
from bert_jax.lab.inspect.sources import Dependence
from bert_jax.lab.inspect.tokens import Attribution, TokenLosses
from bert_jax.lab.inspect.vectors import ContextNeighbour, Projection
from bert_jax.lab.report import html
from tests.inference.conftest import write_rows

from .test_probes import tagged

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '</script><img src=x onerror="alert(1)"> $\\frac{ & <b>'


class Parsed(HTMLParser):
    """Titles of sections, addresses, and the text of each element with a class."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.titles, self.links, self.handlers, self.open, self.text = [], [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href", "action")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag == "h2":
            self.titles.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles[-1] += data
        if "script" not in self.open and "style" not in self.open:
            self.text += data


def parsed(text):
    found = Parsed(text)
    assert not found.handlers and all(link.startswith(("data:image/png;base64,", "#")) for link in found.links)
    assert not re.search(r"url\((?!#)|@import", text)
    return found


def reading(*tokens):
    ids = np.arange(len(tokens), dtype=np.int32)
    is_word = (False, *(True for _ in tokens[2:]), False)
    return Reading(Part(ids, np.zeros_like(ids)), tokens, len(tokens), is_word)


def attention_page(*tokens):
    weights = np.random.default_rng(0).dirichlet(np.ones(len(tokens)), (2, 3, len(tokens))).astype(np.float32)
    return weights, html.page("x", [page.STYLE, page.attention_section(Attention(reading(*tokens), weights))])


def test_hostile_tokens_labels_and_names_are_text():
    here = reading("[CLS]", EVIL, "a", "[SEP]")
    found = Attribution(here, EVIL, 1, 1.0, np.asarray([0.0, 1.0, -2.0, 0.0]), 0.5)
    losses = TokenLosses(here, np.asarray([np.nan, 1.0, 2.0, np.nan]), ((), ((EVIL, 0.5),), ((EVIL, 0.1),), ()))
    weights, first = attention_page("[CLS]", EVIL, "a", "[SEP]")
    parsed(first)
    near = [ContextNeighbour(0, 1, here.tokens, 0.5)]
    points = Projection(np.arange(6.0).reshape(3, 2), (0.5, 0.25))
    text = html.page(
        EVIL,
        [
            page.rollout_section(Attention(here, weights)),
            page.attribution_section(found, found),
            page.loss_section(losses, 100, False),
            page.source_section(Dependence((EVIL, "b"), (EVIL,), np.zeros(1), np.ones((1, 2)), np.ones((1, 2)))),
            page.neighbour_section(here, [EVIL], [[(EVIL, 0.5)]], [near] * 4, 1),
            page.projection_section(points, [EVIL, "b", "c"], EVIL),
            page.left_out_section([EVIL]),
        ],
    )
    assert parsed(text).text.count(EVIL) >= 12
    assert "$\\frac" in text  # no formula of matplotlib


def test_a_model_that_reads_from_left_to_right_is_described_as_one():
    here = reading("[CLS]", "a", "[SEP]")
    losses = TokenLosses(here, np.asarray([np.nan, 1.0, np.nan]), ((), (("b", 0.5),), ()))
    left_to_right = np.tril(np.ones((1, 1, 3, 3), np.float32))
    both_ways = np.ones((1, 1, 3, 3), np.float32)
    assert "given those before it. Log-likelihood −1.00 over 1 tokens" in page.loss_section(losses, 9, True)
    assert "given the rest. Pseudo-log-likelihood" in page.loss_section(losses, 9, False)
    assert "share of [SEP]" in page.rollout_section(Attention(here, left_to_right))  # [CLS] reads itself alone
    assert "share of [CLS]" in page.rollout_section(Attention(here, both_ways))


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: Debian's chromium")
def test_the_browser_shows_the_head_that_is_chosen(tmp_path):
    tokens = ("[CLS]", EVIL, "good", "[SEP]")
    weights, text = attention_page(*tokens)
    watch = "<script>window.onerror = (e) => { document.title = 'failed: ' + e }</script>"
    acts = (
        "document.querySelectorAll('button.head')[4].click();"
        "document.querySelector('#attention-view .token[tabindex]').dispatchEvent(new MouseEvent('click'));"
        "const shown = document.querySelector('#attention-view').textContent;"
        "document.querySelector('input[value=map]').click();"
        "document.body.append(Object.assign(document.createElement('output'), {textContent: shown}))"
    )
    file = tmp_path / "page.html"
    file.write_text(text.replace("<body>", f"<body>{watch}").replace("</body>", f"<script>{acts}</script></body>"))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run([BROWSER, *options, profile, str(file)], capture_output=True, text=True, timeout=120).stdout
    assert "<title>x</title>" in shown  # no error
    assert 'id="attention" class="alive"' in shown
    assert "Layer 2, head 2: point at a cell" in shown
    assert 'aria-pressed="true"' in shown and shown.count('aria-pressed="true"') == 1
    output = re.search(r"<output>(.*)</output>", shown, re.DOTALL)[1]
    for token, weight in zip(("[CLS]", "good", "[SEP]"), weights[1, 1, 0, [0, 2, 3]], strict=True):
        drawn = float(re.search(re.escape(token) + r"(\d\.\d\d)", output)[1])
        assert drawn == pytest.approx(weight, abs=0.011)  # a byte for the root
    assert "<image " in shown and shown.count("<img ") == weights.shape[0] * weights.shape[1]  # the small pictures


def test_a_page_of_a_pretrained_model(masked, tmp_path, caplog):
    sentences = write_rows(tmp_path / "s.jsonl", [{"text": f"a {w} good", "kind": EVIL} for w in "bcdefg"])
    words = tmp_path / "t.conll"
    words.write_text(
        "\n\n".join(
            "\n".join(f"{w} {t}" for w, t in zip(e.words, e.tags, strict=True))
            for e in tagged(24, lambda w: "N" if w < "h" else EVIL.split()[0])
        )
    )
    output = tmp_path / "out.html"
    flags = ["--text=a [MASK] good", f"--sentences={sentences}", "--label=kind", f"--tagged={words}", "--limit=2"]
    assert main([str(masked.path), *flags, f"--output={output}"]) == 0
    found = parsed(output.read_text(encoding="utf-8"))
    titles = ["Attention", "Attention rollout", "What speaks for the output", "Loss of each token", "Neighbours"]
    assert found.titles[:5] == titles and len(titles) + 5 == len(PARTS)  # sources, patches: of other models
    assert "2 vectors are too few to project" in found.text  # --limit=2
    assert found.titles[5:] == ["Probes", "Heads by ablation", "Not on this page"]
    held = re.search(r'id="attention-data">(.*?)</script>', output.read_text(encoding="utf-8"))[1]
    assert json.loads(held)["tokens"] == ["[CLS]", "a", "[MASK]", "good", "[SEP]"]


def test_parts_that_are_asked_for_by_name(classifier, encoder, tmp_path):
    output = tmp_path / "out.html"
    rows = [{"text": f"a {w}", "label": label} for w, label in zip("bcde", ["bad", "good"] * 2, strict=True)]
    examples = write_rows(tmp_path / "dev.jsonl", rows)
    asked = ["--text=a good", "--what=heads, gradient", f"--examples={examples}", f"--output={output}"]
    assert main([str(classifier.path), *asked, "--target=fair"]) == 0
    found = parsed(output.read_text(encoding="utf-8"))
    assert found.titles == ["What speaks for the output", "Heads by ablation"]
    assert "The logit of “fair” is" in found.text and "4 examples of" in found.text and "accuracy" in found.text
    before = output.read_bytes()
    for model, what, problem in (
        (encoder, "gradient", "no MLM head, nor was it fine-tuned"),
        (encoder, "loss", "no MLM head"),
        (classifier, "loss", "no MLM head"),
    ):
        with pytest.raises(UserError, match=problem):
            main([str(model.path), "--text=a good", f"--what={what}", f"--output={output}"])
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--text=a"], "no model is named"),
        (["m", "n", "--text=a"], "'n' is not a flag"),
        (["m", "--txet=a"], "did you mean --text"),
        (["m"], "there is nothing to look at"),
        (["m", "--text= "], "there is nothing to look at"),
        (["m", "--text=a", "--what=attention,gaze"], "'gaze' is unknown; choose from attention, rollout"),
        (["m", "--what=probes", "--text=a"], "--what=probes needs --tagged"),
        (["m", "--what=attention", "--tagged=x"], "--what=attention needs --text"),
        (["m", "--text=a", "--output=out.pdf"], "the page is HTML; name it out.html"),
        (["m", "--text=a", "--output=no/folder/out.html"], "there is no folder no/folder"),
        (["m", "--text=a", "--projection=umap"], "umap"),
        (["m", "--text=a", "--limit=0"], "limit"),
        (["no/such/model", "--text=a"], "no/such/model"),
    ],
)
def test_mistakes_are_errors_before_anything_is_made(words, problem):
    with pytest.raises(UserError, match=problem):
        main(words)


def test_one_line_and_status_2():
    command = [sys.executable, "-m", "bert_jax.lab.inspect", "runs/none", "--text=a", "--what=gaze"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: --what: 'gaze' is unknown")
