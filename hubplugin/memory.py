"""Peak resident memory of this process, resettable between stages where the system allows it."""

import ctypes
import ctypes.util
import resource
from pathlib import Path

import psutil


def reset_peak() -> None:
    """Start measuring anew (Linux); elsewhere the peak stays that of the whole process.

    What an earlier stage freed is given back first: the allocator keeps it, and it would count against this one.
    """
    trim = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


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
    """Bytes this process may use: what the system has left, or less where a limit is set on it."""
    limits = [psutil.virtual_memory().available]
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address != resource.RLIM_INFINITY:
        limits.append(address - psutil.Process().memory_info().vms)
    group = _cgroup_limit()
    if group is not None:
        limits.append(group)
    return max(0, min(limits))


def _cgroup_limit() -> int | None:
    """What the control group this process runs in allows, or None."""
    try:
        path = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split(":", 2)[2].lstrip("/")
        group = Path("/sys/fs/cgroup") / path
        text = (group / "memory.max").read_text().strip()
        return None if text == "max" else int(text) - int((group / "memory.current").read_text())
    except (OSError, ValueError, IndexError):
        return None
