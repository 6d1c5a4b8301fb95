"""A teacher's logits on disk, so that it computes them once for rows that come again (`distillation.cache`).

    FOLDER/about.json    what the logits depend on besides the rows: the teacher, its task, dtype, devices and jax
    FOLDER/*.rows        records: hash of the rows of one item, checksum, number of values, values in float32

What is looked up is the content of the rows together with the shape of their batch, on which the last bits of a product
depend: a run computes the same bits whatever the cache held before. Those of a run without a cache can differ in the
last digits, since one program holds student and teacher there, and XLA fuses it otherwise. Each run appends to a file
of its own, so several may share a folder; a record that a kill cut off is computed again.
"""

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.config import Json, UserError
from bert_jax.data.batching.reader import TrainBatches
from bert_jax.files import write_atomically
from bert_jax.models.bert import Model
from bert_jax.sharding import Mesh, place, to_mesh
from bert_jax.tasks.task import Batch, Task

TAUGHT = "taught/"  # begins the names of the arrays that a batch gets: taught/<objective>/<number>
ABOUT = "about.json"
_HEAD = struct.Struct("<16sII")  # hash, CRC-32 of the values, their number
_NOT_SEEN = ("item_ids",)  # of a batch, whatever the model sees
_SHARE = 0.5  # of memory and of free disk that logits may take
HostBatch = dict[str, np.ndarray]
Layout = dict[str, tuple[int, ...]]  # name → shape of the array of a batch; each has rows for every group of rows


class TeacherCache:
    """The logits of one teacher by the content of rows, in memory and on disk."""

    def __init__(self, folder: Path, about: Mapping[str, object], teacher: "TeachersLogits"):
        """Raises UserError for a folder that cannot be used, that is another teacher's or no cache, or is damaged."""
        self.folder, self.teacher = folder, teacher
        self.known: dict[bytes, np.ndarray] = {}
        self.layouts: dict[str, Layout] = {}  # by the shapes of a batch
        self.computed = self.found = 0  # groups of rows
        self._lock, self._expected = threading.Lock(), 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_about(json.loads(json.dumps(about)))
            for path in sorted(folder.glob("*.rows")):
                self.known.update(_read(path))
            self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.rows"
        except OSError as problem:
            raise UserError(f"distillation.cache={folder} cannot be used ({problem.strerror}); name another") from None
        if self.known:
            logging.info("distillation.cache: %s has the teacher's logits of %d rows", folder, len(self.known))

    def expect(self, groups: int) -> None:
        """Says how many groups of rows will be asked for, so that the size can be refused before it is there."""
        self._expected = groups

    def with_logits(self, batch: HostBatch) -> HostBatch:
        """Returns the batch with the teacher's logits. Raises UserError if they would not fit the memory or disk."""
        with self._lock:  # the loop, and the thread that compiles ahead
            keys, shapes = _keys(batch)
            if shapes not in self.layouts:
                self.layouts[shapes] = {name: x.shape for name, x in self.teacher.shapes(batch).items()}
            layout = self.layouts[shapes]
            missing = sum(key not in self.known for key in keys)
            if missing:  # the whole batch: the same program as without the cache
                self._check_size(sum(math.prod(shape) for shape in layout.values()) // len(keys))
                found = self.teacher(batch)
                rows = np.concatenate([np.float32(found[name]).reshape(len(keys), -1) for name in layout], axis=1)
                self._append({key: row for key, row in zip(keys, rows, strict=True) if key not in self.known})
            self.computed, self.found = self.computed + missing, self.found + len(keys) - missing
            rows, start, arrays = np.stack([self.known[key] for key in keys]), 0, {}
            for name, shape in layout.items():
                size = math.prod(shape) // len(keys)
                arrays[name] = rows[:, start : start + size].reshape(shape)
                start += size
            return batch | arrays

    def log(self) -> None:
        if self.computed or self.found:
            logging.info("distillation.cache: %d rows were there, %d were computed", self.found, self.computed)

    def _check_about(self, about: Json) -> None:
        path = self.folder / ABOUT
        # Read once, and without the unfinished files of `write_atomically`: another run may be making the folder.
        names = {one.name for one in self.folder.iterdir() if not one.name.startswith(f".{ABOUT}.")}
        if ABOUT not in names:
            if names:
                raise UserError(f"distillation.cache={self.folder} holds something else; name a new folder")
            write_atomically(path, json.dumps(about, indent=1) + "\n")
            return
        try:
            saved = json.loads(path.read_bytes())
            differing = [name for name in about if saved.get(name) != about[name]]
        except (ValueError, AttributeError):
            raise UserError(f"{path} is damaged; delete the folder, which is made again") from None
        if differing:
            name = differing[0]
            raise UserError(
                f"distillation.cache={self.folder} is of another {name} ({saved.get(name)}, here {about[name]}); "
                "name another folder"
            )

    def _check_size(self, values: int) -> None:
        if self.known or not self._expected:
            return
        size, memory = 4 * values * self._expected, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for where, room in (("memory", memory), ("free disk", shutil.disk_usage(self.folder).free)):
            if size > _SHARE * room:
                raise UserError(
                    f"distillation.cache: the logits of {self._expected:,} rows take about {size / 1e9:.3g} GB, over "
                    f"half of the {where} of {room / 1e9:.3g} GB: leave the cache out"
                )

    def _append(self, rows: Mapping[bytes, np.ndarray]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(b"".join(_record(key, row) for key, row in rows.items()))
        except OSError as problem:
            raise UserError(
                f"{self._path} cannot be written ({problem.strerror}); free some space, and start again"
            ) from problem
        self.known.update(rows)


class TaughtBatches:
    """Batches of training with the teacher's logits, which know their position as the task's own do."""

    def __init__(self, batches: TrainBatches, cache: TeacherCache):
        self.batches, self.cache = batches, cache

    def __next__(self) -> HostBatch:
        return self.cache.with_logits(next(self.batches))

    def state(self) -> Json:
        return self.batches.state()

    def close(self) -> None:
        self.batches.close()
        self.cache.log()


class TeachersLogits:
    """Computes a teacher's logits for a host's batch, by the program that a student's step would contain."""

    def __init__(self, task: Task, model: Callable[[Any], Any], parameters: Mapping[str, object], mesh: Mesh):
        self.task, self.model, self.mesh = task, model, mesh
        self.parameters = place(mesh, dict(parameters))
        self._program = jax.jit(mesh.traced(self._logits), compiler_options=dict(mesh.backend.compiler_options))

    def __call__(self, batch: HostBatch) -> dict[str, np.ndarray]:
        return jax.device_get(self._program(self.parameters, to_mesh(self.mesh, batch)))

    def shapes(self, batch: HostBatch) -> Mapping[str, jax.ShapeDtypeStruct]:
        return jax.eval_shape(self._program, self.parameters, batch)

    def _logits(self, parameters, batch):
        return soft_targets(self.task, self.model(parameters), batch)


def soft_targets(task: Any, teacher: Model, batch: Batch) -> Batch:
    """Returns the logits that a student learns from, by names that begin with `TAUGHT`."""
    found = task.soft(task.outputs(teacher, batch, None), batch)
    return {f"{TAUGHT}{name}/{i}": one.values for name, parts in found.items() for i, one in enumerate(parts)}


def _keys(batch: HostBatch) -> tuple[list[bytes], str]:
    """Returns a hash for each group of rows, which are those of one item or of several that share a row, and the
    shapes of the batch."""
    groups = len(batch["item_ids"])
    names = sorted(batch.keys() - {*_NOT_SEEN})
    shapes = " ".join(f"{name}{batch[name].shape}" for name in names)
    parts = [np.ascontiguousarray(batch[name]).reshape(groups, -1).view(np.uint8) for name in names]
    whole = np.concatenate(parts, axis=1)
    return [hashlib.blake2b(row.tobytes(), digest_size=16, key=_short(shapes)).digest() for row in whole], shapes


def _short(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _record(key: bytes, row: np.ndarray) -> bytes:
    values = row.tobytes()
    return _HEAD.pack(key, zlib.crc32(values), len(row)) + values


def _read(path: Path) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yields the records of a file; the last one may have been cut off. Raises UserError for one that is damaged."""
    content, start = path.read_bytes(), 0
    while start + _HEAD.size <= len(content):
        key, checksum, count = _HEAD.unpack_from(content, start)
        values = content[start + _HEAD.size : start + _HEAD.size + 4 * count]
        if len(values) < 4 * count:
            return
        if zlib.crc32(values) != checksum:
            raise UserError(f"{path} is damaged at byte {start:,}: delete this file; its logits are computed again")
        yield key, np.frombuffer(values, np.float32)
        start += _HEAD.size + 4 * count


def digest_of(parameters: Mapping[str, object], config: str) -> str:
    """Returns a hash of parameters, whatever file they came from, and of the config that says how they are used."""
    found = hashlib.blake2b(config.encode(), digest_size=16)
    for name in sorted(parameters):
        x = np.asarray(parameters[name])
        found.update(f"{name} {x.dtype} {x.shape}\0".encode() + x.tobytes())
    return found.hexdigest()


def check_cached(student: Task, weights: Collection[str], layers: int, width: int) -> int:
    """Returns the number of a student's rows of training. Raises UserError if what it learns cannot be cached: states,
    for their size, and logits of rows that are new in every step."""
    task, tokens = student.config.task, student.config.data.sequence_length
    items = getattr(student, "items", {}).get("train", ())
    steps = student.config.train.steps * student.config.train.batch_size
    if states := [name for name in ("relations", "hidden") if name in weights]:
        size = 4e-9 * (len(items) or steps) * tokens * width * (3 if states == ["relations"] else 3 + layers + 1)
        raise UserError(
            f"distillation.cache holds logits; for distillation.{states[0]} it takes about {size:.3g} GB: set that to "
            "0, or leave the cache out"
        )
    if "soft" not in weights:
        raise UserError("distillation.cache holds logits, and distillation.soft is 0: leave the cache out")
    if not items or type(student).features is not Task.features:
        raise UserError(
            f"distillation.cache: the rows of task={task} are new in every step ({steps:,} in this run), so no logit "
            "is used twice: leave the cache out"
        )
    if student.plan.is_packed:  # type: ignore[attr-defined]
        text = "distillation.cache: texts that share a row come together in new ways in every epoch, so few logits are "
        logging.warning("%s", text + "used twice: set data.packing=False")
    return len(items)


def about(task: Task, parameters: Mapping[str, object], mesh: Mesh) -> Json:
    """Returns what a teacher's logits depend on besides the rows."""
    device = mesh.devices.flat[0]
    return {
        "teacher": digest_of(parameters, repr(task.bert_config)),
        "task": task.config.task,
        "dtype": task.bert_config.dtype,
        "devices": f"{mesh.size} {device.device_kind}",
        "jax": jax.__version__,
    }
