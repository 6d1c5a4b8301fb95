"""Time and peak memory of importing and exporting a BERT-base, by the commands that a user types.

    python benchmarks/convert.py [--runs=3]

Makes a checkpoint with random weights in Hugging Face's format in a temporary folder, converts it to bert_jax and back,
each in a process of its own, and checks that the file that comes out is the file that went in. Peak memory is the
largest resident set of the process as the kernel counts it: it includes pages of the checkpoint that are mapped, not
copied. "Above baseline" leaves out what the same process needs without a checkpoint: the interpreter with JAX, Flax and
Orbax loaded.
"""

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASELINE = (
    "import jax, bert_jax.convert.conversion; jax.devices(); jax.jit(lambda x: x + 1)(1.0).block_until_ready(); "
    "from experiments.base import get_config; get_config()"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--make", type=Path, help="only make the checkpoint, in this folder")
    options = parser.parse_args()
    if options.make:
        _make_checkpoint(options.make)
        return
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder) / "theirs"
        # In a process of its own: what a parent has held counts as its children's peak.
        subprocess.run([sys.executable, __file__, f"--make={theirs}"], check=True)
        size = (theirs / "model.safetensors").stat().st_size
        _, baseline = _measure([sys.executable, "-c", BASELINE])
        print(f"checkpoint {size / 1e6:.0f} MB; baseline {baseline / 1e6:.0f} MB")
        print("run  direction  seconds  peak MB  × file  above baseline MB  × file")
        for run in range(options.runs):
            ours, again = Path(folder) / f"ours{run}", Path(folder) / f"again{run}"
            for direction, flags in (
                ("import", [f"--from={theirs}", f"--to={ours}"]),
                ("export", [f"--from={ours}", f"--to={again}", "--format=huggingface"]),
            ):
                seconds, peak = _measure([sys.executable, "-m", "bert_jax.convert", *flags])
                above = peak - baseline
                print(
                    f"{run:3}  {direction:9}  {seconds:7.2f}  {peak / 1e6:7.0f}  {peak / size:6.2f}  "
                    f"{above / 1e6:17.0f}  {above / size:6.2f}"
                )
            if not filecmp.cmp(theirs / "model.safetensors", again / "model.safetensors", shallow=False):
                raise SystemExit("the weights that came back differ")
    print("the weights came back bit for bit")


def _measure(command: list[str]) -> tuple[float, int]:
    """Seconds, and bytes of the process's largest resident set."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def _make_checkpoint(folder: Path) -> None:
    import numpy as np

    from bert_jax.convert import huggingface
    from bert_jax.convert.mapping import Loaded, Report, parameter_shapes
    from bert_jax.data.tokenizers.wordpiece import make_wordpiece
    from bert_jax.models.config import BertConfig

    config = BertConfig(30_522, hidden_act="gelu", dtype="float32")
    rng = np.random.default_rng(0)
    parameters = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in parameter_shapes(config, num_labels=2).items()
        if not name.startswith(("heads/classifier/", "heads/span/"))
    }
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = make_wordpiece([*special, *(f"w{i}" for i in range(30_522 - 5))], "random", True, None, True)
    huggingface.write(folder, Loaded(config, parameters, tokenizer, "pretraining", {}, Report()))


if __name__ == "__main__":
    main()
