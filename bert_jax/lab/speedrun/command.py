"""The speedrun: scores runs, makes those of an entry, keeps the records. The rules are in docs/speedrun.md.

    python -m bert_jax.lab.speedrun score runs/mine
    python -m bert_jax.lab.speedrun run experiments/speedrun/small_en.py --seeds=5 [--dry_run]
    python -m bert_jax.lab.speedrun record experiments/speedrun/small_en.py
    python -m bert_jax.lab.speedrun record
    python -m bert_jax.lab.speedrun table --output=docs/speedrun.md

score   nats per character of the hidden words, of a run or of all complete runs of a study
run     the runs of an entry, one after another, and their scores; the same command continues what was interrupted
record  adds the runs of an entry to the file of records; without an entry it checks the file
table   the records as Markdown; --output replaces what stands between the two marks of that file

The exit status is 0 when the work is done, 2 for a mistake that you can correct (one line), 128 + n for signal n.
"""

import time
from pathlib import Path

from bert_jax.command import Flags, Parser, run_command, say
from bert_jax.config import UserError
from bert_jax.heap import restart_with_kept_heap
from bert_jax.option import can_be


def main(argv: list[str]) -> int:
    """Does what the first word says. Heavy imports wait until the flags are known to be right."""
    parser = Parser("bert_jax.lab.speedrun", __doc__ or "")
    parser.usage = "python -m bert_jax.lab.speedrun score | run | record | table [NAME] [--NAME=VALUE …]"
    parser.flag("workdir", "", "folder of the runs of an entry [runs/speedrun/<its name>]", metavar="DIR")
    parser.flag("seeds", 5, "runs of an entry", least=1)
    parser.flag("dry_run", False, "run: show what the runs need; start none")
    parser.flag("again", False, "score: also what has been scored")
    parser.flag("records", "experiments/speedrun/records.json", "the file of records", metavar="FILE")
    parser.flag("against", "", "record: runs of the record before, made on the same machine", metavar="DIR")
    parser.flag("output", "", "table: the file to bring up to date [print the table]", metavar="FILE.md")
    parser.flag("debug", False, "show the traceback of an error")
    flags, words = parser.parse_with_names(argv)
    if not words:
        raise UserError(f"the command is missing; give {', '.join(_COMMANDS)}")
    command, *names = words
    if command not in _COMMANDS:
        raise UserError(f"the command is {command!r}; {can_be(command, _COMMANDS)}")
    work, least, most = _COMMANDS[command]
    if not least <= len(names) <= most:
        raise UserError(f"{command}: {len(names)} names are given; --help shows what it takes")
    return work(names, flags)


def _score(names: list[str], flags: Flags) -> int:
    from bert_jax.lab.speedrun.runs import run_folders, score_runs

    score_runs([folder for name in names for folder in run_folders(Path(name))], say, again=flags["again"])
    return 0


def _run(names: list[str], flags: Flags) -> int:
    from bert_jax.lab.speedrun.entries import load_entry
    from bert_jax.lab.speedrun.runs import as_study, measure, run_folders, score_runs
    from bert_jax.lab.sweep.command import sweep

    entry = load_entry(names[0])
    workdir = _workdir(flags, entry.name)
    study = as_study(entry, flags["seeds"])
    status = sweep(study, entry.name, entry.file, workdir, dry_run=flags["dry_run"])
    if status or flags["dry_run"]:
        return status
    score_runs(run_folders(workdir), say)  # the sweep has ended: jax may start in this process
    for figures in measure(workdir, entry.file, entry.config_hash).figures:
        loss = "" if figures.mlm_loss is None else f", MLM loss {figures.mlm_loss:.3f}"
        minutes = f"{figures.training_seconds / 60:.1f} min of training, {figures.compile_seconds:.0f} s of compiling"
        say(f"seed {figures.seed}: {figures.nats_per_character:.4f} nats per character{loss}; {minutes}")
    say(f"next: python -m bert_jax.lab.speedrun record {entry.file}")
    return 0


def _record(names: list[str], flags: Flags) -> int:
    from bert_jax.lab.speedrun.entries import load_entry
    from bert_jax.lab.speedrun.record_file import add_record, newest, read_records
    from bert_jax.lab.speedrun.runs import measure

    path = Path(flags["records"])
    records = read_records(path)[1]
    if not names:
        say(f"{path}: {len(records)} records, all as they were written")
        return 0
    entry = load_entry(names[0])
    before, against = newest(records, entry.entry.track), None
    if flags["against"]:
        if before is None:
            raise UserError(f"--against: the class {entry.entry.track} has no record yet; leave it out")
        against = measure(Path(flags["against"]), before["entry"], before["config"])
    runs = measure(_workdir(flags, entry.name), entry.file, entry.config_hash)
    record = add_record(path, entry, runs, date=time.strftime("%Y-%m-%d", time.gmtime()), against=against)
    mean, p = record["statistics"]["mean"], record["statistics"]["p"]
    tested = "" if p is None else f", p = {p:.2g}"
    say(f"{path}: {entry.name} is the record of {entry.entry.track}: mean {mean:.4f}{tested}")
    return 0


def _table(names: list[str], flags: Flags) -> int:
    from bert_jax.lab.speedrun.record_file import read_records
    from bert_jax.lab.speedrun.table import put_into, to_table

    text = to_table(read_records(Path(flags["records"]))[1])
    if flags["output"]:
        put_into(Path(flags["output"]), text)
        say(f"written: {flags['output']}")
    else:
        say(text)
    return 0


def _workdir(flags: Flags, name: str) -> Path:
    return Path(flags["workdir"] or Path("runs") / "speedrun" / name).absolute()


# What each command does, and how many names it takes.
_COMMANDS = {"score": (_score, 1, 1000), "run": (_run, 1, 1), "record": (_record, 0, 1), "table": (_table, 0, 0)}


def run() -> None:
    restart_with_kept_heap()  # the processes of the runs inherit it
    run_command(main)
