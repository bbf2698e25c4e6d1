"""A student's blocks, one after another, trained to put out what the base's put out: no end-to-end backpropagation.

Inputs are the student's own hidden states, behind what was trained before; targets are the base's. Memory holds one
block and the hidden states. Knows no logits and no file format (docs/maths.md, Recovery).
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hubplugin.checkpoint.resume import TrainingCheckpoints
from hubplugin.model.activations import Batch
from hubplugin.model.block_runner import Model
from hubplugin.progress import progress
from hubplugin.recovery.optimizers import fast, optimizers, schedule
from hubplugin.report import RecoveredBlock

STEP_TOKENS = 2048  # that one step learns from
RATE, SLOWER = 2e-3, 4  # of matrices, by Muon; and how much less where a block gained nothing at it, and from there on


def mark(index: int) -> str:
    """The name of a trained block's mark; its notes hold `before`, `after`, `seconds` and `rate`."""
    return f"block-{index:05d}"


@dataclass(frozen=True)
class Lane:
    """The same sequences in both models: what goes into a block of the student, and what should come out."""

    ours: list[Batch]
    theirs: list[Batch]


def blocks(
    student: Model,
    base: Model,
    tokens: tuple[Tensor, Tensor],
    epochs: int,
    ends: Sequence[int],
    stored: dict[str, torch.dtype],
    marks: TrainingCheckpoints,
    limit: float = math.inf,
) -> Iterator[tuple[RecoveredBlock, dict[str, Tensor]]]:
    """Train block after block, and hand out what it gained and its tensors by full name, rounded to `stored`.

    `tokens` are ids [sequences, tokens] to train on, and held-out ones that decide which epoch's weights are kept, or
    those that the block came with. `ends` names for each block the block of the base that it should match. Blocks
    that `marks` has are taken from there. After `limit` seconds blocks are handed on as they are.
    """
    prefixes = [student.family.block.format(i=index) for index in range(len(ends))]
    if all(mark(index) in marks for index in range(len(ends))):  # hidden states are for nobody
        yield from (_marked(marks, index, prefix) for index, prefix in enumerate(prefixes))
        return
    train, held = (Lane(*(model.embed(ids, micro_tokens=STEP_TOKENS) for model in (student, base))) for ids in tokens)
    behind, spent, rate = 0, 0.0, RATE
    for index, end in enumerate(ends):
        while behind <= end:
            base.block(behind)
            for lane in (train, held):
                base.forward_block(behind, lane.theirs)
            base.free(behind)
            behind += 1
        begun, prefix, name = time.monotonic(), prefixes[index], mark(index)
        block = student.block(index)
        if name not in marks:
            kinds = {part: stored[f"{prefix}.{part}"] for part, _ in block.named_parameters()}
            rounds = epochs if spent < limit else 0
            before, after = _train(block, index, train, held, rounds, kinds, rate)
            if rounds and after == before:  # the first blocks owe most; later ones little, which large steps overrun
                rate /= SLOWER
                before, after = _train(block, index, train, held, rounds, kinds, rate)
            rounded = {part: weight.to(kinds[part]) for part, weight in block.named_parameters()}
            seconds = time.monotonic() - begun
            marks.save(name, rounded, {"before": before, "after": after, "seconds": seconds, "rate": rate})
            progress(
                f"recover | block {index + 1:02d}/{len(student)} | held-out loss {before:.6f} -> {after:.6f} | "
                f"{seconds:.1f}s"
            )
        done, found = _marked(marks, index, prefix)
        spent, rate = spent + marks.notes(name)["seconds"], marks.notes(name)["rate"]
        for part, weight in block.named_parameters():
            weight.data = found[f"{prefix}.{part}"].to(weight)  # exact: weights of a student in the making are float32
        for lane in (train, held):
            student.forward_block(index, lane.ours)
        student.free(index)
        yield done, found


def _marked(marks: TrainingCheckpoints, index: int, prefix: str) -> tuple[RecoveredBlock, dict[str, Tensor]]:
    """A trained block from its mark: what it gained, and its tensors by full name."""
    notes = marks.notes(mark(index))
    done = RecoveredBlock(index=index, loss_before=notes["before"], loss_after=notes["after"])
    return done, {f"{prefix}.{part}": tensor for part, tensor in marks.tensors(mark(index)).items()}


def _train(
    block: nn.Module, index: int, train: Lane, held: Lane, epochs: int, stored: dict[str, torch.dtype], rate: float
) -> tuple[float, float]:
    """Train a block in place; the held-out loss before and after. It ends with weights as they will be stored."""
    weights = dict(block.named_parameters())
    for weight in weights.values():
        weight.requires_grad_(True)
    matrices = {name: weight for name, weight in weights.items() if weight.dim() == 2}
    optimizer = optimizers(matrices, {name: weight for name, weight in weights.items() if name not in matrices}, rate)
    best = {name: weight.detach().to(stored[name]) for name, weight in weights.items()}
    first = least = _held_out(block, index, held)
    count, step = len(train.ours), 0
    for epoch in range(epochs):
        for number in torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist():
            _loss(block, index, train, number).backward()
            optimizer.step(schedule(step, epochs * count))
            step += 1
        master = {name: weight.data for name, weight in weights.items()}
        rounded = {name: weight.to(stored[name]) for name, weight in master.items()}
        _set(weights, rounded)
        loss = _held_out(block, index, held)
        if loss < least:
            least, best = loss, rounded
        _set(weights, master)
    _set(weights, best)
    block.requires_grad_(False)
    return first, least


def _set(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.data = values[name].to(weight.dtype)


@torch.no_grad()
def _held_out(block: nn.Module, index: int, lane: Lane) -> float:
    """The loss over a lane, in float32."""
    tokens = [batch.shape("hidden")[0] * batch.shape("hidden")[1] for batch in lane.ours]
    losses = [float(_loss(block, index, lane, number, exact=True)) for number in range(len(tokens))]
    return sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)


def _loss(block: nn.Module, index: int, lane: Lane, number: int, exact: bool = False) -> Tensor:
    """Mean over tokens of |block - base|^2 / |base|^2, for one batch of a lane.

    Relative to each token's own energy, as the next block's norm will see it: the first token of a sequence alone can
    hold more than all others.
    """
    batch, wanted = lane.ours[number], _plain(lane.theirs[number].hidden)
    keywords = {key: _plain(value) for key, value in batch.keywords[index].items()}
    with fast(wanted.device.type, enabled=not exact):
        out = block(_plain(batch.hidden), **keywords)
    out = (out[0] if isinstance(out, tuple) else out).float()
    return ((out - wanted).square().sum(-1) / wanted.square().sum(-1)).mean()


def _plain(value: Any) -> Any:
    """A tensor of inference mode as one that autograd takes."""
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(_plain(each) for each in value) if isinstance(value, tuple) else value
