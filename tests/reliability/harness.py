"""Runs the real command line on malformed input, many times, and judges how each run ended.

A child is forked for every case from a process that has imported the libraries but not started JAX, so that a case
takes a second instead of ten. What the child does is what `python -m bert_jax.main …` does.
"""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 60  # after which a run counts as hanging
CANARY = "canary"  # a file that hostile content would make if it were executed


@dataclass(frozen=True)
class Case:
    """One command on one malformed input.

    `command` is the module ("main" or "convert") and its flags; it runs in a folder with copies of `needs`, parts of
    the world (`world.py`), after `spoil` has changed them. `accepts` says whether status 0 is a sensible end too.
    """

    group: str
    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    spoil: Callable[[Path], object] | None = None
    accepts: bool = False
    stdin: bytes = b""
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """`verdict` is "one line", "accepted", or what went wrong: "traceback", "not one line", "accepted although wrong",
    "hung", "status …", "destroyed …", "executed"."""

    case: Case
    verdict: str
    seconds: float
    output: str

    @property
    def is_good(self) -> bool:
        return self.verdict in ("one line", "accepted")


def run_cases(cases: Iterable[Case], world: Path, scratch: Path) -> Iterable[Outcome]:
    """Runs each case in a folder of its own under `scratch`, which is removed again if all went well."""
    import_libraries()
    for number, case in enumerate(cases):
        folder = scratch / str(number)
        outcome = run_case(case, world, folder)
        if outcome.is_good:
            make_removable(folder)
            shutil.rmtree(folder, ignore_errors=True)
        yield outcome


def run_case(case: Case, world: Path, folder: Path) -> Outcome:
    folder.mkdir(parents=True)
    for name in case.needs:
        source = world / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    shutil.copyfile(world / "hostile_module.py", folder / "hostile_module.py")
    if case.spoil is not None:
        case.spoil(folder)
    before = contents(folder)
    started = time.monotonic()
    status, output = fork_command(case, folder)
    seconds = time.monotonic() - started
    return Outcome(case, _verdict(case, status, output, folder, before), seconds, output)


def _verdict(case: Case, status: int | None, output: str, folder: Path, before: dict[Path, str]) -> str:
    if (folder / CANARY).exists():
        return "executed"
    after = set(contents(folder).values())  # a damaged checkpoint may have been moved aside
    lost = sorted(str(p) for p, digest in before.items() if digest_of(folder / p) != digest and digest not in after)
    # A run that succeeds may write to its own workdir, and prepare again what it cannot use.
    lost = [path for path in lost if status != 0 or not path.startswith(("run", "prepared/"))]
    if lost:
        return f"destroyed {lost[0]}"
    if status is None:
        return "hung"
    if "Traceback (most recent call last)" in output:
        return "traceback"
    if status == 0:
        return "accepted" if case.accepts else "accepted although wrong"
    if status not in (2, 130):  # 130: a config file that raises KeyboardInterrupt, as Ctrl-C does
        return f"status {status}"
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line.startswith("error: ") for line in lines]
    return "one line" if sum(errors) == 1 and errors[-1] else "not one line"


def contents(folder: Path) -> dict[Path, str]:
    """Returns what must still be there after a run: every file, link and special file, by its content."""
    return {path.relative_to(folder): digest_of(path) for path in sorted(folder.rglob("*")) if not path.is_dir()}


def digest_of(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if not path.exists():
        return "nothing"
    if not path.is_file():
        return f"special {path.stat().st_mode:o}"
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def import_libraries() -> None:
    """Imports what every command needs; JAX's backend must not be started before the fork."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="bert_jax_reliability_"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bert_jax.convert.conversion
    import bert_jax.inference.embeddings
    import bert_jax.inference.fill_mask
    import bert_jax.inference.predictor
    import bert_jax.lab.plots
    import bert_jax.main
    import bert_jax.tasks.classification
    import bert_jax.tasks.multiple_choice
    import bert_jax.tasks.pretraining
    import bert_jax.tasks.span_qa
    import bert_jax.tasks.tagging
    import bert_jax.training.loop  # noqa: F401


def fork_command(case: Case, folder: Path) -> tuple[int | None, str]:
    """Returns the exit status (None if the run did not end in time) and what came on standard error."""
    log = folder.with_suffix(".log")
    process = os.fork()
    if process == 0:
        _be_the_command(case, folder, log)
    status, deadline = None, time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, code = os.waitpid(process, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.01)
    else:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
    output = log.read_text("utf-8", "replace")
    log.unlink()
    return status, output


def _be_the_command(case: Case, folder: Path, log: Path) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        (folder.with_suffix(".in")).write_bytes(case.stdin)
        os.dup2(os.open(folder.with_suffix(".in"), os.O_RDONLY), 0)
        folder.with_suffix(".in").unlink()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), 2)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.environ.update(case.environment)
        _run(case.command)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # as the interpreter does with what nobody caught
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(command: Sequence[str]) -> None:
    """Ends the process, as the command does."""
    module, *arguments = command
    sys.path.insert(0, "")
    from bert_jax.command import run_command

    if module == "convert":
        from bert_jax.convert.__main__ import main
    else:
        from bert_jax.main import main
    sys.argv = [f"bert_jax.{module}", *arguments]
    run_command(main)


def make_removable(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
