"""Memory that stays with the process, in huge pages: glibc's heap for programs that run on a CPU.

XLA takes the temporary memory of a step anew each time, 1.2 GB for BERT-base at 8×128. By itself glibc gets blocks of
that size from the kernel and returns them at once, so that every step has 290,000 pages of 4 KB found and zeroed: up to
a fifth of its time, more on a machine whose memory is fragmented (docs/LOG.md). Of a heap that is not given back the
next step has the same block again, and in pages of 2 MB it takes fewer entries of the address cache. The price: a
process keeps the most that it ever had, and holes between blocks make that some more.

glibc reads these settings when a process starts; so this process starts once more.
"""

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
    """Replaces this process by the same command with glibc's tunables set, unless the user has set them all or it would
    change nothing. Call it before anything is done that must not be done twice."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    given = {setting.partition("=")[0] for setting in tunables.split(":")}
    missing = [f"{name}={value}" for name, value in _useful_settings().items() if name not in given]
    if missing:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, *missing]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _useful_settings() -> dict[str, int]:
    library, version = platform.libc_ver()
    if sys.platform != "linux" or library != "glibc" or not _computes_on_cpu():
        return {}
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    leaves_pages_to_programs = pages.is_file() and "[madvise]" in pages.read_text()
    knows_pages = tuple(map(int, version.split(".")[:2])) >= (2, 35)
    return _SETTINGS | (_HUGE_PAGES if leaves_pages_to_programs and knows_pages else {})


def _computes_on_cpu() -> bool:
    """By what jax will find, which cannot be asked yet."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any(glob(pattern) for pattern in _ACCELERATORS)
