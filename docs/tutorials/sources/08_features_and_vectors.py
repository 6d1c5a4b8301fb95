# %% [markdown] en
# # 8. Features and vectors
#
# A BERT turns each token into a vector, layer by layer. This tutorial takes the vectors out: to compare texts, to search,
# and to train a small classifier on a model that stays as it is.
#
# **Needs**: one minute on two cores (one more if the BERT of tutorial 2 is not there yet), 1 GB of memory, nothing to
# download.
#
# {colab}
# %% [markdown] zh
# # 8. 特征与向量
#
# BERT 一层一层地把每个词元（token）变成向量。这篇教程把这些向量取出来：用来比较文本、做检索，以及在不改动模型的前提下训练一个小分类器。
#
# **需要**：两个 CPU 核心上一分钟（如果还没有第 2 篇教程的 BERT，再加一分钟），1 GB 内存，无需下载。
#
# {colab}
# %% setup
# %% [markdown] en
# ## What `encode` returns
#
# L tokens of D columns, once for the embeddings and once after each layer. The first entry of `hidden_states` is *not* a
# layer: it is what the first layer reads.
# %% [markdown] zh
# ## `encode` 返回什么
#
# L 个词元，每个 D 列；嵌入层一份，之后每层各一份。`hidden_states` 的第一项**不是**某一层，而是第一层的输入。
# %%
import numpy as np

import bert_jax
from experiments import tutorial

bert = bert_jax.load(tutorial.pretrained(folder))
out = bert.encode(["The film was great.", "Anna lives in Ashton."], hidden_states=True)
print("tokens      ", [bert.tokenizer.token(i) for i in out.input_ids[0]])
print("last layer  ", out.last_hidden_state.shape, "[texts, tokens, columns]")
print("all of them ", len(out.hidden_states), "= embeddings +", len(out.hidden_states) - 1, "layers")
np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)
# %% [markdown] en
# ## From tokens to a text: pooling
#
# The mean over the tokens of a text is the usual vector of a text. *Without padding*: the shorter text of a batch is
# filled up, and the attention mask says where. The mean over all places, as many tutorials compute it, gives the short
# text another vector in each batch.
# %% [markdown] zh
# ## 从词元到文本：池化
#
# 一段文本的向量通常取它所有词元的平均。**不包括填充**：批次里较短的文本会被补齐，attention mask 标明哪些是真正的词元。许多教程直接对所有位置求平均，那样短文本在不同的批次里会得到不同的向量。
# %%
texts = ["The film was great.", "On Monday Anna went to the cinema in Ashton. She will come again."]
out = bert.encode(texts)
mask = out.attention_mask[:, :, None]
mean = (out.last_hidden_state * mask).sum(axis=1) / mask.sum(axis=1)
np.testing.assert_allclose(mean, bert.embed(texts), atol=1e-4)  # pooling="mean" is the default
np.testing.assert_allclose(out.last_hidden_state[:, 0], bert.embed(texts, pooling="cls"), atol=1e-4)
wrong = out.last_hidden_state.mean(axis=1)
print(f"length of the short text's vector: {np.linalg.norm(mean[0]):.2f}, with padding {np.linalg.norm(wrong[0]):.2f}")
# %% [markdown] en
# ## Similar texts
#
# The cosine of two vectors says how similar their directions are. In a large BERT that was only pretrained, all vectors have
# much in common (Ethayarajh 2019): even texts about other things have a high cosine. Subtract the mean of many vectors
# first, and compare ranks rather than numbers.
# %% [markdown] zh
# ## 相似的文本
#
# 两个向量夹角的余弦表示方向有多接近。只经过预训练的大模型，所有向量都有很大的共同成分（Ethayarajh 2019）：内容完全不同的文本，余弦也很高。应该先减去大量向量的平均，而且要比较排名，而不是看数值本身。
# %%
import random

rng = random.Random(1)
sentences = sorted({s for _ in range(200) for s in rng.choice((tutorial.visit, tutorial.life))(rng)})[::4]
vectors = np.array(bert.embed(sentences))  # `embed` returns a list, one vector per text


def cosines(query, vectors):
    return vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)


centre = vectors.mean(axis=0)
for text in ("The salad was superb.", "She is a teacher and works in the school."):
    query = bert.embed(text)
    raw, centred = cosines(query, vectors), cosines(query - centre, vectors - centre)
    print(
        f"{text}   raw cosines {raw.min():.2f} to {raw.max():.2f}, centred {centred.min():.2f} to {centred.max():.2f}"
    )
    for i in np.argsort(-centred)[:3]:
        print(f"    {centred[i]:.2f} {sentences[i]}")
# %% [markdown] en
# Pleased sentences find pleased ones, because in this corpus a whole visit pleases or does not: one adjective predicts
# the others. In real text "a good film" and "a bad film" stand in the same places, and opposites can be near. Nearness
# in a BERT that was only pretrained is not agreement; if you need that, train a sentence encoder, or a classifier as
# below.
#
# ## A picture
#
# Two directions of many (PCA), coloured by what kind of sentence it is. The model was never told.
# %% [markdown] zh
# 满意的句子找到了满意的句子，因为在这个语料里，一次出行要么处处满意，要么处处不满意：一个形容词就能预测其他形容词。在真实的文本里，“好电影”和“坏电影”出现在同样的位置，意思相反的句子也可能很近。在只经过预训练的 BERT 里，距离近不等于意思一致；需要后者，就要训练句向量模型，或者像下面这样训练一个分类器。
#
# ## 画出来看看
#
# 从许多方向里取两个（PCA），按句子的类型着色：满意、不满意，或者讲人物。训练时从来没有告诉过模型这些。
# %%
import matplotlib.pyplot as plt

from bert_jax.lab.inspect.vectors import project

moods = {"pleased": tutorial.POSITIVE, "displeased": tutorial.NEGATIVE}
of_moods = {mood: [i for i, s in enumerate(sentences) if any(word in s for word in moods[mood])] for mood in moods}
others = sorted(set(range(len(sentences))).difference(*of_moods.values()))
points = project(vectors).points
figure, axes = plt.subplots(figsize=(5, 3.2))
for mood, own in {**of_moods, "about people": others}.items():
    axes.scatter(*points[own].T, s=8, label=mood)
axes.legend(fontsize=8)
axes.set(xticks=[], yticks=[])
plt.show()
# %% [markdown] en
# ## Features: the model stays, a classifier learns
#
# A logistic regression on frozen vectors, with 12 labelled texts. Six of the fourteen adjectives of the test are not
# among them: counts of words cannot know these, but their vectors are near to those of the adjectives that are. [CLS]
# has gathered all that the other tokens say after two layers; the mean has nearly all of it after one.
# %% [markdown] zh
# ## 特征：模型不动，只训练分类器
#
# 在冻结的向量上做逻辑回归，只用 12 条带标签的文本。测试集的十四个形容词里，有六个没有在其中出现：词频统计不可能认识它们，
# 但它们的向量与出现过的形容词相近。[CLS] 要经过两层才收集齐其他词元的信息；平均向量一层之后就几乎都有了。
# %%
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression


def labelled(count, seed):
    rng, rows = random.Random(seed), []
    for _ in range(count):
        sign = rng.random() < 0.5
        thing = rng.choice(tutorial.VISITS[rng.choice(sorted(tutorial.VISITS))])
        rows.append((f"The {thing} was {rng.choice(tutorial.POSITIVE if sign else tutorial.NEGATIVE)}.", int(sign)))
    return map(list, zip(*rows))


(train, y), (test, gold) = labelled(12, 1), labelled(200, 2)


def score(of_train, of_test):
    return LogisticRegression(max_iter=1000).fit(of_train, y).score(of_test, gold)


counts = CountVectorizer().fit(train)
scores = {"counts of words": score(counts.transform(train), counts.transform(test))}
for layer in (1, 2):
    for pooling in ("mean", "cls"):
        options = {"layer": layer, "pooling": pooling}
        scores[f"layer {layer}, {pooling}"] = score(bert.embed(train, **options), bert.embed(test, **options))
for name, accuracy in scores.items():
    print(f"{name:15} accuracy {accuracy:.2f}")
assert scores["layer 2, mean"] > scores["counts of words"] + 0.1
# %% [markdown] en
# ## The same inside the library
#
# `optimizer.freeze` keeps the encoder as it is, `head.layers` chooses what the head reads, `head.lstm_layers` puts an LSTM
# between: the feature-based approach of the paper (table 7). Fine-tuning of all parameters is usually better, and the
# features win where there are few labels or many tasks share one encoder.
#
# | option | value |
# |---|---|
# | `optimizer.freeze` | `^(embeddings\|encoder\|pooler)/` |
# | `head.layers` | `last4_concat` |
# | `head.lstm_layers` | `2` |
# %% [markdown] zh
# ## 在库里怎么做
#
# `optimizer.freeze` 让编码器保持不变，`head.layers` 选择输出层读取哪些层，`head.lstm_layers` 在中间加一个 LSTM：这就是论文表 7 里基于特征的方法。通常微调全部参数效果更好；标签很少，或者许多任务共用一个编码器时，特征更合适。
#
# | 选项 | 取值 |
# |---|---|
# | `optimizer.freeze` | `^(embeddings\|encoder\|pooler)/` |
# | `head.layers` | `last4_concat` |
# | `head.lstm_layers` | `2` |
