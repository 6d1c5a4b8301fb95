"""A program that starts again so that glibc keeps its memory, in huge pages."""

import os
import subprocess
import sys

import pytest

from bert_jax import heap

# Three times 256 MB from a thread, as a step has it; prints whether the kernel was asked for huge pages there, and the
# page faults of the last. How many huge pages it then had left is the machine's affair.
PROGRAM = """
import os, resource, sys, threading
from bert_jax.heap import restart_with_kept_heap
print("started", sys.argv[1:], flush=True)
restart_with_kept_heap()
import numpy as np
faults, asked = [], []
def asks_for_huge_pages(address):
    inside = False
    for line in open("/proc/self/smaps"):
        start, dash, end = line.split(" ", 1)[0].partition("-")
        if dash:
            inside = int(start, 16) <= address < int(end, 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.ones(1 << 28, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    asked.append(asks_for_huge_pages(block.ctypes.data + (1 << 27)))
for _ in range(3):
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
print(all(asked), faults[-1], os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""
OFF = "glibc.malloc.hugetlb=0:glibc.malloc.arena_max=0:glibc.malloc.mmap_max=65536:glibc.malloc.trim_threshold=131072"

on_linux = pytest.mark.skipif(
    not heap._useful_settings(), reason="the C library is not glibc, or there is a GPU or TPU"
)


def run(tmp_path, tunables=None, **variables):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment |= {"PYTHONPATH": os.getcwd()} | variables | ({"GLIBC_TUNABLES": tunables} if tunables else {})
    command = [sys.executable, str(tmp_path / "program.py"), "--flag=a b"]
    *started, last = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    asked, later, setting, arguments = last.split(" ", 3)
    assert arguments == "['--flag=a b']"
    return len(started), asked == "True", int(later), setting


@on_linux
def test_memory_stays_after_one_restart(tmp_path):
    starts, asked, later, setting = run(tmp_path)
    assert starts == 2 and setting == ":".join(f"{name}={value}" for name, value in heap._useful_settings().items())
    assert asked or "hugetlb" not in setting
    assert later < 50


@on_linux
def test_what_the_user_has_set_stays(tmp_path):
    starts, _, later, setting = run(tmp_path, OFF)
    assert (starts, setting) == (1, OFF)
    assert later > 100  # 128 pages of 2 MB, which NumPy asks for itself
    starts, *_, setting = run(tmp_path, "glibc.malloc.hugetlb=0")
    assert starts == 2 and setting.startswith("glibc.malloc.hugetlb=0:glibc.malloc.arena_max=1:")
    assert setting.count("hugetlb") == 1


@on_linux
def test_a_run_on_an_accelerator_is_left_alone(tmp_path):
    assert run(tmp_path, JAX_PLATFORMS="cuda")[::3] == (1, "None")


RELEASE = """
import numpy as np
from bert_jax.heap import release_free_memory
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
block = np.ones(1 << 28, np.uint8)
above = np.ones(1 << 20, np.uint8)  # lies behind the block, which is no free end of the heap then
del block
before = resident()
release_free_memory()
print(before, resident())
"""


@on_linux
@pytest.mark.parametrize("is_kept", [True, False])
def test_free_blocks_of_a_kept_heap_are_returned_on_request(is_kept):
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    kept = ":".join(f"{name}={value}" for name, value in heap._SETTINGS.items())
    environment |= {"PYTHONPATH": os.getcwd()} | ({"GLIBC_TUNABLES": kept} if is_kept else {})
    result = subprocess.run(
        [sys.executable, "-c", RELEASE], env=environment, capture_output=True, text=True, check=True
    )
    before, after = map(int, result.stdout.split())
    assert (before > 256 and after < before - 250) if is_kept else before < 256  # MB
