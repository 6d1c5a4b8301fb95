"""Pictures of a study's report as SVG: intervals of levels, and curves with bands over seeds."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from bert_jax.lab.report.html import INK, LINE
from bert_jax.lab.statistics.differences import ALPHA
from bert_jax.lab.statistics.levels import Comparison

# Told apart by readers who do not see every colour (Okabe and Ito 2008; Tol 2021), on white and on black.
COLOURS = ("#0077bb", "#ee7733", "#009988", "#aa3377", "#33aadd", "#a89a20", "#cc3311", "#888888")
_DASHES = ("-", "--", ":", "-.")  # for levels beyond the colours
_COLUMNS = 3  # panels beside each other
_LONG = 26  # characters of a label
_FONTS = re.compile(r"""(['"]?DejaVu Sans['"]?,[^;"]*sans-serif)""")


class Scale(NamedTuple):
    """How a metric is shown: times a factor, with so many decimals, under a name."""

    factor: float
    decimals: int
    name: str


class Curves(NamedTuple):
    """A panel of curves: for each level its runs, as (steps, values)."""

    title: str
    runs: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]]
    scale: Scale


def shorten(text: str, longest: int = _LONG) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def intervals(comparisons: Sequence[Comparison], titles: Sequence[str], scales: Sequence[Scale]) -> bytes:
    """Draws a panel for each comparison: the value of every run, and mean and interval of every level."""
    labels = list(dict.fromkeys(level.label for one in comparisons for level in one.levels))
    with _Look(len(comparisons), 0.62 + 0.3 * len(labels)) as look:
        for number, (axis, comparison, scale) in enumerate(zip(look.axes, comparisons, scales, strict=True)):
            base = next((x.summary for x in comparison.levels if x.label == comparison.baseline), None)
            if base is not None:
                axis.axvline(scale.factor * base.mean, color=INK, linewidth=0.7, linestyle=(0, (2, 3)), alpha=0.6)
            for level in comparison.levels:
                if level.summary is None:
                    continue
                row, colour = labels.index(level.label), _colour(labels.index(level.label))
                values = scale.factor * np.asarray(level.summary.values)
                axis.scatter(values, np.full(len(values), row + 0.22), s=9, color=colour, alpha=0.45, linewidths=0)
                if level.summary.n > 1:
                    ends = scale.factor * level.summary.low, scale.factor * level.summary.high
                    axis.plot(ends, (row, row), color=colour, linewidth=2, solid_capstyle="round")
                axis.scatter([scale.factor * level.summary.mean], [row], s=30, color=colour, zorder=3, linewidths=0)
            is_first = number % _COLUMNS == 0
            axis.set_yticks(
                range(len(labels)), [shorten(label) for label in labels] if is_first else [""] * len(labels)
            )
            axis.set_ylim(len(labels) - 0.4, -0.6)
            axis.tick_params(axis="y", length=0)
            look.finish(axis, titles[number], scale.name, "x")
        return look.svg("intervals")


def curves(panels: Sequence[Curves], name: str) -> bytes:
    """Draws a panel for each metric: the mean of every level over its runs, with the t interval as a band."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.runs))
    with _Look(len(panels), 2.5, legend=len(labels)) as look:
        for axis, panel in zip(look.axes, panels, strict=True):
            for label, runs in panel.runs.items():
                number = labels.index(label)
                steps, mean, half = mean_and_band(runs)
                if not len(steps):
                    continue
                mean, half = panel.scale.factor * mean, panel.scale.factor * half
                axis.fill_between(steps, mean - half, mean + half, color=_colour(number), alpha=0.16, linewidth=0)
                marker = "o" if len(steps) == 1 else ""
                axis.plot(
                    steps, mean, _dashes(number), color=_colour(number), linewidth=1.6, marker=marker, markersize=4
                )
            axis.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 1000 else f"{step:g}")
            drawn = {step for runs in panel.runs.values() for steps, _ in runs for step in steps}
            if len(drawn) == 1:  # of a single evaluation there is nothing to the left or right
                axis.set_xticks([*drawn])
            look.finish(axis, panel.title, "step", "y")
        look.legend([(shorten(label, 40), _colour(i), _dashes(i)) for i, label in enumerate(labels)])
        return look.svg(name)


def by_share(title: str, label: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], name: str) -> bytes:
    """Draws values against the share, from 0 to 1, of something that is left out; `lines` are {name: (shares,
    values)}."""
    with _Look(1, 2.8, legend=len(lines)) as look:
        for number, (shares, values) in enumerate(lines.values()):
            look.axes[0].plot(
                shares, values, _dashes(number), color=_colour(number), linewidth=1.6, marker="o", markersize=4
            )
        look.axes[0].xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        look.finish(look.axes[0], title, label, "y")
        look.legend([(shorten(line, 40), _colour(i), _dashes(i)) for i, line in enumerate(lines)])
        return look.svg(name)


def mean_and_band(
    runs: Sequence[tuple[Sequence[int], Sequence[float]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the steps that every run has, the mean over runs, and half the width of its t interval (0 for one
    run)."""
    found = [dict(zip(steps, values, strict=True)) for steps, values in runs if len(steps)]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    values = np.asarray([[run[step] for step in steps] for run in found]).reshape(len(found), len(steps))
    if not steps or len(found) < 2:
        return np.asarray(steps), values.sum(axis=0), np.zeros(len(steps))
    half = stats.t.isf(ALPHA / 2, len(found) - 1) * stats.sem(values, axis=0)
    return np.asarray(steps), values.mean(axis=0), half


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dashes(number: int) -> str:
    return _DASHES[number // len(COLOURS) % len(_DASHES)]


class _Look:
    """A figure with panels, while its text is drawn as text: labels are no formulas, and readers can select them."""

    def __init__(self, panels: int, height: float, legend: int = 0):
        import matplotlib

        self.columns = min(panels, _COLUMNS)
        rows = -(-panels // self.columns)
        self.room = 0.28 * -(-legend // 4) + 0.05 if legend else 0.0  # inches for the legend
        self.size = (3.15 * self.columns + 0.6, height * rows + 0.5 * rows + self.room)
        self.panels, self.rows = panels, rows
        settings: dict[Any, Any] = {
            "svg.fonttype": "none",
            "text.parse_math": False,
            "font.size": 8.5,
            "text.color": INK,
        }
        settings |= {f"{part}.{key}color": INK for part, key in (("axes", "label"), ("xtick", ""), ("ytick", ""))}
        settings |= {"axes.edgecolor": LINE, "axes.titlecolor": INK}
        self.context = matplotlib.rc_context(settings)

    def __enter__(self) -> "_Look":
        from matplotlib.figure import Figure

        self.context.__enter__()
        self.figure = Figure(figsize=self.size, layout="constrained")
        self.figure.get_layout_engine().set(rect=(0, 0, 1, 1 - self.room / self.size[1]))  # type: ignore[union-attr]
        grid = self.figure.subplots(self.rows, self.columns, squeeze=False).ravel()
        for unused in grid[self.panels :]:
            unused.set_visible(False)
        self.axes = grid[: self.panels]
        return self

    def __exit__(self, *problem: Any) -> None:
        self.context.__exit__(*problem)

    def finish(self, axis: Any, title: str, label: str, grid: str) -> None:
        axis.set_title(shorten(title, 44), loc="left", fontsize=9, fontweight="bold")
        axis.set_xlabel(shorten(label, 44))
        axis.grid(axis=grid, color=LINE, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(length=0)

    def legend(self, entries: Sequence[tuple[str, str, str]]) -> None:
        from matplotlib.lines import Line2D

        looks: list[dict[str, Any]] = [{"color": colour, "linestyle": dashes} for _, colour, dashes in entries]
        lines = [Line2D([], [], linewidth=2, **look) for look in looks]
        names = [name for name, *_ in entries]
        self.figure.legend(lines, names, loc="upper left", ncols=min(len(names), 4), frameon=False, labelcolor=INK)

    def svg(self, name: str) -> bytes:
        content = io.BytesIO()
        unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with warnings.catch_warnings():  # the reader's browser has the glyphs that matplotlib's font lacks
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(content, format="svg", transparent=True, metadata=unnamed)
        text = _FONTS.sub("system-ui, 'Liberation Sans', sans-serif", content.getvalue().decode())
        return re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text).encode()
