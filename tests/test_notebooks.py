"""The notebooks for Colab: as they are stored, what their first cells refuse, and from top to bottom on a CPU."""

import configparser
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[dev]'")
nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[dev]'")

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("colab_pretrain.ipynb", "colab_finetune.ipynb")
INSTALL, DEVICE = 1, 2  # numbers of the code cells; 0 has the settings
OPTIONS = "--config.model.hidden_size=32 --config.model.num_attention_heads=2 --config.data.vocab_size=1000 "
OPTIONS += "--config.train.steps=6 --config.train.log_every=2 --config.eval.every=3 --config.checkpoint.every=3 "
OPTIONS += "--config.optimizer.warmup_steps=2 --config.eval.max_examples=64 --config.mesh.data=1"


@pytest.fixture(params=NAMES)
def notebook(request: pytest.FixtureRequest) -> Any:
    return read(request.param)


class TestAsStored:
    def test_it_is_valid_and_holds_no_outputs(self, notebook: Any):
        nbformat.validate(notebook)
        for cell in code_cells(notebook):
            assert cell.outputs == [] and cell.execution_count is None
            compile(cell.source, "cell", "exec")

    def test_the_first_cells_are_the_same_in_both(self):
        first, second = map(read, NAMES)
        for number in (INSTALL, DEVICE, DEVICE + 1):
            assert code_cells(first)[number].source == code_cells(second)[number].source

    def test_settings_are_fields_of_a_form(self, notebook: Any):
        settings = code_cells(notebook)[0]
        assert settings.metadata["tags"] == ["parameters"]
        assert all("  # @param " in line for line in settings.source.splitlines())
        assert settings.source.startswith('expected = "gpu"  # @param ["tpu", "gpu", "cpu"]')


class TestFirstCells:
    @pytest.fixture
    def kinds(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        """Files of devices that this machine has: one pattern may find something."""
        found: dict[str, str] = {}
        monkeypatch.setattr("glob.glob", lambda pattern: [found[pattern]] if pattern in found else [])
        return found

    def test_a_runtime_without_the_device_stops_before_anything_is_installed(self, notebook: Any, kinds: dict):
        for expected in ("tpu", "gpu"):
            with pytest.raises(AssertionError, match=f"this runtime has a cpu; .* expected = '{expected}'"):
                run_cell(notebook, INSTALL, expected=expected, repository="")

    def test_a_device_that_jax_does_not_find_stops_it(self, notebook: Any):
        for expected in ("tpu", "gpu"):
            with pytest.raises(AssertionError, match=r"JAX finds .*CpuDevice"):
                run_cell(notebook, DEVICE, expected=expected)
        run_cell(notebook, DEVICE, expected="cpu")

    @pytest.mark.parametrize(
        ("expected", "pattern", "extra"),
        [("tpu", "/dev/accel*", "tpu"), ("tpu", "/dev/vfio/[0-9]*", "tpu"), ("gpu", "/dev/nvidia[0-9]*", "cuda12")],
    )
    def test_it_installs_for_the_device_and_restarts(
        self, notebook: Any, kinds: dict, expected: str, pattern: str, extra: str, monkeypatch: pytest.MonkeyPatch
    ):
        calls: list[Any] = []

        class Shell:
            """A notebook's; its kernel is itself."""

            def do_shutdown(self, restart: bool) -> None:
                calls.append(restart)

        Shell.kernel = Shell()  # pyright: ignore[reportAttributeAccessIssue]
        kinds[pattern] = "/dev/device0"
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(subprocess, "run", lambda words, check: calls.append(words))
        monkeypatch.setattr("IPython.get_ipython", Shell)
        run_cell(notebook, INSTALL, expected=expected, repository="https://example.org/bert_jax")
        package = f"bert_jax[{extra}] @ git+https://example.org/bert_jax"
        assert calls == [[sys.executable, "-m", "pip", "install", "--quiet", package], True]
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        assert extra in setup["options.extras_require"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drive")


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> tuple[Path, Any]:
    """The workdir of the first notebook, and the notebook as it was executed."""
    return folder / "pretrained", execute("colab_pretrain.ipynb", folder, options=OPTIONS)


@pytest.mark.slow
@pytest.mark.optimized
def test_pretraining_draws_curves_and_fills_masks(pretrained: tuple[Path, Any]):
    workdir, executed = pretrained
    training, masks, _ = code_cells(executed)[-3:]
    assert "done, 6 steps" in printed(training) and "mlm_accuracy" in printed(training)
    assert len(pictures(training)) == 1
    assert printed(masks).count("[MASK]") == 2 and printed(masks).count("%") == 10
    assert steps(workdir) == [2, 3, 4, 6]


@pytest.mark.slow
@pytest.mark.optimized
def test_stopped_by_hand_and_disconnected_it_continues(tmp_path: Path):
    options = OPTIONS.replace("train.steps=6", "train.steps=60").replace("every=3", "every=1000")
    workdir = tmp_path / "pretrained"
    stopped = execute("colab_pretrain.ipynb", tmp_path, options=options, stop_after=workdir / "metrics.jsonl")
    saved = int(re.search(r"^signal, (\d+) steps", printed(code_cells(stopped)[-3]), re.MULTILINE)[1])
    assert 0 < saved < 60 and [path.name for path in (workdir / "checkpoints").iterdir()] == [str(saved)]
    executed = execute("colab_pretrain.ipynb", tmp_path, options=options)
    assert "done, 60 steps" in printed(code_cells(executed)[-3])
    assert steps(workdir) == list(range(2, 61, 2))  # as without the stop


@pytest.mark.slow
@pytest.mark.optimized
def test_fine_tuning_converts_trains_and_predicts(pretrained: tuple[Path, Any], folder: Path):
    rows = [
        {"review": f"the {word} function {i}", "stars": int(word == "good")}
        for i in range(8)
        for word in ("good", "bad")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    executed = execute(
        "colab_finetune.ipynb",
        folder,
        model=str(pretrained[0]),
        train=str(folder / "rows.jsonl"),
        validation=str(folder / "rows.jsonl"),
        text="review",
        label="stars",
        options="--config.train.batch_size=8 --config.eval.batch_size=8 --config.mesh.data=1",
    )
    start, training, predictions = code_cells(executed)[-3:]
    assert "wrote " in printed(start) and printed(start).count("%") == 5
    assert "done, 6 steps. Best: {" in printed(training) and len(pictures(training)) == 1
    assert all(line.startswith(("negative (", "positive (")) for line in printed(predictions).splitlines())
    assert printed(predictions).count("%") == 2


def read(name: str) -> Any:
    return nbformat.read(ROOT / "launch" / name, nbformat.NO_CONVERT)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run_cell(notebook: Any, number: int, **names: Any) -> None:
    exec(code_cells(notebook)[number].source, names)


def execute(name: str, folder: Path, stop_after: Path | None = None, **settings: Any) -> Any:
    """Returns the notebook, executed with these settings in place of its own on one CPU. The stop button is pressed
    once the file `stop_after` has content."""
    notebook = read(name)
    settings = {"expected": "cpu", "folder": str(folder)} | settings
    code_cells(notebook)[0].source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in settings.items())
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # the last of two is meant
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    client = nbclient.NotebookClient(notebook, timeout=400, kernel_name="python3")
    has_ended = threading.Event()

    def stop(file: Path) -> None:
        while not has_ended.wait(0.05):
            if file.is_file() and file.stat().st_size:
                os.kill(client.km.provisioner.pid, signal.SIGINT)
                return

    if stop_after is not None:
        threading.Thread(target=stop, args=(stop_after,), daemon=True).start()
    try:
        client.execute(cwd=str(folder), env=environment)
    finally:
        has_ended.set()
    return notebook


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def pictures(cell: Any) -> list[str]:
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


def steps(workdir: Path) -> list[int]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["split"] == "train"]
