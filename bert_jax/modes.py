"""What `--mode` can be: each a function of (config, workdir, …) that can be called from a notebook as well.

Heavy imports are inside the functions, so that `--help` and a mistyped flag answer at once.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.command import say
from bert_jax.config import UserError
from bert_jax.inference.modes import blimp, embed, fill_mask, generate, predict, retrieve, score
from bert_jax.option import Value


def prepare(config: ConfigDict, workdir: Path, **_) -> int:
    """Text → vocabulary → prepared data set, or finds the one that is already there."""
    from bert_jax.run import start_run
    from bert_jax.tasks.pretraining_text import prepared_corpora

    if config.tasks:
        raise UserError("--mode=prepare is for one pretraining run; with several tasks --mode=train prepares first")
    for prepared in prepared_corpora(config, start_run(config, workdir)).values():
        for name in prepared.name.split("+"):
            logging.info("prepared: %s", Path(config.data.prepared) / name)
    return 0


def train(
    config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Value] | None = None, profile: int = 0, **_
) -> int:
    """Trains, or continues the run in the workdir; with `config.seeds` over 1, one run per seed."""
    from bert_jax.run import run

    if config.seeds > 1:
        if profile:
            raise UserError(f"--profile={profile} is for one run; leave it out, or set --config.seeds=1")
        from bert_jax.lab.seeds import train_seeds

        return train_seeds(config, workdir, run)
    result = run(config, workdir, overrides=overrides, profile=profile)
    if result.signal is not None:
        logging.warning("stopped at step %d, saved in %s; the same command continues", result.step, workdir)
    else:
        logging.info("done: %s", workdir)
    return result.status


def evaluate(config: ConfigDict, workdir: Path, *, checkpoint: str = "best", **_) -> int:
    """Prints the metrics of a checkpoint on the validation and test examples, and adds them to metrics.jsonl."""
    from bert_jax.inference.open import meant
    from bert_jax.run import evaluate_checkpoint, start_run
    from bert_jax.tasks import task_class
    from bert_jax.training.metrics_log import MetricsLog
    from bert_jax.training.processes import ends_with_the_others, together

    with ends_with_the_others():
        source = start_run(config, workdir)
        with together():
            task = task_class(config.task).with_data(config, source)
        found, step = evaluate_checkpoint(task, config, meant(workdir, config.init_from), checkpoint)
    log = MetricsLog(workdir, step, step, config=config)
    for split, evaluation in found.items():
        log.record(step, "eval" if split == "validation" else split, evaluation.metrics)
        if log.writes:
            say(f"{split}: " + ", ".join(f"{key} {value:.4f}" for key, value in evaluation.metrics.items()))
    log.close()
    return 0


def doctor(config: ConfigDict, workdir: Path, *, replay: int = 0, **_) -> int:
    """Prints what is well and what is wrong with a workdir, one line per item, and with `replay` takes so many steps of
    its run again. The config is the workdir's own. What needs your attention is an error."""
    from bert_jax.lab.doctor import examine

    wrong = 0
    for finding in examine(workdir):
        say(str(finding))
        wrong += finding.is_problem
    if wrong:
        raise UserError(f"{wrong} of the items above need your attention; each says what to do")
    if replay:
        from bert_jax.config import read_config
        from bert_jax.lab import replay as replaying
        from bert_jax.run import start_run
        from bert_jax.tasks import named_tasks
        from bert_jax.teaching import trained_task

        own = read_config(workdir / "config.json")
        foreign = [name for name in named_tasks(own) if "." in name and name not in named_tasks(config)]
        if foreign:
            raise UserError(
                f"the run's task is {foreign[0]}: --replay needs the --config of the run, which names it too"
            )
        task = trained_task(own, start_run(own, workdir))
        say(f"ok       replay: {replaying.replay(task, own, workdir, replay)}")
    return 0


def compile(config: ConfigDict, workdir: Path, *, topology: str, output: str = "-", **_) -> int:
    """Compiles the training and the evaluation step for a machine that need not be there, and says what they need."""
    if not topology:
        raise UserError("--mode=compile needs --topology, the machine to compile for, e.g. --topology=v5e:2x4")
    from bert_jax.lab.compile import compile_experiment

    return compile_experiment(config, workdir, topology, output)


MODES = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "fill_mask": fill_mask,
    "predict": predict,
    "generate": generate,
    "embed": embed,
    "score": score,
    "blimp": blimp,
    "retrieve": retrieve,
    "doctor": doctor,
    "compile": compile,
}
