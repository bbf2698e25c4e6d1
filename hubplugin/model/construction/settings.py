"""A config.json as transformers' own object: what it says of the model, and nothing of how somebody loaded or ran it.

Knows keys. Builds no module and reads no file.
"""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from hubplugin.model.architectures.configs import NOT_OF_THE_MODEL


def read(config: Mapping[str, Any]) -> PretrainedConfig:
    """The settings that modules are built from. The mapping stays as it is, which transformers would complete."""
    said = {key: value for key, value in config.items() if key not in NOT_OF_THE_MODEL}
    settings = AutoConfig.for_model(**copy.deepcopy(said))
    padding = settings.pad_token_id  # a class may have a default of its own
    if isinstance(padding, int) and not 0 <= padding < settings.vocab_size:  # transformers asserts that it is a row
        settings.pad_token_id = None
    if not hasattr(type(settings), "sliding_window"):  # a leftover, which masks ignore and caches would cut keys by
        settings.__dict__.pop("sliding_window", None)
    return settings


def softcap(settings: PretrainedConfig, key: str) -> float | None:
    """A limit on attention scores or logits, where the model's class knows it; in others the key is a leftover."""
    return getattr(settings, key) if hasattr(type(settings), key) else None
