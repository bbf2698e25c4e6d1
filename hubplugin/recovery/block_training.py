"""A student's blocks, one after another, trained to put out what the base's put out: no end-to-end backpropagation.

Inputs are the student's own activations, behind the blocks trained before; targets are the base's. Memory holds one
block and the activations (docs/maths.md, Recovery). Knows blocks and activations. Knows no logits and no folder.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin.checkpoint.resume import TrainingCheckpoints
from hubplugin.kernels import stochastic_rounding
from hubplugin.model.activations import Batch, plain
from hubplugin.model.block_runner import Model
from hubplugin.progress import progress
from hubplugin.recovery.optimizers import Pace, fast_products, schedule
from hubplugin.recovery.splitting import Split
from hubplugin.recovery.trainable import Trainable, as_function
from hubplugin.report import RecoveredBlock

SLOWER = 4  # how much less the rate is where a block gained nothing at it, and from there on


def checkpoint_name(index: int) -> str:
    """The name of a trained block's checkpoint; its notes hold `before`, `after`, `seconds` and `rate`."""
    return f"block-{index:05d}"


@dataclass(frozen=True)
class Activations:
    """The same sequences in both models, batch by batch. They move on from block to block."""

    inputs: list[Batch]  # of the student's next block
    targets: list[Batch]  # what it should put out: behind the base's teacher block


@dataclass(frozen=True)
class _Block:
    """A student's block in training."""

    trainable: Trainable
    index: int
    dtypes: Mapping[str, torch.dtype]  # of its tensors as they will be stored, by name in the block

    def rounded(self) -> dict[str, Tensor]:
        """Its tensors as they would be stored now."""
        return stochastic_rounding.stored(self.trainable.values(), self.dtypes)


@dataclass(frozen=True)
class BlockTraining:
    """A student, a base, and how long to train."""

    student: Model
    base: Model
    trainable: Callable[[int], Trainable]  # what is trained of a block of the student, which is loaded for it
    tokens: Split
    epochs: int
    pace: Pace  # blocks that its limit leaves no time for are handed on as they are
    teacher_blocks: Sequence[int]  # for each block the block of the base whose output it should match
    dtypes: Mapping[str, torch.dtype]  # as the student's tensors will be stored, by full name
    checkpoints: TrainingCheckpoints
    label: str = "recover"  # of lines of progress

    def run(self) -> Iterator[tuple[RecoveredBlock, dict[str, Tensor]]]:
        """Train block after block, and hand out what it gained and its tensors by full name, as stored.

        Held-out sequences decide which epoch's weights are kept, or those that the block came with. Blocks that have a
        checkpoint are taken from there.
        """
        if all(checkpoint_name(index) in self.checkpoints for index in range(len(self.teacher_blocks))):
            yield from (self._trained(index) for index in range(len(self.teacher_blocks)))  # no activations needed
            return
        train, held_out = (
            Activations(*(model.embed(ids, micro_tokens=self.pace.step_tokens) for model in (self.student, self.base)))
            for ids in self.tokens
        )
        base_index, spent, rate = 0, 0.0, self.pace.rate
        for index, teacher in enumerate(self.teacher_blocks):
            while base_index <= teacher:
                self._forward_base(base_index, train, held_out)
                base_index += 1
            begun, name, block = time.monotonic(), checkpoint_name(index), self._block(index)
            if name not in self.checkpoints:
                epochs = self.epochs if spent < self.pace.limit else 0
                self._train_block(block, (train, held_out), epochs, rate, begun)
                self._say(index, spent)
            notes, (record, tensors) = self.checkpoints.notes(name), self._trained(index)
            spent, rate = spent + notes["seconds"], notes["rate"]
            module = block.trainable.module
            module.load_state_dict(block.trainable.dense(self.checkpoints.tensors(name)), strict=False, assign=True)
            module.requires_grad_(False)
            for activations in (train, held_out):
                self.student.forward_block(index, activations.inputs)
            self.student.free(index)
            yield record, tensors

    def _prefix(self, index: int) -> str:
        return self.student.family.block.format(i=index)

    def _block(self, index: int) -> _Block:
        self.student.block(index)
        prefix = f"{self._prefix(index)}."
        dtypes = {name.removeprefix(prefix): dtype for name, dtype in self.dtypes.items() if name.startswith(prefix)}
        return _Block(self.trainable(index), index, dtypes)

    def _forward_base(self, index: int, *activations: Activations) -> None:
        """Take the targets through a block of the base."""
        self.base.block(index)
        for each in activations:
            self.base.forward_block(index, each.targets)
        self.base.free(index)

    def _train_block(
        self, block: _Block, activations: tuple[Activations, Activations], epochs: int, rate: float, begun: float
    ) -> None:
        """Train a block, at a lower rate where it gained nothing at the first, and write its checkpoint."""
        before, after, kept = _train(block, *activations, epochs, rate)
        if epochs and after == before:  # the first blocks have most to learn; large steps overrun what later ones have
            rate /= SLOWER
            block = _Block(self._block(block.index).trainable, block.index, block.dtypes)
            before, after, kept = _train(block, *activations, epochs, rate)
        seconds = time.monotonic() - begun
        notes = {"before": before, "after": after, "seconds": seconds, "rate": rate}
        self.checkpoints.save(checkpoint_name(block.index), kept, notes)

    def _say(self, index: int, spent: float) -> None:
        """A line of progress for a block; `spent` are the seconds of those before it."""
        notes, count = self.checkpoints.notes(checkpoint_name(index)), len(self.student)
        left = (spent + notes["seconds"]) / (index + 1) * (count - index - 1)
        progress(
            f"{self.label} | block {index + 1:02d}/{count} | held-out loss {notes['before']:.6f} -> "
            f"{notes['after']:.6f} | {notes['seconds']:.1f}s | eta {left:.0f}s"
        )

    def _trained(self, index: int) -> tuple[RecoveredBlock, dict[str, Tensor]]:
        """A trained block from its checkpoint: what it gained, and its tensors by full name."""
        name, prefix = checkpoint_name(index), self._prefix(index)
        notes = self.checkpoints.notes(name)
        record = RecoveredBlock(index=index, loss_before=notes["before"], loss_after=notes["after"])
        return record, {f"{prefix}.{part}": tensor for part, tensor in self.checkpoints.tensors(name).items()}


def _train(
    block: _Block, train: Activations, held_out: Activations, epochs: int, rate: float
) -> tuple[float, float, dict[str, Tensor]]:
    """Train a block; the held-out loss before and after, and its best tensors as they will be stored."""
    what, count, step = block.trainable, len(train.inputs), 0
    optimizer = what.optimizers(rate, epochs * count)
    best = block.rounded()
    before = least = _held_out(block, held_out, best)
    for epoch in range(epochs):
        for number in torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist():
            _loss(block, what.weights(), train, number).backward()
            optimizer.step(schedule(step, epochs * count))
            step += 1
        rounded = block.rounded()
        loss = _held_out(block, held_out, rounded)
        if loss < least:
            least, best = loss, rounded
    return before, least, best


@torch.no_grad()
def _held_out(block: _Block, activations: Activations, stored: Mapping[str, Tensor]) -> float:
    """The mean loss over all batches, in float32, with weights as they would be stored."""
    weights = block.trainable.dense(stored)
    tokens = [batch.shape("hidden")[0] * batch.shape("hidden")[1] for batch in activations.inputs]
    losses = [float(_loss(block, weights, activations, number, exact=True)) for number in range(len(tokens))]
    return sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)


def _loss(
    block: _Block, weights: Mapping[str, Tensor], activations: Activations, number: int, exact: bool = False
) -> Tensor:
    """Mean over tokens of |block - base|^2 / |base|^2, for one batch and with these weights in place of the block's.

    Relative to each token's own energy, as the next block's norm will see it: the first token of a sequence alone can
    hold more than all others.
    """
    batch, target = activations.inputs[number], plain(activations.targets[number].hidden)
    keywords = {key: plain(value) for key, value in batch.keywords[block.index].items()}
    with fast_products(target.device.type, enabled=not exact):
        out = as_function(block.trainable, weights)(plain(batch.hidden), **keywords)
    out = (out[0] if isinstance(out, tuple) else out).float()
    return ((out - target).square().sum(-1) / target.square().sum(-1)).mean()
