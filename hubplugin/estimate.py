"""What compressing one variant will cost, roughly: peak memory and seconds, from shapes alone.

Arithmetic on sizes, good to a factor of about two; reports hold what was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hubplugin.architecture import Dimensions
from hubplugin.family import Family

FLOPS = 150e9  # floating-point operations per second in fp32, of a few ordinary CPU cores with AVX-512
WEIGHT_SECONDS = 2.5e-7  # per weight: the search of scales and the rounding, element by element
COLUMN_SECONDS = 1e-4  # per column of the sweep: a handful of small tensor operations
RUNTIME_BYTES = 640 * 2**20  # Python, torch, transformers, datasets and what the allocator keeps, before any tensor
FP32 = 4  # bytes per number; everything is computed in fp32
MICRO_TOKENS = 2048  # tokens that pass a block in one forward call
DEVICE_MICRO_TOKENS = 32768  # the same on an accelerator, where fewer would leave it waiting for Python
LOGIT_ROWS = 512  # positions whose logits exist at one time
SHARD_BYTES = 2 * 2**30  # of weights that are collected before a file is written
SQUARE_COPIES = 6  # second moments: as summed, without dead inputs, reordered, damped, reversed, factored
STACK_COPIES = 6  # stacked weights: as they are, reordered, target, errors, codes, result


@dataclass(frozen=True)
class Work:
    """What one pass over the calibration tokens must hold and do."""

    samples: int
    tokens: int  # per sample
    quantizes: bool
    prunes: bool


def peak_memory(
    family: Family,
    dims: Dimensions,
    shapes: Mapping[str, tuple[int, int]],
    work: Work,
    written: int,
    resident: int = 0,
) -> int:
    """Bytes of the process at its highest point.

    What stays: the embedding table, one block, the activations of all samples and, of the `written` bytes, those
    of the shard that is not full yet. Beside them stands the largest of: the intermediate activations of
    MICRO_TOKENS tokens, the copies a method makes of one tap's second moments and stacked weights, the logits of
    LOGIT_ROWS positions. `resident` is a whole model in bytes, where calibration text is sampled from it before.
    """
    activations = work.samples * work.tokens * dims.hidden * FP32
    table = dims.vocab * dims.hidden * FP32
    block = sum(outputs * inputs for outputs, inputs in shapes.values()) * FP32
    passing = min(work.samples * work.tokens, max(work.tokens, MICRO_TOKENS))
    intermediate = passing * (2 * dims.hidden + 3 * dims.ffn) * FP32
    taps = []
    for tap in family.taps:
        inputs = shapes[tap.linears[0]][1]
        stacked = sum(shapes[name][0] for name in tap.linears)
        taps.append((SQUARE_COPIES * inputs**2 + STACK_COPIES * stacked * inputs) * FP32)
    logits = LOGIT_ROWS * dims.vocab * FP32
    streaming = table + block + activations + min(written, SHARD_BYTES) + max(intermediate, *taps, logits)
    return RUNTIME_BYTES + max(streaming, resident + logits)


def seconds(family: Family, dims: Dimensions, shapes: Mapping[str, tuple[int, int]], work: Work) -> float:
    """Time of the compression itself on a CPU; pulling, sampling calibration text and evaluation come on top.

    Per block: one full forward pass to hand the compressed output on, and for each tap that is measured the
    pass up to it, its second moments, and its method: a factor and the column loop for GPTQ, an inverse and
    the refit of the consumer for pruning.
    """
    count = work.samples * work.tokens
    size = {name: outputs * inputs for name, (outputs, inputs) in shapes.items()}
    attention = 4 * count * (work.tokens / 2) * dims.heads * dims.head_dim  # causal: half of all pairs
    consumers = {width.consumer for width in family.widths}
    total = passed = steps = 0.0  # `passed`: one forward pass up to the tap
    for index, tap in enumerate(family.taps):
        inputs = shapes[tap.linears[0]][1]
        stacked = sum(size[name] for name in tap.linears)
        if index == 1:
            passed += attention
        reaching = count * tap.share
        # tokens are brought to the experts of a block once
        measured = (passed if tap.expert is None else 0) + 2 * reaching * inputs**2
        if work.quantizes:
            total += measured + inputs**3 / 3 + stacked * inputs
            steps += stacked * WEIGHT_SECONDS + inputs * COLUMN_SECONDS
        if work.prunes and consumers & set(tap.linears):
            total += measured + 2 * inputs**3 + 2 * stacked * inputs
        passed += 2 * reaching * stacked
    return dims.layers * ((total + passed) / FLOPS + steps)
