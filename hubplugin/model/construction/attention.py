"""transformers' attention by a kernel of ours, where it fits. Knows transformers' interface; no model."""

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hubplugin.kernels.instructions import causal_attention, panel_products

NAME = "causal_attention"  # among transformers' kinds of attention
USUAL = {"output_attentions", "use_cache", "cache_position", "position_ids", "sliding_window"}  # which change no number


def install(model: Any) -> None:
    """Let a model whose attention is torch's own have the kernel's, where this CPU has the instructions for it."""
    if model.config._attn_implementation == "sdpa" and panel_products.works():
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`, by the kernel where every token sees itself and all before it."""
    causal = options.pop("is_causal", None)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    other = {name for name, given in options.items() if given is not None} - USUAL - {"dropout", "scaling"}
    plain = attention_mask is None and causal and not options.get("dropout") and not other
    if plain and causal_attention.fits(query, key, value):
        return causal_attention.attend(query, key, value, options.get("scaling") or query.shape[-1] ** -0.5), None
    made, _ = sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=causal, **options)
    return made, None
