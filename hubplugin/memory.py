"""Peak resident memory of this process, resettable between stages where the system allows it."""

import ctypes
import ctypes.util
import resource
from functools import cache
from pathlib import Path

import psutil

M_MMAP_THRESHOLD = -3  # of malloc.h
SMALL = 2**20  # bytes


def reset_peak() -> None:
    """Start measuring anew (Linux); elsewhere the peak stays that of the whole process.

    What an earlier stage freed is given back first: the allocator keeps it, and it would count against this one.
    """
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def trim() -> None:
    """Give back to the system what was freed and the allocator kept, where that is glibc's own."""
    give_back = getattr(_libc(), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("c"))


def spare() -> None:
    """From now on give back all but small pieces as soon as they are freed, at the price of time (glibc)."""
    option = getattr(_libc(), "mallopt", None)
    if option is not None:
        option(M_MMAP_THRESHOLD, SMALL)


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Bytes of resident memory at most since the last reset."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available() -> int:
    """Bytes this process may take beside what it has: what the system has left, or less where a limit is set."""
    limits = [psutil.virtual_memory().available]
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address != resource.RLIM_INFINITY:
        limits.append(address - psutil.Process().memory_info().vms)
    limits += _of_groups()
    return max(0, min(limits))


def _of_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the control group that this process runs in leaves it, in the hierarchy of either version."""
    left = []
    try:
        lines = [line.split(":", 2) for line in own.read_text().strip().splitlines()]
    except OSError:
        return []
    for _, controllers, path in lines:
        if controllers and "memory" not in controllers.split(","):
            continue
        group = root / ("memory" if controllers else "") / path.lstrip("/")
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        try:
            limit, used = ((group / f"memory.{name}").read_text().strip() for name in names)
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit():  # the other word is "max"
            # pages of files are let go of when something else needs their place
            files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            left.append(int(limit) - int(used) + files)
    return left
