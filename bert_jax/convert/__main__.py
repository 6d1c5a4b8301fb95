"""Checkpoints in and out.

    python -m bert_jax.convert --from=bert-base-uncased --to=ckpts/bert-base
    python -m bert_jax.convert --from=runs/mine --to=hf_out --format=huggingface
    python -m bert_jax.convert --from=runs/mine --to=program --format=onnx --dtype=int8 --check=dev.tsv

A source of google-research/bert may be folder/model.ckpt-N; one of bert_jax is a workdir or a checkpoint. The exit
status is 0 when the work is done, with a report of every name, and 2 for a mistake that you can correct (one line).
"""

from bert_jax.command import Parser, run_command, say
from bert_jax.config import UserError


def main(argv: list[str]) -> int:
    """Prints the report of `conversion.convert`. Heavy imports wait until the flags are known to be right."""
    parser = Parser("bert_jax.convert", __doc__ or "")
    flag = parser.flag
    flag("from", "", "name on the Hugging Face Hub, or folder of Hugging Face, google-research/bert or bert_jax")
    flag("to", "", "folder to be made")
    formats = ("bert_jax", "huggingface", "stablehlo", "onnx", "openvino")
    flag("format", "bert_jax", "format of the target", choices=formats)
    flag("dtype", "float32", "of the weights on disk", choices=("float32", "bfloat16", "float16", "int8"))
    flag("opset", 0, "of --format=onnx [20]")
    flag("check", "", "of a program: file of texts, labelled or not, to compare it with the model on", metavar="FILE")
    flag("architecture", "", "of a Hugging Face target, or of a source that does not name one [by the task]")
    flag("task", "", "of several tasks, the one that is written", metavar="NAME")
    flag("extend_vocab", "", "file of new words, one per line", metavar="FILE")
    flag("max_position_embeddings", 0, "number of positions; further ones repeat the old")
    flag("allow", "", "pattern of tensor names that may be left out", metavar="REGEX")
    flag("overwrite", False, "replace the target if it is a converted checkpoint")
    flag("debug", False, "show the traceback of an error")
    flags, rest = parser.parse(argv)
    for word in rest:
        parser.refuse(word)
    for name in ("from", "to"):
        if not flags[name]:
            raise UserError(f"--{name} is missing; --help lists the flags")
    from bert_jax.convert.conversion import convert

    options = {name: value for name, value in flags.items() if name not in ("from", "to", "debug")}
    say(convert(flags["from"], flags["to"], **options))
    return 0


if __name__ == "__main__":
    run_command(main)
