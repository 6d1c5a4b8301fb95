"""The time of a student's step with and without its teacher, and the size and speed of what came out of it.

    python benchmarks/distilling.py steps --data=study_data [--student=3x256] [--steps=60]
    python benchmarks/distilling.py models --data=study_data runs/distilling/sst2_5000/*seed=0

`steps` prints the line SECONDS of experiments/studies/distilling.py for this machine: medians of `step_seconds` after
the first report. `models` prints parameters, bytes in float32, and the milliseconds of a sentence, alone and in batches
of 32, over the test texts of SST-2; models take turns, and the median of the rounds counts. Run both on a machine that
does nothing else.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from timing import in_turns, machine

import bert_jax
from bert_jax.config import UserError
from bert_jax.inference.open import open_model
from bert_jax.lab.study import plan
from bert_jax.lab.sweep.planning import resolve
from bert_jax.run import run
from bert_jax.training.metrics_log import read_metrics
from experiments.studies.distilling import get_study

_REPORTS = 6  # of a measured run; the first one has the compiler's time in it
_TEXTS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "models"))
    parser.add_argument("models", nargs="*", help="workdirs or checkpoints")
    parser.add_argument("--data", default="study_data")
    parser.add_argument("--student", default="2x128")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_intermixed_args()
    try:
        print("\n".join(machine(("jax", "numpy")).values()))
        if options.what == "steps":
            seconds = step_seconds(options.data, options.student, options.steps)
            print(f'SECONDS = {{"{options.student}": ({seconds["teacher"]:.2g}, {seconds["text"]:.2g})}}')
        else:
            compare(options.models, options.data, options.rounds)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def step_seconds(data: str, student: str, steps: int) -> dict[str, float]:
    """Returns the seconds of a step by what the student learns from."""
    study, found = get_study(f"{data},{student}"), {}
    first = [one for one in plan(study) if one.stage == "pretrain" and one.levels["seed"] == "0"]
    with tempfile.TemporaryDirectory() as scratch:
        for one, config in ((one, resolve(study, [one], Path(scratch))[one.key]) for one in first):
            config.train.update(steps=steps, log_every=max(1, steps // _REPORTS))
            config.eval.update(every=steps, max_examples=64)
            config.checkpoint.every, config.optimizer.warmup_steps = steps, 1
            folder = run(config, Path(scratch) / one.name).workdir
            times = [x["step_seconds"] for x in read_metrics(folder / "metrics.jsonl") if "step_seconds" in x]
            found[one.levels["learns from"]] = statistics.median(times[1:] or times)
    return found


def compare(models: list[str], data: str, rounds: int) -> None:
    """Prints a line for each model."""
    if not models:
        raise UserError("no model is named: give workdirs or checkpoints behind 'models'")
    rows = (Path(data) / "sst2_5000" / "test.jsonl").read_text().splitlines()[:_TEXTS]
    texts = [json.loads(row)["text"] for row in rows]
    loaded = {path: bert_jax.load(path, batch_size=32) for path in models}
    together = {path: lambda model=model: model.embed(texts) for path, model in loaded.items()}
    alone = {path: lambda model=model: [model.embed([text]) for text in texts[:64]] for path, model in loaded.items()}
    for tasks in (together, alone):
        for task in tasks.values():
            task()  # compiles
    batches, singles = in_turns(together, rounds), in_turns(alone, rounds)
    print("model\tparameters\tMB in float32\tms per sentence, alone\tms per sentence, in batches")
    for path in models:
        count = sum(x.size for x in open_model(path).parameters.values())
        one, many = (statistics.median(times[path].wall) for times in (singles, batches))
        print(f"{path}\t{count:,}\t{4e-6 * count:.3g}\t{1e3 * one / 64:.3g}\t{1e3 * many / len(texts):.3g}")


if __name__ == "__main__":
    main()
