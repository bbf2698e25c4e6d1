"""Gradients of the base's loss at what its linears put out: how much its predictions mind an error of each output.

The loss is that of tokens drawn from the base's own predictions, so that second moments of the gradients are its Fisher
information (docs/maths.md, Errors across outputs). One pass forward and one back, block by block, leaves what enters
each block and the gradient behind it; the linears' own gradients are computed again when a block is compressed. Knows
blocks and activations; no method, no plan and no file.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubplugin import memory
from hubplugin.kernels import token_draws
from hubplugin.kernels.second_moments import SecondMoments
from hubplugin.methods.gptq import two_sided
from hubplugin.methods.gptq.two_sided import OutputFactor
from hubplugin.model.activations import Batch, plain
from hubplugin.model.architectures.families import Family
from hubplugin.model.block_runner import Model
from hubplugin.progress import now_and_then

LOGITS = 2**23  # positions times vocabulary, of which logits are made at once
SEED = 0  # of the tokens that are drawn from the predictions


class OutputGradients:
    """Of some calibration tokens. One block after another is asked for, by each variant that is compressed."""

    def __init__(self, batches: list[Batch], family: Family) -> None:
        """`batches` hold what enters each block, and the gradient at what it puts out; see `measured`."""
        self._batches, self._family = batches, family
        groups = (input_group for input_group in family.input_groups if input_group.expert is None)
        self._linears = [name for input_group in groups for name in input_group.linears]
        self._index, self._factors = -1, dict[str, OutputFactor]()

    def of_block(self, index: int, block: nn.Module) -> Mapping[str, OutputFactor]:
        """By path inside the block, how errors of a linear's outputs feed each other; `block` is as the base has it.

        Linears of experts are not among them. Raises CompressError where gradients are not finite.
        """
        if index == self._index:
            return self._factors
        sums = {name: SecondMoments() for name in self._linears if name in dict(block.named_modules())}
        for batch in self._batches:
            with _watched(block, sums):
                _backward(block, batch, index)
            batch.drop(_entering(index), _behind(index))
        where = f"gradients of {self._family.block.format(i=index)}"
        factors = {name: two_sided.factored(total.matrix(f"{where}.{name}")) for name, total in sums.items()}
        self._index, self._factors = index, factors
        return factors


def measured(model: Model, tokens: Tensor, folder: Path | None = None) -> OutputGradients:
    """Pass token ids [sequences, tokens] through the base and the gradients of their loss back.

    With a folder, activations and gradients live in files there. Leaves the model as it came, without blocks.
    """
    batches, done = model.embed(tokens, folder), now_and_then("output gradients", 2 * len(model))
    for index in range(len(model)):
        model.block(index)
        for batch in batches:
            batch.put(_entering(index), batch.hidden)
        model.forward_block(index, batches)
        _finished(model, index)
        done(index)
    generator = torch.Generator(model.device).manual_seed(SEED)
    for batch in batches:
        batch.put(_behind(len(model) - 1), _of_predictions(model, batch.hidden, generator))
        batch.drop("hidden")
    model.free_head()
    for index in range(len(model) - 1, 0, -1):
        block = model.block(index)
        for batch in batches:
            batch.put(_behind(index - 1), _backward(block, batch, index))
        _finished(model, index)
        done(2 * len(model) - index - 1)
    return OutputGradients(batches, model.family)


def _finished(model: Model, index: int) -> None:
    """Forget a block: its weights, and what the allocator keeps of its activations."""
    model.free(index)
    memory.trim()


@contextmanager
def _watched(block: nn.Module, sums: Mapping[str, SecondMoments]) -> Iterator[None]:
    """While this holds, a backward pass through a block adds the gradients at its linears' outputs to their sums."""

    def watch(total: SecondMoments) -> Callable[[nn.Module, Any, Tensor], None]:
        def forward_hook(module: nn.Module, inputs: Any, outputs: Tensor) -> None:
            outputs.register_hook(total.add)

        return forward_hook

    hooks = [block.get_submodule(name).register_forward_hook(watch(total)) for name, total in sums.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _entering(index: int) -> str:
    return f"entering {index}"


def _behind(index: int) -> str:
    return f"gradient behind {index}"


def _of_predictions(model: Model, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient [sequences, tokens, hidden] of the summed loss in nats, of drawn tokens, in last hidden states."""
    pieces = plain(hidden).flatten(0, -2).split(max(1, LOGITS // model.vocabulary))
    gradients = [model.back_through_head(rows, lambda logits: _of_drawn(logits, generator)) for rows in pieces]
    return torch.cat(gradients).reshape(hidden.shape)


@torch.inference_mode()
def _of_drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient of -log p of tokens that are drawn from p, in logits [positions, vocabulary]: p, less 1 at these."""
    p = logits.softmax(-1)
    drawn = token_draws.drawn(p, torch.rand(len(p), 1, generator=generator, device=p.device))[:, None]
    return p.scatter_add_(1, drawn, p.new_full(drawn.shape, -1.0))


def _backward(block: nn.Module, batch: Batch, index: int) -> Tensor:
    """The gradient in what enters a block, from that in what it puts out: each [sequences, tokens, hidden]."""
    entering = plain(batch.get(_entering(index))).requires_grad_()
    keywords = {key: plain(value) for key, value in batch.keywords[index].items()}
    with torch.enable_grad():
        out = block(entering, **keywords)
    out = out[0] if isinstance(out, tuple) else out
    (gradient,) = torch.autograd.grad(out, entering, plain(batch.get(_behind(index))).to(out.dtype))
    return gradient
