# %% [markdown] en
# # 9. Summaries and translation
#
# BERT fills gaps; it was not made to write. Two ways around that: *choose* sentences of the document (an extractive
# summary), or give the encoder a *decoder* that writes from left to right (a translation).
#
# **Needs**: three minutes on two cores (one more if the BERT of tutorial 2 is not there yet), 1.5 GB of memory, nothing to
# download but two small packages for the scores.
#
# {colab}
# %% [markdown] zh
# # 9. 摘要与翻译
#
# BERT 擅长填空，并不是为生成文本设计的。有两种办法：从文档里**挑选**句子（抽取式摘要），或者给编码器配一个从左到右生成文本的**解码器**（翻译）。
#
# **需要**：两个 CPU 核心上三分钟（如果还没有第 2 篇教程的 BERT，再加一分钟），1.5 GB 内存；除了两个计算分数的小软件包，无需下载。
#
# {colab}
# %% setup
# %%
packages = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
# %% [markdown] en
# ## Sentences that summarize
#
# The documents are visits in tutorial 2's town, with their sentences shuffled. A good summary says who went where, and
# whether the person comes again: two of six sentences, and not always the first ones.
# %% [markdown] zh
# ## 抽取式摘要
#
# 文档是第 2 篇教程那个小镇上的一次次出行，句子的顺序打乱了。好的摘要应该说明谁去了哪里、还会不会再来：六句里的两句，而且不一定是前两句。
# %%
import json
import random

from experiments import tutorial

start = tutorial.pretrained(folder)


def write(name, rows):
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(folder / name)


def documents(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        sentences = tutorial.visit(rng)
        summary = [sentences[0], sentences[-1]]
        rng.shuffle(sentences)
        yield {"document": sentences, "summary": [one for one in sentences if one in summary]}


train = list(documents(240, 1))
files = {"train": write("summaries_train.jsonl", train), "validation": write("summaries_dev.jsonl", documents(80, 2))}
print("\n".join(train[0]["document"]))
print("->", " ".join(train[0]["summary"]))
# %% [markdown] en
# BERTSum (Liu and Lapata 2019): each sentence gets a [CLS] of its own; the vectors of all these [CLS] are read by a small
# Transformer, which gives each sentence a probability.
#
# `[CLS] The fish was nasty. [SEP] [CLS] On Monday … [SEP]`
# %% [markdown] zh
# BERTSum（Liu 和 Lapata 2019）：每个句子前面都放一个 [CLS]；一个小 Transformer 读取这些 [CLS] 的向量，给每个句子一个概率。
#
# `[CLS] The fish was nasty. [SEP] [CLS] On Monday … [SEP]`
# %%
import bert_jax
from experiments import summarize, translate

config = summarize.get_config("extractive")
config.init_from = str(start)
config.data.update(**files, sequence_length=96)
config.extractive.sentences = 2
config.optimizer.learning_rate = 1e-3
config.train.update(epochs=3.0, batch_size=16)
config.mesh.data = 1
result = bert_jax.train(config, folder / "summaries")
print("ROUGE-2 of chosen sentences  first sentences  random ones")
assert result.best["rouge2"] > result.best["lead_rouge2"] + 20
print(f"{result.best['rouge2']:20.1f} {result.best['lead_rouge2']:16.1f} {result.best['random_rouge2']:12.1f}")
# %%
new = next(documents(1, 3))["document"]
for one in bert_jax.load(folder / "summaries").predict({"document": new})["sentences"]:
    print(f"{one['probability']:.2f}  {one['text']}")
# %% [markdown] en
# The first sentences are a strong summary of a newspaper article; here they are not, since the order is shuffled.
# Compare with them before you believe a score.
#
# ## A translator from nothing
#
# English into Chinese, for sentences of a few patterns. The order of words differs: in Chinese the day stands before
# the verb, and an adjective has "very" or "not" before it and no "is". No pair of validation is in training, though all
# its words are.
# %% [markdown] zh
# 对新闻来说，开头几句就是很强的摘要；这里句子被打乱了，所以不行。相信一个分数之前，总要先和它们比一比。
#
# ## 从零开始训练一个翻译模型
#
# 英译中，句子只有几种句式。两种语言的语序不同：中文里时间放在动词前面；形容词前要加“很”或“不”，而没有 is。
# 验证集里的句对都不在训练集里，但所有的词都在训练集里出现过。
# %%
THINGS = {"film": "电影", "music": "音乐", "fish": "鱼", "cake": "蛋糕", "room": "房间", "view": "风景", "soup": "汤"}
WORDS = {"good": "好", "bad": "差", "old": "旧", "new": "新", "cheap": "便宜", "warm": "暖和"}
PEOPLE = {"Anna": "安娜", "Ben": "小本", "Mary": "玛丽", "Paul": "保罗", "Rosa": "罗莎"}
DAYS = {"Monday": "星期一", "Tuesday": "星期二", "Friday": "星期五", "Sunday": "星期日"}
PLACES = {"cinema": "电影院", "restaurant": "餐厅", "hotel": "酒店", "school": "学校"}


def pairs():
    for (thing, zh), (word, how) in ((a, b) for a in THINGS.items() for b in WORDS.items()):
        yield f"The {thing} is {word}.", f"{zh}很{how}。"
        yield f"The {thing} is not {word}.", f"{zh}不{how}。"
        for name, who in PEOPLE.items():
            yield f"{name} says that the {thing} is {word}.", f"{who}说{zh}很{how}。"
    for name, who in PEOPLE.items():
        for place, where in PLACES.items():
            for day, when in DAYS.items():
                yield f"{name} goes to the {place} on {day}.", f"{who}星期{when[-1]}去{where}。"


everything = [{"source": source, "target": target} for source, target in pairs()]
random.Random(0).shuffle(everything)
files = {"train": write("zh_train.jsonl", everything[60:]), "validation": write("zh_dev.jsonl", everything[:60])}
print(len(everything), "pairs, such as", everything[0]["source"], everything[0]["target"])
# %% [markdown] en
# An encoder reads the English sentence. The decoder writes Chinese token by token: it attends to what it has written so far
# (*causal* attention), and to the encoder (*cross-attention*). The loss of each token is $-\log p(y_t \mid x, y_{<t})$.
# %% [markdown] zh
# 编码器读英文句子，解码器逐个词元（token）生成中文：它既关注自己已经生成的内容（**因果**注意力），也关注编码器（**交叉注意力**）。每个词元的损失是 $-\log p(y_t \mid x, y_{<t})$。
# %%
config = translate.get_config("scratch")
config.model.update(size="tiny", hidden_size=64, num_attention_heads=4, max_position_embeddings=32)
config.model.update(dtype="float32", hidden_dropout=0.0, attention_dropout=0.0)
config.data.update(**files, sequence_length=16, target_length=16, vocab_size=240, tokenizer="bpe")
config.seq2seq.update(bleu_tokenizer="zh", eval_examples=60)
config.optimizer.update(learning_rate=1e-2)
config.train.update(epochs=16.0, batch_size=32)
config.eval.every = 160
config.mesh.data = 1
result = bert_jax.train(config, folder / "translation")
print({name: round(result.last[name], 2) for name in ("bleu", "exact_match", "token_accuracy")})
assert result.last["exact_match"] > 0.8
# %%
translator = bert_jax.load(folder / "translation")
for text in ("Rosa says that the soup is warm.", "Paul goes to the hotel on Sunday.", "The cake is not cheap."):
    print(text, translator.generate(text, beams=3)["text"])
# %% [markdown] en
# ## What does each written token read, and what does it need?
#
# The cross-attention shows what is *read*. To see what is *needed*, each token of the source is hidden in turn: the loss of a written
# token rises most without the word that it translates. Chinese puts the day before the verb, so the words cross.
# %% [markdown] zh
# ## 生成每个词元时在看哪个词，又需要哪个词？
#
# 交叉注意力显示在**看**哪里。要知道**需要**哪里，就依次遮住源句的每个词元：遮住对应的那个词时，所生成词元的损失上升最多。中文把时间放在动词前面，所以对应的顺序是交叉的。
# %%
from bert_jax.lab.inspect.sources import dependence

found = dependence(translator, "Anna goes to the school on Friday.")
for token, weights, losses in zip(found.target, found.attention, found.losses):
    read, needed = found.source[weights.argmax()], found.source[losses.argmax()]
    print(f"{token:6}  reads {read:8} {weights.max():.2f}   needs {needed:8} {losses.max():+.1f}")
# %% [markdown] en
# ## With a real BERT
#
# `experiments/translate.py` without `scratch` starts from a checkpoint: encoder and decoder are the same BERT (UniLM), and
# `seq2seq.model=encoder_decoder` makes two of it. `experiments/summarize.py` writes summaries in the same way.
# [writing.md](../../writing.md) has the options, and what differs from Transformers.
# %% [markdown] zh
# ## 用真正的 BERT
#
# `experiments/translate.py` 不带 `scratch` 时从一个检查点出发：编码器和解码器是同一个 BERT（UniLM）；设成 `seq2seq.model=encoder_decoder` 就变成两个。`experiments/summarize.py` 用同样的办法写摘要。各个选项以及与 Transformers 的差别见 [writing.md](../../writing.md)（英文）。
