"""The door: flags to a mode.

    python -m bert_jax.main --config=experiments/base.py [--mode=MODE] [--workdir=DIR] [--config.NAME=VALUE …]

docs/options.md lists the options of a run, --config.NAME=VALUE. The exit status is 0 when the work is done, 2 for a
mistake that you can correct (one line), 75 when another process of the run, a device or a disk no longer answers, which
the same command continues, and 128 + n when signal n stopped the run, which the same command continues.
"""

import atexit
import gc
import os
from pathlib import Path

from ml_collections import ConfigDict

from bert_jax import modes
from bert_jax.command import Flags, Parser, run_command
from bert_jax.config import UserError
from bert_jax.experiment import load_experiment, override, split_argument
from bert_jax.heap import restart_with_kept_heap
from bert_jax.help import add_options, pages
from bert_jax.inference.glue_submission import FILES
from bert_jax.options import default_config


def main(argv: list[str]) -> int:
    """Calls a mode, with the flags that belong to it, and returns its exit status."""
    mode, config, workdir, options = read_command(argv)
    return modes.MODES[mode](config, workdir, **options)


def read_command(argv: list[str]) -> tuple[str, ConfigDict, Path, Flags]:
    """Returns mode, config, workdir and the mode's further arguments. Raises UserError for every mistake in them."""
    parser = _parser()
    flags, rest = parser.parse(argv)
    of_config = []
    for word, before in zip(rest, ["", *rest], strict=False):
        if word.startswith("--config.") or (before in of_config and "=" not in before and not word.startswith("--")):
            of_config.append(word)  # --config.NAME=VALUE, or --config.NAME VALUE
        else:
            parser.refuse(word)
    experiment = str(flags["config"] or "")
    if not experiment and (flags["mode"] != "doctor" or flags["workdir"] is None):  # a doctor reads the workdir's own
        raise UserError("--config is missing, e.g. --config=experiments/base.py")
    config = load_experiment(experiment) if experiment else default_config()
    overrides = override(config, of_config)
    workdir = Path(flags["workdir"] or Path("runs") / split_argument(experiment)[0].stem)
    options = {name: flags[name] for name, its_modes in parser.modes.items() if flags["mode"] in its_modes}
    return flags["mode"], config, workdir, options | {"overrides": overrides}


def _parser() -> Parser:
    parser = Parser("bert_jax.main", __doc__ or "", pages(modes.MODES))
    parser.usage = "python -m bert_jax.main --config=FILE [--mode=MODE] [--workdir=DIR] [--config.NAME=VALUE …]"
    flag = parser.flag
    flag("config", None, "experiment: a file, or the name of one that comes with the package, e.g. base, base:tiny, "
        "glue:sst2", metavar="FILE[:ARGUMENT]")  # fmt: skip
    flag("mode", "train", "what to do", choices=sorted(modes.MODES))
    flag("workdir", None, "folder of the run [runs/<name of the experiment file>]", metavar="DIR")
    flag("debug", False, "show the traceback of an error")
    flag("checkpoint", "best", "best, best:METRIC, newest, a step, or a path", "evaluate", "fill_mask", "predict",
        "generate", "embed", "score", "blimp", "retrieve")  # fmt: skip
    flag("replay", 0, "number of steps that are taken again, to compare their bits", "doctor")
    flag("profile", 0, "number of steps whose time is traced and broken down", "train")
    flag("text", [], "a text with [MASK] in it; may be given several times", "fill_mask", action="append")
    flag("top_k", 5, "number of candidates per mask", "fill_mask", least=1)
    flag("strategy", "", "how all masks, and gaps marked [GAP], are filled jointly [each mask by itself]", "fill_mask",
        choices=["", "left_to_right", "confidence", "mask_predict", "beam", "gibbs"])  # fmt: skip
    flag("gap", 4, "most tokens of a [GAP]", "fill_mask", least=1)
    flag("iterations", 10, "of mask_predict; sweeps of gibbs", "fill_mask", least=1)
    flag("seed", 0, "of gibbs", "fill_mask")
    flag("whole_words", False, "each mask is a whole word", "fill_mask")
    flag("contains", "", "words that must be among the fillings, comma-separated", "fill_mask")
    flag("allowed", "", "pieces that masks may get, comma-separated", "fill_mask")
    of_texts = ("predict", "generate", "embed", "fill_mask", "score")
    flag("input", "", "a file, - for standard input, or tfds:NAME@SPLIT; blimp: a folder of .jsonl; retrieve: "
        "translations, one+other or NAME=one+other,…", *of_texts, "blimp", "retrieve")  # fmt: skip
    formats = ["", "jsonl", "csv", "tsv", "txt"]
    flag("input_format", "", "format of --input [by its suffix]", *of_texts, choices=formats)
    flag("output", "-", "predict: .jsonl, .json (SQuAD), .zip (GLUE) or - for standard output; embed: .npy or "
        ".parquet; compile: .json; blimp: .json or .csv; generate, fill_mask, score, retrieve: .jsonl", *of_texts,
        "compile", "blimp", "retrieve")  # fmt: skip
    flag("bad_lines", "fail", "whether a bad line ends the command", *of_texts, choices=["fail", "skip"])
    flag("task_name", "", "of several tasks, the one whose head is used", *of_texts, "blimp", "retrieve",
        metavar="NAME")  # fmt: skip
    flag("glue", "", "test set whose predictions go into --output=<name>.zip", "predict", choices=["", *FILES])
    flag("pooling", "mean", "how the vectors of tokens become one", "embed", "retrieve",
        choices=["cls", "mean", "max"])  # fmt: skip
    flag("layer", "-1", "number of the layer, -1 is the last; or last4_sum, last4_concat; retrieve: or all", "embed",
        "retrieve")  # fmt: skip
    flag("retrieval_score", "cosine", "ratio: a cosine is compared with those of other near texts", "retrieve",
        choices=["cosine", "ratio"])  # fmt: skip
    flag("normalize", False, "scale vectors to length 1", "embed")
    flag("topology", "", "the machine to compile for: v5e:2x4, v4:2x2x2, 2xv5e:4x4 (two slices), h100:8, cpu:8",
        "compile")  # fmt: skip
    flag("tokens", False, "embed: write the vectors of the tokens, to .parquet; score: a table of the tokens", "embed",
        "score")  # fmt: skip
    flag("score_method", "within_word", "whether later pieces of a word are hidden with one of it", "score",
        choices=["within_word", "original"])  # fmt: skip
    if "_ARGCOMPLETE" in os.environ:
        add_options(parser)
    return parser


def run() -> None:
    restart_with_kept_heap()
    # Libraries and traces make a million objects that stay: to look for garbage among them takes a fifth of the
    # imports' time, and half a second more at the end.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    run_command(main)


if __name__ == "__main__":
    run()
