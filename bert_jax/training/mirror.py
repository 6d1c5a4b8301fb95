"""The copy of a run in a bucket, `checkpoint.mirror`: what a machine that has lost its disk continues from.

    <mirror>/checkpoints/<step>/…       the files of a checkpoint
    <mirror>/checkpoints/<step>.json    their names and sizes; written last and deleted first, so that it says "whole"
    <mirror>/config.json, …             the files of the workdir itself
    <mirror>/owner.json                 the run that writes here

A run works in its local folder, which has locks and renames; a thread copies every checkpoint that is finished.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from bert_jax.config import UserError
from bert_jax.data.text.buckets import Bucket, is_inside, is_whole
from bert_jax.files import write_atomically
from bert_jax.training.checkpoint import HIDDEN, steps
from bert_jax.training.processes import on_first_process, together

FILES = ("config.json", "metrics.jsonl", "environment.json")  # of a workdir, besides its checkpoints
_OWNER = "owner.json"  # also what a mirror is recognised by
_WHOLE = re.compile(r"checkpoints/(\d+)\.json")
_LOOK_SECONDS, _AGAIN_SECONDS = 2.0, 30.0  # between two looks for a finished checkpoint; after a failure


@contextlib.contextmanager
def mirrored(url: str, workdir: Path) -> Iterator[Callable[[], None]]:
    """Keeps the copy of a run in a bucket inside `with`, if there is a URL, and gives what to call before a checkpoint
    is saved: it raises UserError if another run has taken the mirror over. The first process of a run copies."""
    with contextlib.ExitStack() as held:
        mirror = None
        if url:
            with together():
                mirror = held.enter_context(Mirror(url, workdir)) if jax.process_index() == 0 else None
        yield (lambda: None) if not url else lambda: on_first_process(mirror.check if mirror else lambda: None)


class TakenOver(UserError):
    """Another run writes to the mirror."""


class Mirror:
    """The copy of one workdir. Inside `with`, every finished checkpoint is copied and every deleted one is deleted."""

    def __init__(self, url: str, workdir: Path):
        """Raises UserError, within a minute, if the bucket does not answer."""
        self.bucket, self.workdir = Bucket(url, "checkpoint.mirror"), workdir
        self.checkpoints = workdir / "checkpoints"
        self.mark = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "run": secrets.token_hex(8)}).encode()
        self.whole: dict[int, dict[str, int]] = {}  # step → files and sizes of the checkpoints that are there
        self._left_over: list[str] = []  # of copies that were cut off
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._copy_for_ever, name="mirror", daemon=True)
        self._taken_over: TakenOver | None = None

    def fetch(self) -> None:
        """Copies the checkpoints that the workdir lacks, if the mirror has a newer one than it. The workdir's lock must
        be held. Raises UserError."""
        with self._explained("cannot be read"):
            names = self.bucket.names()
            found = {int(match[1]): name for name in names if (match := _WHOLE.fullmatch(name))}
            self.whole = {step: _manifest(self.bucket.read(name), self.bucket.url) for step, name in found.items()}
            self._left_over = [name for name in names if not is_whole(name, names)]
            here = steps(self.checkpoints)
            if max(found, default=-1) <= max(here, default=-1):
                return
            missing = sorted(set(found) - set(here))
            logging.info(
                "copying %d checkpoints from %s, the newest of step %d", len(missing), self.bucket.url, max(found)
            )
            for step in missing:
                self._fetch_checkpoint(step)
            for name in FILES:
                if name in names:
                    write_atomically(self.workdir / name, self.bucket.read(name))

    def __enter__(self) -> "Mirror":
        """Fetches, and begins to copy as the owner of the mirror: another run that writes there ends. Raises UserError
        if the bucket cannot be read or written to."""
        self.fetch()  # first: what is older here must not replace what is newer there
        with self._explained("cannot be written to"):
            self.bucket.write(_OWNER, self.mark)
            self.bucket.remove(self._left_over)
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Copies what is left. Raises UserError if that fails, unless the run ends with an error of its own."""
        self._ended.set()
        self._thread.join()
        try:
            with self._explained("could not be written to: the run's last checkpoint is in its workdir only"):
                self._copy()
                self._copy_files()
        except UserError as problem:
            if kind is None:
                raise
            logging.warning("%s", problem)

    def check(self) -> None:
        """Raises TakenOver if another run has become the owner."""
        if self._taken_over is not None:
            raise self._taken_over

    def _copy_for_ever(self) -> None:
        wait = _LOOK_SECONDS
        while not self._ended.wait(wait):
            wait = _LOOK_SECONDS
            try:
                self._copy()
            except TakenOver as problem:
                self._taken_over = problem
                return
            except OSError as problem:
                wait = _AGAIN_SECONDS
                logging.warning("%s cannot be written to (%s); trying again", self.bucket.url, problem.strerror)

    def _copy(self) -> None:
        """Makes the mirror like the workdir. What is there and not here is deleted only if a newer one is here."""
        here = steps(self.checkpoints)
        surplus = [step for step in self.whole if step not in here and step < max(here, default=-1)]
        new = [step for step in here if step not in self.whole]
        if new or surplus:
            self._check_owner()
        for step in reversed(new):  # what matters is the newest one
            with contextlib.suppress(FileNotFoundError):  # an older one may be deleted before its turn
                self._copy_checkpoint(step)
        for step in surplus:
            self.bucket.remove([f"checkpoints/{step}.json"])
            self.bucket.remove(f"checkpoints/{step}/{name}" for name in self.whole.pop(step))

    def _copy_checkpoint(self, step: int) -> None:
        """Copies one checkpoint, from links to its files: the run may delete it meanwhile."""
        folder, hidden = self.checkpoints / str(step), self.checkpoints / f"{HIDDEN}copy-{step}"
        shutil.rmtree(hidden, ignore_errors=True)
        try:
            source = shutil.copytree(folder, hidden, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):
            if not folder.exists():
                raise FileNotFoundError(str(folder)) from None
            source = folder  # a file system without links
        try:
            files = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
            sizes = {name: path.stat().st_size for name, path in files.items()}
            self.bucket.put({f"checkpoints/{step}/{name}": path for name, path in files.items()})
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        self._copy_files()  # which have the lines up to this step
        self.bucket.write(f"checkpoints/{step}.json", json.dumps(sizes).encode())
        self.whole[step] = sizes
        logging.info("checkpoint %d is in %s", step, self.bucket.url)

    def _copy_files(self) -> None:
        self._check_owner()
        for name in FILES:
            if (self.workdir / name).is_file():
                self.bucket.write(name, (self.workdir / name).read_bytes())

    def _check_owner(self) -> None:
        if (owner := self.bucket.read(_OWNER)) != self.mark:
            raise TakenOver(
                f"{self.bucket.url} has been taken over by another run ({_described(owner)}): this one ends; give each "
                "run a checkpoint.mirror of its own"
            )

    def _fetch_checkpoint(self, step: int) -> None:
        hidden = self.checkpoints / f"{HIDDEN}{step}"
        shutil.rmtree(hidden, ignore_errors=True)
        files = {f"checkpoints/{step}/{name}": hidden / name for name in self.whole[step]}
        self.bucket.get(files)
        for (name, size), path in zip(self.whole[step].items(), files.values(), strict=True):
            if path.stat().st_size != size:
                raise UserError(
                    f"{self.bucket.url}/checkpoints/{step}/{name} has {path.stat().st_size:,} bytes and should have "
                    f"{size:,}; delete {self.bucket.url}/checkpoints/{step}.json to continue from the checkpoint before"
                )
        hidden.rename(self.checkpoints / str(step))

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            remedy = "check the network and your credentials, and start the same command again"
            raise UserError(f"checkpoint.mirror: {self.bucket.url} {what} ({problem.strerror}); {remedy}") from problem


def _manifest(content: bytes, url: str) -> dict[str, int]:
    """Returns names and sizes. They come from elsewhere: a name must stay in the checkpoint's folder."""
    try:
        sizes = {str(name): int(size) for name, size in json.loads(content).items()}
    except (ValueError, AttributeError, TypeError):
        sizes = {"": 0}
    for name in sizes:
        if not is_inside(name):
            raise UserError(f"{url} holds no copy of a run: its list of files names '{name}'; choose another folder")
    return sizes


def _described(owner: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(owner)
        return f"process {int(found['pid'])} on {found['host']}"
    return "which left no name"
