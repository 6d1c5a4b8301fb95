"""The sections of a page: what was found, how to read it, and how far to trust it."""

import base64
import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np
from jaxtyping import Float

from bert_jax.lab.inspect import pictures
from bert_jax.lab.inspect.heads import Attention, HeadImportance, rollout
from bert_jax.lab.inspect.patches import WordsAndPatches
from bert_jax.lab.inspect.probes import Probes
from bert_jax.lab.inspect.reading import Reading
from bert_jax.lab.inspect.sources import Dependence
from bert_jax.lab.inspect.tokens import Attribution, TokenLosses
from bert_jax.lab.inspect.vectors import ContextNeighbour, Projection
from bert_jax.lab.report.html import escape, folded, picture, section, table
from bert_jax.tasks.sections import Table

STYLE = """<style>
.tokens { line-height: 2.3; margin: .7rem 0; overflow-wrap: anywhere }
.tokens span { padding: .22rem .3rem; margin: 0 .1rem; border-radius: 4px; border: 1px solid transparent }
.tokens span.special { font-style: italic } .tokens span.asked { border-color: var(--ink) }
.scale { display: inline-flex; align-items: center; gap: .5rem; font-size: .82rem; color: var(--soft) }
.scale i { width: 9rem; height: .7rem; border-radius: 3px; border: 1px solid var(--line) }
.heads { display: grid; gap: 5px; width: max-content; max-width: 100%; align-items: center; margin: .8rem 0 }
.heads > span { font-size: .75rem; color: var(--soft); text-align: center; font-variant-numeric: tabular-nums }
button.head { all: unset; display: block; line-height: 0; border-radius: 3px; outline: 1px solid var(--line) }
button.head img { width: 100%; max-width: 58px; aspect-ratio: 1; image-rendering: pixelated; border-radius: 3px }
.alive button.head { cursor: pointer } .alive button.head:focus-visible { outline: 2px solid var(--link) }
button.head[aria-pressed=true] { outline: 3px solid #d55e00 }
.chosen { display: none } .alive .chosen { display: block }
#attention-view { overflow-x: auto }
#attention-view svg { max-width: 100%; height: auto; font: 13px system-ui, sans-serif }
#attention-view text { fill: var(--ink) } #attention-view .soft { fill: var(--soft); font-size: 11px }
#attention-view .faded { opacity: .3 } #attention-view .flow { stroke: #0072b2 }
#attention-view .token[tabindex] { cursor: pointer }
#attention-view .frame { fill: none; stroke: #d55e00; stroke-width: 2 } .context b { color: var(--link) }
.near td:first-child, .context td:first-child { white-space: nowrap }
.near span { white-space: nowrap; margin-right: .9rem } .near i { color: var(--soft); font-style: normal }
.choice label { margin-right: 1.2rem }
@media (prefers-color-scheme: dark) { #attention-view .flow { stroke: #62b6ee } }
</style>"""
_ORANGE, _BLUE = (213, 94, 0), (0, 114, 178)
_MOST_HARD = 12  # tokens in the table of the hardest


def attention_section(found: Attention) -> str:
    """Returns the grid of all heads, which are pictures also without JavaScript, and the large view of one."""
    layers, heads = found.weights.shape[:2]
    cells = ["<span>head</span>", *(f"<span>{head + 1}</span>" for head in range(heads))]
    for layer in range(layers):
        cells.append(f"<span>layer {layer + 1}</span>")
        for head in range(heads):
            png = base64.b64encode(pictures.thumbnail(found.weights[layer, head])).decode()
            label = f"layer {layer + 1}, head {head + 1}"
            image = f'<img alt="{label}" src="data:image/png;base64,{png}">'
            cells.append(f'<button class="head" type="button" title="{label}">{image}</button>')
    columns = f"grid-template-columns: max-content repeat({heads}, minmax(14px, 58px))"
    grid = f'<div class="heads" style="{columns}">{"".join(cells)}</div>'
    # The root, so that small weights keep their digits in a byte.
    packed = base64.b64encode(np.rint(255 * np.sqrt(found.weights)).astype(np.uint8).tobytes()).decode()
    special = [not is_word for is_word in found.reading.is_word]
    data = {"tokens": found.reading.tokens, "special": special, "layers": layers, "heads": heads, "weights": packed}
    held = json.dumps(data).replace("<", "\\u003c")
    script = resources.files("bert_jax.lab.inspect").joinpath("attention.js").read_text(encoding="utf-8")
    kinds = "".join(
        f'<label><input type="radio" name="attention-kind" value="{kind}"> {label}</label>'
        for kind, label in (("lines", "lines"), ("map", "heat map"))
    )
    chosen = (
        f'<div class="chosen"><p class="choice">{kinds}</p><p id="attention-caption" aria-live="polite"></p>'
        '<div id="attention-view"></div></div>'
    )
    body = (
        f'<div id="attention">{grid}{chosen}</div>'
        f'<script type="application/json" id="attention-data">{held}</script><script>{script}</script>'
    )
    note = (
        "Each square is a head: row by row, from which tokens a token reads; the rows sum to 1, and darker is more. "
        "Choose one by a click or the arrow keys. What a head looks at need not be what the model's decision rests on."
    )
    return section("Attention", body, _said(found.reading, note))


def rollout_section(found: Attention) -> str:
    flow = rollout(found.weights)[-1]
    tokens = found.reading.tokens
    row = 0 if flow[0, 0] < 1 else len(tokens) - 1  # from left to right the first token reads itself alone
    first = Table(
        ["token", f"share of {tokens[row]}"], [[t, f"{w:.3f}"] for t, w in _largest(tokens, flow[row], 8)], {1}
    )
    drawn = picture(pictures.token_matrix(flow, tokens, tokens), "attention rollout through all layers")
    note = (
        "How much of each input token can have reached a token of the last layer, if heads are averaged and half of "
        "each layer's flow takes the residual connection. It follows attention only: what the feed-forward parts and "
        "the values do is left out."
    )
    return section("Attention rollout", f'<div class="beside">{drawn}{table(first)}</div>', _said(found.reading, note))


def source_section(found: Dependence) -> str:
    falls = np.clip(found.losses, 0, None)
    most = max(float(falls.max()), 1e-12)
    drawn = [
        picture(pictures.token_matrix(weights, found.target, found.source, what), said)
        for weights, what, said in (
            (falls / most, "is less likely without", "what each written token loses without each token of the source"),
            (found.attention, "reads from", "mean attention of each written token to each token of the source"),
        )
    ]
    rows = []
    for token, logarithm, fall in zip(found.target, found.log_probabilities, falls, strict=True):
        strongest = ", ".join(f"{name} {loss:.2f}" for name, loss in _largest(found.source, fall, 3) if loss >= 0.005)
        rows.append([token, _share(math.exp(logarithm)), strongest])
    explained = table(Table(["written", "probability", "needs most (nats)"], rows, {1}))
    note = (
        "Each token of the source hidden by [MASK] in turn: by how much the log-probability of each written token "
        "falls, given the written tokens before it. Two tokens of the source that say the same hide each other's part. "
        "The second picture is the attention that writes the token, the mean over layers and heads: what is read, "
        "which need not be what is needed."
    )
    body = f'<div class="beside">{"".join(drawn)}</div>{explained}'
    return section("What the written text needs and reads of its source", body, note)


def patch_section(found: WordsAndPatches) -> str:
    what = {"image": "picture", "sound": "spectrogram", "features": "regions"}[found.kind]
    drawn = picture(pictures.looked_at(found), f"what each token looks at in the {what}")
    last, count = found.shares[-1], len(found.tokens)
    first = Table(
        ["token", f"attention to the {what}"], [[t, _share(x)] for t, x in zip(found.tokens, last, strict=True)], {1}
    )
    note = (
        f"Where each token of the text looks in the {what}: the mean over the heads of a layer, the reddest where it "
        "looks most. The share under a panel is the part of the token's attention that goes to the "
        f"{what} at all; the table has it for the last layer."
    )
    if count > pictures.MOST_WORDS:
        note += f" The panels are of the first {pictures.MOST_WORDS} of {count} tokens."
    return section(f"From words to the {what}", f"{drawn}{folded('all tokens', table(first))}", note)


def attribution_section(products: Attribution, integrated: Attribution) -> str:
    where = f" at token {products.place + 1}" if products.place is not None else ""
    what = f"The logit of “{products.target}”{where} is {_number(products.logit)}."
    assert integrated.baseline is not None
    total = float(integrated.scores.sum())
    check = (
        f"With every word masked it is {_number(integrated.baseline)}; the scores add up to {_number(total, '+')} of "
        f"the difference of {_number(integrated.logit - integrated.baseline, '+')}."
    )
    parts = []
    for title, found, note in (
        ("Integrated gradients", integrated, check),
        ("Gradient × input", products, "The slope at this text alone; where the model is sure, it may be nearly flat."),
    ):
        most = max(float(np.abs(found.scores).max()), 1e-12)
        titles = [_number(score, "+", 4) for score in found.scores]
        shades = [_shade(_ORANGE if score > 0 else _BLUE, abs(score) / most) for score in found.scores]
        text = _coloured(found.reading, shades, titles, found.place)
        parts.append(f'<h3>{title}</h3><p class="note">{escape(note)}</p>{text}')
    parts.append(_scale("lowers the logit", "raises it", f"{_rgba(_BLUE, 0.75)}, transparent, {_rgba(_ORANGE, 0.75)}"))
    note = (
        f"{what} Point at a token for its score. Of two methods that disagree, trust neither before you have tested it."
    )
    return section("What speaks for the output", "".join(parts), _said(products.reading, note))


def loss_section(found: TokenLosses, vocabulary: int, causal: bool) -> str:
    highest, losses = math.log(vocabulary), found.losses
    shades = [_shade(_ORANGE, 0 if math.isnan(loss) else loss / highest) for loss in losses]
    titles = [
        "" if math.isnan(loss) else f"{loss:.2f} nats. Guesses: {_guessed(guesses)}"
        for loss, guesses in zip(losses, found.guesses, strict=True)
    ]
    rows = [
        [found.reading.tokens[i], f"{losses[i]:.2f}", _share(math.exp(-losses[i])), _guessed(found.guesses[i])]
        for i in np.argsort(-np.nan_to_num(losses, nan=-1), kind="stable")[:_MOST_HARD].tolist()
        if not math.isnan(losses[i])
    ]
    scored, total = int(np.sum(~np.isnan(losses))), found.pseudo_log_likelihood
    scale = _scale(
        "0", f"{highest:.1f} nats, a guess among all {vocabulary:,} tokens", f"transparent, {_rgba(_ORANGE, 0.75)}"
    )
    hardest = table(Table(["hardest tokens", "loss", "probability", "guesses"], rows, {1, 2}))
    sum_of_all = f"{_number(total, digits=2)} over {scored} tokens, {-total / max(scored, 1):.2f} nats each."
    note = (
        f"The loss of each token given those before it. Log-likelihood {sum_of_all}"
        if causal
        else f"Each token masked in turn: its loss given the rest. Pseudo-log-likelihood {sum_of_all} A word of "
        "several pieces looks easier than it is, since its other pieces stay visible."
    )
    body = _coloured(found.reading, shades, titles, None) + scale + hardest
    return section("Loss of each token", body, _said(found.reading, note))


def neighbour_section(
    reading: Reading,
    words: Sequence[str],
    nearest: Sequence[Sequence[tuple[str, float]]],
    in_context: Sequence[Sequence[ContextNeighbour]] | None,
    layer: int,
) -> str:
    body = _rows(
        "near",
        ("token", "nearest in the table of word embeddings, by cosine"),
        zip(words, map(_near, nearest), strict=True),
    )
    if in_context is not None:
        where = "embeddings" if layer == 0 else f"layer {layer}"
        heads = "token", f"nearest in the sentences, by the cosine at the {where}"
        found = zip(reading.tokens, reading.is_word, in_context, strict=True)
        lines = ((token, "<br>".join(map(_snippet, near))) for token, is_word, near in found if is_word)
        body += folded("In the context of the sentences", _rows("context", heads, lines))
    note = "The table knows words without context; two senses of a word share one row there, and part in the layers."
    return section("Neighbours", body, _said(reading, note))


def projection_section(found: Projection, labels: Sequence[str], what: str) -> str:
    if found.shares is None:
        axes, note = ("", ""), "t-SNE keeps neighbours; distances between clusters and their sizes mean nothing."
    else:
        axes = tuple(f"component {i + 1} ({share:.1%} of the variance)" for i, share in enumerate(found.shares))
        note = (
            f"The two axes hold {sum(found.shares):.0%} of the variance: what overlaps here may be apart in the rest."
        )
    drawn = picture(pictures.scatter(found.points, labels, (axes[0], axes[1])), "sentences as points")
    return section("Sentences", drawn, f"{what}. {note}")


def probe_section(found: Probes, what: str) -> str:
    names = ["embeddings", *map(str, range(1, len(found.accuracy)))]
    values = zip(names, found.accuracy, found.control, found.selectivity, strict=True)
    rows = [[name, *(f"{value:.3f}" for value in numbers)] for name, *numbers in values]
    numbers = table(Table(["layer", "tags", "random tags", "selectivity"], rows, {1, 2, 3}))
    note = (
        f"{what}: {found.train_words:,} words to learn {len(found.tags)} tags from, {found.test_words:,} held out. A "
        "linear probe on frozen vectors. Random tags, one per word, are what a probe can remember; selectivity is what "
        "the tags have over them. That a probe can read something does not show that the model uses it."
    )
    drawn = picture(pictures.probe_curve(found), "accuracy of probes over layers")
    return section("Probes", drawn + numbers, note)


def importance_section(found: HeadImportance) -> str:
    drawn = picture(pictures.importance(found), "change of the loss without each head")
    layers, heads = found.loss.shape
    order = np.argsort(-found.loss, axis=None, kind="stable")[:5].tolist()
    header, rows = ["head", "loss"], []
    for place in order:
        layer, head = divmod(place, heads)
        row = [f"layer {layer + 1}, head {head + 1}", _number(float(found.loss[layer, head]), "+", 4)]
        rows.append(row if found.metric is None else [*row, _number(float(found.metric[layer, head]), "+", 4)])
    if found.metric is not None:
        header.append(found.metric_name)
    whole = f"loss {found.whole_loss:.4f}"
    whole += f", {found.metric_name} {found.whole_metric:.4f}" if found.metric is not None else ""
    useless = int(np.sum(found.loss <= 0))
    note = (
        f"The change of the loss when the output of one head is zeroed, on {found.examples}; with all heads: {whole}. "
        f"Without {useless} of {layers * heads} heads, taken one at a time, the loss does not rise; several together "
        "may stand in for each other."
    )
    return section("Heads by ablation", f"{drawn}<h3>Needed most</h3>{table(Table(header, rows, {1, 2}))}", note)


def left_out_section(reasons: Sequence[str]) -> str:
    """Returns what this page does not show, and why; "" if it shows everything."""
    if not reasons:
        return ""
    return section("Not on this page", "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in reasons) + "</ul>")


def _said(reading: Reading, note: str) -> str:
    return " ".join(filter(None, (reading.note, note)))


def _number(value: float, sign: str = "", digits: int = 3) -> str:
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def _guessed(guesses: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"“{token}” {_share(probability)}" for token, probability in guesses)


def _share(probability: float) -> str:
    return f"{probability:.1%}" if probability >= 0.001 else "< 0.1%"


def _largest(tokens: Sequence[str], weights: Float[np.ndarray, " L"], count: int) -> list[tuple[str, float]]:
    order: list[int] = np.argsort(-weights, kind="stable")[:count].tolist()
    return [(tokens[i], float(weights[i])) for i in order]


def _rows(kind: str, heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    """Returns a table of two columns: a text, and what is HTML already."""
    first = f"<tr><th>{escape(heads[0])}</th><th>{escape(heads[1])}</th></tr>"
    lines = (f"<tr><td>{escape(name)}</td><td>{inside}</td></tr>" for name, inside in rows)
    return f'<div class="wide"><table class="{kind}">{first}{"".join(lines)}</table></div>'


def _near(found: Iterable[tuple[str, float]]) -> str:
    return " ".join(f"<span>{escape(token)} <i>{cosine:.2f}</i></span>" for token, cosine in found)


def _snippet(found: ContextNeighbour) -> str:
    """Returns the token in bold among those around it, as text of the page."""
    around = range(max(0, found.place - 6), min(len(found.tokens), found.place + 7))
    words = (f"<b>{escape(found.tokens[i])}</b>" if i == found.place else escape(found.tokens[i]) for i in around)
    return f"{found.cosine:.2f} … {' '.join(words)} …"


def _coloured(reading: Reading, shades: Sequence[str], titles: Sequence[str], asked: int | None) -> str:
    """Returns the tokens as a line of text with a colour behind each."""
    spans = []
    for i, (token, shade, title) in enumerate(zip(reading.tokens, shades, titles, strict=True)):
        kind = "asked" if i == asked else "" if reading.is_word[i] else "special"
        spans.append(f'<span class="{kind}" style="background: {shade}" title="{escape(title)}">{escape(token)}</span>')
    return f'<p class="tokens">{" ".join(spans)}</p>'


def _scale(low: str, high: str, colours: str) -> str:
    bar = f'<i style="background: linear-gradient(90deg, {colours})"></i>'
    return f'<p class="scale">{escape(low)} {bar} {escape(high)}</p>'


def _shade(colour: tuple[int, int, int], share: float) -> str:
    return _rgba(colour, 0.75 * min(max(float(share), 0.0), 1.0))


def _rgba(colour: tuple[int, int, int], alpha: float) -> str:
    return f"rgba({', '.join(map(str, colour))}, {alpha:.3f})"
