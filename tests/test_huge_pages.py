"""A program that starts again so that glibc gives it huge pages."""

import os
import subprocess
import sys

import pytest

from bert_jax import huge_pages

# Takes 256 MB twice, as a step does, and prints what the second time cost in page faults.
PROGRAM = """
import os, resource, sys
from bert_jax.huge_pages import restart_with_huge_pages
print("started", sys.argv[1:], flush=True)
restart_with_huge_pages()
import numpy as np
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.ones(1 << 28, np.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del block
print(faults, os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def run(tmp_path, tunables=None):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment |= {"PYTHONPATH": os.getcwd()} | ({"GLIBC_TUNABLES": tunables} if tunables else {})
    command = [sys.executable, str(tmp_path / "program.py"), "--flag=a b"]
    *started, last = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    faults, setting, arguments = last.split(" ", 2)
    assert arguments == "['--flag=a b']"
    return len(started), int(faults), setting


@pytest.mark.skipif(
    not huge_pages._would_help(), reason="this kernel or C library does not leave huge pages to programs"
)
def test_memory_comes_in_huge_pages_after_one_restart(tmp_path):
    starts, faults, setting = run(tmp_path)
    assert starts == 2 and setting == "glibc.malloc.hugetlb=1"
    assert faults < 10_000  # 65,536 in pages of 4 KB


def test_what_the_user_has_set_stays(tmp_path):
    assert run(tmp_path, "glibc.malloc.hugetlb=0")[::2] == (1, "glibc.malloc.hugetlb=0")
