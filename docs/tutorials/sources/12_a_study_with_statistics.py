# %% [markdown] en
# # 12. A study with statistics
#
# "Pooling by the maximum is better: 84 % against 81 %." Is it? Runs that differ in nothing but the seed differ, too. This tutorial
# asks two questions about fine-tuning with 40 examples, and answers them with as much certainty as five seeds allow.
#
# **Needs**: three minutes on two cores (one more if the BERT of tutorial 2 is not there yet), 1 GB of memory, nothing to
# download.
#
# {colab}
# %% [markdown] zh
# # 12. 一个带统计检验的实验
#
# “最大池化更好：84 % 对 81 %。”真的吗？只有随机种子不同的两次训练，结果也会不同。这篇教程用 40 条样本的微调提出两个问题，并用五个种子所能给出的把握来回答。
#
# **需要**：两个 CPU 核心上三分钟（如果还没有第 2 篇教程的 BERT，再加一分钟），1 GB 内存，无需下载。
#
# {colab}
# %% setup
# %% [markdown] en
# ## Before: how many seeds?
#
# *Power* is the probability that a study finds a difference that is there. It depends on the difference in units of the
# standard deviation (sd) between seeds. Decide on the number of seeds *before* the study: if you add seeds until a
# result comes, you find one by chance.
# %% [markdown] zh
# ## 开始之前：需要几个种子？
#
# **检验功效**（power）是：差别确实存在时，实验能发现它的概率。它取决于差别的大小，以种子之间的标准差（sd）为单位。种子的个数要在实验**之前**定好：如果一直加种子直到出现“结果”，总会碰巧得到一个。
# %%
from bert_jax.lab.statistics.power import detectable_difference, power

print("seeds per level   found with 80 %   a difference of 2 sd is found with")
for seeds in (2, 3, 5, 10):
    print(f"{seeds:15} {detectable_difference(seeds):14.2f} sd {power(seeds, 2.0):33.0%}")
# %% [markdown] en
# ## The question, its levels, and the data
#
# Sentiment of sentences about the town, 40 for training. The *baseline* is fine-tuned as in tutorial 3; each other
# level changes one thing.
#
# | level | what differs |
# |---|---|
# | baseline | pretrained, the mean of the tokens |
# | max | pretrained, the largest value of each column |
# | scratch | the mean of the tokens, without pretraining |
# %% [markdown] zh
# ## 问题、水平与数据
#
# 判断小镇里句子的情感，训练样本 40 条。**基线**是第 3 篇教程的做法；其他每个水平只改变一处。
#
# | 水平 | 改变了什么 |
# |---|---|
# | baseline | 预训练，词元的平均 |
# | max | 预训练，每一列的最大值 |
# | scratch | 词元的平均，不经过预训练 |
# %%
import bert_jax
from experiments import classify, tutorial

start = tutorial.pretrained(folder)

files = {
    "train": str(tutorial.write_verdicts(folder / "study_train.csv", 40, seed=1)),
    "validation": str(tutorial.write_verdicts(folder / "study_dev.csv", 150, seed=2)),
}
# %% [markdown] en
# ## The runs
#
# Three levels, five seeds: 15 runs. The seed decides the new head and the order of the examples.
# %% [markdown] zh
# ## 训练
#
# 三个水平，五个种子，一共 15 次训练。种子决定新的分类层和样本的顺序。
# %%
SEEDS = range(5)


def accuracy(level, seed):
    config = classify.get_config()
    if level == "scratch":
        shape = tutorial.get_config().model
        config.model.update({name: shape[name] for name in shape})
        config.data.vocab_file = str(vocabulary)
    else:
        config.init_from = str(start)
    config.model.update(pooling="max" if level == "max" else "mean", hidden_dropout=0.0, attention_dropout=0.0)
    config.data.update(**files, sequence_length=16)
    config.optimizer.learning_rate = 1e-3
    config.train.update(epochs=1.0, batch_size=4)
    config.eval.update(batch_size=50)
    config.seed = seed
    config.mesh.data = 1
    return bert_jax.train(config, folder / "study" / level / str(seed)).last["accuracy"]


vocabulary = folder / "vocabulary"
bert_jax.load(start).tokenizer.save(vocabulary)
found = {level: [accuracy(level, seed) for seed in SEEDS] for level in ("baseline", "max", "scratch")}
for level, values in found.items():
    print(f"{level:9}", "  ".join(f"{value:.3f}" for value in values))
# %% [markdown] en
# ## Means and intervals
#
# $\bar x \pm t_{n-1} \cdot s / \sqrt{n}$: the interval that holds the true mean in 95 of 100 such studies. $t_4 = 2.78$, not the
# 1.96 of large samples, and not a bootstrap, whose intervals are too narrow for five values.
# %% [markdown] zh
# ## 平均值与置信区间
#
# $\bar x \pm t_{n-1} \cdot s / \sqrt{n}$：做 100 次这样的实验，大约有 95 次这个区间包含真正的平均值。这里 $t_4 = 2.78$，不是大样本的 1.96，也不要用自助法（bootstrap）：只有五个数时，它的区间太窄。
# %%
import numpy as np
from scipy import stats

from bert_jax.lab.statistics.differences import holm, summary, verdict, welch

for level, values in found.items():
    one = summary(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    np.testing.assert_allclose(one.half, half)
    print(f"{level:9} {one.mean:.3f} ± {one.half:.3f}   sd {one.sd:.3f}")
# %% [markdown] en
# ## Tests and verdicts
#
# Welch's test compares two means without assuming equal spreads. Two levels are compared with the baseline, so there are two
# chances of a false alarm: Holm's correction keeps the probability of *any* at 5 %.
# %% [markdown] zh
# ## 检验与结论
#
# Welch 检验比较两个平均值，不要求两边的离散程度相同。有两个水平要和基线比较，也就有两次误报的机会：Holm 校正把出现**任何**误报的概率保持在 5 %。
# %%
levels = ["max", "scratch"]
differences = [welch(found[level], found["baseline"]) for level in levels]
corrected = holm([one.p for one in differences])
for level, one, p in zip(levels, differences, corrected):
    np.testing.assert_allclose(
        one.p, stats.ttest_ind(found[level], found["baseline"], equal_var=False).pvalue, rtol=1e-6
    )
    print(
        f"{level:8} {one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]  p {p:.3f}: {verdict(one, p, True, comparisons=2)}"
    )
# %% [markdown] en
# "Can't tell" never means "equal": it says how many more seeds would be needed to tell. All five runs with `max` are
# right everywhere, so they show no spread at all; a harder validation set would tell more. Had you made one run per
# level, you would have written down whichever number was larger.
#
# ## In earnest
#
# A study is a file (`experiments/studies/`), and one command makes its runs, in parallel, on one machine or by Slurm, and
# writes a page with these tables: `python -m bert_jax.lab.sweep --study=FILE --workdir=runs/NAME`. Choose by validation,
# report the test set, count failed runs. [statistics.md](../../statistics.md) says which test is used when.
# %% [markdown] zh
# “can't tell”（无法判断）绝不等于“相同”：它会说明还需要多少个种子才能判断。`max` 的五次训练全部答对，
# 看不出任何离散程度；换一个更难的验证集，才能看出更多。如果每个水平只跑一次，你就会把碰巧更大的那个数写进论文。
#
# ## 正式的实验
#
# 一个实验就是一个文件（`experiments/studies/`），一条命令就能并行完成所有训练，在一台机器上或者通过 Slurm，并写出包含这些表格的网页：`python -m bert_jax.lab.sweep --study=FILE --workdir=runs/NAME`。用验证集做选择，报告测试集的结果，失败的训练也要计数。什么时候用什么检验，见 [statistics.md](../../statistics.md)（英文）。
