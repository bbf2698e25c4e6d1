"""The config class of models whose blocks differ: what vLLM's DeciLMForCausalLM reads, and no library brings.

A Mistral's configuration, which takes any number of heads, with a shape for every block. `serve.plugin` makes it known
to vLLM; no code of a checkpoint is ever run.
"""

from typing import Any

from transformers import MistralConfig

MODEL_TYPE = "nemotron-nas"
# The class for layers that differ in query heads, in `heterogeneous_heads`; published folders name it.
HETEROGENEOUS_HEADS = "UnevenHeadsForCausalLM"


class AttrDict(dict[str, Any]):
    """A mapping whose keys can be read as attributes, as DeciLM's code does; in JSON it is a mapping again."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class BlocksConfig(MistralConfig):
    """`block_configs` holds for each block `attention` and `ffn`, each with `no_op` and its size."""

    model_type = MODEL_TYPE

    def __post_init__(self, block_configs: Any = None, **others: Any) -> None:
        super().__post_init__(**others)
        self.block_configs = [
            AttrDict({part: AttrDict(_without_none(values)) for part, values in block.items()})
            for block in block_configs or ()
        ]


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """DeciLM asks whether a key is there, not what it holds."""
    return {key: value for key, value in values.items() if value is not None}
