# %% [markdown] en
# # 4. Entities: a tag for each word
#
# Find people, places and companies in a text, and say which word is what.
#
# **Needs**: one minute on two CPU cores, 1 GB of memory, nothing to download. If tutorial 2 was not run, its model is trained
# first.
#
# {colab}
# %% [markdown] zh
# # 4. 命名实体识别：给每个词一个标签
#
# 在文本里找出人名、地名和公司名，并指出是哪几个词。
#
# **需要**：两个 CPU 核心，一分钟，1 GB 内存，无需下载任何东西。如果还没运行第 2 篇教程，会先训练它的模型。
#
# {colab}
# %% setup
# %% [markdown] en
# ## Tags
#
# `B-PER` begins a person, `I-PER` continues it, `O` is outside of any entity. Without B and I, two names side by side would be one.
# CoNLL files have a word and its tag per line, and a blank line between sentences.
#
# The sentences are those of the made-up town. Some names are kept for validation only: to find them, a model must read, not remember.
# %% [markdown] zh
# ## 标签
#
# `B-PER` 表示人名开始，`I-PER` 表示人名继续，`O` 表示不属于任何实体。如果不分 B 和 I，两个紧挨着的名字就会变成一个。
# CoNLL 格式的文件每行一个词和它的标签，句子之间空一行。
#
# 句子来自那座虚构的小镇。有几个名字只出现在验证集里：要找到它们，模型得会读，光靠记不行。
# %%
import random

from experiments import tutorial

kind_of = dict.fromkeys([*tutorial.WOMEN, *tutorial.MEN, *tutorial.SURNAMES], "PER")
kind_of |= dict.fromkeys(tutorial.TOWNS, "LOC") | dict.fromkeys(tutorial.COMPANIES, "ORG")
unseen = {"Hanman", "Petersen", "Lakeby", "Westford", "Omnibank", "Terratech"}


def tagged(sentence):
    rows, before = [], ""
    for word in sentence.replace(".", " .").split():
        kind = kind_of.get(word, "")
        rows.append((word, "O" if not kind else f"{'I' if kind == before else 'B'}-{kind}"))
        before = kind
    return rows


def write(name, sentences):
    text = "\n".join("".join(f"{word} {tag}\n" for word, tag in tagged(sentence)) for sentence in sentences)
    (folder / name).write_text(text)
    return str(folder / name)


rng = random.Random(1)
sentences = [sentence for _ in range(400) for sentence in tutorial.life(rng)]
held_out = [sentence for sentence in sentences if unseen & set(sentence.replace(".", "").split())]
train = [sentence for sentence in sentences if sentence not in held_out][:300]
held_out = held_out[:200]
print(len(train), "sentences to learn from,", len(held_out), "with unseen names, such as:", held_out[0])
write("train.conll", train)
print((folder / "train.conll").read_text()[:110])
# %% [markdown] en
# ## Words and tokens
#
# The text is cut into tokens, but tags belong to words. The rule of the paper: **the first token of a word** is tagged, and the
# others have no part in the loss. Otherwise a long name would count several times.
# %% [markdown] zh
# ## 词与词元
#
# 文本会被切成词元，而标签属于词。论文的做法是：只给**每个词的第一个词元**打标签，其余词元不参与损失。
# 不然的话，一个长名字就会被算好几次。
# %%
import bert_jax

start = tutorial.pretrained(folder)
tokenizer = bert_jax.load(start).tokenizer
for word, tag in tagged("Anna Hanman works for Omnibank."):
    tokens = [tokenizer.token(i) for i in tokenizer(word).ids[1:-1]]
    print(f"{word:10} {tag:7}", tokens[0], "←", tag, "  not tagged:" if tokens[1:] else "", *tokens[1:])
# %% [markdown] en
# ## Fine-tune
#
# For each word a linear layer over its vector and a softmax over the tags. `data.text` and `data.label` are the numbers of
# columns, -1 the last one.
# %% [markdown] zh
# ## 微调
#
# 每个词的向量过一个线性层，再对所有标签做 softmax。`data.text` 和 `data.label` 是列的编号，-1 表示最后一列。
# %%
from experiments import ner

config = ner.get_config()
config.init_from = str(start)
config.data.update(
    train=write("train.conll", train), validation=write("validation.conll", held_out), sequence_length=40
)
config.model.update(hidden_dropout=0.0, attention_dropout=0.0)
config.optimizer.learning_rate = 3e-3  # for a model this small; BERT-base wants 2e-5 to 5e-5
config.train.update(epochs=8, batch_size=16)
config.eval.every = config.checkpoint.every = 10_000  # steps, which there are not: only at the end
run = bert_jax.train(config, folder / "entities")
for name in ("accuracy", "entity_precision", "entity_recall", "entity_f1"):
    print(f"{name:17} {run.last[name]:.3f}")
assert run.last["entity_f1"] > 0.9
# %% [markdown] en
# ## Why not accuracy?
#
# Most words are `O`. A model that never finds anything has a fair accuracy and an F1 of 0. Entities are counted as
# wholes: a name with one wrong word is wrong.
#
# The names of the town are made of few parts, so that even new ones are easy. On newspapers (CoNLL-2003), BERT-base reaches an F1 of
# 0.92.
# %% [markdown] zh
# ## 为什么不看准确率？
#
# 大多数词都是 `O`。什么实体都找不到的模型，准确率也不低，F1 却是 0。实体按整体来算：名字里错一个词，整个就算错。
#
# 小镇的名字由少数几个部分拼成，所以没见过的名字也不难。在新闻语料（CoNLL-2003）上，BERT-base 的 F1 是 0.92。
# %%
model = bert_jax.load(run.workdir)
gold = [tagged(sentence) for sentence in held_out]
found = model.predict(held_out)


def entities(tags):
    """Returns (kind, first word, end) of each entity."""
    spans = []
    for place, tag in enumerate(tags):
        if tag.startswith("B-"):
            spans.append([tag[2:], place, place + 1])
        elif tag.startswith("I-"):
            spans[-1][2] = place + 1
    return {tuple(span) for span in spans}


known = {(n, *entity) for n, rows in enumerate(gold) for entity in entities([tag for _, tag in rows])}
given = {
    (n, entity["type"], entity["word_start"], entity["word_end"])
    for n, prediction in enumerate(found)
    for entity in prediction["entities"]
}
precision, recall = len(known & given) / len(given), len(known & given) / len(known)
f1 = 2 * precision * recall / (precision + recall)
outside = [tag == "O" for rows in gold for _, tag in rows]
print(f"F1 {f1:.3f}; accuracy of a model that only says O: {sum(outside) / len(outside):.3f}")
assert abs(f1 - run.last["entity_f1"]) < 1e-5
# %% [markdown] en
# ## Use it
# %% [markdown] zh
# ## 使用
# %%
for text in (
    "Anna Hanman works for Omnibank in Westford.",
    "Ida Petersen lives in Lakeby.",
    "On Sunday Leo takes the train to Paris.",
):
    entities_found = model.predict(text)["entities"]
    print(text, *(f"[{entity['text']}: {entity['type']} {entity['probability']:.2f}]" for entity in entities_found))
# %% [markdown] en
# *Paris* is missed: its pieces `pa ##ri ##s` were never a part of a name, neither in pretraining nor here. A model for real text needs
# real text.
#
# For other data: JSONL with lists of words and tags, BIOES and other schemes, and Chinese, whose words are single characters, are read
# as they come (`experiments/ner.py`).
# %% [markdown] zh
# *Paris* 没有被找到：它的片段 `pa ##ri ##s`，无论在预训练还是在这里，都从来没有出现在名字里。要处理真实文本，就得用真实文本来训练。
#
# 其他数据：词和标签的 JSONL 列表、BIOES 等标注方案，以及按字切分的中文，都可以直接读（见 `experiments/ner.py`）。
