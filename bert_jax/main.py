"""The door: flags to a mode.

    python -m bert_jax.main --config=experiments/base.py [--mode=MODE] [--workdir=DIR] [--config.group.key=value …]

Exit status: 0 done; 2 something the user can mend, in one line; 128 + n stopped by signal n, to be continued.
"""

import atexit
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from bert_jax import modes
from bert_jax.config import UserError
from bert_jax.heap import restart_with_kept_heap
from bert_jax.inference.glue_submission import FILES

CONFIG = config_flags.DEFINE_config_file("config", None, "experiment file, e.g. experiments/base.py", lock_config=True)
MODE = flags.DEFINE_enum("mode", "train", sorted(modes.MODES), "what to do")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run [runs/<name of the experiment file>]")
DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")

# What a mode is called with besides config and workdir, by name.
OPTIONS = (
    flags.DEFINE_multi_string("text", [], "fill_mask: a text with [MASK] in it; may be given several times"),
    flags.DEFINE_integer("top_k", 5, "fill_mask: candidates a mask", lower_bound=1),
    flags.DEFINE_string("checkpoint", "best", "evaluate, predict, embed, fill_mask: best, newest, a step, or a path"),
    flags.DEFINE_integer("profile", 0, "train: steps whose time is traced and broken down", lower_bound=0),
    flags.DEFINE_string("input", "", "predict, embed: a file, - for standard input, or tfds:NAME@SPLIT"),
    flags.DEFINE_enum("input_format", "", ["", "jsonl", "csv", "tsv", "txt"], "of --input [by its suffix]"),
    flags.DEFINE_string("output", "-", "predict: .jsonl, .json (SQuAD), .zip or - for stdout; embed: .npy or .parquet"),
    flags.DEFINE_enum("bad_lines", "fail", ["fail", "skip"], "predict, embed: whether a bad line ends it"),
    flags.DEFINE_enum("glue", "", ["", *FILES], "predict: the test set whose predictions go into --output=<name>.zip"),
    flags.DEFINE_enum("pooling", "mean", ["cls", "mean", "max"], "embed: from vectors of tokens to that of a text"),
    flags.DEFINE_string("layer", "-1", "embed: its number, -1 is the last; or last4_sum, last4_concat"),
    flags.DEFINE_bool("normalize", False, "embed: vectors of length 1"),
    flags.DEFINE_bool("tokens", False, "embed: the vectors of the tokens, to .parquet"),
)


def main(_: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for noisy in ("absl", "orbax", "jax"):  # Orbax warns, through absl, of files that no one has promised
        logging.getLogger(noisy).setLevel(logging.ERROR)
    file = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    workdir = Path(WORKDIR.value or Path("runs") / Path(file).stem)
    try:
        options = {option.name: option.value for option in OPTIONS}
        overrides = config_flags.get_override_values(flags.FLAGS["config"])  # pyright: ignore[reportAttributeAccessIssue]
        return modes.MODES[MODE.value](CONFIG.value, workdir, overrides=overrides, **options)
    except UserError as error:
        return _complain(error)
    except BrokenPipeError:  # whoever reads standard output has seen enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _parse(argv: list[str]) -> list[str]:
    try:
        for flag in argv:
            name, _, file = flag.partition("--config=")
            if file and not name and not Path(file.split(":")[0]).is_file():
                raise UserError(f"config file {file.split(':')[0]} does not exist")
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"'{rest[1]}' is not a flag; options look like --name=value")
        if not _asks_for_help():
            if CONFIG.value is None:
                raise UserError("--config is missing, e.g. --config=experiments/base.py")
            CONFIG.value.to_dict()  # what failed while the file was loaded is raised by its first use
        return rest
    except (UserError, flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        sys.exit(_complain(error))


def _asks_for_help() -> bool:
    return any(flags.FLAGS[name].value for name in ("help", "helpshort", "helpfull", "helpxml"))


def _complain(error: BaseException) -> int:
    if DEBUG.present and DEBUG.value:
        logging.error("", exc_info=error)
    while error.args and isinstance(error.args[0], BaseException):  # ml_collections wraps one in another
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError | AttributeError) and error.args else str(error)
    print("error:", " ".join(text.replace("\\n", " ").split()), file=sys.stderr)
    return 2


def run() -> None:
    restart_with_kept_heap()
    # Libraries and traces make a million objects that stay: to look for garbage among them takes a fifth of the
    # imports' time, and half a second more at the end.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
