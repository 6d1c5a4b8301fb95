# %% [markdown] en
# # 1. BERT from zero
#
# Every formula of the paper stands here beside a few lines of NumPy that compute it, and each result is compared with
# the library's.
#
# **Needs**: one minute on any CPU, 1 GB of memory, nothing to download.
#
# {colab}
# %% [markdown] zh
# # 1. 从零认识 BERT
#
# 论文里的每个公式旁边，都有几行 NumPy 代码把它算出来，并与本库的结果逐一核对。
#
# **需要**：任意 CPU 一分钟，1 GB 内存，无需下载。
#
# {colab}
# %% setup
# %%
import jax

jax.__version__.split(".")[0]
