"""What a sweep shows while it runs: a live table, or where the output is no terminal one line per change."""

import logging
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from bert_jax.command import say
from bert_jax.lab.records import COMPLETE, FAILED, PRUNED, RUNNING, RunRecord
from bert_jax.lab.space import named_metrics
from bert_jax.lab.study import Study

_ORDER = (RUNNING, FAILED, PRUNED)


class Progress:
    """The state of every stage, from the records of the runs."""

    def __init__(self, study: Study, jobs: int):
        self.metrics, self.jobs, self.records = study.metrics, jobs, {}
        self.bars: dict[str, tqdm] = {}
        if sys.stderr.isatty():
            width = max(len(stage.name) for stage in study.stages)
            look = {"bar_format": "{desc} {bar:24} {n_fmt}/{total_fmt}{postfix}", "leave": True, "file": sys.stderr}
            for number, stage in enumerate(study.stages):
                self.bars[stage.name] = tqdm(total=0, desc=stage.name.ljust(width), position=number, **look)

    def show(self, records: Iterable[RunRecord]) -> None:
        """Takes the records of all runs and redraws the table."""
        self.records = {record.key: record for record in records}
        for stage, bar in self.bars.items():
            own = [record for record in self.records.values() if record.stage == stage]
            counts = Counter(record.status for record in own)
            bar.total, bar.n = len(own), counts[COMPLETE]
            states = [f"{counts[status]} {status}" for status in _ORDER if counts[status]]
            left = remaining(own, self.jobs)
            states += [f"ETA {tqdm.format_interval(left)}"] if left else []
            bar.set_postfix_str(", ".join(states), refresh=True)

    def tell(self, record: RunRecord, what: str) -> None:
        """Says what became of a run, above the table or as a line of the log."""
        if self.bars:
            next(iter(self.bars.values())).write(f"{record.key}: {what}", file=sys.stderr)
            return
        counts = Counter(one.status for one in self.records.values())
        shown = [f"{counts[COMPLETE]} of {len(self.records)} complete"]
        shown += [f"{counts[status]} {status}" for status in _ORDER if counts[status]]
        lefts = [remaining(self._of(stage), self.jobs) for stage in {one.stage for one in self.records.values()}]
        known = [left for left in lefts if left is not None]
        shown += [f"ETA {tqdm.format_interval(sum(known))}"] if len(known) == len(lefts) and sum(known) else []
        logging.info("%s: %s (%s)", record.key, what, ", ".join(shown))

    def close(self) -> None:
        for bar in self.bars.values():
            bar.close()

    def _of(self, stage: str) -> list[RunRecord]:
        return [record for record in self.records.values() if record.stage == stage]


def remaining(records: Iterable[RunRecord], jobs: int) -> float | None:
    """Returns the seconds until all runs of a stage have ended, by the median of its complete ones; None before the
    first of them."""
    records = list(records)
    seconds = [record.seconds for record in records if record.status == COMPLETE]
    left = [record for record in records if record.status not in (COMPLETE, FAILED, PRUNED)]
    if not left:
        return 0.0
    return statistics.median(seconds) * len(left) / jobs if seconds else None


def summary(record: RunRecord, metrics: Mapping[str, str]) -> str:
    """Returns what became of a complete run, in a few words."""
    values = {name: record.metric(name) for name in named_metrics(metrics.get(record.stage, ""))}
    known = "".join(f"{name} {value:.4g}, " for name, value in values.items() if value is not None)
    return f"complete, {known}{record.seconds:.0f} s"


def say_summary(workdir: Path, records: Iterable[RunRecord]) -> None:
    """Prints how many runs of each stage have which status."""
    records = list(records)
    for stage in dict.fromkeys(record.stage for record in records):
        counts = Counter(record.status for record in records if record.stage == stage)
        say(f"{stage}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    say(f"next: python -m bert_jax.lab.report {workdir} --output=report.html")
