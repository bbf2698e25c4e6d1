"""Rows of logits: normalizers, first ranks, and how far two rows are apart, compiled for CPUs and in plain torch.

Torch takes a pass over memory for every exponential, product and sum. The compiled kernels take two, and a row stays in
the cache between them: exponentials in float32, sums of pieces of a row in float64 (docs/maths.md, Perplexity and KL).
Knows logits; no token and no model.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from hubplugin.kernels.threads import compiled, spread

PIECE = 512  # logits whose float32 sums go into a float64 one
NEAR = 0.25  # |log p - log q| below which p (e^-d - 1 + d) is a series
LEAST = -87.0  # e to less is 0 in float32, but for numbers that have lost digits
IN_FLOAT64 = 2**22  # logits that plain torch works on at once, in a few copies

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_LEAST, _LOG2_E = np.float32(LEAST), np.float32(math.log2(math.e))
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # ln 2; the first times 0 .. 127 is exact
# e^r on |r| <= ln 2 / 2, to the last bits of a float32 number: Cephes' expf (Moshier, netlib.org/cephes)
_C5, _C4, _C3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C2, _C1, _C0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_NEAR, _2, _3, _4, _5, _6, _7 = (np.float32(value) for value in (NEAR, *(1 / math.factorial(k) for k in range(2, 8))))


class Alone(NamedTuple):
    """Of rows of logits, each on its own."""

    log_sum: Tensor  # float64 [rows], log of the sum of exponentials
    first: Tensor  # int64 [rows], the greatest logit's place; of equal ones the first


class Compared(NamedTuple):
    """Of rows of logits p and q."""

    p: Alone
    q: Alone
    divergence: Tensor  # float64 [rows], KL(p || q) in nats
    overlap: Tensor  # float64 [rows], sum of min(p, q)


def alone(logits: Tensor) -> Alone:
    """What rows [rows, vocabulary] are on their own."""
    if not _compilable(logits):
        return Alone(logits.logsumexp(-1).double(), logits.argmax(-1))
    made = _empty(len(logits))
    spread(_alone, len(logits), logits.contiguous().numpy(), made.log_sum.numpy(), made.first.numpy())
    return made


def compared(p: Tensor, q: Tensor) -> Compared:
    """How far rows of two sets of logits are apart, each [rows, vocabulary]."""
    if not (_compilable(p) and _compilable(q)):
        return _compared_in_float64(p, q)
    made = Compared(_empty(len(p)), _empty(len(p)), *(torch.empty(len(p), dtype=torch.float64) for _ in range(2)))
    found = (*made.p, *made.q, made.divergence, made.overlap)
    spread(_compared, len(p), *(tensor.contiguous().numpy() for tensor in (p, q, *found)))
    return made


def divergence_and_gradient(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) in nats, float64 [rows], and its gradient in q's logits [rows, vocabulary]: q - p as probabilities."""
    if not (_compilable(p) and _compilable(q)):
        p_logs, q_logs = p.log_softmax(-1), q.log_softmax(-1)
        ratios = p_logs.exp()
        return (ratios * (p_logs - q_logs)).sum(-1).double(), q_logs.exp_().sub_(ratios)
    divergences, gradient = torch.empty(len(p), dtype=torch.float64), torch.empty(q.shape, dtype=q.dtype)
    arrays = (tensor.numpy() for tensor in (p.contiguous(), q.contiguous(), divergences, gradient))
    spread(_divergences, len(p), *arrays)
    return divergences, gradient


def _compilable(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and not logits.requires_grad


def _compared_in_float64(p: Tensor, q: Tensor) -> Compared:
    """The formulas as they stand: what the kernels are held against, and what other devices compute."""
    pieces = [each.split(max(1, IN_FLOAT64 // p.shape[1])) for each in (p, q)]
    found = [_distances(*pair) for pair in zip(*pieces, strict=True)]
    return Compared(alone(p), alone(q), *(torch.cat(parts) for parts in zip(*found, strict=True)))


def _distances(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    p_logs, q_logs = p.double().log_softmax(-1), q.double().log_softmax(-1)
    ratios = p_logs.exp()
    return (ratios * (p_logs - q_logs)).sum(-1).clamp(min=0), torch.minimum(ratios, q_logs.exp()).sum(-1)


def _empty(rows: int) -> Alone:
    return Alone(torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.int64))


@intrinsic
def _power(_, exponent):  # type: ignore[no-untyped-def]
    """2^exponent in float32, of an int32 of -126 .. 127."""

    def generate(context, builder, signature, given):  # type: ignore[no-untyped-def]
        kind = ir.IntType(32)
        biased = builder.add(given[0], ir.Constant(kind, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(kind, 23)), ir.FloatType())

    return types.float32(types.int32), generate


@compiled
def exponential(x):  # type: ignore[no-untyped-def]
    """e^x of a float32 number that is 0 or less; 1.6e-38 from LEAST on."""
    x = _LEAST if x < _LEAST else x
    exponent = np.int32(x * _LOG2_E - _HALF)
    whole = np.float32(exponent)
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    series = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _C0
    return (series * r * r + r + _ONE) * _power(exponent)


@compiled
def _probability(logit, largest, rest):  # type: ignore[no-untyped-def]
    """Of a logit of a row whose normalizer is the largest logit plus a rest: of large logits the sum would lose it."""
    return exponential((logit - largest) - rest)


@compiled
def _excess(p, q, d):  # type: ignore[no-untyped-def]
    """p d - p + q, where d = log p - log q: what a token adds to KL(p || q), never below 0.

    Its sum over tokens is the sum of p d, for p and q sum to 1; near d = 0 nothing cancels in it, and an error of the
    logarithms' normalizers changes it by no more than their square.
    """
    series = ((((_7 * -d + _6) * d - _5) * d + _4) * d - _3) * d + _2
    return p * (d * d * series) if abs(d) < _NEAR else p * d - p + q


# of sums alone, for they would not vectorise otherwise; what is called from there keeps its order
any_order = njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@intrinsic
def _greater(_, one, other):  # type: ignore[no-untyped-def]
    """The greater of two float32 numbers, NaN of NaN. LLVM sees no maximum of many in comparisons, but in these."""

    def generate(context, builder, signature, given):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.maximum.f32"), given)

    return types.float32(types.float32, types.float32), generate


@any_order
def largest(logits):  # type: ignore[no-untyped-def]
    """The largest of float32 numbers."""
    found = logits[0]
    for place in range(len(logits)):
        found = _greater(found, logits[place])
    return found


@any_order
def _exponentials(logits, largest):  # type: ignore[no-untyped-def]
    total = _ZERO
    for place in range(len(logits)):
        total += exponential(logits[place] - largest)
    return total


@any_order
def _differences(p_logits, q_logits, p_largest, q_largest, p_rest, q_rest, normalizers):  # type: ignore[no-untyped-def]
    """Sums of `_excess` and of |p - q| over a piece; `normalizers` is the difference of the rows' log-sums."""
    divergence, distance = _ZERO, _ZERO
    for place in range(len(p_logits)):
        p = _probability(p_logits[place], p_largest, p_rest)
        q = _probability(q_logits[place], q_largest, q_rest)
        divergence += _excess(p, q, (p_logits[place] - q_logits[place]) - normalizers)
        distance += abs(p - q)
    return divergence, distance


@any_order
def _gradients(p_logits, q_logits, p_largest, q_largest, p_rest, q_rest, normalizers, gradient):  # type: ignore[no-untyped-def]
    """The sum of `_excess` over a piece, and q - p in `gradient`."""
    divergence = _ZERO
    for place in range(len(p_logits)):
        p = _probability(p_logits[place], p_largest, p_rest)
        q = _probability(q_logits[place], q_largest, q_rest)
        divergence += _excess(p, q, (p_logits[place] - q_logits[place]) - normalizers)
        gradient[place] = q - p
    return divergence


@njit(nogil=True, cache=True, error_model="numpy")
def _row(logits):  # type: ignore[no-untyped-def]
    """The largest logit, log of the sum of exponentials less it, and where it first stands."""
    greatest, total, start = logits[0], 0.0, 0
    for begin in range(0, len(logits), PIECE):
        piece = logits[begin : begin + PIECE]
        here = largest(piece)
        if here > greatest:
            total *= math.exp(greatest - here)
            greatest, start = here, begin
        total += _exponentials(piece, greatest)
    while start < len(logits) - 1 and logits[start] != greatest:
        start += 1
    return greatest, math.log(total), start


@njit(nogil=True, cache=True, error_model="numpy")
def _alone(first, last, logits, log_sums, firsts):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        largest, rest, firsts[row] = _row(logits[row])
        log_sums[row] = largest + rest


@njit(nogil=True, cache=True, error_model="numpy")
def _compared(first, last, p, q, p_logs, p_firsts, q_logs, q_firsts, divergences, overlaps):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        p_largest, p_rest, p_firsts[row] = _row(p[row])
        q_largest, q_rest, q_firsts[row] = _row(q[row])
        p_logs[row], q_logs[row] = p_largest + p_rest, q_largest + q_rest
        rests = np.float32(p_rest), np.float32(q_rest)
        normalizers = np.float32(p_logs[row] - q_logs[row])
        divergence, distance = 0.0, 0.0
        for begin in range(0, p.shape[1], PIECE):
            some = slice(begin, begin + PIECE)
            parts = _differences(p[row, some], q[row, some], p_largest, q_largest, rests[0], rests[1], normalizers)
            divergence += parts[0]
            distance += parts[1]
        divergences[row], overlaps[row] = divergence, 1 - distance / 2


@njit(nogil=True, cache=True, error_model="numpy")
def _divergences(first, last, p, q, divergences, gradients):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        p_largest, p_rest, _ = _row(p[row])
        q_largest, q_rest, _ = _row(q[row])
        rests = np.float32(p_rest), np.float32(q_rest)
        normalizers = np.float32((p_largest + p_rest) - (q_largest + q_rest))
        divergence = 0.0
        for begin in range(0, p.shape[1], PIECE):
            some = slice(begin, begin + PIECE)
            pair = p[row, some], q[row, some]
            divergence += _gradients(*pair, p_largest, q_largest, *rests, normalizers, gradients[row, some])
        divergences[row] = divergence
