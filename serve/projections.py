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


def place(layer: Any, shard: Any) -> tuple[int, int]:
    """Which part of a projection's outputs this process has under tensor parallelism, and of how many.

    With more processes than heads of keys and values, several hold the same head.
    """
    repeated = layer.num_kv_head_replicas if shard in ("k", "v") else 1
    return layer.tp_rank // repeated, layer.tp_size // repeated
