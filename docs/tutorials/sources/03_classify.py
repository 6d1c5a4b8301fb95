# %% [markdown] en
# # 3. Classify texts
#
# Many tutorials show four sentences with a label each, call the model once, and stop. Here the four sentences are learned; then
# you see what four sentences are worth, with and without pretraining.
#
# **Needs**: two minutes on two CPU cores, 1 GB of memory, nothing to download. If tutorial 2 was not run, its model is trained
# first.
#
# {colab}
# %% [markdown] zh
# # 3. 文本分类
#
# 很多教程列出四个句子，每句一个标签，调用一次模型就结束了。这里我们真的把这四句学会，再看看四个句子到底值多少：
# 有预训练和没有预训练，差别有多大。
#
# **需要**：两个 CPU 核心，两分钟，1 GB 内存，无需下载任何东西。如果还没运行第 2 篇教程，会先训练它的模型。
#
# {colab}
# %% setup
# %% [markdown] en
# ## Four sentences
#
# Labelled data is a table: CSV, TSV, JSONL or Parquet. `validation` holds sentences with words that the four do not
# have: a model that only learns the four by heart knows nothing about them.
# %% [markdown] zh
# ## 四个句子
#
# 有标签的数据就是一张表：CSV、TSV、JSONL、Parquet 都可以。验证集里的句子，用的全是那四句里没有的形容词：
# 只会背那四句的模型，对它们一无所知。
# %%
import csv

from experiments import tutorial


def write(name, rows):
    with open(folder / name, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("text", "label"))
        table.writerows(rows)
    return str(folder / name)


four = [
    ("The film was wonderful.", "positive"),
    ("The room was great.", "positive"),
    ("The film was terrible.", "negative"),
    ("The room was awful.", "negative"),
]
words = {"positive": tutorial.POSITIVE, "negative": tutorial.NEGATIVE}
new = [
    (f"The {thing} was {word}.", label)
    for label in words
    for word in words[label]
    if not any(word in text for text, _ in four)
    for thing in ("cake", "wine", "story", "view")
]
print(len(new), "new sentences:", new[0], "…", new[-1])
# %% [markdown] en
# ## Fine-tune
#
# `experiments/classify.py` is the recipe. `init_from` is the pretrained model; its size and vocabulary come along. The new part is
# one linear layer on the vector of the text, and the loss is the cross-entropy of its softmax:
#
# $$p = \mathrm{softmax}(vW + b) \qquad \mathrm{loss} = -\log p_{\text{label}}$$
#
# For comparison the same model is also trained from random parameters, with the same vocabulary.
# %% [markdown] zh
# ## 微调
#
# `experiments/classify.py` 就是配方。`init_from` 是预训练模型，它的大小和词表会一起带过来。新加的只有文本向量上的一个线性层，
# 损失是 softmax 的交叉熵：
#
# $$p = \mathrm{softmax}(vW + b) \qquad \mathrm{loss} = -\log p_{\text{label}}$$
#
# 作为对照，同样的模型也从随机参数开始训练一次，词表相同。
# %%
import bert_jax
from experiments import classify

start = tutorial.pretrained(folder)
bert_jax.load(start).tokenizer.save(folder / "vocabulary")


def fine_tune(name, train, epochs, is_pretrained=True):
    config = classify.get_config()
    if is_pretrained:
        config.init_from = str(start)
    else:
        shape = {key: value for key, value in tutorial.get_config().model.items() if value is not None}
        config.model.update(shape)
        config.data.vocab_file = str(folder / "vocabulary")
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0)
    config.data.update(train=train, validation=write("new.csv", new), sequence_length=32)
    config.optimizer.learning_rate = 1e-3  # for a model this small; BERT-base wants 2e-5 to 5e-5
    config.train.update(epochs=epochs, batch_size=4)
    config.eval.every = config.checkpoint.every = 10_000  # steps, which there are not: only at the end
    return bert_jax.train(config, folder / name)


runs = {
    "pretrained": fine_tune("four_pretrained", write("four.csv", four), epochs=40),
    "random": fine_tune("four_random", write("four.csv", four), epochs=40, is_pretrained=False),
}
print("parameters    the four   new sentences")
for name, run in runs.items():
    model = bert_jax.load(run.workdir)
    given = [prediction["label"] for prediction in model.predict([text for text, _ in four])]
    right = sum(label == known for label, (_, known) in zip(given, four, strict=True)) / 4
    print(f"{name:12} {right:9.2f} {run.last['accuracy']:15.2f}")
assert runs["pretrained"].last["accuracy"] > 0.8 and runs["random"].last["accuracy"] < 0.7
# %% [markdown] en
# Both know the four by heart. Only the pretrained one can say anything about words it has no label for: in tutorial 2 it had
# read, without any label, which words stand together. The other one guesses. **This is what pretraining is for.**
#
# ## What the figures are
#
# Recompute them from the predictions, and you know what they mean. The loss is the mean of $-\log p_{\text{label}}$, accuracy the
# share of right answers, and macro F1 the mean of the F1 of the classes:
#
# $$F_1 = \frac{2 \cdot \mathrm{precision} \cdot \mathrm{recall}}{\mathrm{precision} + \mathrm{recall}}$$
# %% [markdown] zh
# 两个模型都背会了那四句。可是对没有标签的新词，只有预训练过的模型说得出道理：在第 2 篇教程里，它没有用任何标签，就读出了哪些词
# 常常在一起出现。另一个只是在瞎猜。**预训练的意义就在这里。**
#
# ## 这些指标是什么
#
# 自己从预测结果算一遍，就知道它们的含义了。损失是 $-\log p_{\text{label}}$ 的平均，准确率是答对的比例，宏平均 F1 是各类 F1 的平均：
#
# $$F_1 = \frac{2 \cdot \mathrm{precision} \cdot \mathrm{recall}}{\mathrm{precision} + \mathrm{recall}}$$
# %%
import numpy as np

model, run = bert_jax.load(runs["pretrained"].workdir), runs["pretrained"]
predictions = model.predict([text for text, _ in new])
known = np.array([label for _, label in new])
given = np.array([prediction["label"] for prediction in predictions])
loss = np.mean([-np.log(one["probabilities"][label]) for one, label in zip(predictions, known, strict=True)])


def f1(label):
    right = np.sum((given == label) & (known == label))
    precision, recall = right / max(1, np.sum(given == label)), right / np.sum(known == label)
    return 2 * precision * recall / max(1e-9, precision + recall)


np.testing.assert_allclose(loss, run.last["loss"], rtol=1e-2)
np.testing.assert_allclose(np.mean(given == known), run.last["accuracy"], rtol=1e-6)
np.testing.assert_allclose(np.mean([f1(label) for label in words]), run.last["macro_f1"], rtol=1e-5)
print(f"loss {loss:.2f}, accuracy {np.mean(given == known):.2f}, macro F1 {run.last['macro_f1']:.2f}")
# %% [markdown] en
# ## More sentences
#
# Four examples were a demonstration. Here are 200, of the forms of sentence that the town has, and the page of results
# `report.html` in the workdir shows confusions and the worst errors.
# %% [markdown] zh
# ## 更多句子
#
# 四个例子只是演示。下面用 200 个，句式是小镇语料里有的那些。工作目录里的 `report.html` 是结果页，有混淆矩阵和错得最厉害的例子。
# %%
import random

rng = random.Random(0)
things = [thing for place in tutorial.VISITS.values() for thing in place]
kinds = [rng.choice(sorted(words)) for _ in range(200)]
many = [(tutorial.opinion(rng, kind, rng.choice(things), "Anna"), kind) for kind in kinds]
run = fine_tune("classifier", write("many.csv", many), epochs=2)
print(f"accuracy on the new sentences {run.last['accuracy']:.2f}")
model = bert_jax.load(run.workdir)
for text in ("What a superb and good ending!", "Ben hates this garden.", "The fish was not good."):
    prediction = model.predict(text)
    print(f"{prediction['label']} ({prediction['probability']:.2f})  {text}")
# %% [markdown] en
# The last answer is wrong: the sentence has *not*, a word that no sentence of this corpus has. A model knows what its
# data show, whatever its accuracy on other sentences of the same kind.
#
# ## Mistakes that are caught
#
# Without labels there is no loss, and nothing to learn. The library says so before the first step:
# %% [markdown] zh
# 最后一句判断错了：句子里有 *not*，而语料里从来没有出现过这个词。模型只知道数据里有的东西，
# 在同类句子上的准确率再高也说明不了别的。
#
# ## 会被拦住的错误
#
# 没有标签就没有损失，也就什么都学不到。本库在第一步之前就会说清楚：
# %%
from bert_jax.config import UserError

unlabelled = [*four[:3], ("The view was dull.", "")]
try:
    fine_tune("unlabelled", write("unlabelled.csv", unlabelled), epochs=1)
except UserError as error:
    print("error:", error)
# %% [markdown] en
# ## With a real model
#
# `config.init_from = "ckpts/bert-base"` after `python -m bert_jax.convert --from=bert-base-uncased --to=ckpts/bert-base`, a learning
# rate of 2e-5 to 5e-5, three epochs, batches of 32, rows of 128 tokens: `docs/finetuning.md`.
# %% [markdown] zh
# ## 换成真正的模型
#
# 先运行 `python -m bert_jax.convert --from=bert-base-uncased --to=ckpts/bert-base`，再设 `config.init_from = "ckpts/bert-base"`；
# 学习率 2e-5 到 5e-5，三轮，每批 32 句，每行 128 个词元。详见 `docs/finetuning.md`。
