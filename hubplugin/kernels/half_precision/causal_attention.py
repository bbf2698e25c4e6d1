"""Causal attention on a CPU with bfloat16 dot products: both products by `avx512`, softmax in float32 between them.

A block of queries is multiplied with all keys it sees, so that each row of scores is whole and its largest is known
before exponentials are taken; what lies above the diagonal is computed for part of a tile only. Float32 queries, keys,
values and probabilities are split as in `split_products`. On two Zen 5 cores torch's own kernel takes more than three
times as long in bfloat16 and half as long again in float32. Formula: softmax(q k^T / sqrt(d)) v, Vaswani et al. (2017),
Attention Is All You Need. Knows tensors; no model.
"""

import numpy as np
import torch
from torch import Tensor

from hubplugin.kernels.half_precision import split_products
from hubplugin.kernels.half_precision.avx512 import PANEL, TALL, tiles
from hubplugin.kernels.half_precision.bits import narrow, wide
from hubplugin.kernels.half_precision.split_products import OF_BFLOAT16, SPLIT_WEIGHT
from hubplugin.kernels.logit_rows import any_order, exponential
from hubplugin.kernels.threads import compiled, spread

ROWS = 8 * TALL  # queries of a block
LEAST_TOKENS = 32  # fewer are not worth packing keys


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend` takes them: [batch, heads, tokens, dimensions], as many queries as keys."""
    same = query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float32)
    here = query.device.type == "cpu" and not any(map(split_products.learns, (query, key, value)))
    tokens, width = query.shape[-2:]
    shapes = key.shape == value.shape and key.shape[-2:] == (tokens, width) and query.shape[1] % key.shape[1] == 0
    return same and here and shapes and tokens >= LEAST_TOKENS and width % PANEL == 0 and split_products.works()


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """What each token takes from itself and those before it: [batch, tokens, heads, dimensions] in the queries' dtype.

    Queries are [batch, heads, tokens, dimensions]; keys and values may have fewer heads, each for a run of them.
    """
    batch, heads, tokens, width = query.shape
    out = torch.empty(batch, tokens, heads, width)
    order = np.array(OF_BFLOAT16 if query.dtype == torch.bfloat16 else SPLIT_WEIGHT)
    parts = [split_products.parts(each) for each in (query, key, value)]
    spread(_attend, batch * heads, *parts, order, np.float32(scale), out.numpy())
    return out.to(query.dtype)


@compiled
def _attend(first, last, query, key, value, order, scale, out):  # type: ignore[no-untyped-def]
    """Heads first .. last of all sequences; parts are uint16 [parts, batch, heads, tokens, dimensions], out float32."""
    tokens, width = query.shape[3:]
    panels = (tokens + PANEL - 1) // PANEL
    keys = np.zeros((len(key), panels, width // 2, PANEL), dtype=np.uint32)
    values = np.zeros((len(key), width // PANEL, panels * PANEL // 2, PANEL), dtype=np.uint32)
    scores = np.empty((ROWS, panels * PANEL), dtype=np.float32)
    shares = np.zeros((len(key), ROWS, panels * PANEL), dtype=np.uint16)
    sums, totals = np.empty((ROWS, width), dtype=np.float32), np.empty(ROWS, dtype=np.float32)
    run, packed = query.shape[2] // key.shape[2], -1
    for place in range(first, last):
        item, head = place // query.shape[2], place % query.shape[2]
        shared = head // run
        if place // run != packed:
            packed = place // run
            _pack(key[:, item, shared], value[:, item, shared], keys, values)
        for begin in range(0, tokens, ROWS):
            count = min(ROWS, tokens - begin)
            seen = (begin + count + PANEL - 1) // PANEL
            tiles(0, count, query[:, item, head, begin : begin + count], keys[:, :seen], order, scores)
            _softmax(begin, count, seen * PANEL, scale, scores, shares, totals)
            tiles(0, count, shares[:, :, : seen * PANEL], values[:, :, : seen * PANEL // 2], order, sums)
            for row in range(count):
                _scaled(sums[row], np.float32(1) / totals[row], out[item, begin + row, head])


@compiled
def _scaled(numbers, factor, out):  # type: ignore[no-untyped-def]
    for place in range(len(numbers)):
        out[place] = numbers[place] * factor


@compiled
def _pack(key, value, keys, values):  # type: ignore[no-untyped-def]
    """Keys by panels of tokens, values by panels of dimensions: two neighbours of what is summed in each number."""
    for part in range(len(key)):
        for token in range(key.shape[1]):
            panel, lane = token // PANEL, token % PANEL
            for pair in range(key.shape[2] // 2):
                low, high = np.uint32(key[part, token, 2 * pair]), np.uint32(key[part, token, 2 * pair + 1])
                keys[part, panel, pair, lane] = low | (high << np.uint32(16))
        for pair in range((value.shape[1] + 1) // 2):
            after = 2 * pair + 1 if 2 * pair + 1 < value.shape[1] else 2 * pair  # the last one's share is zero
            for panel in range(values.shape[1]):
                for lane in range(PANEL):
                    at = panel * PANEL + lane
                    low, high = np.uint32(value[part, 2 * pair, at]), np.uint32(value[part, after, at])
                    values[part, panel, pair, lane] = low | (high << np.uint32(16))


@compiled
def _softmax(begin, count, width, scale, scores, shares, totals):  # type: ignore[no-untyped-def]
    """Exponentials of rows as bfloat16 parts, zero for tokens that come after; their sums."""
    for row in range(count):
        seen = begin + row + 1
        totals[row] = _exponentials(scores[row, :seen], scale, shares[0, row])
        shares[0, row, seen:width] = 0
        if len(shares) > 1:
            _rests(scores[row, :seen], shares[0, row], shares[1, row])
            shares[1, row, seen:width] = 0


@any_order
def _exponentials(scores, scale, shares):  # type: ignore[no-untyped-def]
    """exp(scale (score - the largest)), left in `scores` too; their sum."""
    largest = scores[0]
    for place in range(len(scores)):
        largest = scores[place] if scores[place] > largest else largest
    total = np.float32(0)
    for place in range(len(scores)):
        share = exponential((scores[place] - largest) * scale)
        scores[place] = share
        shares[place] = np.uint16(narrow(share))
        total += share
    return total


@compiled
def _rests(numbers, high, low):  # type: ignore[no-untyped-def]
    for place in range(len(numbers)):
        low[place] = np.uint16(narrow(numbers[place] - wide(high[place])))
