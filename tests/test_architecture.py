"""What holds of the package as a whole: the size of its files, the direction of its imports, one home for platforms."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "bert_jax").rglob("*.py"))
}
MOST_LINES = 350
# Data walks through the rooms in this order, and a room imports from those before it; serve and lab may use all.
ROOMS = ("data", "models", "tasks", "training", "inference", "convert")


def imported(path: Path, *, deferred: bool) -> set[str]:
    """Returns the modules of the package that a file imports when it is imported, or with `deferred` at any time."""
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    for node in ast.walk(tree) if deferred else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return found & set(MODULES)


def test_a_file_is_read_in_one_sitting():
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_import_goes_in_a_circle():
    graph = {name: imported(path, deferred=False) - {name} for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_rooms_import_from_those_before_them():
    for name, path in MODULES.items():
        room = name.split(".")[1] if name.count(".") > 1 else ""
        if room in ROOMS:
            later = {f"bert_jax.{one}" for one in (*ROOMS[ROOMS.index(room) + 1 :], "serve", "lab")}
            found = imported(path, deferred=False)
            assert not {one for one in found if ".".join(one.split(".")[:2]) in later}, name


def test_platforms_are_asked_for_in_one_file():
    asking = {name for name, path in MODULES.items() if re.search(r"\bdefault_backend\(", path.read_text("utf-8"))}
    assert asking <= {"bert_jax.backend"}
