"""What `pip install bert_jax` would bring: built here, installed into an empty environment, used in another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import bert_jax

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """Sdist and wheel, which is made of the sdist alone."""
    pytest.importorskip("setuptools.build_meta", reason="needs setuptools, which builds the wheel")
    folder = tmp_path_factory.mktemp("source")
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, capture_output=True)
    if listed.returncode:
        pytest.skip("needs a checkout of git")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    _run([sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('dist')"], folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        file.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    _run([sys.executable, "-c", "import setuptools.build_meta as b; b.build_wheel('dist')"], unpacked)
    (wheel,) = (unpacked / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_archives_have_what_they_need(archives):
    sdist, wheel = archives
    assert sdist.name == f"bert_jax-{bert_jax.__version__}.tar.gz"
    assert wheel.name == f"bert_jax-{bert_jax.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bert_jax").rglob("*") if path.is_file()}
    data = {name for name in data if "__pycache__" not in name}  # Python files, pages, scripts, py.typed
    assert "bert_jax/py.typed" in data and "experiments/speedrun/records.json" in names
    assert data <= names and {name.split("/")[0] for name in names} == {
        "bert_jax",
        "experiments",
        f"bert_jax-{bert_jax.__version__}.dist-info",
    }
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"README.md", "docs/options.md", "tests/conftest.py", "launch/quickstart.sh", "CITATION.cff"} <= names


@pytest.mark.slow
def test_an_empty_environment(archives, topics, tmp_path):
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", "--no-compile"]
    _run([*pip, str(archives[1])], tmp_path)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # The dependencies are those of this environment, without its own bert_jax: .pth files that lie there are not read.
    paths = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
    (packages / "others.pth").write_text("\n".join(paths) + "\n")
    where = _run(
        [python, "-c", "import bert_jax, experiments; print(bert_jax.__file__, experiments.__file__)"], tmp_path
    )
    assert where.count(str(folder)) == 2

    command = str(folder / "bin" / "bert_jax")
    assert _run([command, "--version"], tmp_path) == f"bert_jax {bert_jax.__version__}\n"
    assert "first_look" in _run([command, "--help"], tmp_path)
    options = [f"--config.data.files={topics}", "--config.data.corpus=text", "--config.data.vocab_size=600"]
    options += ["--config.train.steps=2", "--config.train.batch_size=8", "--config.optimizer.warmup_steps=1"]
    options += ["--config.eval.every=2", "--config.eval.max_examples=8", "--config.eval.batch_size=8"]
    _run([command, "train", "--config=tiny", *options], tmp_path)
    assert (tmp_path / "runs" / "tiny" / "checkpoints" / "2").is_dir()
    filled = _run([command, "fill_mask", "--config=tiny", "--text=the [MASK] of it", *options], tmp_path)
    assert "the [MASK] of it" in filled


def _run(words: list[str], cwd: Path) -> str:
    names = ("PATH", "HOME", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: os.environ[name] for name in names if name in os.environ} | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
