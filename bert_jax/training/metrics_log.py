"""Where metrics go: metrics.jsonl, TensorBoard, other trackers, and one live line on the terminal.

A line of metrics.jsonl is {"step": int, "split": "train" | "eval" | "test" | "ledger", name: number, …}.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from bert_jax.config import Json, UserError
from bert_jax.data.text.text_files import read_bytes
from bert_jax.files import write_atomically
from bert_jax.training.tensorboard import EventFile
from bert_jax.training.trackers import Trackers

Record = Json  # a line of metrics.jsonl
_SHOWN = ("loss", "mean", "mlm_loss", "mlm_accuracy", "nsp_accuracy", "accuracy", "f1", "mcc", "pearson", "micro_f1")
_SHOWN += ("entity_f1", "exact_match", "perplexity", "bleu", "chrf", "rouge1", "rouge2", "rougeLsum")
_SHOWN += ("tokens_per_second", "mfu", "wait_share")
# Of a part such as a language, as de/mlm_loss, while there are few.
_OF_PARTS = ("mlm_loss", "accuracy", "entity_f1", "f1", "retrieval")
_MOST_PARTS = 8


class MetricsLog:
    """Writes each record as it comes; only process 0 writes. Lines of steps after `forget_after` are dropped, since
    they are taken again, and so is the test that ends every run.

    What cannot be written to metrics.jsonl is a UserError; TensorBoard, the trackers of `config` and the terminal are
    only a convenience.
    """

    def __init__(
        self,
        workdir: Path,
        first_step: int,
        total_steps: int,
        *,
        forget_after: int | None = None,
        config: ConfigDict | None = None,
        costs: Sequence[tuple[int, float]] = (),
    ):
        """`costs` are of a step in each phase, in any unit, with the number of the step before which the phase ends;
        without them all steps cost the same."""
        self.writes = jax.process_index() == 0
        self.first, self.step, self.total = first_step, first_step, total_steps
        self.started, self.costs = 0.0, costs or [(total_steps, 1.0)]
        self.path = workdir / "metrics.jsonl"
        if not self.writes:
            return
        with self._explained():
            lines = _lines(self.path)
            if forget_after is not None:
                _forget_after(self.path, lines, forget_after)
            self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 — closed in close()
        self.events = EventFile(workdir / "tensorboard", first_step + 1)
        self.trackers = None if config is None else Trackers(config, workdir)
        look: dict[str, Any] = {"unit": "step", "dynamic_ncols": True, "smoothing": 0.05}
        if len(self.costs) > 1:  # the bar itself would take all steps to last as long as the latest
            look["bar_format"] = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self.bar = tqdm(total=total_steps, initial=first_step, disable=not sys.stderr.isatty(), **look)

    def record(self, step: int, split: str, metrics: Json) -> None:
        """Writes a line, unless there is nothing to say. The terminal gets the best known metrics, if it has any."""
        if not self.writes or not metrics:
            return
        rounded = {name: float(f"{float(value):.6g}") for name, value in metrics.items()}
        with self._explained():
            self.file.write(json.dumps({"step": step, "split": split} | rounded) + "\n")
        scalars = {f"{split}/{name}": float(value) for name, value in metrics.items()}
        self.events.add(step, scalars)
        if self.trackers:
            self.trackers.add(step, scalars)
        if split == "train" and not self.started:  # what is left is estimated without the first steps, which compile
            self.first, self.started = step, time.perf_counter()
        shown = [name for name in _SHOWN if name in metrics]
        of_parts = [name for name in metrics if "/" in name and name.rpartition("/")[2] in _OF_PARTS]
        shown += of_parts if len(of_parts) <= _MOST_PARTS else []
        line = ", ".join(f"{name} {rounded[name]:.4g}" for name in shown)
        if not line:
            return
        if self.bar.disable:
            logging.info("step %d/%d %s: %s%s", step, self.total, split, line, self._left())
        elif split == "train":
            self.bar.set_postfix_str(line + (self._left() if len(self.costs) > 1 else ""))
        else:
            self.bar.write(f"step {step} {split}: {line}", file=sys.stderr)

    def advance(self, step: int) -> None:
        """Updates the live line, after every step."""
        if self.writes:
            self.bar.update(step - self.step)
            self.step = step

    def close(self) -> None:
        if self.writes:
            self.bar.close()
            self.events.close()
            if self.trackers:
                self.trackers.close()
            with contextlib.suppress(OSError):  # nothing is buffered, unless writing it has failed before
                self.file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise UserError(
                f"{self.path} cannot be written ({problem.strerror or problem}); remove the cause, such as a full "
                "disk, and start the same command again: it continues from the last checkpoint"
            ) from problem

    def _left(self) -> str:
        if not self.started or self.step <= self.first:
            return ""
        seconds = (time.perf_counter() - self.started) * self._cost(self.step, self.total)
        return f", ETA {tqdm.format_interval(seconds / self._cost(self.first, self.step))}"

    def _cost(self, first: int, last: int) -> float:
        """Returns the cost of the steps from number `first` to `last`, end not included."""
        starts = [0, *(end for end, _ in self.costs)]
        parts = ((cost, start, end) for start, (end, cost) in zip(starts, self.costs, strict=False))
        return sum(cost * max(0, min(end, last) - max(start, first)) for cost, start, end in parts)


def read_metrics(path: Path) -> list[Record]:
    """Returns the lines of a metrics.jsonl; [] if there is no file. Lines that are no metrics, such as half a line that
    is still being written, are left out with one warning."""
    lines = _lines(path)
    records = [record for line in lines if (record := _parsed(line)) is not None]
    if bad := len(lines) - len(records):
        logging.warning("%s: %d lines are no metrics and were left out", path, bad)
    return records


def _lines(path: Path) -> list[bytes]:
    return read_bytes(path, "move it away, or choose another --workdir").splitlines(True) if path.exists() else []


def _forget_after(path: Path, lines: list[bytes], step: int) -> None:
    """Drops the lines of steps that a resumed run takes again, and a last line that a kill or a full disk cut in half.
    Raises UserError for any other line that is no metrics: what is not ours is not rewritten."""
    kept = []
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        if record is None and number < len(lines):
            raise UserError(
                f"{path}:{number} is not a line of metrics; move the file away, or choose another --workdir"
            )
        if record is not None and record["step"] <= step and record["split"] != "test":
            kept.append(line.rstrip(b"\n") + b"\n")  # a kill may have left the end of the line out
    if kept != lines:
        write_atomically(path, b"".join(kept))


def _parsed(line: bytes) -> Record | None:
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        record = json.loads(line)
        if isinstance(record["step"], int) and isinstance(record["split"], str):
            return record
    return None
