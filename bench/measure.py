"""Runs one command and says what it cost; and describes the machine without naming it. Standard library only.

Whoever imports this must itself stay small: Linux counts the resident memory that a child inherits at its birth.
"""

import os
import platform
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Cost:
    """Of a process and everything it started."""

    status: int
    wall: float  # seconds
    cpu: float  # seconds, user and system
    peak: int  # bytes resident at once
    others: float  # share of all cores that other processes used meanwhile, 0 to 1
    timed_out: bool


def run(command: list[str], environment: dict[str, str], log: Path, limit: float) -> Cost:
    """Run a command to its end, or end it and its children after `limit` seconds."""
    begun, busy = time.monotonic(), busy_seconds()
    peak, timed_out = 0, False
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
        try:
            while True:
                pid, status, used = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                peak = max(peak, _resident(child.pid))
                if not timed_out and time.monotonic() - begun > limit:
                    timed_out = True
                    os.killpg(child.pid, signal.SIGKILL)
                time.sleep(LOOK_SECONDS)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    # the sum over the tree is seen only now and then; the largest single process is known exactly
    peak = max(peak, used.ru_maxrss * 1024)
    wall, cpu = time.monotonic() - begun, used.ru_utime + used.ru_stime
    others = max(0.0, busy_seconds() - busy - cpu) / (wall * (os.cpu_count() or 1))
    return Cost(child.returncode, wall, cpu, peak, others, timed_out)


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    except (OSError, ValueError):
        return 0.0
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def _resident(root: int) -> int:
    """Bytes resident in a process and its descendants; what they share counts in each."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return total


def why(log: Path, cost: Cost) -> str:
    """The last line a failed command said, without paths."""
    if cost.timed_out:
        return f"not done after {cost.wall:.0f} s"
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    last = re.sub(r"(?:/[^\s/'\"]+)+/", "", lines[-1]) if lines else "said nothing"
    return f"status {cost.status}: {last[:200]}"


def machine() -> dict[str, Any]:
    """What decides the numbers: processor, cores, memory, system. No names, no paths."""
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "features": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    }
