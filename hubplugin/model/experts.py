"""The experts of a Mixture-of-Experts block as plain linears with the names that checkpoints give them.

transformers keeps all experts of a block in two tensors of three dimensions; a method changes one linear at a time, and
checkpoints hold one tensor per linear. Same inputs, same outputs. Knows no method, no token count and no file.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from hubplugin.model.architectures import families


class Expert(nn.Module):
    """down(act(gate(x)) * up(x)), each linear under its checkpoint name."""

    def __init__(self, names: families.Experts, gate: Tensor, up: Tensor, down: Tensor, act: nn.Module) -> None:
        super().__init__()
        self._names, self._act = names, (act,)  # in a tuple: no submodule of its own
        for name, weight in ((names.gate, gate), (names.up, up), (names.down, down)):
            outputs, inputs = weight.shape
            linear = nn.Linear(inputs, outputs, bias=False, device="meta")
            linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
            self.add_module(name, linear)

    def inner(self, x: Tensor) -> Tensor:
        """What goes into the last linear: [tokens, width] for x [tokens, hidden]."""
        gate, up = self.get_submodule(self._names.gate), self.get_submodule(self._names.up)
        return cast(Tensor, self._act[0](gate(x)) * up(x))

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        return cast(Tensor, self.get_submodule(self._names.down)(self.inner(x)))


class Experts(nn.ModuleList):
    """All experts of a block. Called as transformers' own: tokens, the experts each goes to, and their weights."""

    def __init__(self, plain: list[Expert], stacked: nn.Module) -> None:
        super().__init__(plain)
        self.stacked = (stacked,)  # transformers' own, without weights; in a tuple: no submodule

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Sum over the chosen experts [tokens, k] of weight * expert(x), for x in `hidden` [tokens, hidden]."""
        out = torch.zeros_like(hidden)
        for index, expert in enumerate(self):
            tokens, place = torch.where(chosen == index)
            if len(tokens):
                weighted = expert(hidden[tokens]) * weights[tokens, place, None]
                out.index_add_(0, tokens, weighted.to(out.dtype))
        return out


def install(block: nn.Module, names: families.Experts) -> None:
    """Put plain linears in the place of a block's fused experts, and name their parent as checkpoints do.

    The block goes on finding its MLP under the attribute `mlp`; as a submodule it has the checkpoint's name alone.
    """
    mlp: Any = block.get_submodule("mlp")
    fused = mlp.experts
    parent, _, last = names.name.rpartition(".")
    plain = []
    for both, down in zip(fused.gate_up_proj, fused.down_proj, strict=True):
        gate, up = both.chunk(2)
        plain.append(Expert(names, gate, up, down, fused.act_fn))
    setattr(mlp, last, Experts(plain, fused))
    if parent != "mlp":
        del block.mlp
        block.add_module(parent, mlp)
        object.__setattr__(block, "mlp", mlp)


def stack(block: nn.Module, names: families.Experts) -> None:
    """Put transformers' stacked experts, with the weights of the plain ones, back in their place."""
    plain = cast(Experts, block.get_submodule(names.name))
    (fused,) = plain.stacked
    weights: dict[str, list[Tensor]] = {"gate_up_proj": [], "down_proj": []}
    for expert in plain:
        linears = (cast(nn.Linear, expert.get_submodule(name)) for name in (names.gate, names.up, names.down))
        gate, up, down = (linear.weight for linear in linears)
        weights["gate_up_proj"].append(torch.cat((gate, up)))
        weights["down_proj"].append(down)
    for name, by_expert in weights.items():
        setattr(fused, name, nn.Parameter(torch.stack(by_expert), requires_grad=False))
    parent, _, last = names.name.rpartition(".")
    setattr(block.get_submodule(parent), last, fused)
