"""Where the figures of a run come from: `environment.json` in its workdir, an entry for every start that differs.

    {"starts": [{"time": …, "step": 0, "code": {…}, "packages": {…}, "machine": {…}, "devices": {…}, "data": {…}}]}

code      version of bert_jax, hash of its sources, commit, and hash of what was not committed ("" = nothing)
packages  versions of Python and of what has a part in the numbers
machine   system, processor, cores that the process may use, memory
devices   platform, kind and number, axes of the mesh, processes, and settings of XLA and JAX
data      hashes of the content of the data, and of the parameters that the run started from
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax

import bert_jax
from bert_jax.config import Json, UserError
from bert_jax.config import differences as differences_of
from bert_jax.files import write_atomically
from bert_jax.sharding import Mesh
from bert_jax.tasks.task import Task
from bert_jax.training.observer import Observer
from bert_jax.training.step import TrainState

ENVIRONMENT = "environment.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "tensorflow-datasets")
_PACKAGES += ("numpy", "ml_dtypes", "scipy", "scikit-learn", "tokenizers", "sentencepiece", "seqeval", "libtpu")
_SETTINGS = re.compile(r"XLA_FLAGS|LIBTPU_INIT_ARGS|JAX_(?!COMPILATION_CACHE|COORDINATOR|PROCESS|NUM_PROC)\w+")
_GROUPS = ("code", "packages", "machine", "devices", "data")
_ROOT = Path(bert_jax.__file__).parents[1]


class Provenance(Observer):
    """Writes the entry of a start once its data, devices and first state are known; only process 0 writes.

    `source` is a hash of the parameters that the run starts from, "" if it starts from scratch or continues.
    """

    def __init__(self, workdir: Path, source: str = ""):
        self.path, self.source = workdir / ENVIRONMENT, source

    def begin(self, task: Task, state: TrainState, mesh: Mesh) -> None:
        if jax.process_index() != 0:
            return
        entry = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "step": int(state.step)}
        entry |= code_and_packages() | {"machine": _machine(), "devices": _devices(mesh), "data": self.data_of(task)}
        starts = read_environments(self.path.parent)
        if starts and "init_from" in starts[-1].get("data", {}):  # a run that continues no longer reads it
            entry["data"].setdefault("init_from", starts[-1]["data"]["init_from"])
        if starts and not differences(starts[-1], entry):
            return
        try:
            write_atomically(self.path, json.dumps({"starts": [*starts, entry]}, indent=1, ensure_ascii=False) + "\n")
        except OSError as problem:
            reason = f"{self.path} cannot be written ({problem.strerror})"
            raise UserError(f"{reason}; remove the cause and start again") from problem

    def data_of(self, task: Task) -> dict[str, str]:
        """Returns hashes of what the run learns from."""
        data = {name: _short(digest) for name, digest in task.fingerprints().items()}
        return data | ({"init_from": self.source} if self.source else {})


def read_environments(workdir: Path) -> list[Json]:
    """Returns the entries of a workdir, the newest last; [] if there are none. Raises UserError for a damaged file."""
    path = workdir / ENVIRONMENT
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_bytes())["starts"] if path.is_file() else None
    except (ValueError, KeyError, TypeError, RecursionError):
        starts = None
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem.strerror}); restore its permissions") from None
    if not isinstance(starts, list) or not all(map(_is_entry, starts)):
        raise UserError(f"{path} is no list of environments; restore it, or move it away")
    return starts


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(group, {}), dict) for group in _GROUPS)


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """Returns (key, before, after) for what differs between two entries, time and step left out."""
    one, other = ({k: v for k, v in entry.items() if k not in ("time", "step")} for entry in (before, after))
    return differences_of(one, other)


def facts(entry: Mapping[str, object]) -> dict[str, str]:
    """Returns what a reader wants to know of an entry, {group and name: text}; data is left out, hashes are cut."""
    found = {}
    for group in ("code", "devices", "machine", "packages", *entry):
        content = entry.get(group)
        if group in ("time", "step", "data") or content is None:
            continue
        items = content.items() if isinstance(content, dict) else [("", content)]
        found |= {f"{group} {name}".strip(): str(value) for name, value in items if value not in ("", {}, None)}
    found.pop("code hash", None)
    if "code commit" in found:
        found["code commit"] = found["code commit"][:12]
        changes = found.pop("code changes", "")
        found["code changes"] = f"not committed: {changes[:12]}" if changes else "none"
    return found


@cache
def code_and_packages() -> Json:
    """Returns the groups "code" and "packages" of an entry, which need no device."""
    return {"code": _code(), "packages": {"python": platform.python_version()} | _versions()}


def digest_of(run: Mapping[str, Any]) -> str:
    """Returns a hash of the parameters of a checkpoint, by its `run` item."""
    return _short(json.dumps(run["checksums"]["parameters"], sort_keys=True))


def _code() -> dict[str, str]:
    sources = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(bert_jax.__file__).parent.rglob("*.py")):
        sources.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes() + b"\0")
    commit, changes = _commit()
    return {"version": bert_jax.__version__, "hash": sources.hexdigest(), "commit": commit, "changes": changes}


def _commit() -> tuple[str, str]:
    """Returns the commit of the checkout that this code is in and a hash of what was not committed of the code and the
    experiments; ("", "") where there is no checkout or no git."""
    if not (_ROOT / ".git").exists():
        return "", ""
    commit = _git("rev-parse", "HEAD").decode().strip()
    where = ("--", "bert_jax", "experiments")
    changed = _git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", *where)
    for name in _git("ls-files", "--others", "--exclude-standard", "-z", *where).split(b"\0"):
        path = _ROOT / os.fsdecode(name)
        changed += name + path.read_bytes() if name and path.is_file() else b""
    return commit, _short(changed) if changed else ""


def _git(*words: str) -> bytes:
    command = ["git", "-C", str(_ROOT), "-c", "core.fsmonitor=false", *words]
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # not installed, or somebody else's checkout
        return b""


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> Json:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    system = f"{os.uname().sysname} {os.uname().machine}"
    return {"system": system, "processor": _processor(), "cores": cores, "memory_gb": round(pages / 1e9, 1)}


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _devices(mesh: Mesh) -> Json:
    device = mesh.devices.flat[0]
    settings = {name: value for name, value in sorted(os.environ.items()) if _SETTINGS.fullmatch(name)}
    count, axes = mesh.devices.size, "×".join(map(str, mesh.devices.shape))
    kind = {"platform": device.platform, "kind": device.device_kind, "count": count, "mesh": axes}
    return kind | {"processes": len({one.process_index for one in mesh.devices.flat}), "settings": settings}


def _short(content: str | bytes) -> str:
    """Returns a hash of the content, or a short text itself."""
    if isinstance(content, str) and len(content) <= 64:
        return content
    data = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(data, digest_size=16).hexdigest()
