"""Checkpoints in and out.

    python -m bert_jax.convert --from=bert-base-uncased --to=ckpts/bert-base
    python -m bert_jax.convert --from=runs/mine --to=hf_out --format=huggingface

Exit status: 0 done, with a report of every name; 2 something the user can mend, in one line.
"""

import argparse
import logging
import sys
from typing import NoReturn

from bert_jax.config import UserError


def main(argv: list[str] | None = None) -> int:
    """Heavy imports wait until the flags are known to be right."""
    debug = False
    try:
        options = _parser().parse_args(argv)
        debug = options.debug
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
        for noisy in ("absl", "orbax", "jax"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        from bert_jax.convert.conversion import convert

        report = convert(
            options.source,
            options.target,
            format=options.format,
            architecture=options.architecture,
            extend_vocab=options.extend_vocab,
            max_position_embeddings=options.max_position_embeddings,
            allow=options.allow,
            overwrite=options.overwrite,
        )
    except UserError as error:
        if debug:
            logging.error("", exc_info=error)
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(report)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; options look like --name=value (--help lists them)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bert_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, help="name of the Hugging Face Hub, folder of Hugging Face, of "
        "google-research/bert (or folder/model.ckpt-N), workdir or checkpoint of bert_jax")  # fmt: skip
    add("--to", dest="target", required=True, help="folder to be made")
    add("--format", default="bert_jax", choices=("bert_jax", "huggingface"), help="of the target [bert_jax]")
    add("--architecture", default="", help="of a target of Hugging Face, else of a source that does not say [by task]")
    add("--extend_vocab", default="", metavar="FILE", help="new words, one a line")
    add(
        "--max_position_embeddings",
        default=0,
        type=int,
        metavar="N",
        help="more positions, repeating the old",
    )
    add("--allow", default="", metavar="REGEX", help="names of tensors that may be left behind")
    add("--overwrite", action="store_true", help="replace the target if it is a converted checkpoint")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
