"""PNG pictures: the curves of one run from its metrics.jsonl, also while it trains, and the figures of its report."""

import contextlib
import io
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bert_jax.config import UserError
from bert_jax.files import write_atomically
from bert_jax.training.ledger import KINDS
from bert_jax.training.metrics_log import Record, read_metrics
from bert_jax.training.observer import LEDGER

TRAIN_COLOUR, EVAL_COLOUR, CHANCE_COLOUR = "#8aa4c8", "#c0392b", "#777777"

# One picture each: file name → title and the names drawn, for the training and the held-out split.
PICTURES = {
    "learning_curve": ("What was learned", ("mlm_loss", "mlm_accuracy", "nsp_accuracy")),
    "loss": ("Loss (nats)", ("loss", "mlm_loss", "nsp_loss")),
    "accuracy": ("Accuracy", ("mlm_accuracy", "nsp_accuracy")),
    "learning_rate": ("Learning rate", ("learning_rate",)),
    "throughput": ("Tokens per second", ("tokens_per_second",)),
}
# The level of a guesser without a model: name drawn → label of a dashed line and its level, a number or the name of a
# metric of evaluation.
REFERENCES = {
    "mlm_loss": ("unigram entropy", "unigram_entropy"),
    "mlm_accuracy": ("most frequent token", "majority_accuracy"),
    "nsp_loss": ("chance", 0.6931),
    "nsp_accuracy": ("chance", 0.5),
}
_MOST_LABELS = 50
_WITH_NUMBERS = 20  # labels up to which the cells have room for their counts
_LONG_NAME = 24  # characters


def plot_run(workdir: Path) -> list[Path]:
    """Writes `plots/*.png` and returns their paths; none if there are no metrics yet, or no room: a picture is no
    reason for a run to fail."""
    records = read_metrics(workdir / "metrics.jsonl")
    folder, paths = workdir / "plots", []
    try:
        for name, (title, drawn) in PICTURES.items() if records else ():
            folder.mkdir(exist_ok=True)
            paths.append(folder / f"{name}.png")
            write_atomically(paths[-1], _curves(records, drawn, title))
        if (time := where_time_went(records)) is not None:
            paths.append(folder / "time.png")
            write_atomically(paths[-1], time)
    except OSError as problem:
        logging.warning("%s: the curves could not be drawn (%s)", folder, problem.strerror)
        return []
    return paths


@contextlib.contextmanager
def live_curves(workdir: Path, *names: str, seconds: float = 5.0) -> Iterator[None]:
    """Shows the curves of some metrics in a notebook, and every `seconds` seconds those of what was logged since.

    with live_curves(workdir, "mlm_loss", "mlm_accuracy"):
        bert_jax.train(config, workdir)

    Raises UserError outside of a notebook.
    """
    refusal = UserError("live_curves draws into a notebook; elsewhere, plot_run writes the curves to files")
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import DisplayHandle, Image, Markdown
    except ImportError:
        raise refusal from None
    if get_ipython() is None:
        raise refusal
    picture = DisplayHandle()
    picture.display(Markdown("*No metrics yet: data is prepared, or programs are compiled.*"))
    has_ended = threading.Event()

    def redraw() -> None:
        drawn: list[Record] = []
        while not has_ended.wait(seconds if drawn else 0.5):
            drawn = draw(drawn)
        draw(drawn)

    def draw(drawn: list[Record]) -> list[Record]:
        records = read_metrics(workdir / "metrics.jsonl")
        if records != drawn:
            picture.update(Image(_curves(records, names)))
        return records

    thread = threading.Thread(target=redraw, name="live curves", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def _ledger(records: list[Record]) -> dict[str, float]:
    """Returns the seconds of the newest ledger of a run, by what they were spent on."""
    newest = next((record for record in reversed(records) if record["split"] == LEDGER), {})
    return {kind: newest[kind] for kind in KINDS if isinstance(newest.get(kind), int | float) and newest[kind] > 0}


def series(records: list[Record], split: str, name: str) -> tuple[list[int], list[float]]:
    """Returns the steps, sorted, and the values of a metric; of several values of one step the last."""
    points = {r["step"]: r[name] for r in records if r["split"] == split and isinstance(r.get(name), int | float)}
    return sorted(points), [points[step] for step in sorted(points)]


def where_time_went(records: list[Record]) -> bytes | None:
    """Draws the newest ledger of a run; None without one."""
    seconds = _ledger(records)
    return _bar(seconds) if seconds else None


def learning_curve(records: list[Record], metric: str) -> bytes | None:
    """Draws the loss, and the metric that decides which checkpoint is best; None if nothing was logged."""
    names = tuple(dict.fromkeys(("loss", metric)))
    return _curves(records, names) if any(name in record for record in records for name in names) else None


def confusion_matrix(counts: Int[np.ndarray, "C C"], labels: Sequence[str]) -> tuple[bytes, str]:
    """Returns the picture, whose rows are the right labels, and what is to be said of it."""
    note = "A row is a label, a column a prediction; the darker, the larger the share of its row."
    kept = np.arange(len(labels))
    if len(labels) > _MOST_LABELS:
        kept = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:_MOST_LABELS])
        note += f" The {_MOST_LABELS} commonest of {len(labels)} labels."
    counts, size = counts[np.ix_(kept, kept)], len(kept)
    shown = [labels[i] for i in kept.tolist()]
    names = [label if len(label) <= _LONG_NAME else f"{label[: _LONG_NAME - 1]}…" for label in shown]
    has_numbers = size <= _WITH_NUMBERS
    cell, font = (0.62, 9) if has_numbers else (0.22, 7)
    longest, side = max(map(len, names)), max(size * cell, 1.8)
    room = 0.8 + 0.075 * longest
    figure, [axis] = _figure(side + room + 0.4, side + room)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)  # the root, so that a share of 2 % is seen
    axis.set_xticks(range(size), names, rotation=90 if longest > 6 or not has_numbers else 0, fontsize=font)
    axis.set_yticks(range(size), names, fontsize=font)
    axis.set(xlabel="predicted", ylabel="label")
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(np.arange(size + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#dddddd", linewidth=0.5)
    axis.tick_params(which="minor", length=0)
    for row, column in np.argwhere(counts) if has_numbers else ():
        colour = "white" if shares[row, column] > 0.35 else "#222222"
        text = f"{counts[row, column]:,}"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if len(text) < 6 else 7)
    return _png(figure), note


def scatter(gold: Float[np.ndarray, " N"], predicted: Float[np.ndarray, " N"]) -> bytes:
    figure, [axis] = _figure(4.8, 4.4)
    ends = [min(gold.min(), predicted.min()), max(gold.max(), predicted.max())]
    axis.plot(ends, ends, color="#999999", linewidth=1, linestyle="--")
    axis.scatter(gold, predicted, s=10, alpha=0.4, color=EVAL_COLOUR, linewidths=0)
    _finish(axis, xlabel="given", ylabel="predicted")
    return _png(figure)


def threshold_curve(
    null_odds: Float[np.ndarray, " N"], answered: Float[np.ndarray, "N 2"], declined: Float[np.ndarray, "N 2"]
) -> bytes:
    """Draws exact match and F1 for every threshold; `answered` and `declined` have both metrics of each question."""
    order = np.argsort(null_odds, kind="stable")
    odds = null_odds[order]
    gains = np.cumsum((answered - declined)[order], axis=0)
    last = np.append(odds[1:] > odds[:-1], True)  # of equal scores all questions are answered, or none
    curves = (declined.sum(axis=0) + gains[last]) / len(odds)
    figure, [axis] = _figure(6.4, 3.8)
    for column, name, colour in ((0, "exact match", TRAIN_COLOUR), (1, "F1", EVAL_COLOUR)):
        axis.step(odds[last], curves[:, column], where="post", color=colour, label=name, linewidth=1.5)
    best = int(np.argmax(curves[:, 1]))
    label = f"best F1 {curves[best, 1]:.1f} at {odds[last][best]:.2f}"
    axis.axvline(odds[last][best], color=CHANCE_COLOUR, linestyle="--", linewidth=1, label=label)
    low, high = np.quantile(odds, (0.01, 0.99))  # a question without any answer has odds of its own
    if low < high:
        axis.set_xlim(low, high)
    axis.legend(frameon=False, fontsize=8)
    _finish(axis, xlabel="threshold (score of no answer − score of the best answer)", ylabel="per cent")
    return _png(figure)


def _curves(records: list[Record], names: Sequence[str], title: str = "") -> bytes:
    """Draws each metric that was logged, for training and for the held-out split."""
    from matplotlib.ticker import MaxNLocator

    drawn = [name for name in names if any(name in record for record in records)]
    columns = max(len(drawn), 1)
    figure, axes = _figure(4.8 * columns, 3.4, columns)
    for axis, name in zip(axes, drawn, strict=False):
        for split, colour, label in (("train", TRAIN_COLOUR, "training"), ("eval", EVAL_COLOUR, "held out")):
            steps, values = series(records, split, name)
            if steps:
                marker = "." if split == "eval" or len(steps) == 1 else ""
                axis.plot(steps, values, color=colour, label=label, marker=marker, linewidth=1.5)
        label, level = REFERENCES.get(name, ("", None))
        if isinstance(level, str):
            level = next(iter(series(records, "eval", level)[1][-1:]), None)
        if level is not None:
            axis.axhline(level, color=CHANCE_COLOUR, linestyle="--", linewidth=1, label=f"{label} ({level:.3g})")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.legend(frameon=False, fontsize=8)
        _finish(axis, title=name.replace("_", " ").replace("mlm", "MLM").replace("nsp", "NSP"), xlabel="step")
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def _bar(seconds: dict[str, float]) -> bytes:
    """Draws where the time of a run went: one bar, a part for each kind, the legend with shares."""
    total, start = sum(seconds.values()), 0.0
    figure, [axis] = _figure(9.6, 1.9)
    for number, (kind, value) in enumerate(seconds.items()):
        label = f"{kind} {100 * value / total:.1f} %"
        axis.barh([0], [value / 60], left=[start / 60], color=f"C{number}", label=label)
        start += value
    axis.set_yticks([])
    axis.legend(frameon=False, fontsize=8, ncols=len(seconds), loc="upper center", bbox_to_anchor=(0.5, 1.35))
    _finish(axis, xlabel="minutes, over all starts of the run")
    return _png(figure)


def _finish(axis: Any, **labels: str) -> None:
    axis.set(**labels)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # pyplot's figures belong to the main thread, and to a notebook's cells

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _png(figure: Any) -> bytes:
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()
