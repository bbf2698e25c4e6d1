"""Statistics of what a block's linears are given: second moments of their inputs, and corrections of their targets.

Knows activations and modules; no method that uses the statistics, no plan and no file.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import cast

from torch import Tensor, nn

from hubplugin.kernels.second_moments import PreparedInputs, SecondMoments
from hubplugin.methods.gptq.two_sided import OutputFactor
from hubplugin.methods.qep import TargetCorrection
from hubplugin.model import staged_block, token_scales
from hubplugin.model.activations import Batch, BlockActivations
from hubplugin.model.architectures.families import Family, InputGroup
from hubplugin.model.block_runner import Model
from hubplugin.model.token_scales import TokenScales, inverse_size, scaled

COLD = 4  # tokens for each input of a linear; an expert that sees fewer is cold
HELD_OUT = 8  # one sequence in so many decides how far targets are corrected


@dataclass(frozen=True)
class GroupStatistics:
    """What methods need to know of the inputs x of an input group, summed over calibration tokens."""

    second_moments: Tensor  # H = sum x x^T [inputs, inputs], of all tokens
    matched: Tensor  # H of the tokens that pass through the base too; the same tensor where all do
    corrections: tuple[TargetCorrection, ...] = ()  # by the tokens that fit, by those that check; empty: none
    cold: str | None = None  # what stood in for tokens that an expert did not see, in words
    outputs: tuple[OutputFactor, ...] = ()  # of the linears that are stacked; empty: their outputs are not known

    def on_columns(self, kept: Tensor) -> "GroupStatistics":
        """The statistics of these inputs alone, int64 [kept]; every token must have passed through the base."""
        moments = self.second_moments[kept][:, kept]
        corrections = tuple(correction.on_columns(kept) for correction in self.corrections)
        return replace(self, second_moments=moments, matched=moments, corrections=corrections)


@dataclass(frozen=True)
class BlockStatistics:
    """Of one block, whose linears change one input group after another."""

    model: Model
    index: int
    activations: BlockActivations
    base_block: nn.Module  # the block as the base has it
    last_projection: str  # the last linear whose output is added to the residual stream

    @property
    def _family(self) -> Family:
        return self.model.family

    def _where(self, input_group: InputGroup) -> str:
        return f"{self._family.block.format(i=self.index)}.{input_group.linears[0]}"

    def _inputs(self, input_group: InputGroup) -> int:
        return cast(nn.Linear, self.base_block.get_submodule(input_group.linears[0])).in_features

    def of(self, input_group: InputGroup) -> GroupStatistics:
        """Second moments of an input group, as the block stands now; of an expert's, see `_of_expert`."""
        if input_group.expert is not None:
            return self._of_expert(input_group)
        moments = second_moments(self.model, self.index, self.activations.compressed, input_group)
        return GroupStatistics(moments, moments)

    def _of_expert(self, input_group: InputGroup) -> GroupStatistics:
        """Second moments for an expert's linears, and what was done where the router sent it too few tokens.

        From few tokens they are mostly chance, and error feedback that follows chance is worse than rounding. A cold
        expert also sees tokens of the block at large, which count as many as it has inputs (docs/maths.md, Experts).
        """
        routed = second_moments_of(self.model.capture_inputs(self.index, self.activations.compressed, input_group))
        where, inputs = self._where(input_group), self._inputs(input_group)
        if routed.tokens >= COLD * inputs:
            moments = routed.matrix(where)
            return GroupStatistics(moments, moments)
        substitute = self._of_unrouted_tokens(input_group)
        blended = substitute.matrix(where) * (inputs / substitute.tokens)
        if routed.tokens:
            blended += routed.matrix(where)
        cold = f"saw {routed.tokens} tokens: {substitute.tokens} of the block at large stand in, as {inputs}"
        return GroupStatistics(blended, blended, cold=cold)

    def _of_unrouted_tokens(self, input_group: InputGroup) -> SecondMoments:
        """Second moments of the block's tokens, as if all went to this expert: of all, or of some for its last linear.

        All experts read the same hidden states; what goes into the last linear is each expert's own.
        """
        assert self._family.experts is not None
        if not input_group.linears[0].endswith(f".{self._family.experts.down}"):
            return self._of_hidden_states
        tokens = COLD * self._inputs(input_group)
        staged = self.model.staged(self.index)
        return second_moments_of(staged.unrouted_inputs(self.activations.compressed, input_group, tokens))

    @cached_property
    def _of_hidden_states(self) -> SecondMoments:
        """Second moments of all that the router of a block with experts is given."""
        first = next(group for group in self._family.input_groups if group.expert is not None)
        return second_moments_of(self.model.staged(self.index).unrouted_inputs(self.activations.compressed, first))

    def with_corrections(self, input_group: InputGroup, weight: Tensor, means: bool = False) -> GroupStatistics:
        """Second moments of an input group, and the corrections of its targets towards the base's outputs.

        `weight` [outputs, inputs] is that of its linears, stacked, as in the base; `means` as in `TargetCorrection`.
        """
        base = self.activations.base
        assert base is not None
        projects = token_scales.projects(self._family, input_group.linears[0])
        matched, rest, prepared = SecondMoments(), SecondMoments(), PreparedInputs()
        fit, check = (TargetCorrection(weight, projects, means) for _ in range(2))
        places = {batch.first: place for place, batch in enumerate(base)}
        captured = self.model.capture_inputs(self.index, self.activations.compressed, input_group)
        base_captured, earlier = self._base_inputs(base, input_group), 0
        scales = TokenScales(self._family, self.base_block, input_group)
        for batch, inputs in zip(self.activations.compressed, captured, strict=True):
            if batch.first not in places:
                rest.add(prepared.take(scaled(inputs, scales.of(batch, inputs))))
                continue
            place, base_inputs, residual_error, scale = places[batch.first], next(base_captured), None, None
            if scales.differ:
                residual, outputs = self._base_stream(input_group, place)
                scale = inverse_size(residual.float() + outputs)
                residual_error = self._residual_error(input_group, batch, place, residual, outputs)
                residual_error, base_inputs = scaled(residual_error, scale), scaled(base_inputs, scale)
            matched.add(prepared.take(scaled(inputs, scale)))
            sequences, tokens = inputs.shape[:2]
            for first, last, held_out in runs(earlier, sequences):
                error = None if residual_error is None else residual_error[first:last]
                correction, part = check if held_out else fit, prepared.part(first * tokens, last * tokens)
                correction.add(part, base_inputs[first:last], error, None if scale is None else scale[first:last])
            earlier += sequences
        moments = matched.matrix(self._where(input_group))
        if not rest.tokens:
            return GroupStatistics(moments, moments, (fit, check))
        return GroupStatistics(rest.matrix(self._where(input_group)).add_(moments), moments, (fit, check))

    def _base_inputs(self, base: list[Batch], input_group: InputGroup) -> Iterator[Tensor]:
        """The base's inputs of a group [sequences, tokens, inputs], batch by batch. Its linears stay as they are."""
        staged = self.model.staged(self.index, self.base_block)
        return staged.capture_inputs(base, input_group, through=True, keep=self.activations.base_is_shared)

    def _base_stream(self, input_group: InputGroup, place: int) -> tuple[Tensor, Tensor]:
        """Of the base, each [sequences, tokens, hidden]: what the outputs of a projection are added to, and these.

        Of the output projection that was captured last.
        """
        base, linear = self.activations.base, input_group.linears[0]
        assert base is not None
        outputs = base[place].get(self._family.sublayer_of(linear).output_key)
        return staged_block.residual(base[place], self._family.sublayers, linear), outputs

    def _residual_error(
        self, input_group: InputGroup, batch: Batch, place: int, base_residual: Tensor, base_outputs: Tensor
    ) -> Tensor:
        """Base minus compressed [sequences, tokens, hidden] of the stream that an output projection is added to.

        `place` is the batch's among those of the base, the rest is its `_base_stream`. Where sublayers or blocks that
        were pruned follow before the next block: of the base, the stream behind those.
        """
        after_pruned, linear = self.activations.base_after_pruned, input_group.linears[0]
        residual = staged_block.residual(batch, self._family.sublayers, linear)
        if after_pruned is None or linear != self.last_projection:
            return base_residual - residual
        return after_pruned[place].hidden.float() - base_outputs - residual


def runs(first: int, count: int) -> Iterator[tuple[int, int, bool]]:
    """Of `count` sequences from `first` on: where those begin and end that follow each other, and if they are held out.

    Counted from the first of the `count`.
    """
    for held_out, run in groupby(range(count), lambda place: (first + place + 1) % HELD_OUT == 0):
        places = list(run)
        yield places[0], places[-1] + 1, held_out


def second_moments(model: Model, index: int, batches: list[Batch], input_group: InputGroup) -> Tensor:
    """Second moments [inputs, inputs] of an input group of a block, as the block stands now."""
    captured = model.capture_inputs(index, batches, input_group)
    scales = TokenScales(model.family, model.loaded(index), input_group)
    counted = (scaled(inputs, scales.of(batch, inputs)) for batch, inputs in zip(batches, captured, strict=True))
    return second_moments_of(counted).matrix(f"{model.family.block.format(i=index)}.{input_group.linears[0]}")


def second_moments_of(batches: Iterable[Tensor]) -> SecondMoments:
    """Second moments of inputs, batch by batch [tokens, inputs]."""
    moments = SecondMoments()
    for inputs in batches:
        if len(inputs):  # a router may send no token of a batch
            moments.add(inputs)
    return moments
