"""Writing by beam search: ours and Hugging Face Transformers' generate, in turns in one process.

    python benchmarks/generation.py [--layers=4] [--hidden_size=256] [--vocabulary=8000] [--beams=5] [--tokens=32]
        [--texts=96] [--batch=16] [--rounds=5] [--dtypes=bfloat16,float32] [--peers=float32,bfloat16]
        [--share] [--json=out.json]

An encoder–decoder with random weights, the same on both sides through our export, writes `--tokens` tokens for each
source, no fewer: what is compared is work, not when a text ends. Sources have 5 to 40 tokens; both sides sort them by
length and run `--batch` of them together, tokenising included. Ours is `Generator` as it comes. Transformers runs with
scaled_dot_product_attention and inference_mode, in float32, by autocast to bfloat16, and with all weights in bfloat16.
Both compare sums of log-probabilities (a length penalty of 0, which both define alike), and in float32 both must write
the same texts. The last lines are ratios of sentences a second, ours over a peer's: of the medians, and the range of
rounds.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from timing import in_turns, machine, ratio_to_best, run_in_scratch, spread

from bert_jax.convert.conversion import convert
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.heap import restart_with_kept_heap
from bert_jax.inference.generate import Generator
from bert_jax.tasks.seq2seq import Seq2Seq
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten
from experiments import translate

LONGEST = 40  # tokens of a source
PEERS = ["float32", "bfloat16", "bfloat16 weights"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

Write = Callable[[Sequence[str]], list[str]]


def main() -> None:
    run_in_scratch(_options(), compare)


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Returns the machine and the seconds of all rounds, and prints them and their ratios."""
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(options.vocabulary - len(SPECIAL))]
    texts = [" ".join(random.choice(words, random.integers(3, LONGEST - 1))) for _ in range(options.texts)]
    figures: dict[str, Any] = {"machine": machine(("jax", "flax", "torch", "transformers")), "options": vars(options)}
    print("\n".join(f"{key}: {value}" for key, value in figures["machine"].items()), flush=True)
    ours, theirs = write_model(options, words, scratch)
    variants = {f"bert_jax {dtype}": our_side(ours, dtype, options) for dtype in options.dtypes}
    for dtype in options.peers:
        variants[f"transformers {dtype}"] = peer_side(theirs, dtype, options)
    _warm_up(variants, texts)
    times = in_turns({name: lambda run=run: run(texts) for name, run in variants.items()}, options.rounds)
    for name, (wall, cpu) in times.items():
        rate = len(texts) / statistics.median(wall)
        print(f"  {name:30} {rate:7.2f} sentences/s; {spread(wall, 3)} s, {spread(cpu, 3)} s of processor time")
    peers = {name: times[name].wall for name in times if not name.startswith("bert_jax")}
    ratios = {name: ratio_to_best(times[name].wall, peers) for name in times if name not in peers}
    print("\n".join(f"{name} over {ratio.peer}: {ratio}" for name, ratio in ratios.items()))
    return figures | {"seconds": {name: one.wall for name, one in times.items()}}


def write_model(options: argparse.Namespace, words: list[str], scratch: Path) -> tuple[Path, Path]:
    """Returns the folders of a checkpoint and of its export."""
    tokenizer = make_wordpiece([*SPECIAL, *words], "the benchmark", True, None, True)
    config = translate.get_config()
    heads = max(1, options.hidden_size // 64)
    config.model.update(size="tiny", hidden_size=options.hidden_size, num_hidden_layers=options.layers)
    config.model.update(num_attention_heads=heads, intermediate_size=4 * options.hidden_size, hidden_act="gelu")
    config.model.update(initializer_range=0.1)
    config.data.update(sequence_length=LONGEST, target_length=options.tokens)
    config.seq2seq.update(model="encoder_decoder", share=options.share)
    config.generate.update(beams=options.beams, min_length=options.tokens - 1, length_penalty=0.0)
    task = Seq2Seq(config, tokenizer, None)
    parameters = flatten(jax.jit(lambda: task.init(nnx.Rngs(params=0)))())
    run = {"step": 0, "config": config.to_dict(), "task": task.description()}
    write_checkpoint(scratch / "ours", parameters, run, tokenizer)
    convert(str(scratch / "ours"), str(scratch / "theirs"), format="huggingface")
    return scratch / "ours", scratch / "theirs"


def our_side(folder: Path, dtype: str, options: argparse.Namespace) -> Write:
    rows = options.batch * options.beams  # of which each beam is one
    generator = Generator(str(folder), batch_size=rows, overrides={"model.dtype": dtype})

    def write(texts: Sequence[str]) -> list[str]:
        return [found["text"] for found in generator.stream(Row("", {"source": text}) for text in texts)]

    return write


def peer_side(folder: Path, dtype: str, options: argparse.Namespace) -> Write:
    import torch
    import transformers

    kind = torch.bfloat16 if dtype == "bfloat16 weights" else torch.float32
    load = transformers.EncoderDecoderModel.from_pretrained
    model: Any = load(folder, dtype=kind, attn_implementation="sdpa").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    search = {"num_beams": options.beams, "length_penalty": 0.0, "early_stopping": "never"}
    search |= {"min_new_tokens": options.tokens, "max_new_tokens": options.tokens}

    def write(texts: Sequence[str]) -> list[str]:
        ids = tokenizer(list(texts))["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        found = [""] * len(ids)
        for start in range(0, len(order), options.batch):
            numbers = order[start : start + options.batch]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in numbers]}, return_tensors="pt")
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                written = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **search)
            for number, text in zip(numbers, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                found[number] = text
        return found

    return write


def _warm_up(variants: dict[str, Write], texts: Sequence[str]) -> None:
    """Compiles, and checks that both sides write the same texts in float32."""
    written = {}
    for name, run in variants.items():
        start = time.perf_counter()
        written[name] = run(texts)
        print(f"  {name:30} first time {time.perf_counter() - start:.1f} s", flush=True)
    names = ("bert_jax float32", "transformers float32")
    if all(name in written for name in names):
        alike = np.mean([one == other for one, other in zip(*(written[name] for name in names), strict=True)])
        print(f"  {100 * alike:.0f} % of the texts are the same in float32")
        if alike < 0.9:  # sums of log-probabilities that are nearly equal may change places
            raise AssertionError("the two sides do not compute the same")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for name, value in (("layers", 4), ("hidden_size", 256), ("vocabulary", 8000), ("beams", 5), ("tokens", 32)):
        add(f"--{name}", type=int, default=value)
    for name, value in (("texts", 96), ("batch", 16), ("rounds", 5)):
        add(f"--{name}", type=int, default=value)
    add("--dtypes", type=lambda text: text.split(","), default=["bfloat16", "float32"], help="of ours")
    add("--peers", type=lambda text: text.split(","), default=PEERS, help="of Transformers")
    add("--share", action="store_true", help="one set of layers for encoder and decoder")
    add("--json", default="", help="file for the figures")
    options = parser.parse_args()
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            parser.error(f"the peer needs {name}: pip install -e '.[parity]'")
    return options


if __name__ == "__main__":
    restart_with_kept_heap()  # for all variants alike
    main()
