"""The runs of an entry: made by the sweep, scored, and measured from what they left in their folders."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bert_jax.config import Json, UserError, read_config
from bert_jax.files import write_atomically
from bert_jax.lab.records import COMPLETE, STUDY, RunRecord, read_study
from bert_jax.lab.speedrun.entries import MLM_LOSS, SCORE, LoadedEntry, config_hash, has_comparable_mlm_loss
from bert_jax.lab.study import Stage, Study, grid, seeds
from bert_jax.training.ledger import COMPILE, LOST, START, USEFUL, WAITING
from bert_jax.training.metrics_log import read_metrics
from bert_jax.training.observer import EVALUATION, LEDGER, SAVING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bert_jax.lab.speedrun.held_out import Context

STAGE = "train"
SCORE_FILE = "speedrun.json"  # in the folder of a run: its `scoring.Score`, and the hash of what was scored
_TRAINING = (USEFUL, WAITING, LOST)  # kinds of a run's ledger that the clock of the speedrun counts
_APART = (START, COMPILE, EVALUATION, SAVING)


@dataclass(frozen=True)
class Figures:
    """What a run has: times in seconds over all its starts, and its score."""

    seed: int
    steps: int
    training_seconds: float
    start_seconds: float  # with preparing the corpus, in the run that did
    compile_seconds: float
    evaluation_seconds: float
    saving_seconds: float
    nats_per_character: float
    mlm_loss: float | None  # of the last evaluation; None where it is about other pieces than small_en's
    model: str  # hash of the parameters


@dataclass(frozen=True)
class Measured:
    """The runs of an entry, and what they have in common."""

    figures: list[Figures]
    held_out: str
    environment: Json  # groups code, packages, machine, devices


def as_study(entry: LoadedEntry, count: int) -> Study:
    """Returns the study whose runs are `count` seeds of an entry."""
    stage = Stage(STAGE, entry.file, grid(seeds(count)))
    return Study(f"{entry.name}: {entry.entry.changed}", (stage,), metrics={STAGE: f"last.{MLM_LOSS}"})


def run_folders(folder: Path) -> list[Path]:
    """Returns the run of a workdir, or the complete runs of a study. Raises UserError if there are none."""
    if not (folder / STUDY).exists():
        return [folder]
    complete = [run.folder for run in read_study(folder).runs if run.status == COMPLETE]
    if not complete:
        raise UserError(f"{folder} has no complete run; start the same run of its entry again, which continues it")
    return complete


def score_runs(folders: Sequence[Path], say: Callable[[str], None], *, again: bool = False) -> None:
    """Scores the newest checkpoint of each run, unless it has been scored, and says what each has."""
    from bert_jax.lab.speedrun.held_out import cut, digest, held_out_texts
    from bert_jax.lab.speedrun.scoring import score
    from bert_jax.training.checkpoint import find_checkpoint

    of_corpus: dict[str, tuple[list[Context], str]] = {}
    for folder in folders:
        data = _config(folder).data
        corpus = f"{data.corpus} {data.files} {data.text_field}"
        if corpus not in of_corpus:
            contexts = cut(held_out_texts(data))
            of_corpus[corpus] = contexts, digest(contexts)
        contexts, held_out = of_corpus[corpus]
        before = _read_score(folder) if (folder / SCORE_FILE).exists() and not again else {}
        newest = find_checkpoint(str(folder)).name
        if before.get("held_out") != held_out or str(before.get("step")) != newest:
            before = asdict(score(folder, contexts)) | {"held_out": held_out}
            write_atomically(folder / SCORE_FILE, json.dumps(before, indent=1) + "\n")
        unknown = f", {before['unknown']} of them unknown" if before["unknown"] else ""
        say(f"{folder}: {before[SCORE]:.4f} nats per character ({before['words']} words{unknown}), step {newest}")


def measure(workdir: Path, entry: str, entry_hash: str) -> Measured:
    """Returns what the complete runs of an entry have, of which name and `config_hash` are given. Raises UserError for
    runs of another config, that are not scored, or whose machine, code or held-out words differ."""
    runs = [run for run in read_study(workdir).of(STAGE) if run.status == COMPLETE]
    if not runs:
        raise UserError(f"{workdir} has no complete run; start run {entry} again, which continues it")
    found = [
        (_figures(run, entry, entry_hash), _read_score(run.folder)["held_out"], _environment(run.folder))
        for run in runs
    ]
    for run, (_, held_out, environment) in zip(runs, found, strict=True):
        if held_out != found[0][1]:
            raise UserError(f"{run.folder} was scored on other words than {runs[0].folder}; score both on one corpus")
        for group, content in environment.items():
            if content != found[0][2][group]:
                raise UserError(
                    f"{run.folder} was made with other {group} than {runs[0].folder}; make all runs alike: "
                    f"run {entry} --workdir=ANOTHER"
                )
    return Measured([figures for figures, *_ in found], found[0][1], found[0][2])


def _figures(run: RunRecord, entry: str, entry_hash: str) -> Figures:
    config = _config(run.folder)
    if config_hash(config) != entry_hash:
        raise UserError(f"{run.folder} has another config than {entry}; give the entry that the runs were made by")
    lines = read_metrics(run.folder / "metrics.jsonl")
    ledger = next((line for line in reversed(lines) if line["split"] == LEDGER), {})
    if ledger.get("step") != config.train.steps:
        raise UserError(f"{run.folder} has no account of its time at its last step; make the run again")
    scored = _read_score(run.folder)
    if scored["step"] != config.train.steps:
        raise UserError(f"{run.folder} was scored at step {scored['step']}; score it again")
    evaluated = [line for line in lines if line["split"] == "eval" and line["step"] == config.train.steps]
    loss = evaluated[-1].get(MLM_LOSS) if evaluated and has_comparable_mlm_loss(config) else None
    seconds = {f"{kind}_seconds": float(ledger.get(kind, 0.0)) for kind in _APART}
    training = sum(float(ledger.get(kind, 0.0)) for kind in _TRAINING)
    return Figures(
        int(config.seed),
        int(config.train.steps),
        training,
        **seconds,
        nats_per_character=float(scored[SCORE]),
        mlm_loss=loss,
        model=str(scored["model"]),
    )


def _config(folder: Path) -> "ConfigDict":
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not the workdir of a run: there is no config.json; give one such as runs/mine")
    return read_config(folder / "config.json")


def _read_score(folder: Path) -> Json:
    path = folder / SCORE_FILE
    try:
        scored = json.loads(path.read_bytes())
        kinds = {"step": int, SCORE: float, "words": int, "unknown": int, "model": str, "held_out": str}
        if all(isinstance(scored[name], kind) for name, kind in kinds.items()):
            return scored
    except FileNotFoundError:
        raise UserError(f"{folder} is not scored; python -m bert_jax.lab.speedrun score {folder}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{path} is damaged; delete it and score the run again")


def _environment(folder: Path) -> Json:
    """Returns code, packages, machine and devices of a run. Raises UserError if they changed while it was made."""
    from bert_jax.lab.provenance import read_environments

    starts = read_environments(folder)
    if not starts:
        raise UserError(f"{folder} has no environment.json, which names machine and code; make the run again")
    groups = ("code", "packages", "machine", "devices")
    for start in starts[1:]:
        if differing := [group for group in groups if start.get(group) != starts[0].get(group)]:
            raise UserError(f"{folder} was continued with other {differing[0]} than it began with; make the run again")
    return {group: starts[0].get(group, {}) for group in groups}
