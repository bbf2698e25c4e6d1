"""What kernels need of a processor, vLLM's and torch's, and whether this one has it.

vLLM 0.32's CPU build brings three libraries and picks one by the processor. That for AVX2 has no kernel for 4-bit
weights, and only that for AVX-512 with bfloat16 has the experts' kernels, which execute AMX: vLLM notices neither while
it loads a model, and the first forward pass ends in an AttributeError. Products of int8 weights and int8 inputs run
anywhere, but without VNNI oneDNN adds pairs of them in 16 bits, which overflow: answers are wrong, and nothing says so
(findings/). Products of bfloat16 run anywhere too, but where no instruction takes them, torch is dozens of times slower
at them than at float32; and Intel's cores have AVX512-BF16 instructions that reach half of float32's rate, so that
bfloat16 pays there in AMX alone, which virtual machines often hide (findings/). Knows processors; no model.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

AVX512, AMX, VNNI, FAST_BFLOAT16 = "AVX-512", "AMX", "VNNI", "fast bfloat16"
MAKER = "vendor_id"  # stands among the flags
AMD = "AuthenticAMD"
# what Linux calls them: all flags of any one set
FLAGS: dict[str, tuple[frozenset[str], ...]] = {
    AVX512: (frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"}),),
    AMX: (frozenset({"avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}),),
    FAST_BFLOAT16: (
        frozenset({"avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}),
        frozenset({"avx512f", "avx512_bf16", AMD}),
    ),
    VNNI: (frozenset({"avx512_vnni"}), frozenset({"avx_vnni"})),
}


def has(feature: str, flags: frozenset[str] | None = None) -> bool:
    """Whether a processor with these flags, or this one, has a feature."""
    present = _flags() if flags is None else flags
    return any(needed <= present for needed in FLAGS[feature])


def missing(features: Iterable[str]) -> str:
    """The features that this processor lacks, in words; empty where it has them all."""
    return " and no ".join(feature for feature in features if not has(feature))


@cache
def _flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    first = (next((line.partition(":")[2] for line in lines if line.startswith(key)), "") for key in (MAKER, "flags"))
    return frozenset(" ".join(first).split())
