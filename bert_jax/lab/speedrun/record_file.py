"""The file of records (experiments/speedrun/records.json): figures of all runs, and the test that made each a record.

    {"held_out": hash of the words that are scored, "records": [{…, "hash": …}, …]}

A record's hash is that of its content and of the record before it. Reading the file computes hashes, means and tests
again: one that was edited by hand is refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_jax.config import Json, UserError
from bert_jax.files import write_atomically
from bert_jax.lab.speedrun.entries import MLM_LOSS, SCORE, SECONDS, TRACKS, LoadedEntry, Track
from bert_jax.lab.speedrun.runs import Figures, Measured
from bert_jax.lab.statistics.differences import summary, welch

FEWEST_SEEDS = 5
HIGHEST_P = 0.01
_UNITS = {SCORE: "nats per character", SECONDS: "seconds"}

Record = Json


def read_records(path: Path) -> tuple[str, list[Record]]:
    """Returns the hash of the held-out words and the records, oldest first. Raises UserError for a file that is missing
    or damaged, or whose figures, statistics or hashes do not belong together."""
    try:
        content = json.loads(path.read_bytes())
        held_out, records = content["held_out"], content["records"]
        if not isinstance(held_out, str) or not all(isinstance(record, dict) for record in records):
            raise ValueError("no list of records")
        for number, record in enumerate(records):
            if problem := _edited(record, records[:number]):
                raise UserError(f"{path}: record {number + 1}: {problem}; restore the file (git checkout {path})")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the file of the records as --records=FILE") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no file of records ({what}); restore it (git checkout {path})") from None
    return held_out, records


def add_record(path: Path, entry: LoadedEntry, runs: Measured, *, date: str, against: Measured | None = None) -> Record:
    """Adds a record to the file and returns it. `against` are runs of the record before it on the machine of `runs`.

    Raises UserError for runs against the rules, too few of them, or no better than the record before.
    """
    held_out, records = read_records(path)
    if runs.held_out != held_out:
        raise UserError(
            f"the runs were scored on other words ({runs.held_out}) than the records ({held_out}): score "
            "them on the whole corpus of the rules"
        )
    check_runs(entry, runs)
    before = newest(records, entry.entry.track)
    if against and machine_of(against.environment) != machine_of(runs.environment):
        raise UserError("the runs of --against were made on another machine than those of the entry; make both on one")
    environment = {group: runs.environment[group] for group in ("machine", "devices", "packages")}
    record: Record = {
        "track": entry.entry.track,
        "entry": entry.name,
        "date": date,
        "changed": entry.entry.changed,
        "config": entry.config_hash,
        "commit": runs.environment["code"]["commit"],
        **environment,
        "runs": [asdict(figures) for figures in runs.figures],
        "before": before and before["hash"],
        "against": [asdict(figures) for figures in against.figures] if against else [],
    }
    if before is not None and machine_of(before) != machine_of(record) and not against:
        raise UserError(
            f"the record {before['entry']} was measured on another machine ({machine_of(before)}): run its entry on "
            f"this one ({machine_of(record)}), and give the runs as --against=WORKDIR"
        )
    record["statistics"] = _statistics(record, before)
    _check_better(record, before)
    record["hash"] = _hash(record, records)
    content = {"held_out": held_out, "records": [*records, record]}
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return record


def newest(records: Sequence[Record], track: str) -> Record | None:
    """Returns the standing record of a class, or None."""
    return next((record for record in reversed(records) if record["track"] == track), None)


def values_of(record: Record, runs: str = "runs") -> list[float]:
    """Returns what the record's class compares, of each run."""
    return [float(figures[TRACKS[record["track"]].compared]) for figures in record[runs]]


def machine_of(environment: Mapping[str, Any]) -> str:
    """Returns what the speed of a run depends on, from the groups machine and devices of its environment."""
    machine, devices = environment["machine"], environment["devices"]
    if devices.get("platform") == "cpu":
        return f"{machine.get('processor')}, {machine.get('cores')} cores"
    return f"{devices.get('count')} × {devices.get('kind')}"


def check_runs(entry: LoadedEntry, runs: Measured) -> None:
    """Raises UserError if the runs of an entry are against the rules of its class."""
    track, count = entry.track, len(runs.figures)
    if count < FEWEST_SEEDS:
        raise UserError(
            f"{entry.name} has {count} complete runs; a record needs {FEWEST_SEEDS} seeds: "
            f"run {entry.file} --seeds={FEWEST_SEEDS}"
        )
    for figures in runs.figures:
        if problem := _over(figures, track):
            raise UserError(f"{entry.name}, seed {figures.seed}: {problem}")
    if len({figures.model for figures in runs.figures}) < count:
        raise UserError(f"{entry.name}: two runs have the same parameters; each needs a seed of its own")
    code, devices, machine = (runs.environment[group] for group in ("code", "devices", "machine"))
    if not code.get("commit") or code.get("changes"):
        raise UserError("the runs were made with code that is not committed; commit it and make them again")
    units = machine.get("cores") if track.platform == "cpu" else devices.get("count")
    if (devices.get("platform"), units) != (track.platform, track.units):
        raise UserError(
            f"the runs used {units} of {devices.get('platform')}; the class {entry.entry.track} is for "
            f"{track.units} ({track.title}): such as taskset -c 0,1 python …"
        )


def _over(figures: Figures, track: Track) -> str:
    """Returns by what a run misses the bounds of its class, or ""."""
    if track.most_seconds is not None and figures.training_seconds > track.most_seconds:
        return f"training took {figures.training_seconds:.0f} s, over {track.most_seconds:.0f}; take fewer steps"
    if track.target is not None and (figures.mlm_loss is None or figures.mlm_loss > track.target):
        return f"{MLM_LOSS} is {figures.mlm_loss}, over the {track.target} of the class; take more steps"
    return ""


def _statistics(record: Record, before: Record | None) -> dict[str, float | None]:
    """Returns mean and spread of what is compared, and the difference from the record before with Welch's test."""
    own = summary(values_of(record))
    found: dict[str, float | None] = {"mean": own.mean, "sd": own.sd, "low": own.low, "high": own.high}
    if before is None:
        return found | {"difference": None, "p": None}
    # `against` has the runs of the record before, on this machine.
    others = values_of(record, "against") or values_of(before)
    if len(others) < FEWEST_SEEDS:
        raise UserError(f"the runs that are compared with are {len(others)}; give {FEWEST_SEEDS} seeds of them")
    tested = welch(values_of(record), others)
    return found | {"difference": tested.mean, "p": tested.p}


def _check_better(record: Record, before: Record | None) -> None:
    difference, p = record["statistics"]["difference"], record["statistics"]["p"]
    if before is not None and not (difference < 0 and p < HIGHEST_P):  # NaN is no evidence either
        unit = _UNITS[TRACKS[record["track"]].compared]
        raise UserError(
            f"{record['entry']} is no record: {difference:+.4g} {unit} against {before['entry']}, p = {p:.2g}; "
            f"it takes a lower mean with p < {HIGHEST_P}"
        )


def _edited(record: Record, earlier: Sequence[Record]) -> str:
    """Returns what shows that a record is not as it was written, or ""."""
    if record["hash"] != _hash(record, earlier):
        return f"{record['entry']} was edited: its content does not have its hash"
    if not re.fullmatch(r"[a-z0-9_]{1,64}", record["entry"]) or record["track"] not in TRACKS:
        return "its entry or class has no such name"
    before = newest(earlier, record["track"])
    if record["before"] != (before and before["hash"]) or len(record["runs"]) < FEWEST_SEEDS:
        return f"{record['entry']} does not follow the record before it with {FEWEST_SEEDS} seeds"
    if problems := [text for run in record["runs"] if (text := _over(Figures(**run), TRACKS[record["track"]]))]:
        return f"{record['entry']}: {problems[0]}"
    computed = _statistics(record, before)
    if record["statistics"].keys() != computed.keys() or not all(
        map(_alike, *zip(*((value, computed[name]) for name, value in record["statistics"].items()), strict=True))
    ):
        return f"the statistics of {record['entry']} are not those of its runs"
    try:
        _check_better(record, before)
    except UserError as problem:
        return str(problem)
    return ""


def _alike(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)  # another SciPy may round otherwise


def _hash(record: Mapping[str, object], earlier: Sequence[Record]) -> str:
    content = {name: value for name, value in record.items() if name != "hash"}
    chain = earlier[-1]["hash"] if earlier else ""
    text = json.dumps([chain, content], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
