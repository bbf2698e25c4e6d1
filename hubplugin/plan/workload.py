"""What making a variant has to do, for the estimates of memory and time. Knows steps and sizes; refuses nothing."""

from collections.abc import Mapping, Sequence

from hubplugin import limits
from hubplugin.checkpoint.headers import Header
from hubplugin.manifest.methods import mask_of, pruning_of, quantization_of, recovery_of
from hubplugin.manifest.schema import Document, Step
from hubplugin.model.architecture import Dimensions
from hubplugin.model.families import Family
from hubplugin.plan import estimates, sizes


def of(
    document: Document,
    family: Family,
    dims: Dimensions,
    tensors: Mapping[str, Header],
    steps: Sequence[Step],
    units: int,
) -> estimates.Work:
    """The work of these steps on a base of these sizes and tensors.

    `units` are the changes of single blocks that are run through the model before anything is decided.
    """
    source, evaluate = document.manifest.calibrate, document.manifest.evaluate
    gptq = quantization_of(steps)
    prune = pruning_of(steps)
    recover = recovery_of(steps)
    text = recover.data or source if recover else source
    seen = text.samples * text.sequence_length
    return estimates.Work(
        samples=source.samples,
        tokens=source.sequence_length,
        quantizes=gptq is not None,
        prunes=prune is not None,
        units=units,
        corrected=corrected_tokens(steps, source.samples * source.sequence_length),
        skips=prune is not None and prune.measures,
        descends=gptq.passes if gptq else 0,
        masks=mask_of(steps) is not None,
        head=gptq is not None and gptq.lm_head,
        number=tensors[f"{sizes.names(family, dims)[0]}.weight"].itemsize,
        trained=sum(header.count for header in tensors.values()) if recover else 0,
        blocks_tokens=recover.blocks * min(seen, limits.BLOCK_TOKENS) if recover else 0,
        distilled_tokens=int(recover.distill * seen) if recover else 0,
        # whose hidden states the base's evaluation keeps for its variants
        evaluated=evaluate.perplexity.samples * evaluate.perplexity.sequence_length if evaluate else 0,
    )


def corrected_tokens(steps: Sequence[Step], tokens: int) -> int:
    """How many of so many calibration tokens pass through the base too, because linears are fitted to what it makes."""
    gptq, prune = quantization_of(steps), pruning_of(steps)
    aims = gptq.qep_tokens if gptq and gptq.qep else 0
    if prune and (prune.refit or aims):
        return tokens
    return min(tokens, aims)
