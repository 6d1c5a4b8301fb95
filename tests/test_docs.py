"""README and docs/ name only what exists: files, folders, options, modes, links."""

import re
import runpy
from pathlib import Path

import pytest

import bert_jax
from bert_jax.modes import MODES
from bert_jax.options import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "SECURITY.md")), *GUIDES]
# The log tells of days on which files and options had other names.
CURRENT = [page for page in PAGES if page.name != "LOG.md"]
FOLDERS = ("bert_jax", "experiments", "launch", "benchmarks", "tests", "docs", "typings")
GROUPS = {name.partition(".")[0] for name in OPTIONS if "." in name}


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_files_and_folders_exist(page):
    text = page.read_text()
    rooms = {path.name for path in (ROOT / "bert_jax").iterdir() if path.is_dir()}
    for name in re.findall(r"`([\w./-]+\.(?:py|sh|ipynb|md)|[\w./-]+/)`", text):
        top = name.split("/")[0]
        if top in FOLDERS and "/" in name:
            assert (ROOT / name).exists(), name
        elif top in rooms and "/" in name:
            assert (ROOT / "bert_jax" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), (target, anchor)


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_options_and_modes_are_declared(page):
    text = page.read_text()
    named = re.findall(r"`([a-z_]+\.[a-z_]+)(?:=[^`]*)?`", text) + re.findall(r"--config\.([a-z_.]+)=", text)
    for name in named:
        if name.partition(".")[0] in GROUPS and not name.endswith(
            (".py", ".json", ".jsonl", ".txt", ".csv", ".safetensors", ".onnx")
        ):
            assert name in OPTIONS or name in ("model.my_option", "model.ckpt", "optimizer.state"), name
    assert set(re.findall(r"--mode=([a-z_]+)", text)) <= set(MODES)


def test_the_map_in_the_readme_has_every_folder():
    text = (ROOT / "README.md").read_text()
    for folder in FOLDERS:
        if folder != "bert_jax":
            assert f"`{folder}/`" in text, folder
    for room in (ROOT / "bert_jax").iterdir():
        if room.is_dir() and (room / "__init__.py").is_file():
            assert f"`bert_jax/{room.name}/`" in text, room.name


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_all_studies_are_counted_and_listed(readme):
    studies = {path.name for path in (ROOT / "experiments" / "studies").glob("*.py")} - {"__init__.py", "common.py"}
    [line] = [line for line in (ROOT / readme).read_text().splitlines() if line.startswith("| `experiments/studies/` ")]
    assert re.findall(r"\d+", line) == [str(len(studies))]
    assert set(re.findall(r"^\| `(\w+\.py)`", (ROOT / "docs" / "studies.md").read_text(), re.M)) == studies


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_every_page_can_be_found_from_the_readme(readme):
    text = (ROOT / readme).read_text()
    for page in GUIDES:
        assert f"docs/{page.name}" in text, page.name


def test_both_readmes_say_the_same():
    one, other = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))
    one, other = (re.sub(r"tutorials/(en|zh)/", "tutorials/", page) for page in (one, other))
    for pattern in (
        r"^```(\w*\n.*?)^```",  # code
        r"^(\|[^\n]*\|)$",  # rows of tables
        r"^(#+) ",  # headings
        r"\]\((?!README)([^)]+)\)",  # links and the picture
    ):
        found = [[_said(text) for text in re.findall(pattern, page, re.S | re.M)] for page in (one, other)]
        assert len(found[0]) > 5 or "\\w" in pattern
        for ours, theirs in zip(*found, strict=True):
            assert ours == theirs


def test_the_version_to_cite_is_the_version():
    assert f"\nversion: {bert_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_diagrams_are_those_of_the_code():
    for name, draw in runpy.run_path(str(ROOT / "docs" / "diagrams.py"))["DIAGRAMS"].items():
        drawn = (ROOT / "docs" / "images" / f"{name}.svg").read_text()
        assert drawn == draw(), "run python docs/diagrams.py"
        assert any(f"images/{name}.svg" in page.read_text() for page in GUIDES)


def _said(text: str) -> list[str]:
    """Returns what is the same in every language: code without its comments, or the code and the numbers of a text."""
    if "\n" in text:
        return [line for line in (re.sub(r"\s*#.*", "", line) for line in text.splitlines()) if line]
    if not text.startswith("|"):
        return [text]
    return re.findall(r"`[^`]+`", text) + sorted(re.findall(r"\d[\d,.]*\d|\d", re.sub(r"`[^`]+`", "", text)))


def _anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub and the site make of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)).lower().replace(" ", "-")
        for text in headings
    }
