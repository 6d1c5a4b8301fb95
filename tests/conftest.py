"""What every test runs under: eight virtual CPU devices, strict ranks and dtypes, checked shapes, and shared data where
it is at hand."""

import gc
import os
from importlib.metadata import version

# Most of the time of a test is compiling. The same program without LLVM's optimizations, and with XLA's older emitters
# of loops, which jaxlib 0.12 no longer has, takes a fifth of it: what is tested holds of any machine code. Tests marked
# optimized run in CI with BERT_JAX_TEST_CODE=optimized: what a user's machine runs.
QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
# Before the first import of jax, which reads both once.
if os.environ.get("BERT_JAX_TEST_CODE") != "optimized" and QUICK[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK]).strip()
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# The same small programs are compiled again and again, also by the processes that tests start: keep them for the
# length of the run. The folder is named by the run, so that parallel workers share it. A folder that the caller names
# in BERT_JAX_TEST_CACHE outlives the run: the next one then compiles only what changed.
_RUN = os.environ.setdefault("BERT_JAX_TEST_RUN", str(os.getpid()))
_CACHE = os.environ.get("BERT_JAX_TEST_CACHE") or os.path.join(tempfile.gettempdir(), f"bert_jax_tests_{_RUN}")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore # as inference/open.py, and for its reason

gc.set_threshold(50_000)  # as main.py, and for its reason

import hypothesis
import jax
import jaxtyping
import pytest

from tests import shapes

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# What is called for every record and pair is left out: there the checks take as long as the work.
EACH_RECORD = ("records", "pairs", "packing")
DATA = ("batching", "labelled", "text", "tokenizers")
ROOMS = ("inference", "lab", "models", "tasks", "training", *(f"data.{name}" for name in DATA))
PREPARATION = (path.stem for path in Path(__file__).parents[1].glob("bert_jax/data/pretraining/*.py"))
CHECKED = (*ROOMS, *(f"data.pretraining.{name}" for name in PREPARATION if name not in EACH_RECORD))
jaxtyping.install_import_hook([f"bert_jax.{name}" for name in CHECKED], f"{shapes.__name__}.checked")


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # of pytest-xdist, which counts tests; below, slow ones count more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, then those with the most: a long one at the end has a worker to itself."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


def pytest_unconfigure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")  # the other parallel workers may still be running
    if not is_worker and "BERT_JAX_TEST_CACHE" not in os.environ:
        shutil.rmtree(_CACHE, ignore_errors=True)


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """shared_data("sst2") → where `../shared/data/sst2.tar.xz` was unpacked; skips the test where there is none."""
    unpacked: dict[str, Path] = {}

    def folder(name: str) -> Path:
        archive = SHARED_DATA / f"{name}.tar.xz"
        if not archive.is_file():
            pytest.skip(f"needs shared data: no {archive.name} in ../shared/data beside the checkout")
        if name not in unpacked:
            target = tmp_path_factory.mktemp(name)
            with tarfile.open(archive) as file:
                file.extractall(target, filter="data")
            unpacked[name] = target
        return unpacked[name]

    return folder


class Look(NamedTuple):
    """What a browser without a network makes of a page."""

    result: Any  # of the script
    requests: list[str]
    messages: list[str]  # of the console, and errors


@pytest.fixture(scope="session")
def look() -> Callable[..., Look]:
    """look(path, script, width=1100, color_scheme="light") → `Look`; skips the test where there is no Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")

    def view(path: Path, script: str, width: int = 1100, color_scheme: str = "light") -> Look:
        requests, messages = [], []
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            context = browser.new_context(
                offline=True, color_scheme=color_scheme, viewport={"width": width, "height": 800}
            )
            page = context.new_page()
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.on("dialog", lambda dialog: messages.append(dialog.message))
            page.goto(path.resolve().as_uri())
            result = page.evaluate(script)
            browser.close()
        return Look(result, requests, messages)

    def view_in_a_thread(*arguments: Any, **options: Any) -> Look:  # the driver's event loop would stay in this one
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(view, *arguments, **options).result()

    return view_in_a_thread


@pytest.fixture(scope="session")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 70 short documents of English, one sentence a line, from Python's own help texts."""
    from pydoc_data.topics import topics

    documents = []
    for text in list(topics.values())[:70]:
        sentences = " ".join(text.split()).replace(". ", ".\n").splitlines()
        documents.append("\n".join(s for s in sentences[:30] if s.strip()))
    path = tmp_path_factory.mktemp("topics") / "topics.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def command_line() -> Callable[..., list[str]]:
    """command_line(config, workdir) → the words of a command that runs with this config."""

    def words(config, workdir: Path) -> list[str]:
        main = [sys.executable, "-m", "bert_jax.main", "--config=experiments/base.py:tiny", f"--workdir={workdir}"]
        groups = {name: keys for name, keys in config.to_dict().items() if isinstance(keys, dict)}
        return main + [
            f"--config.{group}.{key}={value}"
            for group, keys in groups.items()
            for key, value in keys.items()
            if value is not None
        ]

    return words


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows are packed 64 at a time instead of 1,024, which takes a second whenever rows are read; returns 64."""
    from bert_jax.data.pretraining import packing, pipeline

    for module in (packing, pipeline):
        monkeypatch.setattr(module, "ROWS_TOGETHER", 64)
    return 64


@pytest.fixture
def small_config(topics: Path, prepared_folder: Path):
    """A config that trains a step in milliseconds; the prepared data set is shared by the whole session."""
    from experiments.base import get_config

    config = get_config("tiny")
    config.model.update(hidden_size=32, num_attention_heads=2, intermediate_size=64)
    config.data.update(corpus="text", files=str(topics), prepared=str(prepared_folder), vocab_size=600, workers=1)
    config.data.update(sequence_length=32, max_predictions_per_sequence=5, validation_share=0.15, test_share=0.1)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2, decay_steps=100)
    config.train.update(steps=8, batch_size=16, log_every=2, peak_tflops=1.0)
    config.eval.update(every=4, batch_size=16)
    config.checkpoint.update(every=4)
    config.mesh.data = 1
    return config
