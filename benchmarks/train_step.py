"""One pretraining step, ours and Hugging Face Transformers on PyTorch, timed in turns in one process.

    python benchmarks/train_step.py --size=base --batch=8 --length=128 --rounds=7 --peers=eager,compile

A step is forward, backward, clipping, the AdamW update, with dropout on, MLM + NSP. After warm-up the variants
take turns (A B C A B C …), so that a slow minute of the machine falls on all. The last line is the ratio of
tokens a second, ours over the fastest peer: that of the medians, and the range of the rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import Times, in_turns, machine, ratio_to_best, spread

from bert_jax.config import UserError
from bert_jax.heap import restart_with_kept_heap
from bert_jax.models.config import BertConfig, bert_config
from bert_jax.sharding import make_mesh
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.step import abstract_state, init_state, make_train_step
from experiments import base

Step = Callable[[], None]  # runs one step and waits for it
VOCAB_SIZE = 30_522


def main() -> None:
    parser = step_parser(__doc__ or "")
    parser.add_argument(
        "--peers", type=words, default=["eager"], help="how PyTorch runs: eager, compile; comma-separated"
    )
    parser.add_argument("--dtypes", type=words, default=["float32", "bfloat16"], help="of the peers, comma-separated")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"], help="where both run")
    options = parser.parse_args()
    try:
        measured = compare(options)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


def step_parser(description: str) -> argparse.ArgumentParser:
    """Returns the flags that say what a step is and how often it runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", help="model size")
    parser.add_argument("--batch", type=int, default=8, help="rows per step")
    parser.add_argument("--length", type=int, default=128, help="tokens per row")
    parser.add_argument("--predictions", type=int, default=20, help="masked positions per row")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant")
    parser.add_argument("--warm_up", type=int, default=2, help="untimed steps of each variant")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    return parser


def words(text: str) -> list[str]:
    """Returns the words of a comma-separated flag."""
    return [word for word in text.split(",") if word]


def compare(options: argparse.Namespace) -> dict:
    """Prints a line per variant and the ratio; returns {"machine", "variants": {name: seconds}, "ratio"}."""
    torch = _import_torch()
    if jax.default_backend() != options.device:
        raise UserError(
            f"--device={options.device}, but JAX runs on {jax.default_backend()}; set JAX_PLATFORMS or --device"
        )
    batch = random_batch(options.batch, options.length, options.predictions)
    steps: dict[str, Step] = {"bert_jax bfloat16": our_step(options.size, batch)}
    for mode in options.peers:
        for dtype in options.dtypes:
            steps[f"transformers {mode} {dtype}"] = _peer_step(torch, batch, mode, dtype, options)
    about = machine(["jax", "torch", "transformers"]) | {
        "PyTorch threads": str(torch.get_num_threads()),
        "GPU": torch.cuda.get_device_name() if options.device == "gpu" else "none",
        "step": f"BERT-{options.size}, batch {options.batch} × {options.length}, {options.predictions} predictions",
    }
    print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    for name, step in steps.items():
        started = time.perf_counter()
        for _ in range(options.warm_up):
            step()
        print(f"{name}: warm-up {time.perf_counter() - started:.1f} s", flush=True)
    times = in_turns(steps, options.rounds)
    variants = {name: {"seconds": of.wall, "processor_seconds": of.cpu} for name, of in times.items()}
    return {"machine": about, "variants": variants, "ratio": _report(times, options.batch * options.length)}


def _report(times: dict[str, Times], tokens: int) -> dict | None:
    for name, of in times.items():
        rate = tokens / statistics.median(of.wall)
        print(f"{name}: {spread(of.wall, 3)} s, {rate:,.0f} tokens/s; processor {spread(of.cpu, 3)} s")
    ours, *peers = times
    if not peers:
        return None
    ratio = ratio_to_best(times[ours].wall, {name: times[name].wall for name in peers})
    print(f"best peer: {ratio.peer}")
    print(ratio)
    return ratio._asdict()


def random_batch(rows: int, length: int, predictions: int) -> dict[str, np.ndarray]:
    """Full rows of random pieces, with the masked positions chosen beforehand."""
    rng = np.random.default_rng(0)
    positions = np.stack([np.sort(rng.choice(np.arange(1, length), predictions, replace=False)) for _ in range(rows)])
    return {
        "input_ids": rng.integers(1000, VOCAB_SIZE, (rows, length), dtype=np.int32),
        "token_type_ids": np.tile(np.arange(length) >= length // 2, (rows, 1)).astype(np.int32),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "sequence_ids": np.ones((rows, length), np.int32),
        "masked_positions": positions.astype(np.int32),
        "masked_labels": rng.integers(1000, VOCAB_SIZE, (rows, predictions), dtype=np.int32),
        "masked_weights": np.ones((rows, predictions), np.float32),
        "first_tokens": np.zeros((rows, 1), np.int32),
        "next_sentence_labels": rng.integers(0, 2, (rows, 1), dtype=np.int32),
        "next_sentence_weights": np.ones((rows, 1), np.float32),
    }


class GivenBatches(Pretraining):
    """The real task without a corpus: batches come finished."""

    def __init__(self, config: BertConfig):
        self.bert_config = config


def our_step(size: str, batch: dict[str, np.ndarray]) -> Step:
    """The step that the training loop runs, with the same options of the compiler."""
    config = base.get_config(size)
    task = GivenBatches(bert_config(config.model, VOCAB_SIZE))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    graphdef, mesh = abstract_state(task, optimizer)[0], make_mesh(config.mesh)
    state = init_state(task, optimizer, 0, mesh)
    train_step, key = make_train_step(task, graphdef, optimizer, schedule, mesh), jax.random.key(0)
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}

    def step():
        nonlocal state
        state, sums = train_step(state, {}, arrays, key)
        jax.block_until_ready((state, sums))

    return step


def _peer_step(torch, batch, mode: str, dtype: str, options: argparse.Namespace) -> Step:
    """BertForPreTraining with scaled_dot_product_attention, autocast for bfloat16, and PyTorch's fused AdamW."""
    import transformers

    device = "cuda" if options.device == "gpu" else "cpu"
    ours = bert_config(base.get_config(options.size).model, VOCAB_SIZE)
    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.num_hidden_layers,
        num_attention_heads=ours.num_attention_heads,
        intermediate_size=ours.intermediate_size,
        hidden_act="gelu_new" if ours.hidden_act == "gelu_tanh" else "gelu",
        attn_implementation="sdpa",
    )
    model = transformers.BertForPreTraining(config).to(device).train()
    run = torch.compile(model) if mode == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    labels = np.full(batch["input_ids"].shape, -100, np.int64)
    np.put_along_axis(labels, batch["masked_positions"].astype(np.int64), batch["masked_labels"], axis=1)
    inputs = {
        "input_ids": batch["input_ids"].astype(np.int64),
        "token_type_ids": batch["token_type_ids"].astype(np.int64),
        "labels": labels,
        "next_sentence_label": batch["next_sentence_labels"][:, 0].astype(np.int64),
    }
    inputs = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = run(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def _import_torch():
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"no {error.name}: the peer needs `pip install -e .[parity]`") from None
    return torch


if __name__ == "__main__":
    restart_with_kept_heap()  # for all variants alike
    main()
