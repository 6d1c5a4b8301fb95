"""Kills, signals, flipped bytes, full disks and lost permissions under a run, and a table of how it took them.

    python -m tests.reliability.faults --scratch=/tmp/faults [--kinds=kill,flip] [--number=3] [--seed=0]

A run survives a fault if the same command, typed again when the cause is removed, ends with the bits of a run that
nothing happened to, without having lost a finished checkpoint; and if the start that met the fault ended in time, with
a good end or with status 2 and one line. Full disks need the rights of root. Takes about ten minutes on two cores.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.reliability.harness import SECONDS, Case, _be_the_command, import_libraries, make_removable
from tests.reliability.world import _write_data, flags

STEPS, STOP = 24, 12  # of the whole run, and of the stopped one that is spoilt
GRACE = 15  # seconds between SIGTERM and the end
CLOCK = ("peak_bytes", "tokens_per_second", "sequences_per_second", "step_seconds", "mfu", "wait_share")
NUMBERS = {"kill": 50, "sigterm": 10, "flip": 20, "disk": 10, "permission": 12}
TITLES = {
    "kill": "SIGKILL at a random moment, while saving too",
    "sigterm": f"SIGTERM at a random moment, {GRACE} s of grace",
    "flip": "a flipped bit or a cut in a file of the workdir or of the data",
    "disk": "disk full",
    "permission": "permission lost",
}
# Every save is planned, so that most moments are during one; some are of steps that are not.
CONFIG = {
    "train__log_every": 1,
    "eval__every": 4,
    "checkpoint__every": 2,
    "checkpoint__keep": 3,
    "checkpoint__minutes": 0.002,
}


class Trial(NamedTuple):
    """One fault and what became of the run: "survived", or what went wrong."""

    kind: str
    name: str
    verdict: str
    output: str = ""


class End(NamedTuple):
    """How a start ended: status (None if it had to be killed), standard error, seconds."""

    status: int | None
    output: str
    seconds: float

    @property
    def problem(self) -> str:
        """What is wrong with this end; "" for success or one line."""
        if self.status is None:
            return "hung"
        if "Traceback (most recent call last)" in self.output:
            return "traceback"
        if self.status == 0:
            return ""
        lines = [line for line in self.output.splitlines() if line.strip()]
        errors = [line.startswith("error: ") for line in lines]
        return "" if self.status == 2 and sum(errors) == 1 and errors[-1] else f"status {self.status}, not one line"


class Faults:
    """The runs that the faults are compared with, in folders of `scratch`: `whole` and `stopped`."""

    def __init__(self, scratch: Path, seed: int):
        self.scratch, self.random = scratch, random.Random(seed)
        shutil.rmtree(scratch, ignore_errors=True)
        whole, stopped = scratch / "whole", scratch / "stopped"
        whole.mkdir(parents=True)
        _write_data(whole)
        import_libraries()
        import matplotlib.pyplot  # noqa: F401 — each run draws its curves

        self.check(self.start(whole, limit=10 * SECONDS))  # prepares the data and compiles
        shutil.rmtree(whole / "run")
        shutil.copytree(whole, stopped)
        self.check(self.start(stopped, steps=STOP, limit=10 * SECONDS))
        self.trained_at = 0.0
        self.check(self.start(whole, limit=10 * SECONDS, seen=whole / "run" / "checkpoints" / str(STEPS)))
        self.seconds = self.trained_at  # the pictures come after it
        self.bits, self.lines = bits(whole / "run"), lines(whole / "run")

    def check(self, end: End) -> None:
        if end.status != 0:
            raise AssertionError(f"a good command ended with {end.status}: {end.output[-2000:]}")

    def start(
        self,
        folder: Path,
        steps: int = STEPS,
        *,
        workdir: str = "run",
        after: tuple[float, Callable[[int], object]] | None = None,
        limit: float = SECONDS,
        unprivileged: bool = False,
        seen: Path | None = None,
    ) -> End:
        """Runs the command in a folder; `after` so many seconds something is done to its process. Notes when the path
        `seen` appears."""
        log = folder / "log"
        log.unlink(missing_ok=True)
        words = flags("pretraining", train__steps=steps, **CONFIG)
        words = tuple(f"--workdir={workdir}" if word.startswith("--workdir=") else word for word in words)
        began = time.monotonic()
        process = os.fork()
        if process == 0:
            if unprivileged:
                drop_privileges()
            _be_the_command(Case("faults", "run", ("main", *words)), folder, log)
        status = None
        while time.monotonic() - began < limit:
            done, code = os.waitpid(process, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(code)
                break
            if after is not None and time.monotonic() - began >= after[0]:
                after[1](process)
                after = None
            if seen is not None and seen.exists():
                self.trained_at, seen = time.monotonic() - began, None
            time.sleep(0.002)
        else:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
        return End(status, log.read_text("utf-8", "replace"), time.monotonic() - began)

    @contextlib.contextmanager
    def copy(self, source: str, name: str) -> Iterator[Path]:
        folder = self.scratch / name
        shutil.copytree(self.scratch / source, folder)
        try:
            yield folder
        finally:
            make_removable(folder)
            shutil.rmtree(folder)

    def verdict(
        self, folder: Path, workdir: str = "run", *, with_lines: bool = True, may_set_aside: bool = False
    ) -> str:
        """Types the command again and judges what the run has come to."""
        end = self.start(folder, workdir=workdir)
        if end.status != 0:
            return f"does not continue: {end.problem or end.output.strip().splitlines()[-1]}"
        if bits(folder / workdir) != self.bits:
            return "other bits"
        if with_lines and lines(folder / workdir) != self.lines:
            return "other metrics"
        return "lost a checkpoint" if (folder / workdir / "damaged").exists() and not may_set_aside else "survived"

    def kills(self, number: int) -> Iterator[Trial]:
        """Kills a run up to five times; each kill is a trial, judged by what the next start finds and by the end."""
        (self.scratch / "empty").mkdir(exist_ok=True)
        for path in (self.scratch / "whole").iterdir():
            if path.name not in ("run", "log"):
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, self.scratch / "empty" / path.name)
        while number > 0:
            with self.copy("empty", f"killed_{number}") as folder:
                names, problem = [], ""
                while number > 0 and len(names) < 5 and not problem:
                    before = finished(folder / "run")
                    moment = self.random.uniform(0.2, self.seconds)
                    end = self.start(folder, after=(moment, lambda process: os.killpg(process, signal.SIGKILL)))
                    problem = _resumed_elsewhere(end, before)
                    if end.status == 0:
                        break
                    names.append(f"after {moment:.2f} s, at {finished(folder / 'run') or 'no checkpoint'}")
                    number -= 1
                verdict = problem or self.verdict(folder)
                for name in names:
                    yield Trial("kill", name, verdict)

    def sigterms(self, number: int) -> Iterator[Trial]:
        for index in range(number):
            with self.copy("empty" if (self.scratch / "empty").exists() else "stopped", f"term_{index}") as folder:
                moment = self.random.uniform(0.2, self.seconds)
                stop = (moment, lambda process: os.kill(process, signal.SIGTERM))
                end = self.start(folder, after=stop, limit=moment + GRACE)
                # Before the run has begun, and after it has ended, SIGTERM does what it does to any process.
                good = end.status in (0, -signal.SIGTERM) or "the same command continues" in end.output
                bad = "not in time" if end.status is None else f"status {end.status}"
                yield Trial("sigterm", f"after {moment:.2f} s", self.verdict(folder) if good else bad, end.output)

    def flips(self, number: int) -> Iterator[Trial]:
        kinds = list(files_by_kind(self.scratch / "stopped").values())
        for index in range(number):  # spread evenly over the kinds, if there are more of them
            name = self.random.choice(kinds[index * max(len(kinds), number) // number % len(kinds)])
            with self.copy("stopped", f"flip_{index}") as folder:
                content = bytearray((folder / name).read_bytes())
                place = self.random.randrange(max(1, len(content)))
                cuts = index % 2 == 1
                if cuts or not content:
                    spoilt = bytes(content[:place])
                else:
                    content[place] ^= 1 << self.random.randrange(8)
                    spoilt = bytes(content)
                what = f"{'cut' if cuts else 'flip'} at {place} of {name}"
                original = (folder / name).read_bytes()
                (folder / name).write_bytes(spoilt)
                end = self.start(folder)
                verdict = end.problem
                if not verdict and end.status == 2 and (folder / name).is_file():
                    (folder / name).write_bytes(original)  # as from a backup
                is_log = name.endswith("metrics.jsonl")  # its numbers have no checksum
                yield Trial(
                    "flip",
                    what,
                    verdict or self.verdict(folder, with_lines=not is_log, may_set_aside="checkpoints" in name),
                    end.output,
                )

    def full_disks(self, number: int) -> Iterator[Trial]:
        for index in range(number):
            with self.copy("empty" if (self.scratch / "empty").exists() else "stopped", f"disk_{index}") as folder:
                size = self.random.randrange(60, 2500)  # kilobytes
                (folder / "disk").mkdir()
                options = f"size={size}k"
                subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / "disk")], check=True)
                try:
                    end = self.start(folder, workdir="disk/run")
                    before = finished(folder / "disk" / "run")
                    subprocess.run(["mount", "-o", "remount,size=100m", str(folder / "disk")], check=True)
                    verdict = end.problem or self.verdict(folder, "disk/run")
                    name = f"{size} KB, full after {before or 'no checkpoint'}" if end.status else f"{size} KB sufficed"
                    yield Trial("disk", name, verdict, end.output)
                finally:
                    subprocess.run(["umount", "-l", str(folder / "disk")], check=True)

    def lost_permissions(self, number: int) -> Iterator[Trial]:
        newest = f"run/checkpoints/{STOP}"
        before = ["run", "run/checkpoints", newest, f"{newest}/parameters", f"{newest}/run/metadata", "run/config.json"]
        before += ["run/metrics.jsonl", "run/lock", "run/tensorboard", "run/plots"]
        faults = [(name, mode, False) for name in before for mode in (0, 0o555)]
        faults = [f for f in faults if f[1] == 0 or (self.scratch / "stopped" / f[0]).is_dir()]
        self.random.shuffle(faults)
        faults = [("run/checkpoints", 0o555, True), ("run", 0, True), *faults]
        for index, (name, mode, is_late) in enumerate(faults[:number]):
            with self.copy("stopped", f"permission_{index}") as folder:
                path = folder / name
                usual = path.stat().st_mode & 0o777

                def lose(_: object = None, path: Path = path, mode: int = mode) -> None:
                    path.chmod(mode)

                if not is_late:
                    lose()
                moment = self.random.uniform(0.5, 0.9) * self.seconds
                end = self.start(folder, after=(moment, lose) if is_late else None, unprivileged=True)
                with contextlib.suppress(FileNotFoundError):  # a run that went well has deleted the checkpoint
                    path.chmod(usual)
                what = f"{name} {mode:03o}{' while it runs' if is_late else ''}"
                yield Trial("permission", what, end.problem or self.verdict(folder), end.output)


def _resumed_elsewhere(end: End, before: list[int]) -> str:
    """A start that resumed must have done so at the newest checkpoint that was finished."""
    found = re.search(r"resuming \S+ at step (\d+)", end.output)
    if found and int(found[1]) != max(before, default=-1):
        return f"resumed at {found[1]} though {before} were finished"
    return end.problem if end.status != -signal.SIGKILL else ""


def finished(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def bits(workdir: Path) -> dict[str, dict[str, int]]:
    """The checksums of the arrays of the last checkpoint, over all their bits."""
    run = json.loads((workdir / "checkpoints" / str(finished(workdir)[-1]) / "run" / "metadata").read_bytes())
    return {item: sums for item, sums in run["checksums"].items() if isinstance(sums, dict)} | {"step": run["step"]}


def lines(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in every if line["split"] != "ledger"]


def files_by_kind(folder: Path) -> dict[str, list[str]]:
    """Every kind of file of a run and its data, with the files of the kind; kinds have no numbers and hashes."""
    found: dict[str, list[str]] = {}
    for path in (*sorted((folder / "run").rglob("*")), *sorted((folder / "prepared").rglob("*"))):
        if path.is_file():
            name = str(path.relative_to(folder))
            found.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "#", name), []).append(name)
    return found


def drop_privileges() -> None:
    """Lets permissions count for this process though it is root's: without CAP_DAC_OVERRIDE and its like."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        data[0] &= ~(1 << capability)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def table(trials: list[Trial]) -> str:
    rows = ["| fault | tried | survived | lost |", "|---|---:|---:|---:|"]
    for kind, title in TITLES.items():
        of_kind = [trial for trial in trials if trial.kind == kind]
        survived = sum(trial.verdict == "survived" for trial in of_kind)
        if of_kind:
            rows.append(f"| {title} | {len(of_kind)} | {survived} | {len(of_kind) - survived} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the runs; it is emptied first")
    parser.add_argument("--kinds", default=",".join(NUMBERS), help=f"comma-separated [{','.join(NUMBERS)}]")
    parser.add_argument("--number", type=int, default=0, help=f"faults of each kind [{NUMBERS}]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults = Faults(options.scratch, options.seed)
    print(f"a run of {STEPS} steps takes {faults.seconds:.1f} s", flush=True)
    makers = {"kill": faults.kills, "sigterm": faults.sigterms, "flip": faults.flips, "disk": faults.full_disks}
    makers["permission"] = faults.lost_permissions
    trials = []
    for kind in options.kinds.split(","):
        for trial in makers[kind](options.number or NUMBERS[kind]):
            trials.append(trial)
            print(f"{trial.kind}: {trial.name}: {trial.verdict}", flush=True)
            if trial.verdict != "survived" and trial.output:
                print("    " + "\n    ".join(trial.output.strip().splitlines()[-3:])[:800], flush=True)
    print(table(trials))
    return 0 if all(trial.verdict == "survived" for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
