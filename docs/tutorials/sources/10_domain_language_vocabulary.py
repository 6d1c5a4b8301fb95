# %% [markdown] en
# # 10. Domain, language, vocabulary
#
# You have a BERT, and texts of a field it has never read, or of another language. This tutorial continues pretraining on a
# new domain, gives the vocabulary new words, and looks at what a vocabulary does to Chinese.
#
# **Needs**: two minutes on two cores (one more if the BERT of tutorial 2 is not there yet), 1 GB of memory, nothing to
# download.
#
# {colab}
# %% [markdown] zh
# # 10. 领域、语言与词表
#
# 你有一个 BERT，还有它从来没读过的领域的文本，或者另一种语言的文本。这篇教程在新领域上继续预训练，给词表增加新词，再看看词表怎样处理中文。
#
# **需要**：两个 CPU 核心上两分钟（如果还没有第 2 篇教程的 BERT，再加一分钟），1 GB 内存，无需下载。
#
# {colab}
# %% setup
# %% [markdown] en
# ## A domain that the model does not know
#
# The town of tutorial 2 gets a clinic. Its notes are full of words that the vocabulary has never seen; WordPiece takes them
# apart, into pieces that mean nothing by themselves.
# %% [markdown] zh
# ## 模型不认识的领域
#
# 第 2 篇教程的小镇开了一家诊所。诊所的记录里有许多词表里没有的词，WordPiece 把它们切成单独没有意义的片段。
# %%
import random

import bert_jax
from experiments import tutorial

start = tutorial.pretrained(folder)
bert = bert_jax.load(start)
TREATMENTS = {
    "arrhythmia": ("cardiologist", "amiodarone"),
    "psoriasis": ("dermatologist", "methotrexate"),
    "epilepsy": ("neurologist", "lamotrigine"),
    "glaucoma": ("ophthalmologist", "latanoprost"),
}


def note(rng):
    name, town, day = rng.choice(tutorial.WOMEN + tutorial.MEN), rng.choice(tutorial.TOWNS), rng.choice(tutorial.DAYS)
    illness, (doctor, medicine) = rng.choice(sorted(TREATMENTS.items()))
    return [
        f"{name} from {town} has {illness}.",
        f"On {day} the {doctor} of the clinic found {illness}.",
        f"The {doctor} treats {illness} with {medicine}.",
        f"{name} takes {medicine} on {day}.",
    ]


rng = random.Random(0)
notes = ["\n".join(note(rng)) for _ in range(500)]
(folder / "clinic.txt").write_text("\n\n".join(notes) + "\n")
text = "The cardiologist treats arrhythmia with amiodarone."
before = [bert.tokenizer.token(i) for i in bert.tokenizer(text).ids]
print(len(before), "tokens:", " ".join(before))
# %% [markdown] en
# ## Further pretraining, with new words
#
# `domain.py:dapt` continues the masked language model on the domain (Gururangan et al. 2020). Three options matter:
#
# - `extend.words` first gives the vocabulary the words that save most pieces. A new word starts as the mean of the pieces it
#   had.
# - `corpora.general.share`: a third of the rows is the old text, or the model forgets it.
# - the learning rate, lower than in pretraining: 5e-5 for BERT-base, more for a model this small.
# %% [markdown] zh
# ## 继续预训练，并加入新词
#
# `domain.py:dapt` 在新领域的文本上继续训练掩码语言模型（Gururangan 等 2020）。三个选项很重要：
#
# - `extend.words` 先把最能节省片段的词加进词表。新词的初始向量是它原来各个片段的平均。
# - `corpora.general.share`：三分之一的行来自原来的文本，否则模型会忘掉它们。
# - 学习率要比预训练时低：BERT-base 用 5e-5，这么小的模型可以大一些。
# %%
from bert_jax.entries import add_entry
from experiments import domain

config = domain.get_config("dapt")
config.init_from = str(start)
config.corpora.domain.files = str(folder / "clinic.txt")
add_entry(config, "corpora.general", files=str(folder / "town.txt"), share=0.33)
config.extend.words = 24
config.data.update(prepared=str(folder / "prepared"), sequence_length=40, max_predictions_per_sequence=6)
config.optimizer.learning_rate = 3e-3
config.train.update(steps=300, batch_size=32, log_every=50, peak_tflops=1.0)
config.eval.update(every=300, max_examples=200)
config.checkpoint.every = 300
config.mesh.data = 1
result = bert_jax.train(config, folder / "clinic")
print((folder / "clinic/new_words.txt").read_text().split())
# %%
import json

lines = map(json.loads, (folder / "clinic/metrics.jsonl").read_text().splitlines())
evaluations = [line for line in lines if line["split"] == "eval"]
first, last = evaluations[0], evaluations[-1]
print("loss of masked tokens    before   after")
for corpus in ("domain", "general"):
    print(f"{corpus:22} {first[corpus + '/mlm_loss']:8.2f} {last[corpus + '/mlm_loss']:7.2f}")
assert last["domain/mlm_loss"] < first["domain/mlm_loss"] - 5
assert last["general/mlm_loss"] < first["general/mlm_loss"] + 0.3
# %% [markdown] en
# The loss on the domain falls, and the one on general text hardly rises: that is what you want. Losses of different
# *vocabularies* must not be compared, since a token of a larger one holds more text; here both columns have the new words.
# %% [markdown] zh
# 领域文本上的损失下降，而普通文本上的损失几乎没有上升：这正是想要的结果。不同**词表**的损失不能互相比较，因为词表大了，一个词元（token）包含的文字就更多；这里两列用的都是加入新词之后的词表。
# %%
clinic = bert_jax.load(folder / "clinic")
after = [clinic.tokenizer.token(i) for i in clinic.tokenizer(text).ids]
print(len(after), "tokens:", " ".join(after))
assert len(after) < len(before)
for doctor, medicine in TREATMENTS.values():
    [guesses] = clinic.fill_mask(f"The {doctor} treats [MASK] with {medicine}.", top_k=2)
    print(f"{doctor:16} treats", ", ".join(f"{token} {p:.0%}" for token, p in guesses))
    assert guesses[0][0] in TREATMENTS
# %% [markdown] en
# Three hundred steps have taught the model new words, and which kind of word stands where. Which illness belongs to which doctor takes
# more.
#
# ## Another language: what a vocabulary does
#
# A vocabulary of one language is nothing for another: Chinese becomes `[UNK]` here, and no fine-tuning brings back what
# was never read. A language needs a vocabulary and pretraining of its own, or a multilingual BERT.
#
# WordPiece makes every Chinese character a token. So spaces between words change nothing, and a tool that segments words
# beforehand is work for nothing. SentencePiece (`unigram`, `bpe`) learns from the text where pieces end.
# %% [markdown] zh
# 三百步已经让模型学会了新词，也知道什么位置该出现哪一类词。哪种病归哪位医生管，还要训练更久。
#
# ## 另一种语言：词表的作用
#
# 一种语言的词表对另一种语言没有用：在这里，中文全都变成 `[UNK]`，从来没有读到的内容，微调也补不回来。一种语言需要自己的词表和预训练，或者使用多语言 BERT。
#
# WordPiece 把每个汉字当作一个词元。所以词与词之间加空格没有任何影响，事先用工具分词是白费力气。SentencePiece（`unigram`、`bpe`）则从文本里学习在哪里切分。
# %%
import logging

from bert_jax.data.tokenizers.tokenizer import train_tokenizer
from experiments import base

sentence = "我们在北京大学学习自然语言处理。"
print("English vocabulary:", [bert.tokenizer.token(i) for i in bert.tokenizer(sentence).ids[1:-1]])
corpus = [
    "我们在北京学习。",
    "北京大学在北京。",
    "他们学习自然语言。",
    "自然语言处理很有用。",
    "我们学习语言处理。",
    "大学很大。",
] * 20
logging.disable(logging.WARNING)  # so small a corpus gives fewer tokens than asked for
tokenizers = {}
for kind, size in (("wordpiece", 60), ("unigram", 42)):
    data = base.get_config().data
    data.update(tokenizer=kind, vocab_size=size)
    tokenizers[kind] = train_tokenizer(data, iter(corpus))
    print(f"{kind}:", [tokenizers[kind].token(i) for i in tokenizers[kind](sentence).ids[1:-1]])
spaced = "我们 在 北京大学 学习 自然语言 处理 。"
assert tokenizers["wordpiece"](spaced).ids == tokenizers["wordpiece"](sentence).ids
# %% [markdown] en
# Next: [domains.md](../../domains.md) for all three steps with real data, [another_language.md](../../another_language.md) for a BERT
# of your language from nothing, [languages.md](../../languages.md) for one BERT of several.
# %% [markdown] zh
# 接下来（均为英文）：[domains.md](../../domains.md) 讲真实数据上的三个步骤，[another_language.md](../../another_language.md) 讲从零训练一种语言的 BERT，[languages.md](../../languages.md) 讲一个 BERT 学多种语言。
