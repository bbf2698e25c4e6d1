"""One block's forward pass in stages: input group by input group, each time from where the last stage ended.

So linears can change on the way at the price of one forward pass. What a stage computed is kept in the batches: groups
must be captured in the order in which the block runs them. Knows modules and batches; no method, no weights' source.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hubplugin.model import experts
from hubplugin.model.activations import Batch
from hubplugin.model.architectures.families import Family, InputGroup, Sublayer

INPUTS = "inputs of "  # before a group's first linear: what a batch keeps of a block that does not change
ROUTER_INPUTS, CHOSEN_EXPERTS = "experts.hidden", "experts.chosen"  # what a batch keeps of the tokens at a router


@dataclass(frozen=True)
class StagedBlock:
    """A filled block, and which of the model's it is. Every set of batches belongs to one block alone."""

    module: nn.Module
    index: int
    family: Family

    @torch.inference_mode()
    def capture_inputs(
        self, batches: list[Batch], input_group: InputGroup, through: bool = False, keep: bool = False
    ) -> Iterator[Tensor]:
        """The inputs [sequences, tokens, inputs] of an input group's linears, batch by batch, as the block is now.

        Of an expert's linears [tokens, inputs], of the tokens that the router sends there. Of an output projection
        the batch keeps its inputs or, where the linear will not change (`through`), its outputs. Where nothing of the
        block will change, batches may `keep` the inputs of all groups, and groups come again and in any order.
        """
        if input_group.expert is not None:
            yield from self._routed_inputs(batches, input_group)
            return
        sublayer = self.family.sublayer_of(input_group.linears[0])
        earlier = self._before(sublayer)
        linear = self.module.get_submodule(input_group.linears[0])
        kept = f"{INPUTS}{input_group.linears[0]}"
        for batch in batches:
            if kept in batch:
                yield batch.get(kept)
                continue
            batch.drop(sublayer.input_key)
            (inputs,) = self._run_until(linear, batch, earlier)
            if keep:
                batch.put(kept, inputs)
            if input_group.linears[0] == sublayer.output_projection:
                if through:
                    batch.put(sublayer.output_key, linear(inputs))
                else:
                    batch.put(sublayer.input_key, inputs)
            yield inputs

    @torch.inference_mode()
    def unrouted_inputs(
        self, batches: list[Batch], input_group: InputGroup, most: int | None = None
    ) -> Iterator[Tensor]:
        """What the linears of an expert would be given [tokens, inputs], were all tokens of the block sent there.

        Of every n-th token, where there are more than `most`.
        """
        for batch in batches:
            self._keep_routing(batch)
        step, first = -(-sum(batch.shape(ROUTER_INPUTS)[0] for batch in batches) // most) if most else 1, 0
        for batch in batches:
            yield self._expert_inputs(input_group, batch.rows(ROUTER_INPUTS, slice(-first % step, None, step)))
            first += batch.shape(ROUTER_INPUTS)[0]

    @torch.inference_mode()
    def forward(self, batches: list[Batch]) -> None:
        """Replace the hidden states by the block's output, and forget what the stages kept."""
        for batch in batches:
            with _staged(self.module, batch, self.family.sublayers, remember=False):
                out = self.module(batch.hidden, **batch.keywords[self.index])
            batch.put("hidden", out[0] if isinstance(out, tuple) else out)
            keys = (key for sublayer in self.family.sublayers for key in (sublayer.input_key, sublayer.output_key))
            groups = (f"{INPUTS}{input_group.linears[0]}" for input_group in self.family.input_groups)
            batch.drop(*keys, *groups, ROUTER_INPUTS, CHOSEN_EXPERTS)

    def _routed_inputs(self, batches: list[Batch], input_group: InputGroup) -> Iterator[Tensor]:
        assert input_group.expert is not None
        for batch in batches:
            self._keep_routing(batch)
            sent = torch.eq(batch.get(CHOSEN_EXPERTS), input_group.expert).any(dim=-1)
            yield self._expert_inputs(input_group, batch.rows(ROUTER_INPUTS, sent))

    def _expert_inputs(self, input_group: InputGroup, hidden: Tensor) -> Tensor:
        """What an expert's linears make of hidden states [tokens, hidden] before the input group: [tokens, inputs]."""
        names = self.family.experts
        assert names is not None
        expert = cast(experts.Expert, self.module.get_submodule(f"{names.name}.{input_group.expert}"))
        return expert.inner(hidden) if input_group.linears[0].endswith(f".{names.down}") else hidden

    def _keep_routing(self, batch: Batch) -> None:
        """Keep the tokens [tokens, hidden] of a batch that come to the router, and the experts each is sent to."""
        if ROUTER_INPUTS in batch:
            return
        assert self.family.experts is not None
        fused = self.module.get_submodule(self.family.experts.name)
        hidden, chosen, *_ = self._run_until(fused, batch, self.family.sublayers[:-1])
        batch.put(ROUTER_INPUTS, hidden)
        batch.put(CHOSEN_EXPERTS, chosen)

    def _before(self, sublayer: Sublayer) -> tuple[Sublayer, ...]:
        return self.family.sublayers[: self.family.sublayers.index(sublayer)]

    def _run_until(self, module: nn.Module, batch: Batch, earlier: tuple[Sublayer, ...]) -> list[Tensor]:
        """What goes into a module of the block, whose `earlier` sublayers run once and are remembered."""
        with _staged(self.module, batch, earlier, remember=True), _watched(module) as inputs, suppress(_Stop):
            self.module(batch.hidden, **batch.keywords[self.index])
        return inputs


def residual(batch: Batch, sublayers: tuple[Sublayer, ...], linear: str) -> Tensor:
    """What the output of a sublayer's output projection is added to: the block's input and earlier sublayers' outputs.

    For the projection whose inputs were captured last.
    """
    projections = [sublayer.output_projection for sublayer in sublayers]
    earlier = sublayers[: projections.index(linear)]
    return sum((batch.get(sublayer.output_key) for sublayer in earlier), batch.hidden)


def drop_inputs(batches: list[Batch], sublayers: tuple[Sublayer, ...], linear: str) -> None:
    """Forget the inputs of an output projection, which changed since they were captured: they are computed again."""
    for batch in batches:
        batch.drop(*(sublayer.input_key for sublayer in sublayers if sublayer.output_projection == linear))


class _Stop(BaseException):
    """Ends a block's forward once an input group was captured. Never leaves this file."""


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """While this holds, what goes into a module is noted, and the forward pass ends there."""
    captured: list[Tensor] = []

    def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.extend(inputs)
        raise _Stop

    hook = module.register_forward_pre_hook(capture)
    try:
        yield captured
    finally:
        hook.remove()


@contextmanager
def _staged(block: nn.Module, batch: Batch, sublayers: tuple[Sublayer, ...], remember: bool) -> Iterator[None]:
    """While this holds, sublayers of a block take up where a batch's last stage ended."""
    modules = [block.get_submodule(sublayer.name) for sublayer in sublayers]
    for sublayer, module in zip(sublayers, modules, strict=True):
        module.forward = _resumed(block, module, batch, sublayer, remember)
    for sublayer in sublayers:
        if sublayer.output_key in batch or sublayer.input_key in batch:  # nobody reads what its norm computes
            modules.append(block.get_submodule(sublayer.norm))
            modules[-1].forward = lambda hidden: hidden
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _resumed(
    block: nn.Module, module: nn.Module, batch: Batch, sublayer: Sublayer, remember: bool
) -> Callable[..., Any]:
    """The forward of a sublayer: its known output; else its output projection on the known input; else all of it."""
    complete_forward = module.forward

    def forward(*inputs: Any, **keywords: Any) -> Any:
        if sublayer.output_key in batch:
            out = batch.get(sublayer.output_key)
        elif sublayer.input_key in batch:
            out = block.get_submodule(sublayer.output_projection)(batch.get(sublayer.input_key))
        else:
            result = complete_forward(*inputs, **keywords)
            out = result[0] if sublayer.pair else result
        if remember and sublayer.output_key not in batch:
            batch.put(sublayer.output_key, out)
            batch.drop(sublayer.input_key)
        return (out, None) if sublayer.pair else out

    return forward
