"""Causal attention on a CPU with 512-bit instructions: both products by `avx512`, softmax in float32 between them.

A block of queries is multiplied with all keys it sees, so that each row of scores is whole and its largest is known
before exponentials are taken; what lies above the diagonal is computed for part of a tile only. Formula: softmax(
q k^T / sqrt(d)) v, Vaswani et al. (2017), Attention Is All You Need. `python bench/kernel_rates.py` measures it beside
torch's own. Knows tensors; no model.
"""

import numpy as np
import torch
from torch import Tensor

from hubplugin.kernels.instructions import panel_products
from hubplugin.kernels.instructions.avx512 import PANEL, TALL, tiles
from hubplugin.kernels.instructions.bits import narrow, numbers
from hubplugin.kernels.logit_rows import any_order, exponential, largest
from hubplugin.kernels.threads import compiled, spread

ROWS = 8 * TALL  # queries of a block
LEAST_TOKENS = 32  # fewer are not worth packing keys


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend` takes them: [batch, heads, tokens, dimensions], as many queries as keys."""
    same = query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float32)
    here = query.device.type == "cpu" and not any(map(panel_products.learns, (query, key, value)))
    tokens, width = query.shape[-2:]
    shapes = key.shape == value.shape and key.shape[-2:] == (tokens, width) and query.shape[1] % key.shape[1] == 0
    lines = all(each.stride(-1) == 1 for each in (query, key, value)) and width % PANEL == 0
    return same and here and shapes and lines and tokens >= LEAST_TOKENS and panel_products.works()


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """What each token takes from itself and those before it: [batch, tokens, heads, dimensions] in the queries' dtype.

    Queries are [batch, heads, tokens, dimensions]; keys and values may have fewer heads, each for a run of them.
    """
    batch, heads, tokens, width = query.shape
    single = query.dtype == torch.float32
    out = torch.empty(batch, tokens, heads, width, dtype=query.dtype)
    queries, keys = (numbers(each).view(np.uint32) for each in (query, key))
    values = numbers(value)  # in bfloat16 no units: neighbours in what is summed do not lie side by side in them
    values = values.view(np.uint32) if single else values
    spread(_attend, batch * heads, queries, keys, values, single, np.float32(scale), numbers(out))
    return out


@compiled
def _attend(first, last, query, key, value, single, scale, out):  # type: ignore[no-untyped-def]
    """Heads first .. last of all sequences. Queries and keys are uint32 units [batch, heads, tokens, units].

    Values are uint32 if `single`, else uint16 [batch, heads, tokens, dimensions]; out is float32 or uint16.
    """
    tokens, units = query.shape[2:]
    width, run, packed = value.shape[3], query.shape[1] // key.shape[1], -1
    panels = (tokens + PANEL - 1) // PANEL
    keys = np.zeros((panels, units, PANEL), dtype=np.uint32)
    values = np.zeros((width // PANEL, panels * PANEL * units // width, PANEL), dtype=np.uint32)
    scores = np.empty((ROWS, panels * PANEL), dtype=np.float32)
    shares = np.empty((ROWS, panels * PANEL), dtype=np.uint16)
    sums, totals = np.empty((ROWS, width), dtype=np.float32), np.empty(ROWS, dtype=np.float32)
    for place in range(first, last):
        item, head = place // query.shape[1], place % query.shape[1]
        if place // run != packed:
            packed = place // run
            _pack_keys(key[item, head // run], keys)
            _pack_values(value[item, head // run], single, values)
        for begin in range(0, tokens, ROWS):
            count = min(ROWS, tokens - begin)
            seen = (begin + count + PANEL - 1) // PANEL
            tiles(0, count, query[item, head, begin : begin + count], keys[:seen], single, scores)
            _softmax(begin, count, seen * PANEL, scale, scores, totals)
            if single:
                tiles(0, count, scores, values[:, : seen * PANEL], single, sums)
            else:
                _round(count, seen * PANEL, scores, shares)
                tiles(0, count, shares, values[:, : seen * PANEL // 2], single, sums)
            for row in range(count):
                factor, made = np.float32(1) / totals[row], out[item, begin + row, head]
                if single:
                    _scaled(sums[row], factor, made)
                else:
                    _scaled_bits(sums[row], factor, made)


@compiled
def _pack_keys(key, keys):  # type: ignore[no-untyped-def]
    for token in range(len(key)):
        for unit in range(key.shape[1]):
            keys[token // PANEL, unit, token % PANEL] = key[token, unit]


@compiled
def _pack_values(value, single, values):  # type: ignore[no-untyped-def]
    """By panels of dimensions: each token as it is, or two neighbours in each unit."""
    for panel in range(len(values)):
        start = panel * PANEL
        if single:
            for token in range(len(value)):
                for lane in range(PANEL):
                    values[panel, token, lane] = value[token, start + lane]
        else:
            for pair in range((len(value) + 1) // 2):
                after = min(2 * pair + 1, len(value) - 1)  # where there is none after the last, its share is zero
                for lane in range(PANEL):
                    low, high = np.uint32(value[2 * pair, start + lane]), np.uint32(value[after, start + lane])
                    values[panel, pair, lane] = low | (high << np.uint32(16))


@compiled
def _softmax(begin, count, width, scale, scores, totals):  # type: ignore[no-untyped-def]
    """Scores become exponentials, zero for tokens that come after; their sums."""
    for row in range(count):
        seen = begin + row + 1
        totals[row] = _exponentials(scores[row, :seen], scale)
        scores[row, seen:width] = 0


@any_order
def _exponentials(scores, scale):  # type: ignore[no-untyped-def]
    """exp(scale (score - the largest)) in place of each score; their sum."""
    greatest, total = largest(scores), np.float32(0)
    for place in range(len(scores)):
        share = exponential((scores[place] - greatest) * scale)
        scores[place] = share
        total += share
    return total


@compiled
def _round(count, width, numbers, out):  # type: ignore[no-untyped-def]
    """The first `width` of rows as bits of bfloat16."""
    for row in range(count):
        given, made = numbers[row], out[row]
        for place in range(width):
            made[place] = np.uint16(narrow(given[place]))


@compiled
def _scaled(numbers, factor, out):  # type: ignore[no-untyped-def]
    for place in range(len(numbers)):
        out[place] = numbers[place] * factor


@compiled
def _scaled_bits(numbers, factor, out):  # type: ignore[no-untyped-def]
    for place in range(len(numbers)):
        out[place] = np.uint16(narrow(numbers[place] * factor))
