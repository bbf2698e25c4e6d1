"""The pruning methods that hubplugin is measured against, each written here from its paper, for LlamaForCausalLM.

They are references for a benchmark: float32, in memory, no files written, never offered by hubplugin. A rival is a
function (model, calibration, keep, **settings) that changes the model in place and leaves at least `keep` weights in
the linears inside the blocks. Where a paper leaves a setting open, several stand in the table and the benchmark gives
the rival the one that scores best on the held-out text itself: more than it would get in earnest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pruning_rivals import depth, flap, llm_pruner, magnitude, slicegpt, wanda_sp

Settings = dict[str, Any]


@dataclass(frozen=True)
class Rival:
    """One method of the table."""

    title: str
    paper: str  # arXiv number; empty: folklore
    prune: Callable[..., None]
    settings: tuple[Settings, ...] = ({},)


_HEADS: tuple[Settings, ...] = ({"heads": True}, {"heads": False})
_EVERYWHERE: tuple[Settings, ...] = ({"everywhere": True},)

RIVALS = {
    "magnitude": Rival("magnitude", "", magnitude.prune, _HEADS),
    "magnitude-everywhere": Rival("magnitude, one ranking", "", magnitude.prune, _EVERYWHERE),
    "wanda-sp": Rival("Wanda-sp", "2312.11983", wanda_sp.prune, _HEADS),
    "wanda-sp-everywhere": Rival("Wanda-sp, one ranking", "", wanda_sp.prune, _EVERYWHERE),
    "flap": Rival("FLAP", "2312.11983", flap.prune, ({"standardise": "channels"}, {"standardise": "heads"})),
    "flap-raw": Rival("FLAP, not standardised", "", flap.prune, ({"standardise": "no"},)),
    "llm-pruner": Rival("LLM-Pruner", "2305.11627", llm_pruner.prune, ({"spare_ends": True},)),
    "llm-pruner-uniform": Rival("LLM-Pruner, ends too", "2305.11627", llm_pruner.prune, ({"spare_ends": False},)),
    "llm-pruner-everywhere": Rival("LLM-Pruner, one ranking", "", llm_pruner.prune, _EVERYWHERE),
    "slicegpt": Rival(
        "SliceGPT, rotations not counted",
        "2401.15024",
        slicegpt.prune,
        ({"signal": "normalised"}, {"signal": "raw"}),
    ),
    "slicegpt-counted": Rival(
        "SliceGPT, rotations counted",
        "2401.15024",
        slicegpt.prune,
        ({"signal": "normalised", "count_rotations": True}, {"signal": "raw", "count_rotations": True}),
    ),
    "shortgpt": Rival("ShortGPT, whole layers", "2403.03853", depth.shortgpt),
    "greedy-layers": Rival("greedy, whole layers", "2406.10594", depth.greedy_layers),
    "blockpruner": Rival("BlockPruner, greedy, sub-blocks", "2406.10594", depth.blockpruner),
}
