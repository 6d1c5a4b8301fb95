"""What the pretraining step of BERT-base and BERT-large needs on machines that are not at hand, preset by preset.

    python benchmarks/compile.py --json=compile.json [--sizes=base,large] [--lengths=128,512] [--batch=256]
        [--topologies=v5e:2x4,v5e:4x4,v6e:4x4,v4:2x2x2,h100:8] [--presets=data,fsdp,fsdp_tensor]
    python benchmarks/compile.py --json=compile.json --table     prints the table of what is there

Every entry is compiled by a process of its own, the smallest first, and written to --json at once: the same command
continues where it was stopped, and entries that are there are not compiled again. Compilers of TPUs and of GPUs can be
in different environments: run one part from each, with the same file.
"""

import argparse
import itertools
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from bert_jax.config import UserError
from bert_jax.lab.compile import TRAINING, compiled, fits, mfu_bound
from bert_jax.lab.topology import GIB, Topology
from experiments import base

PREDICTIONS = {128: 20, 512: 76}  # masked tokens of a row: those of google-research/bert


def main() -> None:
    options = _options()
    entries: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    if not options.table:
        _fill(options, entries)
    print(table(entries))


def _fill(options: argparse.Namespace, entries: dict[str, Any]) -> None:
    wanted = itertools.product(options.sizes, options.lengths, options.topologies, options.presets)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for size, length, topology, preset in wanted:
        key = f"{size} {options.batch}×{length} {topology} {preset}"
        if key in entries:
            continue
        try:
            found = measure(size, options.batch, length, topology, preset)
        except UserError as error:
            found = {"error": str(error)}
        entries[key] = found | {"commit": commit, "jax": metadata.version("jax")}
        options.json.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"| {key.replace(' ', ' | ')} | {row(entries[key])} |", file=sys.stderr, flush=True)


def measure(size: str, batch: int, length: int, topology: str, preset: str) -> dict[str, Any]:
    """Compiles the training step of one entry."""
    config = base.get_config(size)
    config.train.batch_size, config.mesh.preset = batch, preset
    config.data.sequence_length = length
    config.data.max_predictions_per_sequence = PREDICTIONS.get(length, round(0.15 * length))
    machine = Topology.parse(topology)
    machine.check_installed()
    return compiled(config, machine, Path("none"), [TRAINING])[0]


def table(entries: dict[str, Any]) -> str:
    """Returns the entries as a table of Markdown."""
    lines = [
        "| model | rows | machine | preset | arguments | temporary | peak, GiB | collectives, MB | MFU ≤ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {key.replace(' ', ' | ')} | {row(found)} |" for key, found in entries.items()])


def row(found: dict[str, Any]) -> str:
    """Returns the cells of an entry behind its name."""
    if "memory" not in found:
        reason = found.get("error") or found.get("refused") or f"the compiler crashes: {found['crashed']}"
        return f"{reason} | | | |"
    memory = found["memory"]
    sizes = [f"{memory[name] / GIB:.2f}" if name in memory else "" for name in ("arguments", "temporary")]
    peak = "?" if memory["peak"] is None else f"{memory['peak'] / GIB:.2f}"
    peak = f"{peak} of {memory['available'] / GIB:.2f}"
    exchanged = [f"{x['count']} {kind} {x['bytes'] / 1e6:,.0f}" for kind, x in found["collectives"].items()]
    bound = mfu_bound(found.get("limits", {}))
    cells = [*sizes, peak if fits(found) else f"**{peak}**", ", ".join(exchanged)]
    return " | ".join([*cells, "" if bound is None else f"{100 * bound:.0f} %"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--json", type=Path, required=True, help="where the results are kept")
    parser.add_argument("--sizes", type=words, default=["base", "large"])
    parser.add_argument("--lengths", type=lambda text: [int(word) for word in words(text)], default=[128, 512])
    parser.add_argument("--batch", type=int, default=256, help="sequences per step")
    topologies = ["v5e:2x4", "v5e:4x4", "v6e:4x4", "v4:2x2x2", "h100:8"]
    parser.add_argument("--topologies", type=words, default=topologies)
    parser.add_argument("--presets", type=words, default=["data", "fsdp", "fsdp_tensor"])
    parser.add_argument("--table", action="store_true", help="print the table and compile nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
