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
    """One row of the benchmark."""

    prune: Callable[..., None]
    settings: tuple[Settings, ...] = ({},)
    alike: bool = False  # whether all layers keep the same widths


_HEADS: tuple[Settings, ...] = ({"heads": True}, {"heads": False})
_EVERYWHERE: tuple[Settings, ...] = ({"everywhere": True},)  # in none of the papers
_SIGNALS: tuple[Settings, ...] = tuple({"signal": signal} for signal in slicegpt.SIGNALS)

RIVALS = {
    "magnitude": Rival(magnitude.prune, _HEADS, alike=True),
    "magnitude-everywhere": Rival(magnitude.prune, _EVERYWHERE),
    "wanda-sp": Rival(wanda_sp.prune, _HEADS, alike=True),
    "wanda-sp-everywhere": Rival(wanda_sp.prune, _EVERYWHERE),
    "flap": Rival(flap.prune, ({"standardise": "channels"}, {"standardise": "heads"})),
    "flap-raw": Rival(flap.prune, ({"standardise": "no"},)),
    "llm-pruner": Rival(llm_pruner.prune, ({"spare_ends": True},)),
    "llm-pruner-uniform": Rival(llm_pruner.prune, ({"spare_ends": False},), alike=True),
    "llm-pruner-everywhere": Rival(llm_pruner.prune, _EVERYWHERE),
    "slicegpt": Rival(slicegpt.prune, _SIGNALS),
    "slicegpt-counted": Rival(slicegpt.prune, tuple({**each, "count_rotations": True} for each in _SIGNALS)),
    "shortgpt": Rival(depth.shortgpt, alike=True),
    "greedy-layers": Rival(depth.greedy_layers, alike=True),
    "blockpruner": Rival(depth.blockpruner),
}
