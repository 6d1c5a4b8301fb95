"""Large blocks of memory in huge pages, from the first allocation on.

XLA on a CPU takes the memory of a step anew each time: for BERT-base at 8×128 that is 1.2 GB, which the kernel hands
out, zeroed, in 290,000 page faults of 4 KB: a fifth of the step's processor time (docs/LOG.md). In pages of 2 MB these
are about a thousand. Where the kernel leaves the choice to programs ("madvise"), glibc takes huge pages if its tunable
says so when a process starts; so this process starts once more.
"""

import os
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Replaces this process by the same command with the tunable set, unless it is set already (0: no huge pages), or
    it would change nothing. Call it before anything is done that must not be done twice."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in tunables or not _would_help():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _would_help() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not (sys.platform == "linux" and setting.is_file() and "[madvise]" in setting.read_text()):
        return False
    library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    return library == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
