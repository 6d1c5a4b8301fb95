"""Raw text to a prepared dataset: speed, processor time, peak memory; beside it the original and Hugging Face Datasets.

    python benchmarks/prepare.py --files='corpus/enwiki2015/**/wiki_*,corpus/gutenberg/*___*.txt' \\
        [--workers=1,2] [--peers=original,datasets,beam] [--peer_share=0.1] [--subsets=0.25,0.5,1] [--rounds=3]

First the vocabulary is learned from the files, once for each share of them, and used by all. Then the variants take
turns on `peer_share` of the files (A B C A B C …): ours with each number of workers; the original's algorithm in plain
Python (create_pretraining_data.py: one process, dupe factor 5); `datasets.map` with the Rust tokenizer, as in
Transformers' run_mlm.py, with each number of processes; `beam` is data.runner=beam, with each number of processes of
Beam's DirectRunner. After that ours on each of the `subsets`.

Each run is a process of its own that writes into a temporary folder. Its seconds begin after the imports and hold all
else: reading, workers' start, writing. Memory is the sum over it and its workers of what each holds, shared pages
divided among them (PSS), looked at five times a second; of the original it includes sentences split beforehand. All of
our runs on the same files must write the same bytes. The last lines are ratios of MB/s, by processor time (that of
imports included) and by the clock: of the medians, and the range of rounds, each of which compares runs that came one
after the other.
"""

import argparse
import hashlib
import importlib.util
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import prepare_peers
from timing import Ratio, machine, ratio_to_best, run_in_scratch, spread

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.text.corpus import open_corpus
from bert_jax.data.text.text_files import find_files
from bert_jax.data.tokenizers.tokenizer import tokenizer_from_config
from bert_jax.heap import restart_with_kept_heap
from experiments import base

_EVERY = 0.2  # seconds between two looks at the memory
_COLUMNS = ("MB", "seconds", "cpu_seconds", "MB/s", "peak_MB", "tokens")

Run = dict[str, Any]
# files, kind of corpus, vocabulary, sequence length, workers, folder → seconds, token ids written
Variant = Callable[[str, str, Path, int, int, Path], tuple[float, int]]


def main() -> None:
    options = _options()
    run_in_scratch(options, compare)


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Prints a line a run and the ratios; gives {"machine", "runs", "ratios"}."""
    figures: dict[str, Any] = {"machine": machine(["tokenizers", "array_record", *_packages(options.peers)])}
    print("\n".join(f"{key}: {value}" for key, value in figures["machine"].items()))
    print(f"{'share':>6} {'variant':14}" + "".join(f"{name:>13}" for name in _COLUMNS), flush=True)
    files = find_files(options.files)
    runs: list[Run] = []
    vocabularies: dict[float, Path] = {}

    def run(name: str, variant: Variant, workers: int, share: float) -> None:
        part = _part(files, share)
        if share not in vocabularies:
            vocabularies[share] = scratch / f"vocabulary-{share}"
            report("vocabulary", share, _run(_vocabulary, part, options, vocabularies[share], 0))
        report(name, share, _run(variant, part, options, vocabularies[share], workers))

    def report(name: str, share: float, figures: Run) -> None:
        runs.append({"variant": name, "share": share, **figures})
        cells = "".join(f"{figures[column]:>13.6g}" for column in _COLUMNS)
        print(f"{share:>6g} {name:14}{cells}", flush=True)

    for _ in range(options.rounds):
        for name, variant, workers in _variants(options.workers, options.peers):
            run(name, variant, workers, options.peer_share)
    for share in options.subsets:
        for _ in range(options.rounds):
            for name, variant, workers in _variants(options.workers, []):
                run(name, variant, workers, share)
    _check(runs)
    return {**figures, "runs": runs, "ratios": _ratios(runs, options)}


def _variants(workers: Sequence[int], peers: Sequence[str]) -> list[tuple[str, Variant, int]]:
    variants: list[tuple[str, Variant, int]] = [(f"ours {number}", _ours, number) for number in workers]
    if "beam" in peers:
        variants += [(f"beam {number}", _beam, number) for number in workers]
    if "original" in peers:
        variants.append(("original", prepare_peers.original, 1))
    if "datasets" in peers:
        variants += [(f"datasets {number}", prepare_peers.datasets, number) for number in workers]
    return variants


def _ratios(runs: list[Run], options: argparse.Namespace) -> dict[str, Any]:
    """Prints speeds by share and the ratios on `peer_share`."""
    ratios: dict[str, Any] = {}
    for share in options.subsets:
        for workers in options.workers:
            chosen = [run for run in runs if run["share"] == share and run["variant"] == f"ours {workers}"]
            speeds, peaks = ([run[key] for run in chosen] for key in ("MB/s", "peak_MB"))
            print(f"share {share:g}, ours {workers}: {spread(speeds)} MB/s, peak {statistics.median(peaks):.0f} MB")
    turns: dict[str, list[Run]] = {}
    for run in runs:
        if run["share"] == options.peer_share:
            turns.setdefault(run["variant"], []).append(run)
    for workers in options.workers:
        ours = turns[f"ours {workers}"][: options.rounds]  # the share may be among the subsets, too
        for peer in ("original", f"datasets {workers}", f"beam {workers}"):
            if peer in turns:
                of = {key: _ratio(ours, turns[peer], peer, key) for key in ("cpu_seconds", "seconds")}
                ratios[f"ours {workers} / {peer}"] = {key: ratio._asdict() for key, ratio in of.items()}
                print(f"ours {workers} over {peer}: processor time {of['cpu_seconds']}; time {of['seconds']}")
    return ratios


def _ratio(ours: list[Run], theirs: list[Run], peer: str, key: str) -> Ratio:
    return ratio_to_best([run[key] for run in ours], {peer: [run[key] for run in theirs]})


def _check(runs: list[Run]) -> None:
    for share in {run["share"] for run in runs}:
        digests = {
            run["digest"] for run in runs if run["share"] == share and run["variant"].startswith(("ours", "beam"))
        }
        if len(digests) > 1:
            raise UserError(f"share {share}: not every run wrote the same bytes")


def _part(files: list[Path], share: float) -> list[Path]:
    """`share` of the files, spread evenly."""
    return [path for i, path in enumerate(files) if int((i + 1) * share) > int(i * share)]


def _run(variant: Variant, files: list[Path], options: argparse.Namespace, vocabulary: Path, workers: int) -> Run:
    """Links with a number before their name stand for the files, whose names may hold commas."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for index, path in enumerate(files):
            (folder / "corpus" / f"{index:06d}{path.suffix}").symlink_to(path.resolve())
        ours, theirs = context.Pipe(duplex=False)
        call = (f"{folder}/corpus/*", options.corpus, vocabulary, options.length, workers, folder)
        process = context.Process(target=_child, args=(theirs, variant, call))
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
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    return {**figures, "MB": megabytes, "MB/s": megabytes / figures["seconds"], "peak_MB": peak}


def _child(connection: Any, variant: Variant, call: tuple[str, str, Path, int, int, Path]) -> None:
    import tensorflow_datasets  # noqa: F401 (the import is not timed)

    seconds, tokens = variant(*call)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    digest = hashlib.blake2b(digest_size=16)
    for shard in sorted((call[-1] / "prepared").glob("*/*.array_record-*")):
        digest.update(shard.read_bytes())
    connection.send(
        {
            "seconds": seconds,
            "tokens": tokens,
            "cpu_seconds": sum(used.ru_utime + used.ru_stime for used in usage),
            "digest": digest.hexdigest(),
        }
    )


def _vocabulary(files: str, kind: str, vocabulary: Path, length: int, workers: int, folder: Path) -> tuple[float, int]:
    data = base.get_config().data
    data.corpus, data.files = kind, files
    started = time.perf_counter()
    tokenizer = tokenizer_from_config(data, open_corpus(data))
    tokenizer.save(vocabulary)
    return time.perf_counter() - started, 0


def _ours(
    files: str, kind: str, vocabulary: Path, length: int, workers: int, folder: Path, runner: str = "local"
) -> tuple[float, int]:
    data = base.get_config().data
    data.runner = runner
    if runner == "beam" and workers > 1:
        data.beam_options = f"--direct_num_workers={workers} --direct_running_mode=multi_processing"
    data.corpus, data.files, data.sequence_length, data.workers = kind, files, length, workers
    data.vocab_file, data.prepared = str(vocabulary), str(folder / "prepared")
    started = time.perf_counter()
    prepared = prepare(data, 0, progress=False)
    seconds = time.perf_counter() - started
    return seconds, sum(counts["tokens"] for counts in prepared.manifest["splits"].values())


def _beam(files: str, kind: str, vocabulary: Path, length: int, workers: int, folder: Path) -> tuple[float, int]:
    import apache_beam  # noqa: F401 (the import is not timed)

    logging.disable(logging.INFO)  # Beam's own
    return _ours(files, kind, vocabulary, length, workers, folder, runner="beam")


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


def _packages(peers: Sequence[str]) -> list[str]:
    named = {"datasets": ["datasets", "transformers"], "beam": ["apache_beam"]}
    return [package for peer in peers for package in named.get(peer, [])]


def _options() -> argparse.Namespace:
    def numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [kind(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--files", required=True, help="paths and globs of the corpus, separated by commas")
    add("--corpus", default="text", choices=("text", "wikiextractor"), help="how we read the files [text]")
    add("--length", type=int, default=128, help="tokens a row [128]")
    add("--workers", type=numbers(int), default=[1, 2], help="numbers of processes [1,2]")
    add(
        "--peers",
        type=numbers(str),
        default=["original", "datasets"],
        help="of original, datasets, beam [original,datasets]",
    )
    add("--peer_share", type=float, default=0.1, help="of the files, for the comparison [0.1]")
    add("--subsets", type=numbers(float), default=[], help="shares of the files that only ours prepares, too []")
    add("--rounds", type=int, default=3, help="runs of each variant [3]")
    add("--json", default="", help="file for the figures")
    options = parser.parse_args()
    unknown = sorted({*options.peers} - {"original", "datasets", "beam"})
    if unknown:
        parser.error(f"--peers: {', '.join(unknown)} is none of original, datasets, beam")
    for package in _packages(options.peers):
        if importlib.util.find_spec(package) is None:
            parser.error(f"no {package}: pip install {package}, or --peers=original")
    return options


if __name__ == "__main__":
    restart_with_kept_heap()  # for all variants alike
    main()
