"""The tutorials: notebooks as their sources say, the same in both languages, and their code from top to bottom."""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[dev]'")
nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[dev]'")

from docs.tutorials import build
from experiments import tutorial

each_tutorial = pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.stem)
FIGURE = re.compile(r"\d[\d,.]*\d|\d")


@each_tutorial
def test_notebooks_are_what_the_source_says(source: Path):
    for language in build.LANGUAGES:
        stored, made = read(source, language), build.build(source, language)
        nbformat.validate(stored)
        assert [(cell.cell_type, cell.source) for cell in stored.cells] == [
            (cell.cell_type, cell.source) for cell in made.cells
        ], f"python docs/tutorials/build.py {source.stem}"
        assert stored.metadata["executed"] == build.code_hash(made), (
            f"python docs/tutorials/build.py --run {source.stem}"
        )


@each_tutorial
def test_both_languages_have_the_same_code_outputs_and_tables_of_figures(source: Path):
    english, chinese = (read(source, language) for language in build.LANGUAGES)
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in chinese.cells]
    for one, other in zip(english.cells, chinese.cells, strict=True):
        if one.cell_type == "code":
            assert one == other
        else:
            assert figures(one.source) == figures(other.source)
            assert code(one.source) == code(other.source)
            assert not re.search("[一-鿿]", prose(one.source)), "Chinese in the English notebook"
            assert re.search("[一-鿿]", prose(other.source)), "a cell that is not translated"


@each_tutorial
def test_it_says_what_it_needs_and_opens_in_colab(source: Path):
    for language, needs in zip(build.LANGUAGES, ("**Needs**", "**需要**"), strict=True):
        first = read(source, language).cells[0].source
        assert needs in first and "https://colab.research.google.com/github/" in first


def test_every_notebook_is_listed_and_has_a_source():
    index = (build.HERE / "README.md").read_text()
    wanted = {f"{language}/{source.stem}.ipynb" for language in build.LANGUAGES for source in build.sources()}
    assert {path.relative_to(build.HERE).as_posix() for path in build.HERE.glob("*/*.ipynb")} == wanted
    assert {name for name in wanted if f"({name})" not in index} == set()


def test_a_cell_that_is_not_translated_is_refused():
    build.cells("# %% [markdown] en\n# One.\n# %% [markdown] zh\n# 一。\n# %%\n1\n")
    for text in ("# %% [markdown] en\n# One.\n# %%\n1\n", "# %% [markdown] zh\n# 一。\n# %%\n1\n"):
        with pytest.raises(ValueError, match="followed by the same one in Chinese"):
            build.cells(text)
    with pytest.raises(ValueError, match="a cell is code, setup"):
        build.cells("# %% [markdown]\n# One.\n")


def test_outputs_are_small_and_name_no_folder_of_this_machine(tmp_path: Path):
    def check(**output: Any) -> None:
        build._check_output(nbformat.from_dict(output), tmp_path, "code")

    check(output_type="stream", text="fine")
    for text in ("x" * (build.MAX_TEXT + 1), f"wrote {tmp_path}/model", f"{build.ROOT}/experiments"):
        with pytest.raises(ValueError, match="an output"):
            check(output_type="stream", text=text)
    with pytest.raises(ValueError, match="bytes of picture"):
        check(output_type="display_data", data={"image/png": "AAAA" * build.MAX_PICTURE})


def test_the_town_praises_or_blames_and_never_mixes():
    rng = random.Random(0)
    sides = [set(tutorial.POSITIVE), set(tutorial.NEGATIVE)]
    for _ in range(200):
        words = set(re.findall(r"\w+", " ".join(tutorial.visit(rng))))
        assert sum(bool(side & words) for side in sides) == 1
        assert bool(sides[1] & words) == ("never" in words)
    assert tutorial.life(random.Random(1)) == tutorial.life(random.Random(1))


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorials")


@pytest.fixture(scope="module")
def kernel(where: Path) -> Iterator[Any]:
    """One kernel for all tutorials: JAX is imported once, and equal programs are compiled once."""
    first = nbclient.NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
    manager = first.create_kernel_manager()
    nbclient.util.run_sync(manager.start_kernel)(cwd=str(where), env=build.environment())
    yield manager
    nbclient.util.run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.slow
@pytest.mark.optimized
@each_tutorial
def test_the_code_runs_from_top_to_bottom(source: Path, where: Path, kernel: Any):
    notebook = build.build(source, "en")
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    build.execute(notebook, where, kernel)
    stored = [has_output(cell) for cell in build.code_cells(read(source, "en"))]
    assert [has_output(cell) for cell in build.code_cells(notebook)[1:]] == stored


def read(source: Path, language: str) -> Any:
    return nbformat.read(build.notebook_of(source, language), nbformat.NO_CONVERT)


def has_output(cell: Any) -> list[str]:
    """Returns the kinds of the outputs of a cell."""
    return [key for output in cell.outputs for key in output.get("data", {"text": 0})]


def figures(text: str) -> list[str]:
    """Returns the figures in the tables of a text."""
    return [figure for row in re.findall(r"^\|.*\|$", text, re.MULTILINE) for figure in FIGURE.findall(row)]


def code(text: str) -> list[str]:
    """Returns formulas, and code that stands alone."""
    return re.findall(r"\$\$.*?\$\$|```.*?```", text, re.DOTALL)


def prose(text: str) -> str:
    """Returns a text without code, and without what links show, which may name the other language."""
    return re.sub(r"```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)|\$[^$]*\$", "", text, flags=re.DOTALL)
