"""The files that start runs elsewhere: checked by their tools, and run with stand-ins for Slurm, gcloud, SkyPilot."""

import contextlib
import copy
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from bert_jax.serve.__main__ import _parser

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
JOBSETS = ("gke_jobset.yaml", "gke_jobset_gpu.yaml")
WORDS = ["--config=experiments/tiny.py", "--workdir=runs/a name", "--config.data.files=corpus/*.txt"]
PROGRAM = ["python", "-m", "bert_jax.main"]
PATIENCE = 400  # seconds for a run of two processes, on a machine that has other work
YAMLLINT = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"

# Starts the program twice, as Slurm does, and ends with the highest status of the two.
SRUN = """
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=2
for number in 0 1; do
  SLURM_PROCID=$number SLURM_LOCALID=$number "$@" &
  tasks+=($!)
done
echo "${tasks[@]}" > "$FAKES/tasks"
highest=0
for task in "${tasks[@]}"; do
  status=0
  wait "$task" || status=$?
  if [ "$status" -gt "$highest" ]; then highest=$status; fi
done
exit "$highest"
"""
# Runs a copy of the script elsewhere, and once more for each requeue.
SBATCH = """
cp "$1" "$FAKES/slurm_script"; shift
export SLURM_SUBMIT_DIR=$PWD
while true; do
  status=0
  (cd / && bash "$FAKES/slurm_script" "$@") || status=$?
  if [ ! -e "$FAKES/scontrol" ]; then exit "$status"; fi
  mv "$FAKES/scontrol" "$FAKES/requeued"
done
"""


def tool(name: str) -> str:
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return path or pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A virtual environment that is set up already, whose programs write down what they get: JAX's variable, words."""
    record = 'printf "%s\\n" "$JAX_COORDINATOR_ADDRESS" "$@" > "$FAKES/$(basename "$0")"\n'
    bin_folder = tmp_path / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("srun", "scontrol", "gcloud", "python"):
        fake(bin_folder / name, record)
    fake(bin_folder / "pip", "")
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    places = {"VENV": str(tmp_path / "venv"), "FAKES": str(tmp_path), "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    return os.environ | places | {"JAX_COORDINATOR_ADDRESS": "", "SLURM_JOB_ID": "7"}


@pytest.fixture
def two_processes(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same environment with the Python of this test, one device per process, and a Slurm that starts two."""
    fake(tmp_path / "venv" / "bin" / "python", f'exec {shlex.quote(sys.executable)} "$@"\n')
    fake(tmp_path / "venv" / "bin" / "srun", SRUN)
    fake(tmp_path / "venv" / "bin" / "sbatch", SBATCH)
    del environment["JAX_COORDINATOR_ADDRESS"]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # the last of two is meant
    return environment | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash_without_complaints(script: str):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    subprocess.run([tool("shellcheck"), "--external-sources", f"launch/{script}"], cwd=ROOT, check=True)


def test_yaml_files_are_tidy():
    subprocess.run([tool("yamllint"), "--strict", "-d", YAMLLINT, *LAUNCH.glob("*.yaml")], check=True)


class TestKubernetes:
    @pytest.mark.parametrize("name", JOBSETS)
    def test_the_jobs_of_a_jobset_fit_the_schema_of_kubernetes(self, name: str):
        kubernetes = pytest.importorskip("kubernetes_validate")
        job = job_of(name)
        kubernetes.validate(job, kubernetes.latest_version(), strict=True)
        misspelt = copy.deepcopy(job)
        misspelt["spec"]["template"]["spec"]["restartPolitic"] = "Never"
        with pytest.raises(kubernetes.ValidationError, match="restartPolitic"):
            kubernetes.validate(misspelt, kubernetes.latest_version(), strict=True)

    @pytest.mark.parametrize("name", JOBSETS)
    def test_its_words_are_ours_and_its_numbers_agree(self, name: str):
        from bert_jax.main import read_command

        spec = job_of(name)["spec"]
        [container] = spec["template"]["spec"]["containers"]
        assert read_command(container["args"])[0] == "train"
        assert "command" not in container  # the image's own, which prints the python command
        assert spec["parallelism"] == spec["completions"] > 1
        assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
        values = {variable["name"]: variable.get("value") for variable in container["env"]}
        if values["JAX_COORDINATOR_ADDRESS"] != "auto":
            jobset = load(name)
            [job] = jobset["spec"]["replicatedJobs"]
            first_pod = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
            assert values["JAX_COORDINATOR_ADDRESS"].partition(":")[0] == first_pod
            assert values["JAX_NUM_PROCESSES"] == str(spec["completions"])


class TestDocker:
    @pytest.mark.parametrize("name", ["Dockerfile", "serve.Dockerfile"])
    def test_the_dockerfiles_have_no_complaints(self, name: str):
        subprocess.run([tool("hadolint"), LAUNCH / name], check=True)

    def test_the_image_of_the_server_starts_it(self):
        """With flags that the server has, also those of the files that start it."""
        lines = (LAUNCH / "serve.Dockerfile").read_text().splitlines()
        [entry] = [json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith("ENTRYPOINT ")]
        assert entry[1:3] == ["-m", "bert_jax.serve"]
        service = load("serve.compose.yaml")["services"]["bert"]
        [unit] = [line for line in (LAUNCH / "serve.service").read_text().splitlines() if line.startswith("ExecStart=")]
        for words in ([*entry[3:], *service["command"]], unit.split()[3:]):
            flags, [model] = _parser().parse_with_names(words)
            assert model.endswith("runs/sst2") and flags["token_file"].endswith("/token")
        copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
        assert all((ROOT / word).exists() for word in copied)

    def test_what_it_copies_is_enough_to_install_and_to_start(self, tmp_path: Path, environment: dict[str, str]):
        image = tmp_path / "image"
        for line in (LAUNCH / "Dockerfile").read_text().splitlines():
            if line.startswith("COPY "):
                *sources, target = line.split()[1:]
                (image / target).mkdir(parents=True, exist_ok=True)
                for source in (path for pattern in sources for path in sorted(ROOT.glob(pattern))):
                    if source.is_dir():  # COPY takes what is in a folder
                        shutil.copytree(source, image / target, dirs_exist_ok=True)
                    else:
                        shutil.copy(source, image / target)
        for name in ("requirements.txt", "LICENSE", "README.md"):  # what setup.cfg reads
            assert (image / name).is_file()
        started = subprocess.run(
            ["bash", "launch/start.sh", *WORDS], cwd=image, env=environment, capture_output=True, text=True, check=True
        )
        assert commands(started.stdout) == [[*PROGRAM, *WORDS]]
        assert lines(tmp_path / "python") == ["", *PROGRAM[1:], *WORDS]
        check = "from bert_jax.main import read_command as read; read(['--config=experiments/base.py'])"
        subprocess.run([sys.executable, "-c", check], cwd=image, env=os.environ | {"PYTHONPATH": ""}, check=True)


class TestDryRun:
    """--dry_run prints the very command, and starts nothing: neither it nor an installation."""

    @pytest.mark.parametrize("script", ["slurm.sh", "start.sh"])
    def test_it_prints_the_python_command(self, script: str, environment: dict[str, str], tmp_path: Path):
        [printed] = self.dry_run(script, environment, tmp_path)
        assert printed[-len(PROGRAM + WORDS) :] == PROGRAM + WORDS

    def test_a_pod_prints_one_command_per_slice(self, environment: dict[str, str], tmp_path: Path):
        environment |= {"TPU": "my-0,my-1", "ZONE": "us-central2-b", "CHECKOUT": "/mnt/check out"}
        printed = sorted(self.dry_run("tpu_pod.sh", environment, tmp_path))
        assert [words[5] for words in printed] == ["my-0", "my-1"]
        for words in printed:
            on_host = shlex.split(words[-1].removeprefix("--command="))
            assert on_host[:2] == ["cd", "/mnt/check out"] and on_host[-len(PROGRAM + WORDS) :] == PROGRAM + WORDS

    def dry_run(self, script: str, environment: dict[str, str], tmp_path: Path) -> list[list[str]]:
        command = ["bash", LAUNCH / script, "--dry_run", *WORDS]
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["venv"]  # no stand-in was called
        return commands(done.stdout)


class TestSlurm:
    def test_it_starts_every_process_with_the_words_given(self, environment: dict[str, str], tmp_path: Path):
        environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "12"}
        script = shutil.copy(LAUNCH / "slurm.sh", tmp_path / "slurm_script")  # as Slurm does
        subprocess.run(["bash", script, *WORDS], env=environment, cwd="/", check=True)
        flags = ["--kill-on-bad-exit=0", "--wait=600", "--cpus-per-task=12"]
        assert lines(tmp_path / "srun") == ["auto", *flags, *PROGRAM, *WORDS]
        assert not (tmp_path / "scontrol").exists()
        del environment["SLURM_SUBMIT_DIR"]
        failed = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
        assert failed.returncode and "sbatch" in failed.stderr

    @pytest.mark.parametrize("restarts", [0, 10])
    @pytest.mark.parametrize("status", [0, 1, 2, 75, 134, 137, 143])
    def test_only_what_can_continue_returns_to_the_queue(
        self, status: int, restarts: int, environment: dict[str, str], tmp_path: Path
    ):
        fake(tmp_path / "venv" / "bin" / "srun", f"exit {status}\n")
        environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_RESTART_COUNT": str(restarts)}
        assert subprocess.run(["bash", LAUNCH / "slurm.sh", *WORDS], env=environment).returncode == status
        requeued = (tmp_path / "scontrol").exists() and lines(tmp_path / "scontrol")[1:]
        returns = status == 143 or (status == 75 and restarts < 10)
        assert requeued == (["requeue", "7"] if returns else False)

    @pytest.mark.slow
    def test_two_processes_are_preempted_and_continue(
        self, two_processes: dict[str, str], small_config, command_line: Callable[..., list[str]], tmp_path: Path
    ):
        make_small(small_config)
        small_config.train.steps = 40
        words = command_line(small_config, tmp_path / "run")[3:]
        two_processes["SLURM_JOB_ID"] = free_job()
        [job], [log] = started([["sbatch", "launch/slurm.sh", *words]], [two_processes], tmp_path)
        metrics = tmp_path / "run" / "metrics.jsonl"
        with ended([job]):
            while not metrics.is_file() or not metrics.stat().st_size:
                assert job.poll() is None, log.read_text()[-3000:]
                time.sleep(0.1)
            for task in (tmp_path / "tasks").read_text().split():
                os.kill(int(task), signal.SIGTERM)  # as Slurm does before it takes the nodes away
            assert job.wait(PATIENCE) == 0, log.read_text()[-3000:]
        assert lines(tmp_path / "requeued")[1:] == ["requeue", two_processes["SLURM_JOB_ID"]]
        text = log.read_text()
        assert text.count("+ srun ") == 2 and f"resuming {tmp_path / 'run'} at step" in text
        steps = [record["step"] for record in map(json.loads, lines(metrics)) if record["split"] == "train"]
        assert steps == sorted(set(steps)) and steps[-1] == 40


class TestTpu:
    def test_a_pod_runs_the_words_given_on_every_host(self, environment: dict[str, str], tmp_path: Path):
        environment |= {"TPU": "my-pod", "ZONE": "us-central2-b", "CHECKOUT": str(ROOT)}
        subprocess.run(["bash", LAUNCH / "tpu_pod.sh", *WORDS], env=environment, check=True)
        found = (tmp_path / "gcloud").read_text()
        assert found.startswith("\ncompute\ntpus\ntpu-vm\nssh\nmy-pod\n--zone=us-central2-b\n--worker=all\n--command=")
        hosts = {name: value for name, value in environment.items() if name != "VENV"}
        subprocess.run(["bash", "-c", found.partition("--command=")[2]], env=hosts, cwd="/", check=True)
        assert lines(tmp_path / "python") == ["auto", *PROGRAM[1:], *WORDS]

    def test_a_slice_that_fails_is_the_status_of_all(self, environment: dict[str, str], tmp_path: Path):
        fake(tmp_path / "venv" / "bin" / "gcloud", '[ "$5" = my-1 ] || exit 2\n')
        environment |= {"TPU": "my-0,my-1", "ZONE": "us-central2-b", "CHECKOUT": str(ROOT)}
        assert subprocess.run(["bash", LAUNCH / "tpu_pod.sh", *WORDS], env=environment).returncode == 2


class TestSkyPilot:
    @pytest.mark.parametrize("section", ["setup", "run"])
    def test_its_scripts_are_bash_without_complaints(self, section: str):
        command = [tool("shellcheck"), "--shell=bash", "--external-sources", "-"]
        subprocess.run(command, input=load("skypilot.yaml")[section], cwd=ROOT, text=True, check=True)

    @pytest.mark.slow
    def test_its_nodes_join_and_train(
        self, two_processes: dict[str, str], small_config, command_line: Callable[..., list[str]], tmp_path: Path
    ):
        make_small(small_config)
        words = command_line(small_config, tmp_path / "run")[3:]
        start, _, options = load("skypilot.yaml")["run"].replace("\\\n", "").partition("launch/start.sh")
        assert shlex.split(options)[0] == "--config=experiments/base.py"
        script = f"{start}launch/start.sh {shlex.join(words)}".replace("55527", str(free_port()))
        two_processes |= {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "SKYPILOT_NUM_NODES": "2"}
        environments = [two_processes | {"SKYPILOT_NODE_RANK": str(rank)} for rank in range(2)]
        nodes, logs = started([["bash", "-c", script]] * 2, environments, tmp_path)
        with ended(nodes):
            for node, log in zip(nodes, logs, strict=True):
                assert node.wait(PATIENCE) == 0, log.read_text()[-3000:]
                assert commands(log.read_text()) == [[*PROGRAM, *words]]
        assert json.loads(lines(tmp_path / "run" / "metrics.jsonl")[-1])["step"] == small_config.train.steps


def fake(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}")
    path.chmod(0o755)


def load(name: str) -> dict:
    return yaml.safe_load((LAUNCH / name).read_text())


def job_of(name: str) -> dict:
    """The job that JobSet makes of its only template; the schema of JobSet itself is no part of Kubernetes."""
    [replicated] = load(name)["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}} | replicated["template"]


def commands(printed: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("+ ")]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def free_job() -> str:
    """The number of a job from which JAX computes a port that is free."""
    for job in range(os.getpid() % 4096, 8192):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", job % 4096 + 61440)):
                return str(job)
    raise AssertionError("no port is free")


def make_small(config) -> None:
    """Lets the two programs of a run compile in seconds."""
    config.model.update(num_hidden_layers=1, hidden_dropout=0.0, attention_dropout=0.0)
    config.eval.every = config.checkpoint.every = 1_000
    config.eval.max_examples = 32
    config.mesh.data = -1


def started(
    jobs: list[list[str]], environments: list[dict[str, str]], folder: Path
) -> tuple[list[subprocess.Popen], list[Path]]:
    """Starts a command in each environment; returns the processes, each the first of its group, and their logs."""
    processes, logs = [], [folder / f"log{number}" for number in range(len(jobs))]
    for command, environment, path in zip(jobs, environments, logs, strict=True):
        with open(path, "w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        processes.append(process)
    return processes, logs


@contextlib.contextmanager
def ended(processes: list[subprocess.Popen]) -> Iterator[None]:
    """Ends what the processes started, whatever happens in between."""
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
