# %% [markdown] en
# # 5. Questions: where does the answer begin, where does it end?
#
# A question and a text go in, a span of the text comes out. BERT does not write the answer; it points at it.
#
# **Needs**: one minute on two CPU cores, 1 GB of memory, nothing to download. If tutorial 2 was not run, its model is trained
# first.
#
# {colab}
# %% [markdown] zh
# # 5. 阅读理解问答：答案从哪里开始，到哪里结束？
#
# 输入一个问题和一段文本，输出文本中的一段。BERT 并不“写”答案，而是把答案在文中的位置指出来。
#
# **需要**：两个 CPU 核心，一分钟，1 GB 内存，无需下载任何东西。如果还没运行第 2 篇教程，会先训练它的模型。
#
# {colab}
# %% setup
# %% [markdown] en
# ## Data in the form of SQuAD
#
# An answer is a text and the character at which it begins. Offsets count characters from 0; a wrong one teaches a wrong answer, so
# the library checks each. Most texts here name three towns: to find the right one, the question has to be read.
# %% [markdown] zh
# ## SQuAD 格式的数据
#
# 答案由文本和起始字符的位置组成。位置从 0 开始按字符数；写错一个位置，就教了一个错的答案，所以本库会逐个检查。
# 这里的文本大多提到三个镇：要找对，就必须读懂问题。
# %%
import json
import random
import re

from experiments import tutorial

ASKED = {  # a question about a person, and where a text has the answer
    "Where does {} live?": r"lives in (\w+)",
    "Where does {} go by train?": r"train to (\w+)",
    "Where does the friend of {} work?": r"works for \w+ in (\w+)",
    "Who is the friend of {}?": r"friend (\w+ \w+) works",
    "What is {}?": r" is a (\w+)",
}
rng = random.Random(2)


def paragraph(number):
    sentences = tutorial.life(rng)
    name, context = sentences[0].split()[0], " ".join(sentences)
    found = {form.format(name): re.search(pattern, context) for form, pattern in ASKED.items()}
    question = rng.choice([question for question, match in found.items() if match])
    answer = {"text": found[question][1], "answer_start": found[question].start(1)}
    return {"context": context, "qas": [{"id": str(number), "question": question, "answers": [answer]}]}


def write(name, numbers):
    paragraphs = [paragraph(number) for number in numbers]
    (folder / name).write_text(json.dumps({"version": "1.1", "data": [{"title": "town", "paragraphs": paragraphs}]}))
    return paragraphs


train, validation = write("train.json", range(1_200)), write("validation.json", range(1_200, 1_400))
print(json.dumps(train[0], indent=1))
# %% [markdown] en
# ## The row that the model reads
#
# `[CLS] question [SEP] text [SEP]`, with segment 0 for the question and 1 for the text. Attention goes over all of it: that is how
# *live* in the question can find *lives in* in the text. Pretraining never saw a question: *where* is cut into pieces, and the question
# mark, which no vocabulary of this town has, becomes `[UNK]`.
# %% [markdown] zh
# ## 模型读到的那一行
#
# `[CLS] 问题 [SEP] 文本 [SEP]`，问题的段编号是 0，文本是 1。注意力覆盖整行：问题里的 *live* 就是这样找到文本里的 *lives in* 的。
# 预训练时没有出现过疑问句：*where* 被切成了碎片，小镇词表里没有的问号变成了 `[UNK]`。
# %%
import bert_jax

start = tutorial.pretrained(folder)
tokenizer = bert_jax.load(start).tokenizer
row = tokenizer(train[0]["qas"][0]["question"], train[0]["context"])
print(*(f"{tokenizer.token(i)}:{segment}" for i, segment in zip(row.ids, row.type_ids, strict=True)))
# %% [markdown] en
# ## Fine-tune
#
# Two vectors $S$ and $E$ are learned. Each token $i$ gets two scores, and two softmaxes over **all tokens of the row** give the
# probabilities of being the first and the last token of the answer:
#
# $$p^{\text{start}}_i = \frac{e^{S \cdot h_i}}{\sum_j e^{S \cdot h_j}} \qquad p^{\text{end}}_i = \frac{e^{E \cdot h_i}}{\sum_j e^{E \cdot h_j}}$$
#
# $$\mathrm{loss} = -\tfrac{1}{2}\left(\log p^{\text{start}}_{\text{first}} + \log p^{\text{end}}_{\text{last}}\right)$$
# %% [markdown] zh
# ## 微调
#
# 要学的是两个向量 $S$ 和 $E$。每个词元 $i$ 得到两个分数，再对**整行所有词元**做两次 softmax，得到它是答案的第一个词元和最后一个词元的概率：
#
# $$p^{\text{start}}_i = \frac{e^{S \cdot h_i}}{\sum_j e^{S \cdot h_j}} \qquad p^{\text{end}}_i = \frac{e^{E \cdot h_i}}{\sum_j e^{E \cdot h_j}}$$
#
# $$\mathrm{loss} = -\tfrac{1}{2}\left(\log p^{\text{start}}_{\text{first}} + \log p^{\text{end}}_{\text{last}}\right)$$
# %%
from experiments import squad

config = squad.get_config("v1")
config.init_from = str(start)
config.data.update(train=str(folder / "train.json"), validation=str(folder / "validation.json"))
config.data.update(sequence_length=80, window_stride=32, max_query_length=16)
config.model.update(hidden_dropout=0.0, attention_dropout=0.0)
config.optimizer.update(
    name="muon", learning_rate=1e-2, b2=0.98
)  # for a model this small; BERT-base wants AdamW at 3e-5
config.train.update(epochs=5, batch_size=32)
config.eval.every = config.checkpoint.every = 10_000  # steps, which there are not: only at the end
run = bert_jax.train(config, folder / "questions")
print({name: round(run.last[name], 1) for name in ("exact_match", "f1")})
assert run.last["exact_match"] > 90
# %% [markdown] en
# ## Which span is the best?
#
# The score of a span is $S \cdot h_i + E \cdot h_j$ with $j \ge i$: start and end are chosen **together**, since two argmaxes could
# give an end before the start. Here are the best spans of one question, with their probabilities:
# %% [markdown] zh
# ## 选哪一段？
#
# 一段的得分是 $S \cdot h_i + E \cdot h_j$，并且 $j \ge i$：起点和终点要**一起**选，分别取最大值的话，终点可能跑到起点前面。
# 下面是一个问题得分最高的几段，以及它们的概率：
# %%
model = bert_jax.load(run.workdir)
asked = {"question": validation[0]["qas"][0]["question"], "context": validation[0]["context"]}
prediction = model.predict(asked)
print(asked["context"])
print(asked["question"], "→", prediction["answer"])
for span in prediction["n_best"][:4]:
    print(f"  {span['probability']:.3f}  characters {span['start']}-{span['end']}  {span['text']}")
assert asked["context"][prediction["start"] : prediction["end"]] == prediction["answer"]
# %% [markdown] en
# ## Exact match and F1
#
# Exact match asks whether the answer is the right one, without case, punctuation and articles. F1 compares the words of both, so
# an answer with a word too many still gets a part:
# %% [markdown] zh
# ## 精确匹配与 F1
#
# 精确匹配（exact match）看答案是否完全正确，忽略大小写、标点和冠词。F1 比较两边的词，所以多一个词的答案也能得一部分分：
# %%
from collections import Counter


def words(text):
    return re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]", "", text.lower())).split()


def f1(given, known):
    common = sum((Counter(words(given)) & Counter(words(known))).values())
    return 2 * common / (len(words(given)) + len(words(known)))


questions = [{"question": one["qas"][0]["question"], "context": one["context"]} for one in validation]
pairs = [
    (prediction["answer"], one["qas"][0]["answers"][0]["text"])
    for prediction, one in zip(model.predict(questions), validation, strict=True)
]
exact = 100 * sum(words(given) == words(known) for given, known in pairs) / len(pairs)
mean = 100 * sum(f1(given, known) for given, known in pairs) / len(pairs)
assert abs(exact - run.last["exact_match"]) < 0.01 and abs(mean - run.last["f1"]) < 0.01
print(f"exact match {exact:.1f}, F1 {mean:.1f}; F1 of 'Ida lives' for 'Ida': {f1('Ida lives', 'Ida'):.2f}")
# %% [markdown] en
# ## What did it learn?
#
# Full marks, or nearly, but for what? No text above is about two people, so the *name* in a question never mattered. Ask what the data did not
# ask, and you find out:
# %% [markdown] zh
# ## 它到底学会了什么？
#
# （几乎）满分，可这说明了什么？上面的每篇文本都只讲一个人，所以问题里的**名字**从来不起作用。问一问数据里没有的情况，就知道了：
# %%
context = "Leo Janson lives in Norby. He is a doctor and works in the hospital. Vera Carlson lives in Ashton."
for question in ("Where does Leo live?", "Where does Vera live?", "Where does Mary live?"):
    print(question, "→", model.predict({"question": question, "context": context})["answer"])
# %% [markdown] en
# A validation set that is like the training set cannot show such a shortcut. The last question has no answer at all, and a model that
# was never asked such a question points somewhere anyway. `squad.py:v2` with questions marked `is_impossible` learns to say so: `[CLS]` is
# then the span of "no answer", and a threshold is found on validation. Texts longer than a row are read in windows, which is the next
# tutorial.
# %% [markdown] zh
# 与训练集相似的验证集，看不出这种“走捷径”。最后一个问题根本没有答案，而从来没有见过这类问题的模型，照样会指一个地方。
# `squad.py:v2` 配合标了 `is_impossible` 的问题，可以学会说“没有答案”：这时 `[CLS]` 就代表“无答案”，阈值在验证集上自动确定。
# 比一行还长的文本会分成窗口来读，这是下一篇教程的内容。
