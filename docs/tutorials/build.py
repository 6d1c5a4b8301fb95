"""Makes the notebooks of the tutorials, in English and Chinese, from one source each.

    python docs/tutorials/build.py                     # after a change of prose; outputs stay if the code is the same
    python docs/tutorials/build.py --run 03_classify   # executes the code, once for both languages

A source is sources/NN_name.py in the percent format. Cells begin with one of these lines:

    # %%                   code of both notebooks
    # %% [markdown] en     prose of the English notebook, each line behind "# "
    # %% [markdown] zh     prose of the Chinese notebook
    # %% setup             the cells of SETUP, with which every tutorial begins

`{colab}` in the prose becomes the line for Colab. Tutorials are executed in their order in `runs/tutorials`, where the
later ones find what the earlier ones trained.
"""

import argparse
import base64
import configparser
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LANGUAGES = ("en", "zh")
CHINESE = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef“”‘’…—]"
MAX_PICTURE = 30_000  # bytes
MAX_TEXT = 6_000  # characters of one cell's output
SETUP = """
# %% [markdown] en
# ## Set-up
#
# Runs are kept in `folder`, where later tutorials find them. If bert_jax is not installed, as in Colab, set
# `repository` to its address, as `git clone` takes it: it is installed, the runtime restarts, and you run all cells
# again.
# %% [markdown] zh
# ## 准备
#
# 训练结果都保存在 `folder` 里，后面的教程会直接使用。如果还没有安装 bert_jax（例如在 Colab 里），请把 `repository`
# 设成仓库地址（就是 `git clone` 后面写的那个地址）：程序会自动安装并重启运行时，之后请再运行一次全部单元格。
# %%
repository = ""  # @param {type: "string"}
folder = "bert_jax_tutorials"  # @param {type: "string"}
# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

from IPython import get_ipython

if importlib.util.find_spec("bert_jax") is None:
    assert repository, "bert_jax is not installed: set repository to its address"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"bert_jax @ git+{repository}"], check=True)
    print("Installed. The runtime restarts: run all cells again.")
    get_ipython().kernel.do_shutdown(restart=True)

folder = Path(folder)
folder.mkdir(parents=True, exist_ok=True)
"""
COLAB = {
    "en": "[Open in Colab]({url}){then}",
    "zh": "[在 Colab 中打开]({url}){then}",
}
# Where setup.cfg names no repository, Colab asks for it.
CHOOSE = {
    "en": " (enter the address of the repository, then choose `{path}`)",
    "zh": "（输入仓库地址，再选择 `{path}`）",
}


def sources() -> list[Path]:
    """Returns the sources in the order in which readers take them."""
    return sorted((HERE / "sources").glob("[0-9][0-9]_*.py"))


def notebook_of(source: Path, language: str) -> Path:
    """Returns where the notebook of a source lies."""
    return HERE / language / f"{source.stem}.ipynb"


def cells(text: str) -> list[tuple[str, str]]:
    """Returns (kind, content) of each cell of a source, where kind is "code" or a language. Raises ValueError for a
    cell of another kind, and for prose that lacks a language."""
    kinds = {"": "code", "setup": "setup"} | {f"[markdown] {language}": language for language in LANGUAGES}
    found: list[tuple[str, str]] = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        header, _, body = part.partition("\n")
        kind = kinds.get(header.strip(), "")
        if kind == "setup":
            found += cells(SETUP)
        elif kind:
            found.append((kind, body.strip() if kind == "code" else re.sub(r"^# ?", "", body.strip(), flags=re.M)))
        else:
            raise ValueError(f"# %%{header}: a cell is code, setup, or [markdown] in one of {', '.join(LANGUAGES)}")
    order = " ".join([*(kind for kind, _ in found), ""])
    if order.replace("en zh ", "").replace("code ", ""):
        raise ValueError("each cell of prose in English is followed by the same one in Chinese")
    return found


def build(source: Path, language: str) -> Any:
    """Returns the notebook of a source, without outputs."""
    made = []
    for kind, content in cells(source.read_text(encoding="utf-8")):
        if kind == "code":
            made.append(nbformat.v4.new_code_cell(content))
        elif kind == language:
            # A line break is shown as a space, which Chinese does not have.
            content = re.sub(rf"(?<={CHINESE})\n(?={CHINESE})", "", content)
            made.append(nbformat.v4.new_markdown_cell(content.replace("{colab}", _colab(source, language))))
    for number, cell in enumerate(made):
        cell.id = f"cell-{number:02}"
        if cell.source.startswith("repository = "):
            cell.metadata["tags"] = ["parameters"]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "colab": {"provenance": []}}
    return nbformat.v4.new_notebook(cells=made, metadata=metadata)


def code_hash(notebook: Any) -> str:
    """Returns what the outputs of a notebook depend on, besides the library."""
    text = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any, where: Path, kernel: Any = None) -> None:
    """Executes the code in the folder `where`, in a kernel that runs already or in one of its own, and keeps small
    outputs. Raises ValueError for an output that is too large or names a folder of this machine."""
    import nbclient

    client = nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", km=kernel, coalesce_streams=True)
    client.execute(cwd=str(where), env=environment())
    if kernel is not None and client.kc is not None:
        client.kc.stop_channels()  # a kernel of its own has ended with them
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.metadata.pop("execution", None)
        cell.execution_count = number
        cell.outputs = [_small(output) for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            _check_output(output, where, cell.source)


def environment() -> dict[str, str]:
    """Returns the environment of a kernel: this repository's packages, one device."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    # The last of two flags counts.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1".strip()
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "XLA_FLAGS": flags}


def write(source: Path, run: bool, where: Path) -> None:
    """Writes both notebooks of a source, with the outputs of a new execution or, where the code is the same, those they
    have."""
    made = {language: build(source, language) for language in LANGUAGES}
    digest = code_hash(made["en"])
    executed = None
    if run:
        where.mkdir(parents=True, exist_ok=True)
        execute(made["en"], where)
        executed = made["en"]
    elif notebook_of(source, "en").exists():
        executed = nbformat.read(notebook_of(source, "en"), nbformat.NO_CONVERT)
        executed = executed if executed.metadata.get("executed") == digest else None
    for language, notebook in made.items():
        if executed is not None:
            notebook.metadata["executed"] = digest
            for cell, done in zip(code_cells(notebook), code_cells(executed), strict=True):
                cell.outputs, cell.execution_count = done.outputs, done.execution_count
        nbformat.validate(notebook)
        notebook_of(source, language).parent.mkdir(exist_ok=True)
        text = nbformat.writes(notebook, ensure_ascii=False)
        notebook_of(source, language).write_text(text.rstrip() + "\n", encoding="utf-8")


def _colab(source: Path, language: str) -> str:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    path = notebook_of(source, language).relative_to(ROOT).as_posix()
    address = setup.get("metadata", "url", fallback="")
    if repository := re.match(r"https://github\.com/([^/]+/[^/]+)", address):
        url, then = f"https://colab.research.google.com/github/{repository[1]}/blob/main/{path}", ""
    else:
        url, then = "https://colab.research.google.com/github/", CHOOSE[language].format(path=path)
    return COLAB[language].format(url=url, then=then)


def _small(output: Any) -> Any:
    """Returns an output without what a reader does not see: the text that stands for a picture, and metadata."""
    if "data" in output:
        output.metadata = {}
        if "image/png" in output.data or "image/svg+xml" in output.data:
            output.data.pop("text/plain", None)
    if "execution_count" in output:
        output.execution_count = None
    return output


def _check_output(output: Any, where: Path, code: str) -> None:
    data = output.get("data", {})
    picture = len(base64.b64decode(data.get("image/png", ""))) + len(data.get("image/svg+xml", ""))
    text = output.get("text", "") + data.get("text/plain", "") + data.get("text/html", "")
    if picture > MAX_PICTURE or len(text) > MAX_TEXT:
        raise ValueError(f"an output has {picture} bytes of picture and {len(text)} characters:\n{code}")
    if any(str(folder) in text for folder in (where, ROOT)):
        raise ValueError(f"an output names a folder of this machine:\n{text}\n{code}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="tutorials, such as 03_classify; all without any")
    parser.add_argument("--run", action="store_true", help="execute the code")
    options = parser.parse_args(argv)
    known = {source.stem: source for source in sources()}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"there is no tutorial {unknown[0]}; there are {', '.join(known)}")
    for name, source in known.items():
        if name in (options.names or known):
            write(source, options.run, ROOT / "runs" / "tutorials")
            print(f"wrote {name} in {' and '.join(LANGUAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
