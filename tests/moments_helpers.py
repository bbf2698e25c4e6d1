"""Inputs of a linear as statistics count them, by transformers' own modules: those of output projections are scaled."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def counted_inputs(model: nn.Module, name: str, tokens: Tensor) -> Tensor:
    """Inputs [tokens, inputs] of the linear `name` of a Llama-like model.

    For o_proj and down_proj times the power of two that is nearest to 1 over the token's stream behind the projection.
    """
    seen: dict[str, Tensor] = {}
    layer = model.get_submodule(name.rsplit(".", 2)[0])
    hooks = [model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))]
    if name.endswith("o_proj"):
        norm = layer.post_attention_layernorm
        hooks.append(norm.register_forward_pre_hook(lambda _, given: seen.update(stream=given[0])))
    if name.endswith("down_proj"):
        hooks.append(
            layer.register_forward_hook(
                lambda _, __, made: seen.update(stream=made if isinstance(made, Tensor) else made[0])
            )
        )
    model(tokens.long())
    for hook in hooks:
        hook.remove()
    x = seen["x"]
    if "stream" in seen:
        x = x * torch.exp2(-seen["stream"].square().mean(-1, keepdim=True).sqrt().log2().round())
    return x.flatten(0, 1)
