"""Memory of this process: resident, its peak since a reset, and how much more the system lets it have.

Knows Linux's /proc, control groups and glibc's allocator, and does without where they are missing. Knows no model
and no plan.
"""

import ctypes
import ctypes.util
import resource
from functools import cache
from pathlib import Path

import psutil

M_MMAP_THRESHOLD = -3  # of malloc.h
MMAP_THRESHOLD = 2**20  # bytes: larger pieces are returned to the system when they are freed


def reset_peak() -> None:
    """Measure the peak from now on (Linux); elsewhere it stays that of the process since its start.

    Memory that earlier stages freed is returned first: the allocator keeps it, and it would count.
    """
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def trim() -> None:
    """Return freed memory that the allocator keeps to the system, where that is glibc's own."""
    malloc_trim = getattr(_libc(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("c"))


def spare() -> None:
    """From now on return all but small pieces as soon as they are freed, at the price of time (glibc)."""
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)


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
    """Bytes this process may take in addition: what the system has left, or less where a limit is set."""
    limits = [psutil.virtual_memory().available]
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address != resource.RLIM_INFINITY:
        limits.append(address - psutil.Process().memory_info().vms)
    limits += _left_by_control_groups()
    return max(0, min(limits))


def _left_by_control_groups(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes that the control groups of this process leave it, in the hierarchies of both versions."""
    left = []
    try:
        lines = [line.split(":", 2) for line in process.read_text().strip().splitlines()]
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
            # pages of files are dropped when something else needs memory
            files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            left.append(int(limit) - int(used) + files)
    return left
