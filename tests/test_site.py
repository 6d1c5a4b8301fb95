"""The site of README, docs/ and docstrings: built without warnings, whole, and sufficient to itself."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).resolve().parents[1]
TAGS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}  # what a browser loads


class Page(HTMLParser):
    """What a page loads, where it leads, and what can be led to."""

    def __init__(self, path: Path):
        super().__init__()
        self.language, self.loads, self.links, self.ids = "", [], [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given["id"]} if given.get("id") else set()
        if tag == "html":
            self.language = given.get("lang")
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in TAGS and given.get(TAGS[tag]) and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given[TAGS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml", "jieba"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


@pytest.mark.slow
def test_every_page_is_there(site, pages):
    expected = {path.with_suffix(".html").relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    expected |= {path.with_suffix(".html").relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.ipynb")}
    expected = {path.with_name("index.html") if path.name == "README.html" else path for path in expected}
    expected |= {Path(name) for name in ("index.html", "zh/index.html", "SECURITY.html", "api/models.html")}
    assert expected <= {path.relative_to(site) for path in pages}
    for path, page in pages.items():
        assert page.language == ("zh" if "zh" in path.relative_to(site).parts else "en"), path
    text = (site / "api" / "inference.html").read_text("utf-8")
    assert 'id="bert_jax.inference.loaded.LoadedModel.encode"' in text
    with_bert = (site / "api" / "bert_jax.html").read_text("utf-8")
    assert 'id="bert_jax.load"' in with_bert and "from a path to a model" not in with_bert


@pytest.mark.slow
def test_every_link_and_anchor_leads_somewhere(site, pages):
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            assert there.is_file(), (path.name, link)
            if anchor and there.suffix == ".html":
                assert unquote(anchor) in pages[there].ids or anchor == "__top", (path.name, link)


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        for address in page.loads:
            assert not re.match(r"https?:|//", address), (path.name, address)
            assert address.startswith("data:") or (path.parent / address.partition("?")[0]).exists(), address
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:|//)|@import", sheet.read_text("utf-8")), sheet


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_pages_in_a_browser(site, look, width, scheme):
    for name in ("index.html", "options.html") if width < 400 else ("zh/index.html",):
        seen = look(site / name, "document.documentElement.scrollWidth - innerWidth", width, scheme)
        assert seen.result <= 0 and seen.messages == [], name
        assert all(address.startswith(("file:", "data:", "blob:", "about:")) for address in seen.requests)


@pytest.mark.slow
def test_both_columns_of_a_comparison_are_in_sight(site, look):
    tables = "[...document.querySelectorAll('.md-typeset__scrollwrap')]"
    hidden = f"Math.max(...{tables}.map(x => x.scrollWidth - x.clientWidth))"
    for width in (390, 1300):
        assert look(site / "tutorials/en/from_transformers.html", hidden, width).result <= 0


SEARCH = """async () => {
    const field = document.querySelector("input.md-search__input")
    field.focus()
    field.value = "WORD"
    field.dispatchEvent(new Event("input", {bubbles: true}))
    field.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}))
    for (let i = 0; i < 100; i++) {
        await new Promise(resolve => setTimeout(resolve, 100))
        const found = [...document.querySelectorAll(".md-search-result__link")].map(link => link.getAttribute("href"))
        if (found.length) return found
    }
    return []
}"""


@pytest.mark.slow
@pytest.mark.parametrize(("word", "page"), [("warmup_steps", "options.html"), ("掩码", "zh/index.html")])
def test_the_search_needs_no_server(site, look, word, page):
    found = look(site / "index.html", SEARCH.replace("WORD", word)).result
    assert any(page in link for link in found), found
