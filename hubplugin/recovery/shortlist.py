"""Forward KL over the base's likeliest tokens and one rest, of logits or at a model's output head, with its gradient.

At a head the logits of a few positions exist at one time; all blocks below it read every sequence of a step together.
Formulas: docs/maths.md, Recovery. Knows logits and output heads. Knows no training.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from hubplugin.limits import LOGITS_BYTES
from hubplugin.model.construction import settings

LOGITS = 2**22  # positions times vocabulary at a head at once: memory of that size is used again, larger is mapped anew

Known = tuple[Tensor, Tensor, Tensor]  # ids and log-probabilities [..., count] of a base, that of the rest [..., 1]


def shortlist(logits: Tensor, count: int) -> Known:
    """The likeliest tokens of [..., vocabulary]: ids and log-probabilities [..., count]; that of the rest [..., 1]."""
    logs, ids = logits.log_softmax(-1).topk(min(count, logits.shape[-1]))
    if count >= logits.shape[-1]:
        return ids, logs, torch.full_like(logs[..., :1], -math.inf)
    return ids, logs, torch.log1p(-logs.exp().sum(-1, keepdim=True).clamp(max=1 - torch.finfo(logs.dtype).eps))


def shortlist_divergence(logits: Tensor, ids: Tensor, logs: Tensor, rest: Tensor) -> Tensor:
    """KL(base || student) in nats [...] where the base is known by `shortlist`; differentiable in `logits`."""
    return cast(Tensor, _Divergence.apply(logits, ids, logs, rest))


def _closed_form(logits: Tensor, known: Known) -> tuple[Tensor, Tensor]:
    """The divergence [...] and its gradient [..., vocabulary]."""
    ids, logs, rest = known
    student_logs = logits.log_softmax(-1)
    listed = student_logs.gather(-1, ids)
    student = student_logs.exp_()
    others = student.scatter(-1, ids, 0.0).sum(-1, keepdim=True).clamp(min=torch.finfo(student.dtype).tiny)
    expected, remaining = logs.exp(), rest.exp()
    rest_term = torch.where(remaining > 0, remaining * (rest - others.log()), 0.0)
    total = (expected * (logs - listed)).sum(-1) + rest_term.squeeze(-1)
    # listed: q - p; others: q - q p_rest / q_rest
    return total, student.mul_(1 - remaining / others).scatter_(-1, ids, listed.exp() - expected)


class _Divergence(torch.autograd.Function):
    """One tensor of logits' size is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *known: Tensor) -> Tensor:
        total, gradient = _closed_form(logits, cast(Known, known))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].unsqueeze(-1), None, None, None


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
    model: Callable[..., Any], head: nn.Linear, ids: Tensor, base: tuple[Tensor, Tensor], top_k: int
) -> Tensor:
    """The sum of KL(base || student) in nats over token ids [sequences, tokens], differentiable in what `model` has.

    `base` is what the base's head reads [sequences, tokens, hidden], and its weight [vocabulary, hidden].
    """
    read, weight = base

    def summed(hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2), head.weight, read.flatten(0, -2), weight, top_k
        return cast(Tensor, _AtHead.apply(*rows))

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


class _AtHead(torch.autograd.Function):
    """Hidden states [positions, hidden] and a head -> the summed divergence; gradients are made on the way."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, base_hidden: Tensor, base_weight: Tensor, top_k: int
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        head, base_head, vocabulary = weight.to(dtype), base_weight.to(dtype), len(weight)
        total = torch.zeros((), device=hidden.device)
        back, of_weight = torch.empty_like(hidden), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        together = max(1, LOGITS_BYTES // (vocabulary * dtype.itemsize))
        with torch.autocast(kind, enabled=False):
            for rows, base_rows, out in zip(
                *(each.split(together) for each in (hidden, base_hidden, back)), strict=True
            ):
                rows = rows.to(dtype)
                gradient = rows.new_empty(len(rows), vocabulary)
                pieces = (each.split(max(1, LOGITS // vocabulary)) for each in (rows, base_rows.to(dtype), gradient))
                for piece, base_piece, of_logits in zip(*pieces, strict=True):
                    known = shortlist((base_piece @ base_head.T).float(), top_k)
                    divergence, exact = _closed_form((piece @ head.T).float(), known)
                    of_logits.copy_(exact)
                    total += divergence.sum()
                out.copy_(gradient @ head)
                if of_weight is not None:
                    of_weight += gradient.T @ rows
        ctx.save_for_backward(back, of_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        back, of_weight = ctx.saved_tensors
        return back * upstream[0], None if of_weight is None else of_weight * upstream[0], None, None, None
