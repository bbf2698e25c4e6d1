"""What speed was measured on: processor, cores, vector instructions, memory. Never a name of the machine."""

import os
import platform
from pathlib import Path

import psutil
import torch

from hubplugin.speed_record import Machine

# as Linux calls them, the oldest first
FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


def same(machine: Machine) -> bool:
    """Whether a record is of a machine like this one: the system counts memory a little differently at each start."""
    return machine.model_copy(update={"memory_bytes": 0}) == describe().model_copy(update={"memory_bytes": 0})


def describe(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """This machine. Where Linux does not describe the processor, Python's word for it stands there."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    said: dict[str, str] = {}
    for key, _, value in lines:
        said.setdefault(key.strip(), value.strip())  # the first core's
    flags = set(said.get("flags", said.get("Features", "")).split())
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Machine(
        processor=said.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        features=tuple(name for name in FEATURES if name in flags),
        memory_bytes=psutil.virtual_memory().total,
        accelerators=tuple(gpus),
    )
