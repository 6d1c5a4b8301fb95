# %% [markdown] en
# # 13. Looking inside
#
# What does a head look at? Which words speak for an answer? Where does the model know parts of speech? Each picture answers
# one question, and none of them answers "why".
#
# **Needs**: one minute on two cores (one more if the BERT of tutorial 2 is not there yet), 1 GB of memory, nothing to
# download.
#
# {colab}
# %% [markdown] zh
# # 13. 看看模型内部
#
# 一个注意力头在看哪里？哪些词支持某个答案？模型在哪一层知道词性？每张图回答一个问题，但没有一张能回答“为什么”。
#
# **需要**：两个 CPU 核心上一分钟（如果还没有第 2 篇教程的 BERT，再加一分钟），1 GB 内存，无需下载。
#
# {colab}
# %% setup
# %% [markdown] en
# ## Attention
#
# `weights` has, for each layer and head, how much each token (row) reads of each token (column). A row adds up to 1.
# %% [markdown] zh
# ## 注意力
#
# `weights` 给出每一层、每个头里，每个词元（行）从每个词元（列）读取多少。每一行之和等于 1。
# %%
import matplotlib.pyplot as plt
import numpy as np

import bert_jax
from bert_jax.lab.inspect.heads import attention, head_importance, rollout
from experiments import tutorial

bert = bert_jax.load(tutorial.pretrained(folder), dtype="float32")
found = attention(bert, "She is a doctor and works in the hospital.")
tokens, weights = found.reading.tokens, found.weights
print(weights.shape, "[layers, heads, tokens, tokens]")
np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
figure, panels = plt.subplots(*weights.shape[:2], figsize=(7, 3.6))
for layer, row in enumerate(panels):
    for head, axes in enumerate(row):
        axes.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=range(len(tokens)) if head == 0 else [], title=f"layer {layer + 1}, head {head + 1}")
        axes.set_yticklabels(tokens if head == 0 else [], fontsize=6)
        axes.title.set_fontsize(7)
plt.tight_layout()
plt.show()
# %% [markdown] en
# Attention shows what a head *reads*. That is no explanation of the output: other weights can give the same output (Jain
# and Wallace 2019).
#
# ## Rollout
#
# After a layer, the vector of a token is a mixture. Half of each layer is taken for the residual connection, and the
# matrices are multiplied: $R_n = \left(\tfrac{1}{2} I + \tfrac{1}{2} \bar A_n\right) R_{n-1}$, with the mean $\bar A_n$ over
# the heads (Abnar and Zuidema 2020).
# %% [markdown] zh
# 注意力显示一个头**读取**了什么。它并不能解释输出：别的权重也可能给出同样的输出（Jain 和 Wallace 2019）。
#
# ## Rollout
#
# 经过一层之后，一个词元的向量就成了混合物。每层的一半算作残差连接，再把各层的矩阵相乘：$R_n = \left(\tfrac{1}{2} I + \tfrac{1}{2} \bar A_n\right) R_{n-1}$，其中 $\bar A_n$ 是各个头的平均（Abnar 和 Zuidema 2020）。
# %%
product = np.eye(len(tokens))
for layer in weights.mean(axis=1):
    product = (0.5 * np.eye(len(tokens)) + 0.5 * layer) @ product
np.testing.assert_allclose(product, rollout(weights)[-1], atol=1e-6)
for token, share in zip(tokens, product[tokens.index("hospital")]):
    print(f"{token:10} {share:.2f} {'#' * round(40 * share)}")
# %% [markdown] en
# ## What surprises the model?
#
# Each token is masked in turn, and its loss is $-\log p$ of the right one. A high bar: the model expected something else.
# %% [markdown] zh
# ## 什么让模型感到意外？
#
# 依次遮住每个词元，它的损失是正确答案的 $-\log p$。条越长，说明模型期待的是别的词。
# %%
from bert_jax.lab.inspect.tokens import gradient_times_input, integrated_gradients, token_losses

surprise = token_losses(bert, "She is a doctor and works in the school.")
for token, loss, guesses in zip(surprise.reading.tokens, surprise.losses, surprise.guesses):
    if guesses:
        print(f"{token:10} {loss:5.2f} {'#' * round(5 * loss):30} expected {guesses[0][0]}")
# %% [markdown] en
# ## Which words speak for an answer?
#
# *Gradient × input* is the slope of a logit at this text. *Integrated gradients* walk from the text with every word masked
# to the text itself; their scores add up to the difference of the two logits, which can be checked.
# %% [markdown] zh
# ## 哪些词支持某个答案？
#
# **梯度 × 输入**是 logit 在这段文本处的斜率。**积分梯度**从“所有词都被遮住”的文本一步步走到原文；各个词的得分之和等于两个 logit 之差，这一点可以验证。
# %%
text = "She is a doctor and works in the [MASK]."
slope = gradient_times_input(bert, text, target="hospital")
path = integrated_gradients(bert, text, target="hospital")
print(f"logit of 'hospital' {path.logit:.2f}, with every word masked {path.baseline:.2f}")
np.testing.assert_allclose(path.scores.sum(), path.logit - path.baseline, atol=0.1)
print(f"{'':10} gradient × input   integrated")
for token, one, other in zip(path.reading.tokens, slope.scores, path.scores):
    print(f"{token:10} {one:16.2f} {other:12.2f}")
# %% [markdown] en
# The two disagree: gradient × input knows the slope at this text only, which is small, while the path adds up all that
# the logit gains on the way from "every word masked". If in doubt, change the word and look at the prediction.
#
# ## What is known in which layer? A probe
#
# A linear classifier on frozen vectors of one layer. Here the label of a name is `SUBJECT` or `FRIEND`, which only the
# context tells; the same names are both. A probe always finds something, so it needs comparisons: the most frequent tag of
# each word, which needs no model, and a *control*, random labels, one per word (Hewitt and Liang 2019).
# %% [markdown] zh
# 两种方法的结果不一样：梯度 × 输入只知道这段文本处的斜率，而这里的斜率很小；
# 积分梯度把从“所有词都被遮住”一路走来 logit 的全部增长都加了起来。拿不准的时候，换掉那个词，看看预测怎样变化。
#
# ## 哪一层知道什么？探针
#
# 探针是建立在某一层冻结向量上的线性分类器。这里每个人名的标签是 `SUBJECT` 或 `FRIEND`，同一个名字两种都会出现，只有上下文才能判断。探针总能找到点什么，所以需要比较：每个词最常见的标签（不需要模型），以及**对照**，也就是给每个词一个随机标签（Hewitt 和 Liang 2019）。
# %%
import random

from bert_jax.data.labelled.conll import TaggedExample
from bert_jax.lab.inspect.probes import probe_layers

rng, tagged = random.Random(3), []
for _ in range(150):
    names = rng.sample(tutorial.MEN + tutorial.WOMEN, 2)
    words = f"{names[0]} lives here and the friend {names[1]} works there".split()
    tags = ["SUBJECT" if i == 0 else "FRIEND" if i == 6 else "OTHER" for i in range(len(words))]
    tagged.append(TaggedExample("", tuple(words), tuple(tags)))
probes = probe_layers(bert, tagged, most_words=1500)
print(f"most frequent tag {probes.majority:.2f}, most frequent tag of each word {probes.memory:.2f}")
for layer, (own, control) in enumerate(zip(probes.accuracy, probes.control)):
    name = "embeddings" if layer == 0 else f"layer {layer}"
    print(f"{name:11} probe {own:.2f}   control {control:.2f}   selectivity {own - control:+.2f}")
# %% [markdown] en
# The embeddings know the words alone, so they are no better than the most frequent tag of each word. One layer of attention
# adds the context. The control is as good as the probe: so few different words can be learned by heart. With a real
# corpus it falls behind, and the difference, the *selectivity*, says how much of the accuracy is not memory.
#
# ## Which heads are needed?
#
# Each head is set to zero in turn. How much the loss rises without it is what *this head alone* is worth: two heads
# that do the same can each be left out, but not both.
# %% [markdown] zh
# 嵌入层只知道词本身，所以不会好过“每个词最常见的标签”。一层注意力就加入了上下文。对照和探针一样好，是因为这里的词太少，可以死记硬背；在真实的语料上，对照会落后，两者之差叫**选择性**，说明准确率里有多少不是靠记忆。
#
# ## 哪些注意力头是必需的？
#
# 依次把每个头置零。去掉它之后损失增加多少，就是**这一个头**的价值：如果两个头做同样的事，去掉任何一个都没关系，但不能两个都去掉。
# %%
document = tutorial.life(random.Random(5))
without = head_importance(bert, texts=document, limit=120)
print(f"loss of the whole model {without.whole_loss:.2f}; what is added without each head:")
for layer, added in enumerate(without.loss, start=1):
    print(f"layer {layer}  ", "  ".join(f"{loss:+.2f}" for loss in added))
# %% [markdown] en
# `python -m bert_jax.lab.inspect RUN --text="…"` writes all of this as one page that you can click through:
# [inspecting.md](../../inspecting.md) says which picture can be trusted for what.
# %% [markdown] zh
# `python -m bert_jax.lab.inspect RUN --text="…"` 会把这些内容写成一个可以点击的网页；每张图可以相信到什么程度，见[inspecting.md](../../inspecting.md)（英文）。
