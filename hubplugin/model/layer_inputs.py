"""What the linears of a block are given: second moments of their inputs, and what they owe the base's outputs.

Knows lanes of activations and modules; no method, no plan and no file.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import cast

from torch import Tensor, nn

from hubplugin.kernels.second_moments import PreparedInputs, SecondMoments, products_of
from hubplugin.methods.qep import TargetCorrection
from hubplugin.model.activations import Batch
from hubplugin.model.block_runner import Model
from hubplugin.model.families import Family, InputGroup

COLD = 4  # tokens for each input of a linear; an expert that sees fewer is cold
HELD_OUT = 8  # one sequence in so many decides how far targets are corrected


@dataclass
class LayerInputs:
    """Of one block while it is changed."""

    model: Model
    index: int
    ours: list[Batch]
    base: list[Batch] | None  # what the base makes of the same tokens
    base_block: nn.Module  # the block as the base has it
    last_end: str  # the last linear whose output goes into the stream
    ahead: list[Batch] | None = None  # the base's lane behind all that is left out after that linear
    _everyone: tuple[Tensor, int] | None = field(default=None, init=False)  # moments of all that reach the experts

    @property
    def _family(self) -> Family:
        return self.model.family

    def _where(self, input_group: InputGroup) -> str:
        return f"{self._family.block.format(i=self.index)}.{input_group.linears[0]}"

    def _inputs(self, input_group: InputGroup) -> int:
        return cast(nn.Linear, self.base_block.get_submodule(input_group.linears[0])).in_features

    def second_moments(self, input_group: InputGroup) -> Tensor:
        """Second moments [inputs, inputs] of a tap."""
        return second_moments(self.model, self.index, self.ours, input_group)

    def of_expert(self, input_group: InputGroup) -> tuple[Tensor, str | None]:
        """Second moments for an expert's linears, and what was done where the router sent it too few tokens.

        From few tokens they are mostly chance, and error feedback that follows chance is worse than rounding. A cold
        expert also sees tokens of the block at large, which count as many as it has inputs (docs/maths.md, Experts).
        """
        own, where = (
            second_moments_of(self.model.capture_inputs(self.index, self.ours, input_group)),
            self._where(input_group),
        )
        inputs = self._inputs(input_group)
        if own.tokens >= COLD * inputs:
            return own.matrix(where), None
        large, tokens = self._at_large(input_group)
        blended = large * (inputs / tokens)
        if own.tokens:
            blended += own.matrix(where)
        return blended, f"saw {own.tokens} tokens: {tokens} of the block at large stand in, as {inputs}"

    def _at_large(self, input_group: InputGroup) -> tuple[Tensor, int]:
        """Second moments of the tokens of the block, and how many: of all where experts share them, else of some."""
        names, index = self._family.experts, self.index
        assert names is not None
        if input_group.linears[0].endswith(f".{names.down}"):
            most = COLD * self._inputs(input_group)
            some = second_moments_of(self.model.at_large(index, self.ours, input_group, most))
            return some.matrix(self._where(input_group)), some.tokens
        if self._everyone is None:
            every = second_moments_of(self.model.at_large(index, self.ours, input_group))
            self._everyone = every.matrix(self._where(input_group)), every.tokens
        return self._everyone

    def corrections(
        self, input_group: InputGroup, weight: Tensor, averages: bool = False
    ) -> tuple[Tensor, Tensor, TargetCorrection, TargetCorrection]:
        """Second moments of a tap, twice, and what its linears owe: by the tokens that fit, and by those that check.

        `weight` [outputs, inputs] is theirs, stacked, as in the base; `averages` as in `Drift`. The other second
        moments are of the tokens that pass through the base, by which what is owed is divided; the same where all do.
        """
        assert self.base is not None
        ends = input_group.linears[0] in [part.end for part in self._family.sublayers]
        both, rest, seen = SecondMoments(), SecondMoments(), PreparedInputs()
        fit, check = (TargetCorrection(weight, ends, averages) for _ in range(2))
        places = {batch.first: place for place, batch in enumerate(self.base)}
        theirs, before = self.model.capture_inputs(self.index, self.base, input_group, self.base_block), 0
        for batch, inputs in zip(self.ours, self.model.capture_inputs(self.index, self.ours, input_group), strict=True):
            seen.take(inputs)
            if batch.first not in places:
                rest.add(seen)
                continue
            both.add(seen)
            base_inputs = next(theirs)
            lost = (
                self._lost(input_group, batch, places[batch.first], base_inputs)
                if self._family.residual and ends
                else None
            )
            sequences, tokens = inputs.shape[:2]
            for first, last, held in runs(before, sequences):
                some, correction = seen.part(first * tokens, last * tokens), check if held else fit
                correction.add(some, base_inputs[first:last], None if lost is None else lost[first:last])
            before += sequences
        matched = both.matrix(self._where(input_group))
        if not rest.tokens:
            return matched, matched, fit, check
        return rest.matrix(self._where(input_group)).add_(matched), matched, fit, check

    def _lost(self, input_group: InputGroup, batch: Batch, place: int, base_inputs: Tensor) -> Tensor:
        """What the stream that an end's output is added to has lost so far [sequences, tokens, hidden], in one batch.

        `place` is the batch's in the base's lane. Where nothing that was taken out follows, until the next block: of
        the base, up to the end of what was.
        """
        assert self.base is not None
        ours = self.model.residual(batch, input_group)
        if self.ahead is None or input_group.linears[0] != self.last_end:
            return self.model.residual(self.base[place], input_group) - ours
        own = cast(nn.Linear, self.base_block.get_submodule(input_group.linears[0]))
        with products_of(base_inputs.dtype):
            made = base_inputs.float() @ own.weight.float().T
        if own.bias is not None:
            made += own.bias.float()
        return self.ahead[place].hidden.float() - made - ours


def runs(first: int, count: int) -> Iterator[tuple[int, int, bool]]:
    """Of `count` sequences from `first` on: where those begin and end that follow each other, and if they are held out.

    Counted from the first of the `count`.
    """
    for held, run in groupby(range(count), lambda place: (first + place + 1) % HELD_OUT == 0):
        places = list(run)
        yield places[0], places[-1] + 1, held


def second_moments(model: Model, index: int, batches: list[Batch], input_group: InputGroup) -> Tensor:
    """Second moments [inputs, inputs] of a tap of a block, as the block stands now."""
    return second_moments_of(model.capture_inputs(index, batches, input_group)).matrix(
        f"{model.family.block.format(i=index)}.{input_group.linears[0]}"
    )


def second_moments_of(batches: Iterable[Tensor]) -> SecondMoments:
    """Second moments of inputs, batch by batch [tokens, inputs]."""
    moment = SecondMoments()
    for inputs in batches:
        if len(inputs):  # a router may send no token of a batch
            moment.add(inputs)
    return moment
