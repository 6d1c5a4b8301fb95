"""`--mode=compile`: whether an experiment fits a machine, what its devices exchange and how fast it could be there.

Programs are compiled by processes of their own (`programs.py`): what a compiler needs from the environment has to be
there before jax is imported, and a compiler that crashes takes its process with it.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.command import say
from bert_jax.config import Json, UserError
from bert_jax.files import write_atomically
from bert_jax.lab.topology import GIB, Topology

TRAINING, EVALUATION = "training step", "evaluation step"
PROGRAMS = (TRAINING, EVALUATION)

Overrides = dict[str, Any]  # {option: value}


def compile_experiment(config: ConfigDict, workdir: Path, topology_name: str, output: str = "-") -> int:
    """Prints what the programs of an experiment need on a machine, and what helps if that is too much; writes the same
    to `output` if it is a .json file. Raises UserError if they do not fit."""
    topology = Topology.parse(topology_name)
    topology.check_installed()
    if output != "-" and not output.endswith(".json"):
        raise UserError(f"--output={output}: --mode=compile writes .json; leave it out to print only")
    found = compiled(config, topology, workdir)
    first = found[0]
    say(f"{topology.name}: {first['devices']} × {first['kind']}, batches of {config.train.batch_size}")
    for program in found:
        say("\n".join(describe(program)))
    too_large = [program for program in found if not fits(program)]
    tried = [(overrides, one) for program in too_large for overrides, one in _try(config, topology, workdir, program)]
    if output != "-":
        variants = [{"options": overrides, **program} for overrides, program in tried]
        report = {"topology": topology.name, "programs": found, "variants": variants}
        write_atomically(Path(output), json.dumps(report, indent=1) + "\n")
    if too_large:
        raise UserError(_verdict(topology, too_large[0], tried))
    return 0


def compiled(config: ConfigDict, topology: Topology, workdir: Path, names: Sequence[str] = PROGRAMS) -> list[Json]:
    """Returns what each program needs, as `programs.compile_programs` says, or "crashed", how its compiler ended.

    Raises UserError for a config that cannot run on that machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, results, log = (Path(folder) / name for name in ("request.json", "results.jsonl", "log"))
        content = {"config": config.to_dict(), "topology": topology.name, "workdir": str(workdir)}
        request.write_text(json.dumps(content | {"programs": list(names)}), encoding="utf-8")
        logging.info("compiling for %s", topology.name)
        command = [sys.executable, "-m", "bert_jax.lab.programs", str(request), str(results)]
        environment = topology.environment(os.environ)
        package = str(Path(__file__).parents[2])  # a notebook may have found it elsewhere than in its folder
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), package]))
        with log.open("wb") as stream:
            status = subprocess.run(command, env=environment, stdout=stream, stderr=stream).returncode
        lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        last_words = log.read_text(encoding="utf-8", errors="replace")
    for line in lines:
        if "error" in line:
            raise UserError(line["error"])
        if "bug" in line:
            raise RuntimeError(line["bug"])
    return _finished(lines, status, last_words)


def _finished(lines: list[Json], status: int, log: str) -> list[Json]:
    """Returns one dict per program, from the lines of its beginning and of its end, of which a crash has no last."""
    found: dict[str, Json] = {}
    for line in lines:
        found.setdefault(line["program"], {}).update(line)
    if status > 0 or not (status or found):
        raise RuntimeError(f"the process that compiles ended with status {status}: {log[-2000:]}")
    if status == -signal.SIGKILL:
        raise UserError("the process that compiles was killed, as for want of memory; free some, or compile elsewhere")
    if status in (-signal.SIGTERM, -signal.SIGINT):
        raise UserError(f"the process that compiles was ended by {signal.Signals(-status).name}; start again")
    if status < 0:
        crash = f"{signal.Signals(-status).name}: {_last_line(log)}"
        if not found:
            raise UserError(f"the compiler crashed before the first program ({crash})")
        found[lines[-1]["program"]]["crashed"] = crash
    return list(found.values())


def _last_line(log: str) -> str:
    """Returns the line in which a compiler says why it ends the process, or else the last one before the stack."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4} ", line) or "Check failed" in line]
    plain = [line for line in lines if not re.match(r"(@|\*\*\*|PC:|#\d|\[|E\d{4} |https:)", line)]
    return (fatal or plain or lines or ["it printed nothing"])[0 if fatal else -1][:300]


def fits(program: Json) -> bool:
    memory = program.get("memory", {})
    return memory.get("peak") is not None and memory["peak"] <= memory["available"]


def describe(program: Json) -> Iterator[str]:
    """Yields lines about a program."""
    if "memory" not in program:
        yield f"{program['program']}: {_failure(program)}"
        return
    yield f"{program['program']}, compiled in {program['seconds']:.1f} s"
    memory = program["memory"]
    parts = [f"{name} {memory[name] / GIB:.2f}" for name in ("arguments", "temporary") if name in memory]
    verdict = "fits" if fits(program) else "DOES NOT FIT"
    yield "  GiB per device: " + ", ".join([*parts, f"{_peak(program)}: {verdict}"])
    exchanged = [f"{x['count']} {kind} ({x['bytes'] / 1e6:,.1f} MB)" for kind, x in program["collectives"].items()]
    if exchanged:
        yield "  exchanged per step: " + ", ".join(exchanged)
    if "limits" in program:
        yield f"  {_limits(program['limits'])}"


def mfu_bound(limits: dict[str, float]) -> float | None:
    """Returns the largest MFU that the slowest of the known limits allows, if they overlap without loss."""
    if "products" not in limits:
        return None
    return limits["products"] / max(seconds for name, seconds in limits.items() if name != "flops")


def _limits(limits: dict[str, float]) -> str:
    seconds = {name: value for name, value in limits.items() if name != "flops"}
    text = f"{limits['flops'] / 1e12:.4g} TFLOP per step"
    if seconds:
        text += "; at least " + ", ".join(f"{1e3 * value:.3g} ms of {name}" for name, value in seconds.items())
    bound = mfu_bound(limits)
    return text if bound is None else f"{text}: MFU is at most {100 * bound:.0f} %"


def _peak(program: Json) -> str:
    memory = program["memory"]
    peak = "unknown" if memory["peak"] is None else f"{memory['peak'] / GIB:.2f}"
    return f"peak {peak} of {memory['available'] / GIB:.2f}"


def _failure(program: Json) -> str:
    return f"the compiler crashed ({program['crashed']})" if "crashed" in program else f"refused ({program['refused']})"


def _try(config: ConfigDict, topology: Topology, workdir: Path, program: Json) -> Iterator[tuple[Overrides, Json]]:
    """Yields options that may help a program, and what it needs with them; prints both. Combinations are tried only if
    no single option is enough."""
    name, is_enough = program["program"], False
    say(f"{name}: what helps")
    for overrides in _variants(config, name):
        if is_enough and len(overrides) > 1:
            return
        flags = _flags(overrides)
        try:
            one = compiled(_changed(config, overrides), topology, workdir, [name])[0]
        except UserError as error:  # such as a batch that cannot be split further
            say(f"  {flags}: {error}")
            continue
        is_enough |= fits(one)
        result = f"{_peak(one)} GiB: {'fits' if fits(one) else 'too much'}" if "memory" in one else _failure(one)
        say(f"  {flags}: {result}")
        yield overrides, one


def _variants(config: ConfigDict, name: str) -> Iterator[Overrides]:
    """Yields options to try, the single ones first."""
    remat = {} if config.model.remat == "full" else {"model.remat": "full"}
    has_axes = any(config.mesh[axis] is not None for axis in ("data", "fsdp", "tensor"))
    fsdp = {} if has_axes or config.mesh.preset != "data" else {"mesh.preset": "fsdp"}
    if name == EVALUATION:
        halves = [{"eval.batch_size": config.eval.batch_size // n} for n in (2, 4)]
        yield from filter(None, [*halves, fsdp])
        return
    micro = [{"train.accumulation": config.train.accumulation * n} for n in (2, 4)]
    yield from filter(None, [remat, *micro, fsdp])
    both = remat | fsdp
    yield from (one for one in (both, both | micro[1]) if len(one) > 1)


def _changed(config: ConfigDict, overrides: Overrides) -> ConfigDict:
    changed = deepcopy(config)
    for option, value in overrides.items():
        group, _, key = option.partition(".")
        changed[group][key] = value
    return changed


def _flags(overrides: Overrides) -> str:
    return " ".join(f"--config.{name}={value}" for name, value in overrides.items())


def _verdict(topology: Topology, program: Json, tried: list[tuple[Overrides, Json]]) -> str:
    helping = [overrides for overrides, one in tried if fits(one) and one["program"] == program["program"]]
    remedy = "choose more or larger devices, or a smaller batch"
    if helping:
        remedy = f"it fits with {_flags(helping[0])}"
    if "memory" not in program:
        return f"{program['program']}: {_failure(program)}; {remedy}"
    return f"the {program['program']} does not fit {topology.name} ({_peak(program)} GiB per device): {remedy}"
