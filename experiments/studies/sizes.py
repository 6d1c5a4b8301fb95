"""How much do depth and width help?

    python -m bert_jax.lab.sweep --study=experiments/studies/sizes.py:study_data --workdir=runs/sizes

Devlin et al. (2018), table 6, means of five fine-tunings on development sets; L layers, H wide, A heads; perplexity of
the masked language model on held-out text:

    L    H     A     perplexity  MNLI-m  MRPC   SST-2
    3    768   12    5.84        77.9    79.8   88.4
    6    768   3     5.24        80.6    82.2   90.7
    6    768   12    4.68        81.9    84.8   91.3
    12   768   12    3.99        84.4    86.7   92.9
    12   1024  16    3.54        85.7    86.9   93.3
    24   1024  16    3.23        86.6    87.8   93.7

Scaled down: 1 to 4 layers of 64 to 256, and minutes of pretraining in place of days; all sizes take the same steps.
SST-2, MRPC, TREC and WNUT17 on test sets; BLiMP.

Orderings that may be expected: wider is better at all tasks. That deeper is better needs more steps than these.

It has 150 runs, which take about 1.4 hours on two cores.
"""

from bert_jax.lab.study import Published, Study
from bert_jax.option import Value
from experiments.studies.common import one_factor

SIZES = ((2, 128, 4), (1, 128, 4), (4, 128, 4), (2, 64, 2), (2, 256, 8))  # layers, width, heads
PUBLISHED = Published(
    title="Size of the model, development sets",
    source="Devlin et al. (2018), table 6",
    columns=("perplexity", "MNLI-m", "MRPC", "SST-2"),
    rows={
        "3 × 768, 12 heads": (5.84, 77.9, 79.8, 88.4),
        "6 × 768, 3 heads": (5.24, 80.6, 82.2, 90.7),
        "6 × 768, 12 heads": (4.68, 81.9, 84.8, 91.3),
        "12 × 768, 12 heads": (3.99, 84.4, 86.7, 92.9),
        "12 × 1024, 16 heads": (3.54, 85.7, 86.9, 93.3),
        "24 × 1024, 16 heads": (3.23, 86.6, 87.8, 93.7),
    },
)


def get_study(argument: str = "") -> Study:
    names = ("model.num_hidden_layers", "model.hidden_size", "model.num_attention_heads")
    levels: dict[str, dict[str, Value]] = {
        f"{size[0]} × {size[1]}": dict(zip(names, size, strict=True)) for size in SIZES
    }
    expected = [("2 × 256", "2 × 64", task) for task in ("sst2_5000", "trec", "wnut17")]
    question = "How much do depth and width help?"
    return one_factor(argument, question, "size", levels, published=PUBLISHED, expected=expected)
