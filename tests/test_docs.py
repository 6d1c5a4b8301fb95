"""README and docs/ name only what exists: files, folders, options, modes, links."""

import re
from pathlib import Path

import pytest

from bert_jax.modes import MODES
from bert_jax.options import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


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


def test_every_page_can_be_found_from_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in text, page.name
