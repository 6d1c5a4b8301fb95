# %% [markdown] en
# # 7. Several labels
#
# A review can be about the hotel *and* the restaurant, and complain besides. Then a text has several labels, or none,
# and the softmax of tutorial 3 is the wrong formula.
#
# **Needs**: two minutes on two cores (one more if the BERT of tutorial 2 is not there yet), 1 GB of memory, nothing to
# download.
#
# {colab}
# %% [markdown] zh
# # 7. 多标签分类
#
# 一条评论可能**同时**谈到酒店和餐厅，还带有投诉。这时一段文本有好几个标签，也可能一个都没有，第 3 篇教程里的 softmax 就不再适用了。
#
# **需要**：两个 CPU 核心上两分钟（如果还没有第 2 篇教程的 BERT，再加一分钟），1 GB 内存，无需下载。
#
# {colab}
# %% setup
# %% [markdown] en
# ## The data
#
# One to three sentences, each about a place and each pleased or not. The labels are the places, and `complaint` if any
# sentence is a bad one. Here they stand in one column, joined by `|`; several columns of 0 and 1 can be read as well.
# %% [markdown] zh
# ## 数据
#
# 每条文本有一到三句话，每句讲一个地方，或者满意，或者不满意。标签就是这些地方；只要有一句不满意，再加上 `complaint`（投诉）。这里所有标签写在同一列，用 `|` 隔开；也可以读取由 0 和 1 组成的多个列。
# %%
import csv
import random

from experiments import tutorial

start = tutorial.pretrained(folder)


def review(rng):
    labels, sentences = set(), []
    for place in rng.sample(sorted(tutorial.VISITS), rng.choice([1, 1, 2, 2, 3])):
        adjectives = rng.choice([tutorial.POSITIVE, tutorial.NEGATIVE])
        sentences.append(f"The {rng.choice(tutorial.VISITS[place])} was {rng.choice(adjectives)}.")
        labels |= {place} if adjectives is tutorial.POSITIVE else {place, "complaint"}
    return {"review": " ".join(sentences), "labels": "|".join(sorted(labels))}


def write(name, count, seed):
    rows = [review(random.Random(1_000 * seed + i)) for i in range(count)]
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


train, validation = write("labels_train.csv", 600, 1), write("labels_validation.csv", 200, 2)
for row in train[:4]:
    print(row["review"], "->", row["labels"])
# %% [markdown] en
# ## Why not a softmax?
#
# Probabilities of a softmax add up to 1, so the second largest is at most one half, whatever the model has learned. Each
# label needs a probability of its own: the *sigmoid* $\sigma(x) = 1 / (1 + e^{-x})$ of its logit.
# %% [markdown] zh
# ## 为什么不能用 softmax？
#
# softmax 的概率之和等于 1，所以无论模型学到了什么，第二大的概率最多是二分之一。每个标签都需要自己的概率，也就是 logit 的 *sigmoid*：$\sigma(x) = 1 / (1 + e^{-x})$。
# %%
import numpy as np

logits = np.array([5.0, 5.0, -5.0])  # cinema and restaurant, not hotel
softmax = np.exp(logits) / np.exp(logits).sum()
sigmoid = 1 / (1 + np.exp(-logits))
print("softmax", softmax.round(3), "sum", softmax.sum().round(3))
print("sigmoid", sigmoid.round(3), "sum", sigmoid.sum().round(3))
assert sorted(softmax)[-2] <= 0.5
# %% [markdown] en
# ## Training
#
# What makes it several labels is `classify.get_config("multi")`; all else is as in tutorial 3. The vector of a text is
# the mean of its tokens here.
# %% [markdown] zh
# ## 训练
#
# 关键在 `classify.get_config("multi")` 这一行，其余和第 3 篇教程一样；
# 这里文本的向量取各个词元（token）的平均。
# %%
import bert_jax
from experiments import classify

config = classify.get_config("multi")
config.init_from = str(start)
config.data.update(train=str(folder / "labels_train.csv"), validation=str(folder / "labels_validation.csv"))
config.data.update(text="review", label="labels", sequence_length=48)
config.model.update(pooling="mean", hidden_dropout=0.0, attention_dropout=0.0)
config.optimizer.learning_rate = 1e-3
config.train.update(epochs=8.0, batch_size=16)
config.mesh.data = 1
result = bert_jax.train(config, folder / "several_labels")
for name in ("loss", "micro_f1", "macro_f1", "subset_accuracy"):
    print(f"{name:16} {result.best[name]:.2f}")
assert result.best["micro_f1"] > 0.9
# %% [markdown] en
# ## The loss by hand
#
# For each label a *binary* cross-entropy, and the mean over labels and texts:
#
# $$-\frac{1}{NC}\sum_{n,c} \left[y_{nc}\log p_{nc} + (1-y_{nc})\log(1-p_{nc})\right]$$
#
# The predictions on validation lie in the workdir. Computed from them, the loss is the one that training logged.
# %% [markdown] zh
# ## 手工计算损失
#
# 每个标签一个**二元**交叉熵，再对标签和文本求平均：
#
# $$-\frac{1}{NC}\sum_{n,c} \left[y_{nc}\log p_{nc} + (1-y_{nc})\log(1-p_{nc})\right]$$
#
# 验证集上的预测保存在训练目录里。用它们算出来的损失，就是训练时记录的那个数。
# %%
import json

lines = (folder / "several_labels/predictions/validation.jsonl").read_text().splitlines()
predicted = [json.loads(line)["prediction"] for line in lines]
names = list(predicted[0]["probabilities"])
p = np.array([[one["probabilities"][name] for name in names] for one in predicted])
y = np.array([[name in row["labels"].split("|") for name in names] for row in validation])
loss = -np.mean(np.where(y, np.log(p), np.log(1 - p)))
np.testing.assert_allclose(loss, result.best["loss"], rtol=1e-3)
print(f"{loss:.3f}, as logged")
# %% [markdown] en
# ## Thresholds
#
# A label is given if its probability reaches its *threshold*. One half is not always the best: a rare or a
# hard label wants another one. Validation finds a threshold for each label, such that all of them together have the best micro F1; they
# are saved with the model, and `predict` follows them.
#
# F1 is the harmonic mean of precision and recall, *micro* over all decisions together, *macro* the mean over labels.
# `subset_accuracy` wants every label of a text to be right.
# %% [markdown] zh
# ## 阈值
#
# 概率达到**阈值**，就给出这个标签。二分之一不一定最好：罕见的或者困难的标签需要别的阈值。验证集会为每个标签找到一个阈值，使整体的微平均 F1 最高；阈值和模型一起保存，`predict` 会按它们来判断。
#
# F1 是精确率和召回率的调和平均；*micro*（微平均）把所有判断放在一起算，*macro*（宏平均）对各个标签求平均。`subset_accuracy` 要求一段文本的所有标签都正确。
# %%
given = np.array([[name in one["labels"] for name in names] for one in predicted])
micro = 2 * (given & y).sum() / (given.sum() + y.sum())
np.testing.assert_allclose(micro, result.best["tuned_micro_f1"], atol=1e-6)
for name, own, wanted in zip(names, given.T, y.T):
    print(f"{name:10} {wanted.sum():4} texts  F1 {2 * (own & wanted).sum() / (own.sum() + wanted.sum()):.2f}")
print(f"micro F1 at one half {result.best['micro_f1']:.3f}, with thresholds {micro:.3f}")
# %% [markdown] en
# ## New texts
# %% [markdown] zh
# ## 预测新文本
# %%
model = bert_jax.load(folder / "several_labels")
texts = ["The fish was lovely.", "The bed was awful. The music was great.", "The view was superb. The cake was dull."]
for text, one in zip(texts, model.predict(texts)):
    print(f"{text}\n    {', '.join(one['labels'])}", {k: round(v, 2) for k, v in one["probabilities"].items()})
# %% [markdown] en
# ## What to remember
#
# - A softmax for *one of* several classes, sigmoids for *any number of* labels.
# - A new head starts at the share of each label in the training texts, so rare labels are rare from the first step on.
# - Thresholds come from validation. Scores on validation with these thresholds are a little too good; a test set
#   (`config.data.test`) says how much.
#
# Try it: give `complaint` to one text in twenty only, and compare accuracy with F1.
# %% [markdown] zh
# ## 小结
#
# - 几个类别**选一个**，用 softmax；标签**个数不定**，用 sigmoid。
# - 新的分类层从每个标签在训练集里的比例出发，所以罕见的标签从第一步起就是罕见的。
# - 阈值来自验证集。因此验证集上的分数会略微偏高；偏高多少，要看测试集（`config.data.test`）。
#
# 试一试：让二十条文本里只有一条带 `complaint`，再比较准确率和 F1。
