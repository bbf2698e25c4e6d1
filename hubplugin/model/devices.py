"""Where and in which precision a model is computed. Knows devices; no weights and no method."""

import torch

from serve import cpu_features


def computing_dtype(stored: torch.dtype, device: str = "cpu") -> torch.dtype:
    """What to compute a model in: bfloat16 where it is stored so and the device is faster at it, else float32."""
    fast = device != "cpu" or cpu_features.has(cpu_features.FAST_BFLOAT16)
    return torch.bfloat16 if stored == torch.bfloat16 and fast else torch.float32


def default_device() -> str:
    """The CUDA device where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_with(needed: int) -> str:
    """The CUDA device where so many bytes of its memory are free, else the CPU."""
    return "cuda" if needed <= free_device_memory() else "cpu"


def free_device_memory() -> int:
    """Bytes of a CUDA device's memory that nobody uses; 0 where there is none."""
    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 0
