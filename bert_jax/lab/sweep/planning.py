"""From a study to the configs of its runs, and what of them a workdir already holds."""

import contextlib
import fnmatch
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.config import Json, UserError, differences, from_json_dict, read_config
from bert_jax.experiment import load_experiment, set_options, split_argument
from bert_jax.files import write_atomically
from bert_jax.lab.records import (
    COMPLETE,
    FAILED,
    STALE,
    STUDY,
    WAITING,
    StudyRecord,
    newest_step,
    read_run,
    read_study,
    write_record,
)
from bert_jax.lab.space import Distribution, Search, label
from bert_jax.lab.study import PlannedRun, Study
from bert_jax.options import RESTART

REQUEST = "request.json"  # in the folder of a run: its config as planned, and the metric that the study asks for

Configs = Mapping[str, ConfigDict]  # by the key of a run


def resolve(study: Study, planned: Sequence[PlannedRun], workdir: Path, file: str = "") -> dict[str, ConfigDict]:
    """Returns the config of every run, by its key. `file` is FILE[:ARGUMENT] of the study. Raises UserError naming the
    stage and the run."""
    bases: dict[str, ConfigDict] = {}
    for stage in study.stages:
        try:
            bases[stage.name] = load_experiment(_found_from(file, stage.base) if file else stage.base)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None
    return {one.key: _resolved(bases[one.stage], one, workdir) for one in planned}


def _found_from(file: str, base: str) -> str:
    """Returns a base experiment with the path at which it is: 1. as it is, if absolute; 2. relative to the folder of
    the study, or to the nearest folder above it that has such a file; 3. relative to the current folder."""
    path, argument = split_argument(base)
    folders = split_argument(file)[0].absolute().parents
    found = next((folder / path for folder in folders if (folder / path).is_file()), path)
    with contextlib.suppress(ValueError):  # elsewhere
        found = found.relative_to(Path.cwd())
    return str(found) if argument is None else f"{found}:{argument}"


def _resolved(base: ConfigDict, one: PlannedRun, workdir: Path) -> ConfigDict:
    config = base.copy_and_resolve_references().lock()
    try:
        set_options(config, one.overrides)
    except (UserError, TypeError) as error:
        levels = ", ".join(f"{axis} = {text}" for axis, text in one.levels.items())
        raise UserError(f"stage {one.stage}, {levels or 'its only run'}: {error}") from None
    if one.after:
        config.init_from = str(workdir / one.after)
    return config


def read_before(workdir: Path, name: str) -> StudyRecord | None:
    """Returns the study that a workdir holds, or None. Raises UserError if that is another one, or a single run."""
    for file, what in (("config.json", "a single run"), ("seeds.json", "the runs of several seeds")):
        if (workdir / file).exists():
            raise UserError(f"{workdir} holds {what}; choose another --workdir for the study {name}")
    if not (workdir / STUDY).exists():
        return None
    before = read_study(workdir)
    if before.name != name:
        raise UserError(f"{workdir} holds the study {before.name}, not {name}; choose another --workdir")
    return before


def check_search(before: StudyRecord | None, search: Search | None) -> None:
    """Raises UserError for a search whose trials cannot be told apart from the better and worse ones of a workdir."""
    old = before.study.search if before is not None else None
    if before is None or old is None or search is None:
        return
    facts = [(name, getattr(old, name), getattr(search, name)) for name in ("metric", "direction")]
    facts += [(name, _kind(one), _kind(search.space[name])) for name, one in old.space.items() if name in search.space]
    for name, was, now in facts:
        if was != now:
            raise UserError(
                f"{before.workdir} holds a search whose {name} was {was}, and is {now}: trials of both cannot be "
                "compared; restore it, or choose another --workdir"
            )


def _kind(one: Distribution) -> str:
    """Returns what of a distribution Optuna cannot change; the ends of an interval may move."""
    if one.choices:
        return f"one of {', '.join(map(label, one.choices))}"
    return f"{'an integer' if one.whole else 'a number'}{' by its logarithm' if one.log else ''}"


def changed_keys(workdir: Path, planned: Sequence[PlannedRun], configs: Configs) -> dict[str, str]:
    """Returns for each run that has begun under another config than it has now what differs, by its key."""
    found = {}
    for one in planned:
        record, file = read_run(workdir, one), workdir / one.key / REQUEST
        if record.status == WAITING or not file.is_file():
            continue
        if record.status != COMPLETE and not newest_step(record.folder):
            continue  # nothing of it is left
        try:
            old = from_json_dict(json.loads(file.read_text(encoding="utf-8"))["config"]).to_dict()
        except (ValueError, KeyError, TypeError, UserError):
            raise UserError(f"{file} is damaged; restore it, or make the run again with --rerun='{one.key}'") from None
        # The test of a complete run has been made; where the study lies does not matter, which run it starts from does.
        free = {*RESTART} - {"data.test"}
        if one.after and Path(old["init_from"]).parts[-2:] == Path(one.after).parts:
            free.add("init_from")
        pairs = differences(old, configs[one.key].to_dict())
        differing = [f"{key} was {before!r}, is {now!r}" for key, before, now in pairs if key not in free]
        if differing:
            found[one.key] = "; ".join(differing)
    return found


def to_make_again(planned: Sequence[PlannedRun], workdir: Path, pattern: str) -> frozenset[str]:
    """Returns the keys of the runs that `--rerun` means, and of those that start from them. Raises UserError if it
    means none."""
    if not pattern:
        return frozenset()
    if pattern == FAILED:
        return frozenset(one.key for one in planned if read_run(workdir, one).status == FAILED)
    again = matching(planned, pattern, "--rerun")
    for one in planned:  # parents stand before the runs that start from them, or their stage after them
        if one.after in again:
            again |= {one.key}
    return again


def matching(planned: Sequence[PlannedRun], pattern: str, flag: str) -> frozenset[str]:
    """Returns the keys of the runs whose stage, name or key matches. Raises UserError if there are none."""
    found = frozenset(
        one.key for one in planned if any(fnmatch.fnmatchcase(x, pattern) for x in (one.key, one.name, one.stage))
    )
    if not found:
        raise UserError(f"{flag}={pattern} matches no run, such as {planned[0].key}; * stands for any text")
    return found


def with_parents(planned: Sequence[PlannedRun], keys: frozenset[str]) -> frozenset[str]:
    """Returns the keys and those of the runs that they start from."""
    after = {one.key: one.after for one in planned}
    found = set(keys)
    for key in keys:
        while key := after[key]:
            found.add(key)
    return frozenset(found)


def tell_changes(planned: Sequence[PlannedRun], before: StudyRecord | None) -> None:
    """Says which runs of an earlier form of the study stay, which are new and which no longer belong to it."""
    if before is None:
        return
    old, new = {run.key for run in before.runs if run.status != STALE}, {one.key for one in planned}
    if old != new:
        stale = sorted(old - new)
        named = f" ({', '.join(stale[:3])}{' …' if len(stale) > 3 else ''}: kept on disk, left out)" if stale else ""
        text = "the study has changed: %d runs stay, %d are new, %d no longer belong to it%s"
        logging.info(text, len(old & new), len(new - old), len(stale), named)


def write_request(workdir: Path, one: PlannedRun, config: ConfigDict, metric: str) -> None:
    """Writes what the process of a run reads."""
    folder = workdir / one.key
    folder.mkdir(parents=True, exist_ok=True)
    if one.after and newest_step(folder):  # in a study that was moved it continues as the run that it is
        with contextlib.suppress(UserError):
            config.init_from = read_config(folder / "config.json").init_from
    content: Json = {"config": config.to_dict(), "metric": metric}
    write_atomically(folder / REQUEST, json.dumps(content, indent=1) + "\n")


def reset(workdir: Path, one: PlannedRun, *, from_scratch: bool) -> None:
    """Lets a run be made again: from where it failed, or `from_scratch`, with the old folder moved to a
    hidden name."""
    record = read_run(workdir, one)
    if not record.folder.exists():
        return
    if not from_scratch:
        write_record(replace(record, status=WAITING, error="", attempts=0, result={}))
        return
    number = 1
    while (kept := record.folder.with_name(f".{record.folder.name}.{number}")).exists():
        number += 1
    record.folder.rename(kept)
    logging.info("%s is made again; what it was is kept in %s", one.key, kept)
