# %% [markdown] en
# # 11. Small and served
#
# A model that is used all day should be small. This tutorial fine-tunes a teacher, distils it into a student of one layer,
# writes the student as a program that runs without this library, and asks a server that holds it.
#
# **Needs**: three minutes on two cores (one more if the BERT of tutorial 2 is not there yet), 1.5 GB of memory, nothing to
# download but the packages of the server and of the export.
#
# {colab}
# %% [markdown] zh
# # 11. 小模型与部署
#
# 整天要用的模型应该小一些。这篇教程先微调一个教师模型，把它蒸馏成只有一层的学生模型，再把学生写成不依赖本库就能运行的程序，最后启动一个服务器并向它提问。
#
# **需要**：两个 CPU 核心上三分钟（如果还没有第 2 篇教程的 BERT，再加一分钟），1.5 GB 内存；除了服务器和导出所用的软件包，无需下载。
#
# {colab}
# %% setup
# %%
packages = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
    "flatbuffers": "flatbuffers",
}
missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
# %% [markdown] en
# ## A teacher
#
# Sentiment again, fine-tuned as in tutorial 3.
# %% [markdown] zh
# ## 教师模型
#
# 还是情感分类，和第 3 篇教程一样微调。
# %%
import bert_jax
from experiments import classify, tutorial

start = tutorial.pretrained(folder)
train = tutorial.write_verdicts(folder / "small_train.csv", 200, seed=1)
validation = tutorial.write_verdicts(folder / "small_dev.csv", 200, seed=2)


def config_from(checkpoint):
    config = classify.get_config()
    config.init_from = str(checkpoint)
    config.data.update(train=str(train), validation=str(validation), sequence_length=16)
    config.model.update(pooling="mean", hidden_dropout=0.0, attention_dropout=0.0)
    config.optimizer.learning_rate = 1e-3
    config.train.update(epochs=4.0, batch_size=16)
    config.mesh.data = 1
    return config


teacher = bert_jax.train(config_from(start), folder / "teacher")
print(f"teacher: accuracy {teacher.best['accuracy']:.3f}")
# %% [markdown] en
# ## A student
#
# One layer: the first of the teacher's two. It learns the teacher's *probabilities*, softened by a temperature T
# (Hinton et al. 2015):
#
# $$\mathcal L = T^2 \cdot \mathrm{KL}\left(\mathrm{softmax}(z_t / T) \,\|\, \mathrm{softmax}(z_s / T)\right)$$
#
# "80 % good" says more than the label "good". And it needs no labels: texts are enough.
# %% [markdown] zh
# ## 学生模型
#
# 只有一层，就是教师两层里的第一层。它学习教师给出的**概率**，并用温度 T 变得平滑（Hinton 等 2015）：
#
# $$\mathcal L = T^2 \cdot \mathrm{KL}\left(\mathrm{softmax}(z_t / T) \,\|\, \mathrm{softmax}(z_s / T)\right)$$
#
# “80 % 是好评”比标签“好评”包含更多信息。而且这不需要人工标签，有文本就够了。
# %%
config = config_from(teacher.workdir)
config.model.num_hidden_layers = 1
config.train.take_layers = "0"
config.distillation.update(teacher=str(teacher.workdir), soft=1.0, hard=0.0, temperature=2.0)
student = bert_jax.train(config, folder / "student")
print(f"student: accuracy {student.best['accuracy']:.3f}")
# %%
models = {name: bert_jax.load(folder / name, dtype="float32") for name in ("teacher", "student")}
texts = ["The film was lovely.", "The bed was awful.", "The story was dull."]
for text, one, other in zip(texts, *(model.predict(texts) for model in models.values())):
    print(
        f"{text:24} teacher {one['label']} {one['probability']:.2f}   student {other['label']} {other['probability']:.2f}"
    )
# %% [markdown] en
# ## A program that runs without this library
#
# `convert` writes the student as StableHLO, the language in which JAX hands programs to compilers, with its weights and
# its tokenizer. To run it, you need `jax`, `safetensors` and `tokenizers`, on CPU, GPU or TPU.
# %% [markdown] zh
# ## 不依赖本库的程序
#
# `convert` 把学生写成 StableHLO（JAX 把程序交给编译器时使用的语言），连同权重和分词器。运行它只需要 `jax`、`safetensors` 和 `tokenizers`，在 CPU、GPU 或 TPU 上都可以。
# %%
import json

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from bert_jax.convert.conversion import convert

convert(str(folder / "student"), str(folder / "program"), format="stablehlo", overwrite=True)
for file in sorted((folder / "program").iterdir()):
    print(f"{file.name:24} {file.stat().st_size / 1000:8.0f} kB")

facts = json.loads((folder / "program/program.json").read_text())  # from here on nothing of bert_jax is used
program = jax.jit(export.deserialize(bytearray((folder / "program/model.stablehlo").read_bytes())).call)
tokenizer = Tokenizer.from_file(str(folder / "program/tokenizer.json"))
ids = tokenizer.encode(texts[0], add_special_tokens=False).ids
ids = np.array([[facts["tokens"]["cls"], *ids, facts["tokens"]["sep"]]], np.int32)
inputs = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
[logits] = np.asarray(program(load_file(folder / "program/model.safetensors"), inputs)["logits"])
shares = np.exp(logits) / np.exp(logits).sum()
print(", ".join(f"{label} {share:.3f}" for label, share in zip(facts["learned"]["labels"], shares)))
np.testing.assert_allclose(shares.max(), models["student"].predict(texts[0])["probability"], atol=1e-4)
# %% [markdown] en
# ## A server
#
# `python -m bert_jax.serve` answers over HTTP, and shows a page to try the model in a browser. Requests of different clients
# share a batch. Here it runs beside the notebook, is asked once, and is stopped.
# %% [markdown] zh
# ## 服务器
#
# `python -m bert_jax.serve` 通过 HTTP 回答请求，还提供一个可以在浏览器里试用模型的网页。不同客户端的请求会合并成一个批次。这里让它在笔记本旁边运行，提一次问题，然后停止。
# %%
import urllib.request

command = [
    sys.executable,
    "-m",
    "bert_jax.serve",
    str(folder / "student"),
    "--port=0",
    "--lengths=16",
    "--attention=False",
]
server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
try:
    address = server.stdout.readline().split()[-1]  # printed when it is ready
    body = json.dumps({"inputs": texts}).encode()
    request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        answers = json.load(response)
finally:
    server.terminate()
    server.wait()
for text, answer in zip(texts, answers):
    print(f"{text:24} {answer['label']}  {answer['probability']:.2f}")
assert [one["label"] for one in answers] == [one["label"] for one in models["student"].predict(texts)]
# %% [markdown] en
# [distilling.md](../../distilling.md) has the other losses (relations, hidden states), [exporting.md](../../exporting.md) the other
# formats, [serving.md](../../serving.md) routes, limits and tokens. The smallest model that is good enough depends on the
# task: measure, and with several seeds (tutorial 12).
# %% [markdown] zh
# 其他蒸馏损失（关系、隐藏状态）见 [distilling.md](../../distilling.md)，
# 其他导出格式见 [exporting.md](../../exporting.md)，
# 接口、限制和访问令牌见 [serving.md](../../serving.md)（均为英文）。够用的最小模型取决于任务：要测量，
# 而且要用多个种子（第 12 篇教程）。
