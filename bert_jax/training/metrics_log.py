"""Where figures go: metrics.jsonl, TensorBoard, and one live line on the terminal."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm


class MetricsLog:
    """Writes each record as it comes; only process 0 writes. Lines of steps after `forget_after` are taken again, and
    so is the test that ends every run.

    A line of metrics.jsonl is {"step": int, "split": "train" | "eval" | "test", name: number, …}.
    """

    def __init__(self, workdir: Path, first_step: int, total_steps: int, *, forget_after: int | None = None):
        self.writes = jax.process_index() == 0
        self.first, self.step, self.total = first_step, first_step, total_steps
        self.started = time.perf_counter()
        self.path = workdir / "metrics.jsonl"
        if not self.writes:
            return
        if forget_after is not None:
            _forget_after(self.path, forget_after)
        self.events = _summary_writer()(str(workdir / "tensorboard"), purge_step=first_step + 1)
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 — closed in close()
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            smoothing=0.05,
        )

    def record(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        if not self.writes:
            return
        rounded = {name: _short(value) for name, value in metrics.items()}
        self.file.write(json.dumps({"step": step, "split": split} | rounded) + "\n")
        for name, value in metrics.items():
            self.events.add_scalar(f"{split}/{name}", value, step)
        line = ", ".join(f"{name} {rounded[name]:.4g}" for name in _SHOWN if name in metrics)
        if self.bar.disable:
            logging.info("step %d/%d %s: %s%s", step, self.total, split, line, self._left())
        elif split == "train":
            self.bar.set_postfix_str(line)
        else:
            self.bar.write(f"step {step} {split}: {line}", file=sys.stderr)

    def advance(self, step: int) -> None:
        """The live line, after every step."""
        if self.writes:
            self.bar.update(step - self.step)
            self.step = step

    def close(self) -> None:
        if self.writes:
            self.bar.close()
            self.events.close()
            self.file.close()

    def _left(self) -> str:
        if self.step == self.first:
            return ""
        seconds = (time.perf_counter() - self.started) * (self.total - self.step) / (self.step - self.first)
        return f", ETA {tqdm.format_interval(seconds)}"


_SHOWN = ("loss", "mlm_loss", "mlm_accuracy", "nsp_accuracy", "accuracy", "f1", "mcc", "pearson", "micro_f1")
_SHOWN += ("entity_f1", "exact_match", "tokens_per_second", "mfu", "wait_share")


def _short(value: Any) -> float:
    return float(f"{float(value):.6g}")


def _summary_writer() -> type:
    """tensorboardX's; not needed by --help. Where PyTorch is installed it would import it, for tensors that never come
    here, and that takes longer than all the rest."""
    is_absent = "torch" not in sys.modules
    if is_absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails, which tensorboardX allows for
    try:
        from tensorboardX import SummaryWriter
    finally:
        if is_absent:
            del sys.modules["torch"]
    return SummaryWriter


def _forget_after(path: Path, step: int) -> None:
    """Drops the lines of steps that a resumed run takes again, and a last line that a kill cut in half."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
            if record["step"] <= step and record["split"] != "test":
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    path.write_text("".join(kept))
