"""What a training step costs at the least: floating-point operations and bytes."""

from bert_jax.backend import Backend
from bert_jax.models.config import BertConfig


def training_flops(
    config: BertConfig, rows: float, length: float, predictions: int, places: float | None = None
) -> float:
    """Floating-point operations of forward and backward passes over `rows` rows; a multiply-add is two.

    Matrix products only; the backward pass counts twice the forward one; rematerialisation counts nothing. `places`: of
    a row, that the last layer is computed at; None = all.
    """
    d, f, e = config.hidden_size, config.intermediate_size, config.embedding_size
    ffn, a = (3 if config.gated else 2) * d * f, config.attention_width
    per_place = 2 * d * a + ffn + 2 * length * a  # query, output, FFN, attention
    per_layer = length * (2 * d * a + per_place)  # key and value of every token
    skipped = 0 if places is None else (length - places) * per_place
    per_row = config.num_hidden_layers * per_layer - skipped + (0 if e == d else length * e * d)
    per_row += predictions * (d * e + e * config.vocab_size) + d * d + 2 * d
    return 3 * 2 * rows * float(per_row)


def training_bytes(config: BertConfig, rows: float, length: float, *, fused_attention: bool) -> float:
    """Bytes of activations that forward and backward passes over `rows` rows read and write at the least.

    Each matrix product of a layer reads its activations once and writes them once, in `dtype`; what is element-wise is
    fused to the products; the backward pass moves twice what the forward one does, as each product has two. Scores stay
    inside the kernel where attention is fused. Embeddings, heads and rematerialisation are left out, and so are the
    parameters (`training/throughput.py`).
    """
    d, f = config.hidden_size, config.intermediate_size
    scores = 0 if fused_attention else 2 * config.num_attention_heads * length
    inner = (4 if config.gated else 2) * f  # a gate is as large again
    # With a for the width of all heads: projections 2 d + 4 a, scores and context 4 a, FFN 2 d besides.
    per_token = 4 * d + 8 * config.attention_width + inner + scores
    width = 2 if config.dtype == "bfloat16" else 4
    return 3.0 * width * config.num_hidden_layers * rows * length * per_token


def tokens_while_compiling(config: BertConfig, length: int, devices: Backend) -> float:
    """Returns how many tokens, in rows of this length, are trained on in the time that it takes to compile one more
    program: a rough estimate."""
    seconds = devices.seconds_per_layer * config.num_hidden_layers
    return seconds * devices.flops * length / training_flops(config, 1, length, predictions=0)
