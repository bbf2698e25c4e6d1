"""The linears of a checkpoint as they lie in vLLM's layers: stacks, and ids of their parts. Imported by vLLM alone."""

from dataclasses import dataclass
from typing import Any

# vLLM's stacks: what they are made of in a checkpoint, and the ids that its loader gives the parts
STACKS: dict[str, dict[str, str | int]] = {
    "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
    "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
}


@dataclass(frozen=True)
class Projection:
    """One linear of the checkpoint, as it lies in a layer of vLLM's."""

    shard: Any  # the id that vLLM's loader gives it; None: the layer is this linear
    rank: int  # of its factors; 0: it has none
