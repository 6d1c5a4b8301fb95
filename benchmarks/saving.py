"""What saving in the background costs: windows of training steps with and without a checkpoint, in turns.

    python benchmarks/saving.py [--size=mini] [--batch=32] [--steps=20] [--rounds=5] [--minutes=5] [--json=out.json]

Both windows take the same steps on the same batch. One begins with a save, as the loop makes it (all arrays are
checked, summed and copied, and written by threads while the steps continue), and ends when the checkpoint is on disk.
Take enough steps for a save to end among them; a warning says if it did not. The last lines are the extra seconds of a
save, and their share of the time with a save every `--minutes`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import in_turns, machine, spread

from bert_jax.heap import restart_with_kept_heap


def main() -> None:
    options = _options()
    described = machine(("jax", "orbax-checkpoint"))
    print("\n".join(f"{key}: {value}" for key, value in described.items()), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(options, Path(scratch))
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": described, "options": vars(options)} | figures) + "\n")


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Returns the seconds of each window and of each wait at the end of one with a save."""
    import jax

    from bert_jax.data.pretraining.prepare import prepare
    from bert_jax.sharding import to_mesh
    from bert_jax.tasks.pretraining import Pretraining
    from bert_jax.training import step as steps
    from bert_jax.training.checkpoint_format import not_finite
    from bert_jax.training.observer import Observer
    from bert_jax.training.programs import make_programs
    from bert_jax.training.saving import Checkpoints, alone_in
    from experiments.base import get_config

    config = get_config(options.size)
    config.data.prepared = str(scratch / "prepared")
    config.train.batch_size = options.batch
    task = Pretraining.over(config, prepare(config.data, config.data.seed))
    programs = make_programs(task, config, Observer())
    held = [steps.init_state(task, programs.optimizer, 0, programs.mesh)]
    batches = task.train_batches(0, 0, 1)
    batch = to_mesh(programs.mesh, next(batches))
    batches.close()
    checkpoints = Checkpoints(scratch / "run" / "checkpoints", config.checkpoint)
    waits: list[float] = []

    def take() -> None:
        for _ in range(options.steps):
            held[0], _ = programs.phases[0].launch(held[0], programs.constants, batch, programs.key)
        jax.block_until_ready(held[0])

    def take_with_save() -> None:
        assert not not_finite((held[0].parameters, held[0].optimizer))
        run = {"data": {}, "config": config.to_dict(), "task": {}, "history": [], "pending": [], "guard": {}}
        checkpoints.save(held[0], run, task.tokenizer, {})
        take()
        began = time.perf_counter()
        checkpoints.wait()
        waits.append(time.perf_counter() - began)

    with alone_in(scratch / "run"):
        take()
        take_with_save()
        times = in_turns({"plain": take, "with a save": take_with_save}, options.rounds)
        checkpoints.close()
    size = sum(x.nbytes for x in jax.tree.leaves(held[0])) / 1e6
    return _report(options, {name: found.wall for name, found in times.items()}, waits[1:], size)


def _report(options: argparse.Namespace, seconds: dict[str, list[float]], waits: list[float], size: float) -> dict:
    for name, found in seconds.items():
        print(f"{name:12} {spread(found)} s for {options.steps} steps")
    if statistics.median(waits) > 0.05 * statistics.median(seconds["plain"]):
        print("warning: the save did not end among the steps; take more of them (--steps)")
    extra = [saving - plain for plain, saving in zip(*seconds.values(), strict=True)]
    shares = [100 * each / (60 * options.minutes) for each in extra]
    print(f"a checkpoint of {size:.0f} MB costs {spread(extra)} s")
    print(f"a save every {options.minutes:g} minutes costs {spread(shares)} % of the time")
    return {"seconds": seconds, "waits": waits, "megabytes": size, "extra": extra, "percent": shares}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", default="mini", help="tiny, mini, small, medium, base or large")
    add("--batch", type=int, default=32, help="rows of 128 tokens")
    add("--steps", type=int, default=20, help="of a window")
    add("--rounds", type=int, default=5)
    add("--minutes", type=float, default=5.0, help="between two saves")
    add("--json", default="", help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with_kept_heap()
    main()
