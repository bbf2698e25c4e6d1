"""What vLLM's CPU kernels need of a processor, and whether this one has it.

vLLM 0.32's CPU build brings three libraries and picks one by the processor: that for AVX2 has no kernel for 4-bit
weights, and only that for AVX-512 with bfloat16 has the experts' kernels, which execute AMX. vLLM itself notices
neither while it loads a model: the first forward pass ends in an AttributeError. Knows processors; no model.
"""

from functools import cache
from pathlib import Path

AVX512, AMX = "AVX-512", "AMX"
# what Linux calls them; all flags of a name must be there
FLAGS = {
    AVX512: frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    AMX: frozenset({"avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}),
}


def has(feature: str, flags: frozenset[str] | None = None) -> bool:
    """Whether a processor with these flags, or this one, has a feature; the empty name asks for nothing."""
    return not feature or FLAGS[feature] <= (_flags() if flags is None else flags)


@cache
def _flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
