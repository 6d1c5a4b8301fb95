# %% [markdown] en
# # 2. Pretrain on your text
#
# A text file becomes a vocabulary, a prepared corpus, and a BERT that fills gaps and knows which sentence follows which.
#
# **Needs**: one minute on two CPU cores, 1 GB of memory, nothing to download.
#
# {colab}
# %% [markdown] zh
# # 2. 用自己的文本预训练
#
# 从一个文本文件出发：学出词表，准备语料，训练一个会填空、会判断下一句的 BERT。
#
# **需要**：两个 CPU 核心，一分钟，1 GB 内存，无需下载任何东西。
#
# {colab}
# %% setup
# %% [markdown] en
# ## The text
#
# One sentence per line, a blank line between documents. Documents matter: for next sentence prediction, a wrong second sentence
# is drawn from *another* document.
#
# Real English takes hours to learn, or a published model. So that you can see everything in a minute, this file is about a
# made-up town: visits that please or displease, people and their work. To train on your own text, give the path of your file
# instead.
# %% [markdown] zh
# ## 文本
#
# 一行一句，文档之间空一行。文档的边界很重要：下一句预测里的“假下一句”，是从**另一篇**文档里抽出来的。
#
# 真正的英语要学好几个小时，或者直接用别人发布的模型。为了在一分钟内看完全过程，这个文件写的是一座虚构的小镇：
# 让人满意或失望的电影院、餐馆、旅馆，还有镇上的人和他们的工作。想用自己的文本，把路径换成你的文件就行。
# %%
from experiments import tutorial

text = tutorial.write_corpus(folder / "town.txt")
print(text.read_text()[:620])
print(f"… {text.stat().st_size / 1e6:.1f} MB")
# %% [markdown] en
# ## The config
#
# `experiments/base.py` declares every option at the paper's value. `experiments/tutorial.py` changes these, so that a minute is
# enough: a small model, the optimizer Muon and rotary positions, which need far fewer steps. Unknown names are errors.
# %% [markdown] zh
# ## 配置
#
# `experiments/base.py` 声明了全部选项，默认值就是论文的值。`experiments/tutorial.py` 只改了下面这些，好让一分钟就够：
# 小模型、Muon 优化器和旋转位置编码（需要的步数少得多）。写错选项名会立刻报错。
# %%
import bert_jax
from experiments import base

config = tutorial.get_config()
default = base.get_config("tiny")
for group in ("model", "data", "optimizer", "train"):
    print(group, {key: value for key, value in config[group].items() if value != default[group][key]})

config.data.files = str(text)
config.data.prepared = str(folder / "prepared")
# %% [markdown] en
# ## Train
#
# `train` learns the vocabulary, cuts the text into rows, hides 15 % of the tokens of each row in each step, and keeps a part of
# the documents aside to evaluate on. Press stop, and run the cell again: it continues where it was, to the same bits.
# %% [markdown] zh
# ## 训练
#
# `train` 会学出词表，把文本切成行，每一步在每行里随机遮住 15% 的词元，并留出一部分文档专门用来评估。
# 可以随时按停止，再运行一次这个单元格：它会从停下的地方接着训练，结果一位不差。
# %%
workdir = folder / "pretrained"
result = bert_jax.train(config, workdir)
print(result.ended, "after", result.step, "steps")
for name in ("mlm_loss", "mlm_accuracy", "nsp_accuracy", "unigram_entropy", "majority_accuracy"):
    print(f"{name:18} {result.last[name]:.2f}")
assert result.last["mlm_loss"] < result.last["unigram_entropy"] / 3 and result.last["nsp_accuracy"] > 0.8
# %% [markdown] en
# How to read this: `unigram_entropy` is the loss of a guesser that knows how frequent each token is but sees no context, and
# `majority_accuracy` the share of right answers of always guessing the most frequent token. A model is worth something only as
# far as it beats them. Not every token can be known: nothing says which day or whose name was hidden.
#
# `metrics.jsonl` in the workdir has one line per evaluation or 50 steps:
# %% [markdown] zh
# 怎么读这些数：`unigram_entropy` 是“只知道词频、完全不看上下文”时的损失；`majority_accuracy` 是“永远猜最常见的词元”时的准确率。
# 模型比它们好多少，才算学到了多少。并不是每个词元都猜得出来：哪一天、谁的名字，上下文里往往没有线索。
#
# 工作目录里的 `metrics.jsonl` 每 50 步或每次评估写一行：
# %%
import json

import matplotlib.pyplot as plt

lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
steps = [line["step"] for line in lines if line["split"] == "train"]
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.6), dpi=70, layout="constrained")
for axis, name in zip(axes, ("mlm_loss", "nsp_accuracy"), strict=True):
    axis.plot(steps, [line[name] for line in lines if line["split"] == "train"])
    axis.set(title=name, xlabel="step")
axes[0].axhline(result.last["unigram_entropy"], color="gray", linestyle="--")
axes[1].axhline(0.5, color="gray", linestyle="--")
plt.show()
# %% [markdown] en
# ## Fill gaps
#
# `load` opens the best checkpoint of a run. Each gap gets the likeliest tokens with their probabilities.
# %% [markdown] zh
# ## 填空
#
# `load` 打开这次训练里最好的检查点。每个空给出最可能的词元和概率。
# %%
bert = bert_jax.load(workdir)
for sentence in (
    "She is a doctor and works in the [MASK].",
    "The teacher likes the pupils of this [MASK].",
    "What a [MASK] cake! The wine was awful. He will never come again.",
    "The fish was superb. He will [MASK] again.",
):
    [candidates] = bert.fill_mask(sentence, top_k=4)
    print(sentence, "→", ", ".join(f"{token} {probability:.2f}" for token, probability in candidates))
# %% [markdown] en
# ## The vocabulary
#
# Frequent words are whole tokens, others are cut. Nobody told the tokenizer about names: `##ford` and `##man` are
# pieces because they are frequent. So a name that was never seen, Andersonford, still ends like a town.
# %% [markdown] zh
# ## 词表
#
# 常见词是一个完整的词元，其他词会被切开。没有人告诉分词器什么是地名：`##ford`、`##man` 成为片段，
# 只是因为它们常见。因此，从没见过的 Andersonford，结尾仍然像一个地名。
# %%
for word in ("wonderful", "Brookford", "Andersonford", "Paris"):
    print(word, [bert.tokenizer.token(i) for i in bert.tokenizer(word).ids[1:-1]])
print(bert.tokenizer.vocab_size, "tokens")
# %% [markdown] en
# ## What was learned
#
# Nobody told the model either which words praise. Words that stand in like contexts get like vectors. Here are, for three
# words, those with the most similar word embeddings:
# %% [markdown] zh
# ## 学到了什么
#
# 同样没有人告诉模型哪些词是夸奖。出现在相似上下文里的词，会得到相似的向量。下面是三个词，以及词嵌入与它们最接近的词：
# %%
import numpy as np

from bert_jax.inference.open import open_model

table = np.array(open_model(workdir).parameters["embeddings/word/embedding"])
table /= np.linalg.norm(table, axis=1, keepdims=True)
for word in ("lovely", "awful", "doctor"):
    nearest = np.argsort(-table @ table[bert.tokenizer.id(word)])[1:6]
    print(f"{word:8} ", ", ".join(bert.tokenizer.token(int(i)) for i in nearest))
# %% [markdown] en
# ## With real text
#
# | experiment | text | time on two CPU cores |
# |---|---|---|
# | `experiments/tutorial.py` | the town, 0.8 MB | 1 minute |
# | `experiments/tiny.py` | the built-in documentation, 7 MB | 3 minutes |
# | `experiments/base.py` | yours: the paper's recipe | needs TPUs or GPUs for days |
#
# In each of them, `config.data.corpus = "text"` and `config.data.files = "corpus/*.txt"` name your files;
# `docs/pretraining.md` has the forms that text may have. For Chinese, tutorial 10.
# %% [markdown] zh
# ## 换成真正的文本
#
# | 实验 | 文本 | 两个 CPU 核心上的时间 |
# |---|---|---|
# | `experiments/tutorial.py` | 小镇，0.8 MB | 1 分钟 |
# | `experiments/tiny.py` | 内置的英文文档，7 MB | 3 分钟 |
# | `experiments/base.py` | 你的文本：论文的配方 | 需要 TPU 或 GPU 跑几天 |
#
# 在这些实验里，都用 `config.data.corpus = "text"` 和 `config.data.files = "corpus/*.txt"` 指定自己的文件；
# 文本可以是哪些格式，见 `docs/pretraining.md`。中文语料见第 10 篇教程。
