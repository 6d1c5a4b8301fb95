# %% [markdown] en
# # 1. BERT from zero
#
# Every formula of the paper stands here beside a few lines of NumPy that compute it. Each result is compared with the
# library's: if a line below were wrong, its cell would stop.
#
# **Needs**: one minute on any CPU, 1 GB of memory, nothing to download.
#
# {colab}
#
# The papers: Devlin et al. 2018 (*BERT*), Vaswani et al. 2017 (*Attention is all you need*).
# %% [markdown] zh
# # 1. 从零认识 BERT
#
# 论文里的每个公式，旁边都有几行 NumPy 代码把它算出来，并且与本库的结果逐一核对：只要有一行写错，那个单元格就会报错停下。
#
# **需要**：任意 CPU，一分钟，1 GB 内存，无需下载任何东西。
#
# {colab}
#
# 论文：Devlin 等 2018（*BERT*），Vaswani 等 2017（*Attention is all you need*）。
# %% setup
# %% [markdown] en
# ## Text becomes ids
#
# A vocabulary is a list of tokens. Words that are not in it are cut into pieces that are; a piece inside a word begins with
# `##`. `[CLS]` begins the row, and `[SEP]` ends each part.
# %% [markdown] zh
# ## 从文本到编号
#
# 词表就是一串词元（token）。不在词表里的词会被切成词表里有的片段，词中间的片段以 `##` 开头，这就是 WordPiece 分词。
# 每一行以 `[CLS]` 开头，每一段以 `[SEP]` 结尾。
# %%
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.tokenizers.tokenizer import load_tokenizer

words = "[PAD] [UNK] [CLS] [SEP] [MASK] the dog cat bark ##s ##ed sleep on mat my is cute it play ##ing . ,"
(folder / "vocab.txt").write_text("\n".join(words.split()))
tokenizer = load_tokenizer(folder / "vocab.txt")
row = tokenizer("My dog is playing.", "It barks.")
print("token  ", [tokenizer.token(i) for i in row.ids])
print("id     ", row.ids)
print("segment", row.type_ids)
# %% [markdown] en
# ## The model
#
# A BERT that you can read: 2 layers, vectors of 16 numbers, 4 heads. BERT-base has 12 layers, 768 numbers and 12 heads, and
# nothing else that is not here. Its parameters are random; tutorial 2 trains one.
# %% [markdown] zh
# ## 模型
#
# 这是一个小到能看清楚的 BERT：2 层，每个向量 16 个数，4 个注意力头。BERT-base 是 12 层、768 个数、12 个头，
# 除此之外没有别的区别。这里的参数是随机的，第 2 篇教程会真正训练一个。
# %%
from flax import nnx

from bert_jax.models.bert import Bert, TrunkInputs
from bert_jax.models.config import bert_config
from bert_jax.models.heads import LinearHead, MaskedLMHead
from experiments import base

options = base.get_config().model
options.update(num_hidden_layers=2, hidden_size=16, num_attention_heads=4, max_position_embeddings=32)
options.update(dtype="float32", initializer_range=0.5)  # large random numbers, so that mistakes show
config = bert_config(options, tokenizer.vocab_size)
bert = Bert(config, rngs=nnx.Rngs(0))

L, D, H = len(row.ids), config.hidden_size, config.num_attention_heads
K = D // H  # size of a head
ids = np.array(row.ids)
types = np.array(row.type_ids)


def array(parameter):
    return np.asarray(parameter[...], np.float64)


def check(mine, theirs):
    """Compares with the library, whose numbers have 32 bits; the letters of the shape are L tokens, D numbers, H heads."""
    np.testing.assert_allclose(mine, np.asarray(theirs), rtol=2e-4, atol=2e-5)
    print("equal, shape", np.shape(mine))


# %% [markdown] en
# ## Embeddings: three tables and a LayerNorm
#
# $$x_i = \mathrm{LayerNorm}(W_{\text{word}}[\text{id}_i] + W_{\text{position}}[i] + W_{\text{type}}[\text{segment}_i])$$
#
# $$\mathrm{LayerNorm}(x) = \gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
#
# All three tables are learned; none of them is Word2Vec. The position is added **before** the first layer, since attention
# by itself does not see order.
# %% [markdown] zh
# ## 嵌入：三张表加一个 LayerNorm
#
# $$x_i = \mathrm{LayerNorm}(W_{\text{word}}[\text{id}_i] + W_{\text{position}}[i] + W_{\text{type}}[\text{segment}_i])$$
#
# $$\mathrm{LayerNorm}(x) = \gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
#
# 三张表都是训练出来的，没有一张是 Word2Vec。位置向量是在第一层**之前**加上去的，因为注意力本身看不到词的顺序。
# %%
def layer_norm(x, norm):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.layer_norm_eps)
    return array(norm.scale) * x + array(norm.bias)


tables = bert.embeddings
x = array(tables.word.embedding)[ids] + array(tables.position.embedding)[:L] + array(tables.token_type.embedding)[types]
x = layer_norm(x, tables.layer_norm)

one_row = jnp.asarray(ids)[None], jnp.asarray(types)[None], jnp.arange(L)[None]
check(x, tables(tables.word(one_row[0]), one_row[1], one_row[2])[0])
# %% [markdown] en
# The Transformer of 2017 had fixed positions instead of a table: **sines in even columns, cosines in odd ones**. The
# pairs matter: $k$ positions further, each pair has turned by the same angle, wherever it was. That makes distances
# easy to learn; sines alone have no such rule.
#
# $$P_{p,2i} = \sin(p / 10000^{2i/D}) \qquad P_{p,2i+1} = \cos(p / 10000^{2i/D})$$
# %% [markdown] zh
# 2017 年的 Transformer 没有用可训练的位置表，而是用固定的位置编码：**偶数列是正弦，奇数列是余弦**。
# 正弦和余弦必须成对：往后移 $k$ 个位置，每一对都转过同样的角度，与原来在哪里无关，所以距离很容易学到；只有正弦就没有这个规律。
#
# $$P_{p,2i} = \sin(p / 10000^{2i/D}) \qquad P_{p,2i+1} = \cos(p / 10000^{2i/D})$$
# %%
from bert_jax.models.encoder import sinusoids

angles = np.arange(L)[:, None] / 10_000 ** (np.arange(0, D, 2) / D)
positions = np.zeros((L, D))
positions[:, 0::2], positions[:, 1::2] = np.sin(angles), np.cos(angles)
check(positions, sinusoids(L, D))

k, turn = 3, 3 / 10_000 ** (np.arange(0, D, 2) / D)  # three positions further, and the angle of each pair
further = positions[:-k, 0::2] * np.cos(turn) + positions[:-k, 1::2] * np.sin(turn)
np.testing.assert_allclose(further, positions[k:, 0::2])


# %% [markdown] en
# ## Attention
#
# $$Q = xW_Q + b_Q \qquad K = xW_K + b_K \qquad V = xW_V + b_V$$
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d}}\right)V$$
#
# Each head has a quarter of the columns, and $d$ is the size of a head. Every token may look at every token, left and right,
# in both segments: the segments are not "joined" by anything but this.
# %% [markdown] zh
# ## 注意力
#
# $$Q = xW_Q + b_Q \qquad K = xW_K + b_K \qquad V = xW_V + b_V$$
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d}}\right)V$$
#
# 每个头分到四分之一的列，$d$ 是一个头的大小。每个词元都可以看所有词元，不分左右，也不分前后两段：
# 两段之间并没有别的什么“拼接”机制。
# %%
def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def linear(x, layer):
    return x @ array(layer.kernel) + array(layer.bias)


def heads(x):
    return x.reshape(L, H, K).swapaxes(0, 1)  # [H, L, K]


def attention(x, parts):
    query, key, value = (heads(linear(x, part)) for part in (parts.query, parts.key, parts.value))
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(K))  # [H, L, L], each row sums to 1
    joined = (weights @ value).swapaxes(0, 1).reshape(L, D)
    return linear(joined, parts.output), weights


layer = bert.encoder.unstacked()[0]
attended, weights = attention(x, layer.attention)
everyone = jnp.ones((1, 1, L, L), bool)
x32 = jnp.asarray(x, jnp.float32)[None]
check(attended, layer.attention(x32, x32, everyone)[0][0])
check(weights, layer.attention.weights(x32, x32, everyone)[0])
# %% [markdown] en
# ### Why 1/√d?
#
# The product of two vectors of $d$ independent numbers, each of mean 0 and variance 1, has the variance $d$. Without
# the root, longer vectors give larger scores, softmax picks one token, and almost no gradient is left.
# %% [markdown] zh
# ### 为什么要除以 √d？
#
# 两个 $d$ 维随机向量（各个数相互独立，均值为 0，方差为 1）的点积，方差是 $d$。不除以 √d，
# 向量越长分数就越大，softmax 几乎只选一个词元，梯度也就几乎没有了。
# %%
rng = np.random.default_rng(0)
print("   d   variance   largest weight of 8, without and with the root")
for d in (4, 64, 1024):
    queries, keys = rng.normal(size=(2_000, d)), rng.normal(size=(2_000, 8, d))
    scores = np.einsum("nd,nkd->nk", queries, keys)
    largest = [softmax(s).max(-1).mean() for s in (scores, scores / np.sqrt(d))]
    print(f"{d:4} {scores.var():10.1f} {largest[0]:16.2f} {largest[1]:8.2f}")
# %% [markdown] en
# A picture shows what each head looks at. The parameters are random, so the pattern means nothing yet; tutorial 13
# looks into a trained model.
# %% [markdown] zh
# 画出来就能看到每个头在看哪里。现在参数是随机的，图案还没有意义；第 13 篇教程会去看训练好的模型。
# %%
import matplotlib.pyplot as plt

tokens = [tokenizer.token(i) for i in row.ids]
figure, axes = plt.subplots(1, H, figsize=(9, 2.8), dpi=70, sharey=True, layout="constrained")
for head, axis in enumerate(axes):
    axis.imshow(weights[head], cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(L), tokens, rotation=90, fontsize=7)
    axis.set_yticks(range(L), tokens, fontsize=7)
    axis.set_title(f"head {head}", fontsize=8)
plt.show()
# %% [markdown] en
# ## GELU and the feed-forward part
#
# $$\mathrm{GELU}(x) = x\,\Phi(x) = \frac{x}{2}\left(1 + \mathrm{erf}\frac{x}{\sqrt 2}\right)$$
#
# $$\mathrm{GELU}(x) \approx \frac{x}{2}\left(1 + \tanh\!\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right)$$
#
# The original code of BERT has the second form, PyTorch the first. They differ by less than 0.0005.
#
# $$\mathrm{FFN}(x) = \mathrm{GELU}(xW_1 + b_1)W_2 + b_2$$
# %% [markdown] zh
# ## GELU 与前馈网络
#
# $$\mathrm{GELU}(x) = x\,\Phi(x) = \frac{x}{2}\left(1 + \mathrm{erf}\frac{x}{\sqrt 2}\right)$$
#
# $$\mathrm{GELU}(x) \approx \frac{x}{2}\left(1 + \tanh\!\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right)$$
#
# BERT 的原始代码用第二种写法，PyTorch 默认用第一种，两者相差不到 0.0005。
#
# $$\mathrm{FFN}(x) = \mathrm{GELU}(xW_1 + b_1)W_2 + b_2$$
# %%
from scipy.special import erf

from bert_jax.models.layers import GELU


def gelu_exact(x):
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


line = np.linspace(-4, 4, 101)
check(gelu_exact(line), GELU["gelu"](jnp.asarray(line, jnp.float32)))
check(gelu(line), GELU["gelu_tanh"](jnp.asarray(line, jnp.float32)))
print(f"largest difference {np.abs(gelu_exact(line) - gelu(line)).max():.4f}")


# %% [markdown] en
# ## A layer, and all layers
#
# Around each part stands a residual connection, and behind the sum a LayerNorm ("post-LN"). Training also has dropout
# (0.1) before the sum, which is left out here:
#
# $$y = \mathrm{LayerNorm}(x + \mathrm{Attention}(x)) \qquad z = \mathrm{LayerNorm}(y + \mathrm{FFN}(y))$$
# %% [markdown] zh
# ## 一层，以及所有层
#
# 每个部分外面都有残差连接，相加之后再做 LayerNorm（叫做 post-LN）。训练时，相加之前还有 dropout（0.1），
# 这里没有写：
#
# $$y = \mathrm{LayerNorm}(x + \mathrm{Attention}(x)) \qquad z = \mathrm{LayerNorm}(y + \mathrm{FFN}(y))$$
# %%
def transformer_layer(x, layer):
    y = layer_norm(x + attention(x, layer.attention)[0], layer.attention_layer_norm)
    inner = gelu(linear(y, layer.intermediate))  # [L, 4 D]
    return layer_norm(y + linear(inner, layer.output), layer.output_layer_norm)


states = [x]
for layer in bert.encoder.unstacked():
    states.append(transformer_layer(states[-1], layer))

inputs = TrunkInputs(*one_row, jnp.ones((1, L), jnp.int32))
encoded = bert.encode(inputs, all_layers=True)
for mine, theirs in zip(states[1:], encoded.layers, strict=True):
    check(mine, theirs[0])
# %% [markdown] en
# Read the shapes from the bottom up. Every layer takes L vectors of D numbers and gives as many, which is why layers
# can be stacked.
# %% [markdown] zh
# 从下往上看形状。每一层输入 L 个 D 维向量，输出也是 L 个 D 维向量，所以层可以一层层叠起来。
# %%
shapes = [
    ("token ids", f"[L] = [{L}]"),
    ("word + position + segment, LayerNorm", f"[L, D] = [{L}, {D}]"),
    ("Q, K, V, split into heads", f"[H, L, K] = [{H}, {L}, {K}]"),
    ("softmax(Q Kᵀ / √K)", f"[H, L, L] = [{H}, {L}, {L}]"),
    ("weights · V, heads joined, W_O", f"[L, D] = [{L}, {D}]"),
    ("+ x, LayerNorm", f"[L, D] = [{L}, {D}]"),
    ("GELU(x W_1)", f"[L, 4 D] = [{L}, {4 * D}]"),
    ("W_2, + x, LayerNorm", f"[L, D] = [{L}, {D}]"),
]
figure, axis = plt.subplots(figsize=(6.5, 3.4), dpi=70, layout="constrained")
for level, (name, shape) in enumerate(shapes):
    axis.text(
        0.3,
        level,
        name,
        ha="center",
        va="center",
        fontsize=9,
        bbox={"boxstyle": "round", "fc": "#dbe9f6", "ec": "#4a7ab0"},
    )
    axis.text(0.62, level, shape, va="center", family="monospace", fontsize=9)
axis.annotate(
    "one layer",
    (0.95, 7.3),
    (0.95, 1.7),
    rotation=90,
    ha="center",
    va="bottom",
    fontsize=9,
    arrowprops={"arrowstyle": "->"},
)
axis.set(xlim=(0, 1), ylim=(-0.6, 7.6))
axis.axis("off")
plt.show()
# %% [markdown] en
# ## The pooler, and next sentence prediction
#
# $$p = \tanh(h_{\text{[CLS]}} W_p + b_p) \qquad \mathrm{NSP} = \mathrm{softmax}(p W_n + b_n)$$
#
# The second output of many libraries, `pooler_output`, is $p$: not the state of `[CLS]` itself, and not a mean.
# %% [markdown] zh
# ## 池化层与下一句预测
#
# $$p = \tanh(h_{\text{[CLS]}} W_p + b_p) \qquad \mathrm{NSP} = \mathrm{softmax}(p W_n + b_n)$$
#
# 许多库的第二个输出 `pooler_output` 就是 $p$：它既不是 `[CLS]` 的隐状态本身，也不是平均值。
# %%
last = states[-1]
pooled = np.tanh(linear(last[0], bert.pooler))
check(pooled, bert.pool(encoded.hidden)[0])

nsp = LinearHead(config, 2, rngs=nnx.Rngs(1))
nsp_logits = linear(pooled, nsp)
check(nsp_logits, nsp.logits(bert.pool(encoded.hidden))[0])
print("is it the next sentence?", softmax(nsp_logits).round(2))
# %% [markdown] en
# ## Masked language modelling
#
# 15 % of the tokens are chosen. Of these, 80 % are shown as `[MASK]`, 10 % as a random token, 10 % as they are. The model has
# to name the original token of **the chosen ones only**; the loss looks at no other token. Let the library choose in
# 2,000 rows, and count:
# %% [markdown] zh
# ## 掩码语言模型
#
# 随机选出 15% 的词元。选中的词元里，80% 换成 `[MASK]`，10% 换成随机词元，10% 保持原样。模型只需要猜出**被选中的**词元，
# 损失函数不看其他词元。让本库在 2,000 行里选一选，数一数：
# %%
from bert_jax.tasks.masking import mask_tokens

data = base.get_config().data
many = np.full((2_000, 40), tokenizer.id("dog"))
many[:, 0], many[:, -1] = tokenizer.cls_id, tokenizer.sep_id
masked = mask_tokens(jnp.asarray(many, jnp.int32), jnp.ones(many.shape, jnp.int32), data, tokenizer, jax.random.key(0))
rows_of, chosen = np.nonzero(np.asarray(masked["masked_weights"]))
places = np.asarray(masked["masked_positions"])[rows_of, chosen]
shown = np.asarray(masked["input_ids"])[rows_of, places]
print(f"chosen        {len(shown) / many.size:.3f}")
print(f"as [MASK]     {np.mean(shown == tokenizer.mask_id):.3f} of them")
print(
    f"as they are   {np.mean(shown == tokenizer.id('dog')):.3f} (one random token in {tokenizer.vocab_size} is the same)"
)
# %% [markdown] en
# The head that names tokens is a linear layer, GELU and LayerNorm, then the product with the **word embeddings**, the same
# table as at the bottom, and a bias for each token:
#
# $$\mathrm{logits} = \mathrm{LayerNorm}(\mathrm{GELU}(hW + b))\,W_{\text{word}}^\top + c$$
#
# $$\mathrm{loss} = -\frac{1}{|M|}\sum_{i \in M} \log \mathrm{softmax}(\mathrm{logits}_i)_{\text{id}_i}$$
# %% [markdown] zh
# 猜词元的输出头是：线性层、GELU、LayerNorm，再与**词嵌入表**（就是最底下那张表，参数共享）相乘，最后给每个词元加一个偏置：
#
# $$\mathrm{logits} = \mathrm{LayerNorm}(\mathrm{GELU}(hW + b))\,W_{\text{word}}^\top + c$$
#
# $$\mathrm{loss} = -\frac{1}{|M|}\sum_{i \in M} \log \mathrm{softmax}(\mathrm{logits}_i)_{\text{id}_i}$$
# %%
from bert_jax.tasks.losses import cross_entropy_sums

head = MaskedLMHead(config, rngs=nnx.Rngs(2))
places = np.array([2, 4])  # dog, play
vectors = layer_norm(gelu(linear(last[places], head.transform)), head.layer_norm)
logits = vectors @ array(tables.word.embedding).T + array(head.bias)
theirs = head(encoded.hidden[:, places], tables.word.embedding[...])
check(logits, theirs[0])

loss = -np.log(softmax(logits)[[0, 1], ids[places]]).mean()
total, weight = cross_entropy_sums("mlm", theirs, jnp.asarray(ids[places])[None], jnp.ones((1, 2)))["mlm_loss"]
check(loss, total / weight)
# %% [markdown] en
# In pretraining the two losses are added: $\mathrm{loss} = \mathrm{loss}_{\text{MLM}} + \mathrm{loss}_{\text{NSP}}$. A model
# without labels has no loss: here the hidden tokens are the labels of the first, and whether B followed A is that of the second.
#
# ## How large is BERT-base?
#
# Now you can count its parameters, with both heads:
# %% [markdown] zh
# 预训练时把两个损失相加：$\mathrm{loss} = \mathrm{loss}_{\text{MLM}} + \mathrm{loss}_{\text{NSP}}$。没有标签就没有损失：
# 这里，被遮住的词元是第一个损失的标签，B 是不是 A 的下一句是第二个损失的标签。
#
# ## BERT-base 有多大？
#
# 现在你可以自己数一数它的参数，包括两个输出头：
# %%
V, D, N, F, positions = 30_522, 768, 12, 3_072, 512
embeddings = (V + positions + 2) * D + 2 * D
one_layer = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 2 * 2 * D
pooler, nsp_head = D * D + D, 2 * D + 2
mlm_head = D * D + D + 2 * D + V  # its product has the word embeddings, which are counted already
total = embeddings + N * one_layer + pooler + nsp_head + mlm_head
print(f"{embeddings:,} + {N} × {one_layer:,} + {pooler + nsp_head + mlm_head:,} = {total:,}")
assert total == 110_106_428
# %% [markdown] en
# ## What next
#
# Tutorial 2 trains this model on text of your own. "What tutorials get wrong" has the statements that this page
# contradicts, each with a test that shows it.
# %% [markdown] zh
# ## 接下来
#
# 第 2 篇教程会用你自己的文本训练这个模型。《教程里常见的错误》收集了与本页相反的种种说法，每一条都有一个测试来证明。
