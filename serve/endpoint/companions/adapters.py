"""LoRA adapters that an engine computes beside its model (Hu et al., arXiv 2106.09685): a name of its own for each.

Knows PEFT's folders and vLLM's options for them. Starts nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubplugin.errors import ServeError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
AT_ONCE = 4  # adapters in one batch; requests for others wait
FIX = "save it again by PEFT's save_pretrained"
MERGE = "merge it into the model: PEFT's merge_and_unload"
REFUSED = {  # keys of adapter_config.json that ask for more than a product of two matrices
    "use_dora": "DoRA",
    "lora_bias": "biases",
    "modules_to_save": "whole modules beside LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "repeated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder, and the name that requests carry for it."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """PEFT's. Raises ServeError where it cannot be read."""
        try:
            found = json.loads((self.folder / CONFIG).read_bytes())
        except (OSError, ValueError) as error:
            raise ServeError(str(self.folder / CONFIG), f"cannot be read: {error}", FIX) from error
        if not isinstance(found, dict):
            raise ServeError(str(self.folder / CONFIG), "holds no JSON object", FIX)
        return found

    @property
    def base(self) -> str:
        """The model that it was trained on, as its config says: a repo id, or a folder where it was made."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def rank(self) -> int:
        """The largest of its modules."""
        own = [self.config.get("r"), *(self.config.get("rank_pattern") or {}).values()]
        return max((rank for rank in own if isinstance(rank, int)), default=0)

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return (self.folder / WEIGHTS).stat().st_size

    def facts(self, base: str) -> dict[str, Any]:
        """What /v1/models says of it."""
        return {"adapter_of": base, "rank": self.rank, "adapter_bytes": self.bytes}


def check(adapter: Adapter) -> None:
    """Raise ServeError for an adapter that vLLM (0.32) would refuse, or answer for without what it holds."""
    where, config = adapter.name, adapter.config
    if config.get("peft_type") != "LORA":
        raise ServeError(where, f"is of type {config.get('peft_type')}, and vLLM computes LORA", MERGE)
    held = [name for key, name in REFUSED.items() if config.get(key)]
    if config.get("bias") not in (None, "none"):
        held.append("biases")
    if held:
        raise ServeError(where, f"holds {held[0]}, which vLLM does not compute", MERGE)
    if not 1 <= adapter.rank <= RANKS[-1]:
        raise ServeError(where, f"has rank {adapter.rank}, and vLLM takes 1 to {RANKS[-1]}", MERGE)
    if not (adapter.folder / WEIGHTS).is_file():
        raise ServeError(str(adapter.folder), f"holds no {WEIGHTS}; other formats can hold code and are not read", FIX)


def options(adapters: Sequence[Adapter], base: str) -> tuple[str, ...]:
    """vLLM's, for the engine of their base."""
    if not adapters:
        return ()
    modules = [
        json.dumps({"name": one.name, "path": str(one.folder.resolve()), "base_model_name": base}) for one in adapters
    ]
    sizes = ("--max-lora-rank", str(room(adapters)), "--max-loras", str(min(AT_ONCE, len(adapters))))
    return ("--enable-lora", *sizes, "--lora-modules", *modules)


def room(adapters: Sequence[Adapter]) -> int:
    """The rank that vLLM makes room for."""
    return next(rank for rank in RANKS if rank >= max(adapter.rank for adapter in adapters))


def memory(adapters: Sequence[Adapter], config: Mapping[str, Any], number: int) -> int:
    """Bytes that vLLM sets aside for them: factors of all linears of all blocks, at the rank that there is room for,
    for every adapter of a batch. `number`: bytes of one."""
    if not adapters:
        return 0
    hidden, layers = int(config.get("hidden_size") or 0), int(config.get("num_hidden_layers") or 0)
    inner = int(config.get("intermediate_size") or 0)
    widths = layers * (4 * 2 * hidden + 3 * (hidden + inner))  # attention's four linears and the MLP's three
    return widths * room(adapters) * min(AT_ONCE, len(adapters)) * number
