"""vLLM's DeciLM, whose layers may also differ in how many query heads they have. Imported by vLLM alone, at need.

DeciLM takes the number of query heads from the whole model's configuration. Here each layer is given a configuration
of its own, in which that number is the layer's; all else is DeciLM's. How a model came by them is not known here.
"""

import copy
from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.models.nemotron_nas import DeciLMDecoderLayer, DeciLMForCausalLM, DeciModel


class HeterogeneousLayer(DeciLMDecoderLayer):
    """A layer with as many query heads as its entry in `block_configs` says."""

    def __init__(self, config: Any, layer_idx: int, *others: Any, **named: Any) -> None:
        attention = config.block_configs[layer_idx].attention
        own = copy.copy(config)
        own.num_attention_heads = getattr(attention, "num_attention_heads", config.num_attention_heads)
        super().__init__(own, layer_idx, *others, **named)


class UnevenHeadsForCausalLM(DeciLMForCausalLM):
    """DeciLM of such layers. Published folders name this class in config.json, so its name stays as it is."""

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "") -> DeciModel:
        return DeciModel(vllm_config=vllm_config, prefix=prefix, layer_type=HeterogeneousLayer)
