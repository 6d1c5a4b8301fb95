"""What MkDocs does not do by itself for this site; mkdocs.yml names this file.

README.md is the front page, pages above docs/ have a place, notebooks are pages, formulas are MathML, Chinese pages
have Chinese controls, and a link to a file of the repository that the site does not have is plain text.
"""

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Of the repository → of the site. All other files of docs/ are where they are.
ABOVE = {"README.md": "index.md", "README.zh.md": "zh/index.md"}
ABOVE |= {name: name for name in ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")}
# What the pages of the API are about, in the order of the rooms.
ROOMS = {
    "bert_jax": ("bert_jax", "bert_jax.run", "bert_jax.experiment", "bert_jax.entries", "bert_jax.config"),
    "data": ("bert_jax.data",),
    "models": ("bert_jax.models",),
    "tasks": ("bert_jax.tasks",),
    "training": ("bert_jax.training",),
    "inference": ("bert_jax.inference",),
    "serve": ("bert_jax.serve",),
    "convert": ("bert_jax.convert",),
    "lab": ("bert_jax.lab",),
}
_CODE = re.compile(r"(^ *(?P<f>`{3,}).*?^ *(?P=f)[ \t]*$|`[^`\n]+`)", re.M | re.S)
_WIDE = "[\u3001-\u303f\u4e00-\u9fff\uff01-\uff60]"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_config(config: Any) -> Any:
    """Fills the sections of `nav` that depend on which files there are."""
    nav = {title: pages for section in config.nav for title, pages in section.items()}
    nav["Tutorials"] = [_page_of(path) for path in (*DOCS.glob("tutorials/README.md"), *_tutorials("en"))]
    nav["中文"] = ["zh/index.md", *(_page_of(path) for path in _tutorials("zh"))]
    nav["API"] = [{name: f"api/{name}.md"} for name in ROOMS]
    named = set(re.findall(r"[\w/]+\.md", json.dumps(config.nav)))
    others = [path.name for path in sorted(DOCS.glob("*.md")) if path.name not in named]
    nav["Guides"] = [*nav["Guides"], *others]
    config.nav = [{title: pages} for title, pages in nav.items() if pages]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not files of docs/."""
    from mkdocs.structure.files import File

    made = {target: (ROOT / source).read_text("utf-8") for source, target in ABOVE.items() if (ROOT / source).exists()}
    made |= {_page_of(path): _from_notebook(path) for path in DOCS.rglob("*.ipynb")}
    for name, modules in ROOMS.items():
        shallow = "\n    options:\n      show_submodules: false" if name == "bert_jax" else ""
        made[f"api/{name}.md"] = "\n\n".join([f"# {name}", *(f"::: {module}{shallow}" for module in modules)])
    for target, text in made.items():
        files.append(File.generated(config, target, content=text))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links of the repository into links of the site."""
    at = page.file.src_uri
    origin = next((source for source, target in ABOVE.items() if target == at), f"docs/{at}")

    def link(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        path, hash, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return found[0]
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        there = ABOVE.get(meant) or re.sub(r"\.ipynb$", ".md", meant.removeprefix("docs/"))
        if files.get_file_from_path(there) is None:
            if not (ROOT / meant).exists():
                return found[0]  # MkDocs warns
            if text == meant:
                return f"`{meant}`"
            return text if meant.startswith("docs/") or text.startswith("\0") else f"{text} (`{meant}`)"
        return f"{mark}[{text}]({posixpath.relpath(there, posixpath.dirname(at) or '.')}{hash}{anchor})"

    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f"\0{len(kept) - 1}\0"

    text = _LINK.sub(link, _CODE.sub(keep, markdown))
    text = re.sub(f"(?<={_WIDE})\n(?={_WIDE}|[*\\[])", "", text)  # Chinese has no spaces between words
    text = re.sub(r"\]\s?\[", lambda found: found[0].replace("[", r"\["), text)  # [MASK] [SEP] is no link
    return re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Makes MathML of formulas, which browsers draw without a script."""

    def formula(found: re.Match[str]) -> str:
        from html import unescape

        from latex2mathml.converter import convert

        display = "block" if found[2] == "[" else "inline"
        return f'<{found[1]} class="arithmatex">{convert(unescape(found[3]), display=display)}</{found[1]}>'

    return _FORMULA.sub(formula, html)


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """Chooses the language of the controls."""
    config.theme["language"] = "zh" if "zh/" in page.file.src_uri else "en"
    return context


def _tutorials(language: str) -> list[Path]:
    folder = DOCS / "tutorials" / language
    return sorted((*folder.glob("*.ipynb"), *folder.glob("*.md")), key=lambda path: path.name)


def _page_of(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix(".md").as_posix()


def _from_notebook(path: Path) -> str:
    """Returns a notebook as Markdown: prose, code, printed text and pictures."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else _fenced(text, "python") if text else "")
        for output in cell.get("outputs", ()):
            parts.append(_shown(output.get("data") or {"text/plain": output.get("text", "")}))
    return "\n\n".join(filter(None, parts)) + "\n"


def _shown(data: dict[str, Any]) -> str:
    for kind in ("image/svg+xml", "image/png"):
        if kind in data:
            content = "".join(data[kind]).strip()
            encoded = content if kind == "image/png" else base64.b64encode(content.encode()).decode()
            return f'<img alt="" src="data:{kind};base64,{"".join(encoded.split())}">'
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    return _fenced("".join(data.get("text/plain", "")).rstrip("\n"), "text")


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text}\n````" if text else ""
