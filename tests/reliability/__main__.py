"""Runs the malformed inputs and prints a table by class.

    python -m tests.reliability --scratch=/tmp/reliability [--every=10] [--group=checkpoints] [--results=results.jsonl]

Every case is one run of the real command line. Takes about an hour of one core for all of them.
"""

import argparse
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.reliability.cases import all_cases
from tests.reliability.harness import Outcome, run_cases
from tests.reliability.world import make_world


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the world and the runs")
    parser.add_argument("--every", type=int, default=1, help="run each n-th case [1]")
    parser.add_argument("--first", type=int, default=0, help="of each n, the one with this number [0]")
    parser.add_argument("--group", default="", help="run one class only")
    parser.add_argument("--name", default="", help="run cases only whose name has this in it")
    parser.add_argument("--results", type=Path, help="file for one JSON object per case")
    options = parser.parse_args()
    cases = [case for case in all_cases() if options.group in ("", case.group) and options.name in case.name]
    world = options.scratch / "world"
    if not world.is_dir():
        shutil.rmtree(options.scratch / "making", ignore_errors=True)
        make_world(options.scratch / "making").rename(world)
    shutil.rmtree(options.scratch / "runs", ignore_errors=True)
    outcomes = []
    results = options.results.open("w") if options.results else None
    for outcome in run_cases(cases[options.first :: options.every], world, options.scratch / "runs"):
        outcomes.append(outcome)
        if not outcome.is_good:
            print(f"{outcome.verdict}: {outcome.case}", flush=True)
            print("    " + "\n    ".join(outcome.output.strip().splitlines()[-3:])[:600], flush=True)
        if results:
            record = {"group": outcome.case.group, "name": outcome.case.name, "verdict": outcome.verdict}
            record |= {"seconds": round(outcome.seconds, 2), "output": outcome.output[-2000:]}
            results.write(json.dumps(record) + "\n")
            results.flush()
    print(table(outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns Markdown: one line per class with how its runs ended."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for outcome in outcomes:
        kind = (
            outcome.verdict
            if outcome.is_good
            else outcome.verdict.split(" ")[0].replace("accepted", "accepted wrongly")
        )
        kind = "accepted wrongly" if outcome.verdict.startswith("accepted although") else kind
        for group in (outcome.case.group, "all"):
            counts[group]["runs"] += 1
            counts[group][kind] += 1
    kinds = ["runs", "one line", "accepted"]
    kinds += sorted({kind for group in counts.values() for kind in group} - set(kinds))
    lines = ["| class | " + " | ".join(kinds) + " |", "|---|" + "---:|" * len(kinds)]
    lines += [
        f"| {group} | " + " | ".join(str(counts[group][kind]) for kind in kinds) + " |"
        for group in counts
        if group != "all"
    ]
    return "\n".join([*lines, "| **all** | " + " | ".join(str(counts["all"][kind]) for kind in kinds) + " |"])


if __name__ == "__main__":
    sys.exit(main())
