# PYTHON_ARGCOMPLETE_OK
"""The command `bert_jax`: a mode of a run, or a tool.

    bert_jax train --config=base:tiny --workdir=runs/mine
    bert_jax predict --config=classify --workdir=runs/reviews --input=new.csv
    bert_jax serve runs/reviews
    bert_jax COMMAND --help

`bert_jax MODE …` is `python -m bert_jax.main --mode=MODE …`; each tool is a module of its own, such as
`python -m bert_jax.serve …`, whose flags it takes.
"""

import os
import runpy
import sys

from bert_jax import __version__
from bert_jax.command import Parser, complain, complete, run_command, say
from bert_jax.config import UserError
from bert_jax.help import summary
from bert_jax.modes import MODES
from bert_jax.option import can_be
from bert_jax.terminal import bold, in_columns, wrapped

# name → module, what it is for
TOOLS = {
    "serve": ("bert_jax.serve", "Models over HTTP, with a page to try them."),
    "convert": ("bert_jax.convert", "Checkpoints of Hugging Face and google-research/bert in and out; exports."),
    "sweep": ("bert_jax.lab.sweep", "A study: all its runs, on this machine or by Slurm."),
    "report": ("bert_jax.lab.report", "The page of a study or of one run, as HTML, Markdown, LaTeX or CSV."),
    "compare": ("bert_jax.lab.compare", "Any runs beside each other: options, metrics, speed, curves."),
    "reproduce": ("bert_jax.lab.reproduce", "Makes a run again and compares it, bit by bit."),
    "inspect": ("bert_jax.lab.inspect", "Looks inside a model: attention, gradients, losses of tokens, probes."),
    "prune": ("bert_jax.lab.prune", "Leaves heads and layers out of a fine-tuned model."),
    "first_look": ("bert_jax.lab.first_look", "What a pretrained model has learned, in a few lines."),
    "power": ("bert_jax.lab.statistics.power", "What a number of seeds can show."),
    "speedrun": ("bert_jax.lab.speedrun", "The BERT speedrun: scores, entries, records."),
}


def main(argv: list[str]) -> int:
    """Prints the help or the version. Raises UserError for a first word that is no command."""
    parser = _parser()
    complete(parser)
    if not argv:
        raise UserError("the command is missing, e.g. bert_jax train --config=base; bert_jax --help lists the commands")
    if argv[0] == "--version":
        say(f"bert_jax {__version__}")
        return 0
    if argv[0] not in ("-h", "--help"):
        raise UserError(f"the command is {argv[0]!r}; {can_be(argv[0], [*MODES, *TOOLS])}")
    parser.parse(["--help"])
    return 0


def run() -> None:
    """Hands over to the module of the first word, as if it had been called by `python -m`."""
    if "_ARGCOMPLETE" in os.environ:  # the words are in the line that the shell is asked to complete
        word, *rest = [*os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0"))].split(" ")[1:-1], ""]
        os.environ["_ARGCOMPLETE"] = "2" if word else "1"
    else:
        word, *rest = sys.argv[1:] or [""]
    if word not in MODES and word not in TOOLS:
        run_command(main)
    if word in MODES:
        if any(other.partition("=")[0] == "--mode" for other in rest):
            run_command(lambda _: complain(f"`bert_jax {word}` is a mode; leave --mode out"))
        rest = [f"--mode={word}", *rest]
    sys.argv[1:] = rest
    runpy.run_module(TOOLS[word][0] if word in TOOLS else "bert_jax.main", run_name="__main__", alter_sys=True)


def _parser() -> Parser:
    parser = Parser("bert_jax", __doc__ or "", _page)
    parser.usage = "bert_jax COMMAND [--NAME=VALUE …]"
    parser.add_argument("command", choices=[*MODES, *TOOLS])
    return parser


def _page(parser: Parser, topic: str) -> str:
    lines = [f"{bold('usage:')} {parser.usage}", "", wrapped(parser.description or ""), ""]
    lines += [bold("Modes of a run"), "", in_columns([(name, summary(mode)) for name, mode in MODES.items()], 14), ""]
    lines += [bold("Tools"), "", in_columns([(name, about) for name, (_, about) in TOOLS.items()], 14), ""]
    return "\n".join(
        [*lines, wrapped("bert_jax --version prints the version. docs/command.md: completion of a shell.")]
    )


if __name__ == "__main__":
    run()
