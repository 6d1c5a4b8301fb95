# %% [markdown] en
# # 6. Long texts
#
# BERT reads rows of a fixed length. What is cut off is not read: if the answer stands there, no training helps.
#
# **Needs**: two minutes on two CPU cores, 1 GB of memory, nothing to download. If tutorial 2 was not run, its model is trained
# first.
#
# {colab}
# %% [markdown] zh
# # 6. 长文本
#
# BERT 每次读的行长是固定的。被截掉的部分它根本没有读到：如果关键信息正好在那里，怎么训练都没有用。
#
# **需要**：两个 CPU 核心，两分钟，1 GB 内存，无需下载任何东西。如果还没运行第 2 篇教程，会先训练它的模型。
#
# {colab}
# %% setup
# %% [markdown] en
# ## Why is there a longest row?
#
# The paper's BERT has a **table of 512 positions**: position 513 has no vector. That is the limit, not the memory. Memory and time
# do grow: the weights of attention are H × L × L numbers per layer, so twice the length is four times as many.
# %% [markdown] zh
# ## 为什么有最大长度？
#
# 论文里的 BERT 有一张 **512 行的位置表**：第 513 个位置没有向量。限制来自这里，而不是内存。当然，内存和时间也会增长：
# 每层的注意力权重有 H × L × L 个数，长度翻倍，数量变成四倍。
# %%
for length in (128, 512, 1024):
    print(f"{length:5} tokens: {12 * length**2:12,} weights per layer of BERT-base")
# %% [markdown] en
# ## The data
#
# Texts about two people, and at the very end a verdict about a cake and a wine. The label is about the verdict.
# %% [markdown] zh
# ## 数据
#
# 每篇文本先讲两个人，最后才评价蛋糕和酒。标签只与最后的评价有关。
# %%
import csv
import random

from experiments import tutorial

rng = random.Random(3)


def document(kind):
    lives = [sentence for _ in range(2) for sentence in tutorial.life(rng)]
    verdict = [tutorial.opinion(rng, kind, thing, "Anna") for thing in ("cake", "wine")]
    return " ".join(lives + verdict)


def write(name, count):
    rows = [(document(kind), kind) for kind in ("positive", "negative") for _ in range(count // 2)]
    with open(folder / name, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("text", "label"))
        table.writerows(rows)
    return str(folder / name), rows


train, _ = write("long_train.csv", 160)
validation, rows = write("long_validation.csv", 200)
print(rows[0][0])
# %% [markdown] en
# ## Windows, by hand
#
# A window holds `sequence_length` − 2 tokens, and the next one begins `window_stride` tokens later. With $n$ tokens, room $r$ and
# stride $s$ there are
#
# $$1 + \left\lceil \frac{\max(0,\, n - r)}{s} \right\rceil$$
#
# windows. Each token in an overlap is seen twice, with more of its neighbours in one of the two.
# %% [markdown] zh
# ## 手算窗口
#
# 一个窗口能放 `sequence_length` − 2 个词元，下一个窗口从 `window_stride` 个词元之后开始。设词元数为 $n$，容量为 $r$，步长为 $s$，窗口个数是
#
# $$1 + \left\lceil \frac{\max(0,\, n - r)}{s} \right\rceil$$
#
# 重叠部分的词元会被看到两次，其中一次能看到更多的上下文。
# %%
from math import ceil

import bert_jax
from bert_jax.data.labelled.windows import sliding

start = tutorial.pretrained(folder)
tokenizer = bert_jax.load(start).tokenizer
LENGTH, STRIDE = 40, 24
count = len(tokenizer(rows[0][0]).ids) - 2
windows = sliding(count, LENGTH - 2, STRIDE)
print(count, "tokens:", windows)
for n in range(1, 300):
    assert len(sliding(n, LENGTH - 2, STRIDE)) == 1 + ceil(max(0, n - (LENGTH - 2)) / STRIDE)
# %% [markdown] en
# ## What is kept decides
#
# `data.long_texts` says what happens to a text over `data.sequence_length`. The same texts, the same model, three answers:
# %% [markdown] zh
# ## 留下哪一部分，决定结果
#
# `data.long_texts` 决定超过 `data.sequence_length` 的文本怎么处理。同样的文本，同样的模型，三种结果：
# %%
from experiments import classify


def fine_tune(how):
    config = classify.get_config()
    config.init_from = str(start)
    config.data.update(train=train, validation=validation, sequence_length=LENGTH)
    config.data.update(long_texts=how, window_stride=STRIDE, window_pooling="max")
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0)
    config.optimizer.learning_rate = 2e-3  # for a model this small
    config.train.update(epochs=10, batch_size=16)
    config.eval.every = config.checkpoint.every = 10_000  # steps, which there are not: only at the end
    return bert_jax.train(config, folder / f"long_{how}")


print("long_texts   accuracy")
runs = {how: fine_tune(how) for how in ("head", "tail", "windows")}
for how, run in runs.items():
    print(f"{how:10} {run.last['accuracy']:10.2f}")
assert runs["head"].last["accuracy"] < 0.7 and min(runs[how].last["accuracy"] for how in ("tail", "windows")) > 0.8
# %% [markdown] en
# `head`, the default of most tutorials, guesses: the verdict is never in the row. `tail` is right here, because the verdict always stands
# at the end. `windows` reads everything and needs no such luck: the vectors of all windows become one (`data.window_pooling`: mean, max or
# attention), at the price of as many rows as there are windows.
#
# | `data.long_texts` | rows per text | reads |
# |---|---|---|
# | `head` | 1 | the beginning |
# | `tail` | 1 | the end |
# | `head+tail` | 1 | a quarter from the beginning, the rest from the end |
# | `windows` | up to `data.max_windows`, 8 | everything, in parts, as far as so many rows reach |
# | `error` | - | nothing: it names the text and stops |
# %% [markdown] zh
# `head` 是多数教程的默认做法，这里只能瞎猜：评价从来不在那一行里。`tail` 在这里正好对，因为评价总在最后。`windows` 读完全文，不靠运气：
# 所有窗口的向量合成一个（`data.window_pooling`：mean、max 或 attention），代价是有几个窗口就要算几行。
#
# | `data.long_texts` | 每篇文本的行数 | 读到的部分 |
# |---|---|---|
# | `head` | 1 | 开头 |
# | `tail` | 1 | 结尾 |
# | `head+tail` | 1 | 开头四分之一，其余取自结尾 |
# | `windows` | 最多 `data.max_windows` 行，即 8 | 分段读完全部，直到行数用完 |
# | `error` | - | 不读：指出是哪篇文本，然后停下 |
# %% [markdown] en
# ## Tags and questions
#
# They always slide windows, and take each word, or answer, from the window that shows most around it. Of two windows that overlap, the
# left half of the overlap belongs to the first one:
# %% [markdown] zh
# ## 标签与问答
#
# 序列标注和问答总是滑动窗口，每个词（或答案）取自上下文最多的那个窗口。两个窗口重叠时，重叠部分的左半归前一个：
# %%
from bert_jax.data.labelled.windows import max_context_mask

for (begin, size), trusted in zip(windows, max_context_mask(windows), strict=True):
    places = [begin + i for i in range(size) if trusted[i]]
    print(f"window {begin:3} to {begin + size - 1:3} is trusted for tokens {places[0]:3} to {places[-1]:3}")
assert sum(mask.sum() for mask in max_context_mask(windows)) == count  # each token once
# %% [markdown] en
# ## A model that reads longer rows
#
# `experiments/phase2_512.py` continues a pretraining of short rows with rows of 512 tokens, as the paper does for its last tenth:
# positions that were never trained are random vectors. `model.max_position_embeddings` may be larger than 512, if you pretrain.
# %% [markdown] zh
# ## 能读更长的模型
#
# `experiments/phase2_512.py` 在短行预训练之后，用 512 个词元的行继续训练，论文最后十分之一的步数就是这样做的：
# 没训练过的位置只是随机向量。如果自己预训练，`model.max_position_embeddings` 也可以设得比 512 大。
