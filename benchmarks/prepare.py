"""Raw text to a prepared dataset, vocabulary included: speed, processor time, peak memory.

    python benchmarks/prepare.py --files='corpus/*.txt' --workers=1,2 --subsets=0.25,0.5,1 --rounds=3

Each run is a process of its own that writes into a temporary folder. Memory is the sum over it and its workers of what
each holds, shared pages divided among them (PSS), looked at five times a second. All runs on the same files must write
the same bytes. The last line is the speed with the whole corpus (or largest part) and the number of workers named last:
median of the rounds, and their range.
"""

import hashlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from bert_jax.config import UserError
from bert_jax.data.corpus import open_corpus
from bert_jax.data.prepare import prepare
from bert_jax.data.text_files import find_files
from bert_jax.data.tokenizer import tokenizer_from_config
from experiments import base

FILES = flags.DEFINE_string("files", None, "paths and globs of the corpus, separated by commas", required=True)
CORPUS = flags.DEFINE_enum("corpus", "text", ["text", "jsonl", "wikiextractor"], "how the files are read")
WORKERS = flags.DEFINE_list("workers", ["1", "2"], "numbers of processes")
SUBSETS = flags.DEFINE_list("subsets", ["1"], "shares of the files, spread evenly over them")
ROUNDS = flags.DEFINE_integer("rounds", 3, "runs of each variant")
JSON = flags.DEFINE_string("json", "", "file for the figures")

_EVERY = 0.2  # seconds between two looks at the memory
_COLUMNS = ("share", "workers", "MB", "seconds", "vocabulary", "preparation", "cpu_seconds", "MB/s", "peak_MB")


def main(_) -> None:
    try:
        figures = compare()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def compare() -> dict[str, Any]:
    """Prints a line a run and the speed; gives {"machine", "runs", "median", "range"}."""
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    print("".join(f"{name:>13}" for name in _COLUMNS), flush=True)
    files = find_files(FILES.value)
    runs: list[dict[str, Any]] = []
    for _ in range(ROUNDS.value):
        for share in SUBSETS.value:
            for workers in WORKERS.value:
                runs.append(_run(_part(files, float(share)), float(share), int(workers)))
                print("".join(f"{runs[-1][name]:>13.6g}" for name in _COLUMNS), flush=True)
    for share in {run["share"] for run in runs}:
        if len({run["digest"] for run in runs if run["share"] == share}) > 1:
            raise UserError(f"share {share}: not every run wrote the same bytes")
    largest, last = max(map(float, SUBSETS.value)), int(WORKERS.value[-1])
    speeds = [run["MB/s"] for run in runs if run["share"] == largest and run["workers"] == last]
    median, low, high = statistics.median(speeds), min(speeds), max(speeds)
    print(f"{median:.2f} MB/s ({low:.2f}–{high:.2f})")
    return {"machine": machine, "runs": runs, "median": median, "range": [low, high]}


def _part(files: list[Path], share: float) -> list[Path]:
    """`share` of the files, spread evenly."""
    return [path for i, path in enumerate(files) if int((i + 1) * share) > int(i * share)]


def _run(files: list[Path], share: float, workers: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_prepare, args=(theirs, files, CORPUS.value, workers, Path(folder)))
        process.start()
        theirs.close()
        peak = 0.0
        while not ours.poll(_EVERY):
            peak = max(peak, sum(map(_megabytes, _family(process.pid))))
        try:
            figures = ours.recv()
        except EOFError:
            raise UserError("the run failed, see above") from None
        process.join()
    return {"share": share, "workers": workers, **figures, "MB/s": figures["MB"] / figures["seconds"], "peak_MB": peak}


def _prepare(connection: Any, files: list[Path], kind: str, workers: int, folder: Path) -> None:
    """One run. Links with a number before their name stand for the files, whose names may hold commas."""
    (folder / "corpus").mkdir()
    for index, path in enumerate(files):
        (folder / "corpus" / f"{index:06d}-{path.name}").symlink_to(path.resolve())
    data = base.get_config().data
    data.corpus, data.files, data.workers = kind, f"{folder}/corpus/*", workers
    data.prepared = str(folder / "prepared")
    started = time.perf_counter()
    corpus = open_corpus(data)
    tokenizer_from_config(data, corpus).save(folder / "vocabulary")
    trained = time.perf_counter()
    data.vocab_file = str(folder / "vocabulary")
    prepared = prepare(data, 0, progress=False)
    done = time.perf_counter()
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    digest = hashlib.blake2b(digest_size=16)
    for shard in prepared.manifest["shards"]:
        digest.update((prepared.directory / shard["file"]).read_bytes())
    connection.send(
        {
            "MB": sum(path.stat().st_size for path in files) / 1e6,
            "seconds": done - started,
            "vocabulary": trained - started,
            "preparation": done - trained,
            "cpu_seconds": sum(used.ru_utime + used.ru_stime for used in usage),
            "digest": digest.hexdigest(),
        }
    )


def _family(pid: int | None) -> list[int]:
    """The process and all below it."""
    try:
        lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # ended meanwhile
        return []
    return [int(pid or 0), *(found for children in lists for child in children for found in _family(int(child)))]


def _megabytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


if __name__ == "__main__":
    app.run(main)
