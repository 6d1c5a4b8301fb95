"""The pages of the tutorials: both languages say the same, and what they name is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "tutorials"
HERE = "tests/tutorials/test_wrong_statements.py"
NAMES = sorted(path.name for path in (PAGES / "en").glob("*.md"))
TEST = re.compile(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`")


def read(language: str, name: str) -> str:
    return (PAGES / language / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_structure_code_and_figures(name):
    english, chinese = read("en", name), read("zh", name)
    for pattern in (r"^#+(?: \d+\.)?", r"```.*?```", TEST.pattern):
        found = [re.findall(pattern, text, re.MULTILINE | re.DOTALL) for text in (english, chinese)]
        assert found[0] == found[1], pattern
    rows = [re.findall(r"^\|.*\|$", text, re.MULTILINE) for text in (english, chinese)]
    assert [[re.findall("`[^`]+`", row) for row in of] for of in rows[:1]] == [
        [re.findall("`[^`]+`", row) for row in of] for of in rows[1:]
    ]
    figures = [sorted(re.findall(r"\d+(?:\.\d+|e-\d+| ?%)", text)) for text in (english, chinese)]
    assert figures[0] == figures[1]
    assert not re.search("[一-鿿]", re.sub(r"`[^`]*`|```.*?```|\[[^\]]*\]\([^)]*\)", "", english, flags=re.DOTALL))
    prose = re.sub("```.*?```", "", chinese, flags=re.DOTALL)
    for section in re.split(r"^#", prose, flags=re.MULTILINE):
        assert not section.strip() or re.search("[一-鿿]", section), section


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for language in ("en", "zh"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", read(language, name)):
            assert (PAGES / language / target).exists(), target


def test_every_statement_names_tests_that_exist_and_check_something():
    page = read("en", "what_tutorials_get_wrong.md")
    statements = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    assert [statement.split(".")[0] for statement in statements] == [str(i + 1) for i in range(len(statements))]
    named = set()
    for statement in statements:
        assert "**Right:**" in statement
        tests = TEST.findall(statement)
        assert tests, statement
        for file, test in tests:
            assert test in checks(file or HERE), f"{file or HERE}::{test}"
            named.add((file or HERE, test))
    here = {(HERE, test) for test in checks(HERE)}
    assert here <= named, "a test that no statement names"


@cache
def checks(file: str) -> set[str]:
    """Returns the tests of a file that run in every environment and assert something."""
    found = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            code = ast.unparse(node)
            if (
                re.search(r"\bassert\b|assert_\w+\(|pytest\.raises|_assert_\w+\(", code)
                and "pytest.mark.skip\n" not in code
            ):
                found.add(node.name)
    return found
