"""Memory that stays with the process, in huge pages: glibc's heap for programs that run on a CPU.

XLA allocates the temporary memory of every step again, 1.2 GB for BERT-base at 8×128. By default glibc gets blocks of
that size from the kernel and returns them at once, so that the kernel has to find and zero 290,000 pages of 4 KB for
every step: up to a fifth of its time, more on a machine whose memory is fragmented (docs/LOG.md). From a heap that is
kept, the next step gets the same block again, and pages of 2 MB take fewer entries of the address cache.

The price is memory: free blocks between others stay, too. What compiling a program and the first steps leave behind
made fine-tuning MiniLM half as large again as it is with `release_free_memory` at a few chosen steps.

glibc reads these settings when a process starts; therefore this process starts once more.
"""

import ctypes
import os
import platform
import sys
from glob import glob
from pathlib import Path

_SETTINGS = {
    "glibc.malloc.arena_max": 1,  # one heap for all threads: those that further ones get hold no block over 64 MB
    "glibc.malloc.mmap_max": 0,  # large blocks come from it too
    "glibc.malloc.trim_threshold": 1 << 62,  # bytes: its free end stays, however large
}
_HUGE_PAGES = {"glibc.malloc.hugetlb": 1}
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def restart_with_kept_heap() -> None:
    """Replaces this process by the same command with glibc's tunables set, unless the user has set them all or they
    would change nothing. Call it before anything is done that must not be done twice."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    given = {setting.partition("=")[0] for setting in tunables.split(":")}
    missing = [f"{name}={value}" for name, value in _useful_settings().items() if name not in given]
    if missing:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, *missing]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def release_free_memory() -> None:
    """Returns the free blocks of a kept heap to the kernel. The next step has to get its pages again, about a third of
    its time: call it where the pattern of blocks changes, not in every step."""
    if "glibc.malloc.trim_threshold" in os.environ.get("GLIBC_TUNABLES", "") and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _useful_settings() -> dict[str, int]:
    library, version = platform.libc_ver()
    if sys.platform != "linux" or library != "glibc" or not _computes_on_cpu():
        return {}
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    leaves_pages_to_programs = pages.is_file() and "[madvise]" in pages.read_text()
    knows_pages = tuple(map(int, version.split(".")[:2])) >= (2, 35)
    return _SETTINGS | (_HUGE_PAGES if leaves_pages_to_programs and knows_pages else {})


def _computes_on_cpu() -> bool:
    """Returns whether jax will compute on a CPU. jax itself cannot be asked yet: it must not be imported before the
    process starts again."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any(glob(pattern) for pattern in _ACCELERATORS)
