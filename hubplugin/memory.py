"""Peak resident memory of this process, resettable between stages where the system allows it."""

import ctypes
import ctypes.util
import resource
from pathlib import Path


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
