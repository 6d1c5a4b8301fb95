"""The scripts that start runs elsewhere, with programs in place of srun and gcloud that write down what they get."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from bert_jax.config import UserError
from bert_jax.main import read_command

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
WORDS = ["--config=experiments/tiny.py", "--workdir=runs/a name", "--config.data.files=corpus/*.txt"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment that is set up already, and the two programs: each writes its arguments and JAX's variable."""
    record = f'#!/usr/bin/env bash\nprintf "%s\\n" "$JAX_COORDINATOR_ADDRESS" "$@" > "{tmp_path}/$(basename "$0")"\n'
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("srun", "gcloud", "python"):
        (folder / name).write_text(record)
        (folder / name).chmod(0o755)
    (folder / "activate").write_text(f'PATH="{folder}:$PATH"\n')
    (folder / "pip").write_text("#!/bin/sh\n")
    (folder / "pip").chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "VENV": str(tmp_path / "venv")}


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_scripts_are_bash_without_complaints(script: str):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--exclude=SC1091", LAUNCH / script], check=True)


def test_slurm_starts_every_process_with_the_words_given(environment: dict[str, str], tmp_path: Path):
    environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "JAX_COORDINATOR_ADDRESS": ""}
    copy = shutil.copy(LAUNCH / "slurm.sh", tmp_path / "slurm_script")  # as Slurm does
    subprocess.run(["bash", copy, *WORDS], env=environment, cwd="/", check=True)
    main = ["python", "-m", "bert_jax.main"]
    assert lines(tmp_path / "srun") == ["auto", "--kill-on-bad-exit=1", *main, *WORDS]
    del environment["SLURM_SUBMIT_DIR"]
    failed = subprocess.run(["bash", copy], env=environment, capture_output=True, text=True)
    assert failed.returncode and "sbatch" in failed.stderr


def test_a_pod_runs_the_words_given_on_every_host(environment: dict[str, str], tmp_path: Path):
    environment |= {"TPU": "my-pod", "ZONE": "us-central2-b", "CHECKOUT": str(ROOT), "JAX_COORDINATOR_ADDRESS": ""}
    subprocess.run(["bash", LAUNCH / "tpu_pod.sh", *WORDS], env=environment, check=True)
    found = (tmp_path / "gcloud").read_text()
    assert found.startswith("\ncompute\ntpus\ntpu-vm\nssh\nmy-pod\n--zone=us-central2-b\n--worker=all\n--command=")
    hosts = {name: value for name, value in environment.items() if name != "VENV"}
    subprocess.run(["bash", "-c", found.partition("--command=")[2]], env=hosts, cwd="/", check=True)
    assert lines(tmp_path / "python") == ["auto", "-m", "bert_jax.main", *WORDS]


def test_the_notebook_is_one_and_its_commands_have_our_flags():
    notebook = json.loads((LAUNCH / "colab.ipynb").read_text("utf-8"))
    assert notebook["nbformat"] == 4 and {"metadata", "nbformat_minor", "cells"} <= set(notebook)
    commands = []
    for cell in notebook["cells"]:
        assert set(cell) == {"cell_type", "metadata", "source"} | (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            compile(re.sub(r"^[!%].*$", "pass", source, flags=re.MULTILINE), "cell", "exec")
            commands += re.findall(r"^!python -m bert_jax\.main (.*)$", source, flags=re.MULTILINE)
    words = [shlex.split(command.replace("{RUNS}", "runs")) for command in commands]
    assert len(words) == 3
    for command in words:
        read_command(command)
    with pytest.raises(UserError, match=r"the nearest is --config.model.attention"):
        read_command([*words[0], "--config.model.atention=xla"])


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
