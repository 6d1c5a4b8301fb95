"""Pictures of a page: SVG by matplotlib, whose text stays text, and a small PNG for each head."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bert_jax.lab.inspect.heads import HeadImportance
from bert_jax.lab.inspect.patches import WordsAndPatches
from bert_jax.lab.inspect.probes import Probes
from bert_jax.lab.report.html import INK, LINE

# Okabe & Ito's colours, which the colour-blind tell apart, but for yellow, which is too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MOST_LABELS = len(COLOURS) - 1  # labels with a colour of their own
_LONG = 18  # characters of a label
MOST_WORDS, _MOST_LAYERS = 12, 4  # panels of a picture
_TOKENS = 40  # tokens up to which a picture names each
_PALETTE: dict[Any, Any] = {
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick")},
    **{"axes.labelcolor": INK, "axes.edgecolor": LINE, "grid.color": LINE, "figure.facecolor": "none"},
    **{"axes.facecolor": "none", "legend.frameon": False, "font.size": 9, "svg.fonttype": "none"},
    **{"svg.hashsalt": "inspect", "text.parse_math": False, "font.family": "sans-serif"},
}


def thumbnail(weights: Float[np.ndarray, "L L"]) -> bytes:
    """Returns the weights of a head as a PNG of one pixel each; the root of a weight, so that small ones are seen."""
    from matplotlib.image import imsave

    content = io.BytesIO()
    imsave(content, np.sqrt(weights), cmap="Blues", vmin=0, vmax=1, format="png")
    return content.getvalue()


def token_matrix(
    weights: Float[np.ndarray, "P L"], rows: Sequence[str], columns: Sequence[str], what: str = "reads from"
) -> bytes:
    """Draws weights between tokens: rows look at columns, which `what` explains."""
    width, height = (min(max(0.22 * len(tokens), 1.6), 0.22 * _TOKENS) for tokens in (columns, rows))

    def draw(axis: Any) -> None:
        axis.imshow(np.sqrt(weights), cmap="Blues", vmin=0, vmax=1)
        for tokens, set_ticks, options in ((columns, axis.set_xticks, {"rotation": 90}), (rows, axis.set_yticks, {})):
            shown = range(0, len(tokens), -(-len(tokens) // _TOKENS))
            set_ticks(shown, [_short(tokens[i]) for i in shown], fontsize=8, **options)
        axis.tick_params(length=0)
        axis.xaxis.tick_top()
        axis.set_xlabel(what)

    return _svg(width + 1.2, height + 1.2, draw)


def looked_at(found: WordsAndPatches) -> bytes:
    """Draws the picture once for each token and layer, the patches in orange that the token looks at most."""
    layers, tokens = found.weights.shape[:2]
    shown = range(max(0, layers - _MOST_LAYERS), layers)
    height, width = found.weights.shape[2:] if found.picture is None else found.picture.shape
    across, down = (0.95 * min(max(one / other, 0.5), 3) for one, other in ((width, height), (height, width)))

    def draw(axes: Any) -> None:
        for row, layer in enumerate(shown):
            for column, token in enumerate(found.tokens[:MOST_WORDS]):
                axis, weights = axes[row][column], found.weights[layer, column]
                edges = {"extent": (0, width, height, 0), "interpolation": "nearest", "aspect": "auto"}
                if found.picture is not None:
                    axis.imshow(found.picture, cmap="gray", vmin=0, vmax=1, **edges)
                heat = weights / max(float(weights.max()), 1e-12)
                axis.imshow(np.full_like(heat, 0.75), cmap="YlOrRd", vmin=0, vmax=1, alpha=0.85 * heat, **edges)
                axis.set_xticks([])
                axis.set_yticks([])
                if row == 0:
                    axis.set_title(_short(token), fontsize=9)
                axis.set_xlabel(f"{found.shares[layer, column]:.0%}", fontsize=8)
            axes[row][0].set_ylabel(f"layer {layer + 1}", fontsize=9)

    columns = min(tokens, MOST_WORDS)
    size = (across + 0.1) * columns + 0.3, (down + 0.3) * len(shown) + 0.3
    return _svg(*size, draw, (len(shown), columns))


def probe_curve(probes: Probes) -> bytes:
    layers = range(len(probes.accuracy))

    def draw(axis: Any) -> None:
        axis.plot(layers, probes.accuracy, color=COLOURS[0], marker="o", label="tags")
        axis.plot(layers, probes.control, color=COLOURS[1], marker="s", label="random tags per word")
        axis.plot(layers, probes.selectivity, color=COLOURS[2], marker="^", linestyle="--", label="selectivity")
        for level, label, style in (
            (probes.memory, "most frequent tag of the word", "-."),
            (probes.majority, "most frequent tag", ":"),
        ):
            axis.axhline(level, color="#777777", linestyle=style, linewidth=1, label=label)
        axis.set_xticks(layers, ["embeddings", *map(str, layers[1:])])
        axis.set(xlabel="layer", ylabel="held-out accuracy", ylim=(min(0.0, float(probes.selectivity.min())), 1))
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        _quiet(axis)

    return _svg(7.4, 3.4, draw)


def scatter(points: Float[np.ndarray, "N 2"], labels: Sequence[str], axes: tuple[str, str]) -> bytes:
    """Draws points coloured by label; the commonest labels have a colour each, the rest share the last."""
    counts = {label: labels.count(label) for label in dict.fromkeys(labels)}
    common = sorted(counts, key=lambda label: (-counts[label], label))[:_MOST_LABELS]

    def draw(axis: Any) -> None:
        for number, label in enumerate([*common, None]):
            chosen = [i for i, own in enumerate(labels) if own == label or (label is None and own not in common)]
            if chosen:
                name = f"{len(counts) - len(common)} others" if label is None else _short(label)
                name = f"{name} ({len(chosen):,})" if len(counts) > 1 else ""
                where = {"color": COLOURS[number], "label": name, "linewidths": 0}
                axis.scatter(*points[chosen].T, s=16, alpha=0.6, **where)
        axis.set(xlabel=axes[0], ylabel=axes[1])
        axis.set_aspect("equal", adjustable="datalim")
        if len(counts) > 1:
            axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        _quiet(axis)

    return _svg(7.4, 4.6, draw)


def importance(measured: HeadImportance) -> bytes:
    """Draws what the loss gains without each head: orange where it rises, blue where it falls."""
    layers, heads = measured.loss.shape
    most = max(float(np.abs(measured.loss).max()), 1e-9)

    def draw(axis: Any) -> None:
        axis.imshow(measured.loss / most, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
        axis.set_xticks(range(heads), [str(i + 1) for i in range(heads)])
        axis.set_yticks(range(layers), [str(i + 1) for i in range(layers)])
        axis.set(xlabel="head", ylabel="layer")
        axis.tick_params(length=0)
        for layer, head in np.ndindex(layers, heads):
            value = float(measured.loss[layer, head])
            colour = "white" if abs(value) > 0.6 * most else "#222222"
            axis.text(head, layer, _number(value, most), ha="center", va="center", fontsize=7.5, color=colour)

    return _svg(max(0.52 * heads, 2.0) + 0.8, max(0.3 * layers, 0.6) + 0.7, draw)


def _number(value: float, most: float) -> str:
    digits = int(np.clip(2 - np.floor(np.log10(most)), 0, 6)) - (most >= 0.1)
    text = f"{value:+.{max(digits, 0)}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else "0"


def _short(label: str) -> str:
    return label if len(label) <= _LONG else f"{label[: _LONG - 1]}…"


def _quiet(axis: Any) -> None:
    axis.grid(alpha=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _svg(width: float, height: float, draw: Any, panels: tuple[int, int] | None = None) -> bytes:
    """Returns what `draw` makes of one axis, or of an array of them, one per panel."""
    import matplotlib
    from matplotlib.figure import Figure  # pyplot's figures belong to the main thread, and to a notebook's cells

    content = io.BytesIO()
    with matplotlib.rc_context(_PALETTE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's own fonts show the text of an SVG
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots(*panels, squeeze=False) if panels else figure.subplots())
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()
