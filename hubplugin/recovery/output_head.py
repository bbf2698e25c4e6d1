"""Losses at a model's output head: forward KL to a base's predictions, and cross-entropy.

Each comes with its gradient in closed form, so that at a head the logits of a few positions exist at one time; all
blocks below it read every sequence of a step together. Formulas: docs/maths.md, Recovery. Knows logits and output
heads. Knows no training.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from hubplugin.kernels import logit_rows
from hubplugin.limits import LOGITS_BYTES
from hubplugin.model.construction import settings

LOGITS = 2**22  # positions times vocabulary at a head at once: memory of that size is used again, larger is mapped anew

# logits [positions, vocabulary] and what is known of each position -> the loss [positions], its gradient in the logits
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def forward_kl(top_k: int | None) -> Loss:
    """KL(base || student) in nats, of a student's logits and the base's: over the whole vocabulary, or its `top_k`."""
    if top_k is None:
        return lambda logits, base: logit_rows.divergence_and_gradient(base, logits)
    return partial(_forward_kl_of_listed, top_k=top_k)


def _forward_kl_of_listed(logits: Tensor, base: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The same over the base's likeliest tokens and one rest."""
    logs, ids = base.log_softmax(-1).topk(min(top_k, base.shape[-1]))
    expected = logs.exp()
    remaining = (1 - expected.sum(-1, keepdim=True)).clamp(min=torch.finfo(logs.dtype).eps)
    remaining = remaining if top_k < base.shape[-1] else torch.zeros_like(remaining)
    student_logs = logits.log_softmax(-1)
    listed = student_logs.gather(-1, ids)
    student = student_logs.exp_()
    others = student.scatter(-1, ids, 0.0).sum(-1, keepdim=True).clamp(min=torch.finfo(student.dtype).tiny)
    rest = torch.where(remaining > 0, remaining * (remaining.log() - others.log()), 0.0)
    total = (expected * (logs - listed)).sum(-1) + rest.squeeze(-1)
    # listed: q - p; others: q - q p_rest / q_rest
    return total, student.mul_(1 - remaining / others).scatter_(-1, ids, listed.exp() - expected)


def cross_entropy(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of the tokens `wanted` [positions] in nats, and its gradient in logits [positions, vocabulary]."""
    logs, places = logits.log_softmax(-1), wanted[:, None]
    loss = -logs.gather(-1, places).squeeze(-1)
    return loss, logs.exp_().scatter_add_(-1, places, logs.new_full(places.shape, -1.0))


def loss_of(logits: Tensor, known: Tensor, loss: Loss) -> Tensor:
    """The sum of a loss over logits [positions, vocabulary], differentiable in them."""
    return cast(Tensor, _OfLogits.apply(logits, known, loss))


class _OfLogits(torch.autograd.Function):
    """One tensor of logits' size is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, known: Tensor, loss: Loss) -> Tensor:
        losses, gradient = loss(logits.detach(), known)
        ctx.save_for_backward(gradient)
        return losses.sum().to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The output head of a model of transformers' whose logits are this linear's products and nothing else."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    capped = settings.softcap(cast(Any, model.config), "final_logit_softcapping")
    plain = isinstance(head, nn.Linear) and head.bias is None and not head.weight.is_meta and not capped
    return head if plain else None


def hidden_states(model: Callable[..., Any], head: nn.Linear, ids: Tensor) -> Tensor:
    """What the head of a model reads [sequences, tokens, hidden] for token ids [sequences, tokens]."""
    with _instead(head, lambda hidden: hidden):
        return cast(Tensor, model(input_ids=ids, use_cache=False).logits)


def divergence_at_head(
    model: Callable[..., Any], head: nn.Linear, ids: Tensor, base: tuple[Tensor, Tensor], kl: Loss
) -> Tensor:
    """The sum of KL(base || student) in nats over token ids [sequences, tokens], differentiable in what `model` has.

    `base` is what the base's head reads [sequences, tokens, hidden], and its weight [vocabulary, hidden]; `kl` is a
    `forward_kl`.
    """
    read, weight = base[0], base[1].to(_product_dtype(base[1]))

    def divergence(logits: Tensor, base_hidden: Tensor) -> tuple[Tensor, Tensor]:
        return kl(logits, (base_hidden.to(weight.dtype) @ weight.T).float())

    return loss_at_head(model, head, ids, lambda hidden: hidden.flatten(0, -2), (divergence, read.flatten(0, -2)))


def loss_at_head(
    model: Callable[..., Any],
    head: nn.Linear,
    ids: Tensor,
    choose: Callable[[Tensor], Tensor],
    loss: tuple[Loss, Tensor],
) -> Tensor:
    """The sum of a loss over some positions of token ids [sequences, tokens], differentiable in what `model` has.

    `choose` takes what the head reads [sequences, tokens, hidden] and returns what it reads at these positions
    [positions, hidden]; `loss` comes with what is known of them [positions, ...].
    """
    of_logits, known = loss

    def summed(hidden: Tensor) -> Tensor:
        weight = head.weight if torch.is_grad_enabled() else head.weight.detach()
        return cast(Tensor, _AtHead.apply(choose(hidden), weight, known, of_logits))

    with _instead(head, summed):
        return cast(Tensor, model(input_ids=ids, use_cache=False).logits)


@contextmanager
def _instead(head: nn.Linear, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While this holds, the head returns this function of its input."""
    head.forward = function  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del head.forward  # the class's own again


def _product_dtype(weight: Tensor) -> torch.dtype:
    """In which products with a weight are made now."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class _AtHead(torch.autograd.Function):
    """Hidden states [positions, hidden] and a head -> the summed loss; gradients are made on the way, where any are."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, known: Tensor, loss: Loss) -> Tensor:
        lowered, vocabulary = weight.to(_product_dtype(weight)), len(weight)
        total = torch.zeros((), device=hidden.device)
        of_hidden, of_weight, *_ = ctx.needs_input_grad
        back = torch.empty_like(hidden) if of_hidden or of_weight else None
        back_weight = torch.zeros_like(weight) if of_weight else None
        together = max(1, LOGITS_BYTES // (vocabulary * lowered.itemsize))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), together):
                part = slice(start, start + together)
                rows = hidden[part].to(lowered.dtype)
                gradient = None if back is None else rows.new_empty(len(rows), vocabulary)
                total += _in_pieces(rows, lowered, known[part], loss, gradient)
                if gradient is not None and back is not None:
                    back[part] = gradient @ lowered
                    if back_weight is not None:
                        back_weight += gradient.T @ rows
        ctx.save_for_backward(back, back_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        back, of_weight = ctx.saved_tensors
        return back * upstream[0], None if of_weight is None else of_weight * upstream[0], None, None


def _in_pieces(rows: Tensor, weight: Tensor, known: Tensor, loss: Loss, gradient: Tensor | None) -> Tensor:
    """The summed loss of hidden states [positions, hidden]; its gradient in their logits is written to `gradient`."""
    total, at_once = torch.zeros((), device=rows.device), max(1, LOGITS // len(weight))
    for start in range(0, len(rows), at_once):
        piece = slice(start, start + at_once)
        losses, exact = loss((rows[piece] @ weight.T).float(), known[piece])
        total += losses.sum()
        if gradient is not None:
            gradient[piece] = exact
    return total
