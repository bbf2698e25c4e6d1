"""A student's blocks, one after another, trained to put out what the base's put out: no end-to-end backpropagation.

Inputs are the student's own activations, behind the blocks trained before; targets are the base's. Memory holds one
block and the activations (docs/maths.md, Recovery). Knows blocks and activations. Knows no logits and no folder.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hubplugin.checkpoint.resume import TrainingCheckpoints
from hubplugin.model.activations import Batch
from hubplugin.model.block_runner import Model
from hubplugin.progress import progress
from hubplugin.recovery.optimizers import fast_products, optimizers, schedule
from hubplugin.recovery.splitting import Split
from hubplugin.report import RecoveredBlock

STEP_TOKENS = 2048  # that one step learns from
RATE, SLOWER = 2e-3, 4  # of matrices, by Muon; and how much less where a block gained nothing at it, and from there on


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
    """A student's block with its weights."""

    module: nn.Module
    index: int
    dtypes: Mapping[str, torch.dtype]  # as its weights will be stored, by name in the block


@dataclass(frozen=True)
class BlockTraining:
    """A student, a base, and how long to train."""

    student: Model
    base: Model
    tokens: Split
    epochs: int
    teacher_blocks: Sequence[int]  # for each block the block of the base whose output it should match
    dtypes: Mapping[str, torch.dtype]  # as the student's weights will be stored, by full name
    checkpoints: TrainingCheckpoints
    limit: float = math.inf  # seconds, after which blocks are handed on as they are

    def run(self) -> Iterator[tuple[RecoveredBlock, dict[str, Tensor]]]:
        """Train block after block, and hand out what it gained and its tensors by full name, as stored.

        Held-out sequences decide which epoch's weights are kept, or those that the block came with. Blocks that have a
        checkpoint are taken from there.
        """
        if all(checkpoint_name(index) in self.checkpoints for index in range(len(self.teacher_blocks))):
            yield from (self._trained(index) for index in range(len(self.teacher_blocks)))  # no activations needed
            return
        train, held_out = (
            Activations(*(model.embed(ids, micro_tokens=STEP_TOKENS) for model in (self.student, self.base)))
            for ids in self.tokens
        )
        base_index, spent, rate = 0, 0.0, RATE
        for index, teacher in enumerate(self.teacher_blocks):
            while base_index <= teacher:
                self._forward_base(base_index, train, held_out)
                base_index += 1
            begun, name, block = time.monotonic(), checkpoint_name(index), self._block(index)
            if name not in self.checkpoints:
                epochs = self.epochs if spent < self.limit else 0
                self._train_block(block, (train, held_out), epochs, rate, begun)
            notes, (record, tensors) = self.checkpoints.notes(name), self._trained(index)
            spent, rate = spent + notes["seconds"], notes["rate"]
            for part, weight in block.module.named_parameters():
                weight.data = tensors[f"{self._prefix(index)}.{part}"].to(weight)  # exact: the student is in float32
            for activations in (train, held_out):
                self.student.forward_block(index, activations.inputs)
            self.student.free(index)
            yield record, tensors

    def _prefix(self, index: int) -> str:
        return self.student.family.block.format(i=index)

    def _block(self, index: int) -> _Block:
        module, prefix = self.student.block(index), self._prefix(index)
        return _Block(module, index, {part: self.dtypes[f"{prefix}.{part}"] for part, _ in module.named_parameters()})

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
        before, after = _train(block, *activations, epochs, rate)
        if epochs and after == before:  # the first blocks have most to learn; large steps overrun what later ones have
            rate /= SLOWER
            before, after = _train(block, *activations, epochs, rate)
        rounded = {part: weight.to(block.dtypes[part]) for part, weight in block.module.named_parameters()}
        seconds = time.monotonic() - begun
        notes = {"before": before, "after": after, "seconds": seconds, "rate": rate}
        self.checkpoints.save(checkpoint_name(block.index), rounded, notes)
        progress(
            f"recover | block {block.index + 1:02d}/{len(self.student)} | "
            f"held-out loss {before:.6f} -> {after:.6f} | {seconds:.1f}s"
        )

    def _trained(self, index: int) -> tuple[RecoveredBlock, dict[str, Tensor]]:
        """A trained block from its checkpoint: what it gained, and its tensors by full name."""
        name, prefix = checkpoint_name(index), self._prefix(index)
        notes = self.checkpoints.notes(name)
        record = RecoveredBlock(index=index, loss_before=notes["before"], loss_after=notes["after"])
        return record, {f"{prefix}.{part}": tensor for part, tensor in self.checkpoints.tensors(name).items()}


def _train(block: _Block, train: Activations, held_out: Activations, epochs: int, rate: float) -> tuple[float, float]:
    """Train a block in place; the held-out loss before and after. It ends with weights as they will be stored."""
    weights = dict(block.module.named_parameters())
    for weight in weights.values():
        weight.requires_grad_(True)
    matrices = {name: weight for name, weight in weights.items() if weight.dim() == 2}
    optimizer = optimizers(matrices, {name: weight for name, weight in weights.items() if name not in matrices}, rate)
    best = {name: weight.detach().to(block.dtypes[name]) for name, weight in weights.items()}
    before = least = _held_out(block, held_out)
    count, step = len(train.inputs), 0
    for epoch in range(epochs):
        for number in torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist():
            _loss(block, train, number).backward()
            optimizer.step(schedule(step, epochs * count))
            step += 1
        master = {name: weight.data for name, weight in weights.items()}
        rounded = {name: weight.to(block.dtypes[name]) for name, weight in master.items()}
        _set(weights, rounded)
        loss = _held_out(block, held_out)
        if loss < least:
            least, best = loss, rounded
        _set(weights, master)
    _set(weights, best)
    block.module.requires_grad_(False)
    return before, least


def _set(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.data = values[name].to(weight.dtype)


@torch.no_grad()
def _held_out(block: _Block, activations: Activations) -> float:
    """The mean loss over all batches, in float32."""
    tokens = [batch.shape("hidden")[0] * batch.shape("hidden")[1] for batch in activations.inputs]
    losses = [float(_loss(block, activations, number, exact=True)) for number in range(len(tokens))]
    return sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)


def _loss(block: _Block, activations: Activations, number: int, exact: bool = False) -> Tensor:
    """Mean over tokens of |block - base|^2 / |base|^2, for one batch.

    Relative to each token's own energy, as the next block's norm will see it: the first token of a sequence alone can
    hold more than all others.
    """
    batch, target = activations.inputs[number], _plain(activations.targets[number].hidden)
    keywords = {key: _plain(value) for key, value in batch.keywords[block.index].items()}
    with fast_products(target.device.type, enabled=not exact):
        out = block.module(_plain(batch.hidden), **keywords)
    out = (out[0] if isinstance(out, tuple) else out).float()
    return ((out - target).square().sum(-1) / target.square().sum(-1)).mean()


def _plain(value: Any) -> Any:
    """A tensor of inference mode as one that autograd takes."""
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(_plain(element) for element in value) if isinstance(value, tuple) else value
