"""Real processes of one run on this machine, as on a pod: each with devices of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from bert_jax.training.observer import LEDGER

ROOT = Path(__file__).resolve().parents[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Processes:
    """Processes of one command, started together. `variables` gives the environment of each, by its number; by default
    they are told of each other explicitly. Inside `with`: whatever happens, none of them is left."""

    def __init__(self, command, logs, count, devices_each=1, variables=None):
        port = free_port()
        self.logs = [Path(f"{logs}.{number}.log") for number in range(count)]
        self.started = []
        for number, log in enumerate(self.logs):
            devices = f"--xla_force_host_platform_device_count={devices_each}"  # the last of two is meant
            environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}"}
            if variables is not None:
                environment |= variables(number)
            elif count > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(number),
                }
            words = command(number) if callable(command) else command
            with open(log, "w") as output:
                self.started.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            process.kill()
            process.wait()

    def text(self, number=0):
        return self.logs[number].read_text(errors="replace")

    def wait(self, seconds=600):
        """Status of every process."""
        end = time.monotonic() + seconds
        return [process.wait(timeout=max(0.1, end - time.monotonic())) for process in self.started]

    def wait_for(self, words, number=0, seconds=600):
        """Returns when the output of a process contains these words."""
        end = time.monotonic() + seconds
        while words not in self.text(number):
            is_alive = time.monotonic() < end and all(process.poll() is None for process in self.started)
            assert is_alive, "\n\n".join(self.text(one)[-3000:] for one in range(len(self.logs)))
            time.sleep(0.05)

    def signal(self, number, name):
        self.started[number].send_signal(getattr(signal, name))


def finished(command, logs, count, devices_each=1, variables=None):
    """(status, output) of every process of one run, when all have ended."""
    with Processes(command, logs, count, devices_each, variables) as run:
        statuses = run.wait()
        return [(status, run.text(number)) for number, status in enumerate(statuses)]


def run(command, workdir, count, devices_each=1):
    """The metrics of one run, all of whose processes end with status 0."""
    for status, text in finished(command, workdir, count, devices_each):
        assert status == 0, text[-3000:]
    return metrics(workdir)


def metrics(workdir):
    """The lines of metrics.jsonl about the model; those about time differ from run to run."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] != LEDGER]


def module(*options):
    """The words of a command of bert_jax.main."""
    return [sys.executable, "-m", "bert_jax.main", *options]
