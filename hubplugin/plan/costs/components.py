"""Weights, bytes and operations of a model by component: embeddings, attention, FFN, norms, scales, codebooks.

Arithmetic on headers and shapes; reads no weights.
"""

from collections.abc import Iterable, Mapping

from hubplugin.checkpoint.headers import Header
from hubplugin.model.architectures.families import Family
from hubplugin.plan import sizes
from hubplugin.plan.costs.operations import ATTENTION, Operations
from hubplugin.plan.schemes import LinearPlan
from hubplugin.plan.sizes import PACKED_PARTS
from hubplugin.report import Component

EMBEDDINGS, ATTENTION_PART, FFN, NORMS = "embeddings and head", "attention", "FFN", "norms"
SCALES, CODEBOOKS = "scales", "codebooks"
CODES = ("qweight", "weight_packed", "codebook_codes")  # of the packed parts; all others say what codes mean


def of(
    family: Family, tensors: Mapping[str, Header], linears: Iterable[LinearPlan], operations: Operations
) -> tuple[Component, ...]:
    """Components with their tensors' bytes; `linears` tell how many weights packed codes stand for."""
    weights = {
        name: outputs * inputs for linear in linears for name, (outputs, inputs) in sizes.matrices(linear).items()
    }
    parameters: dict[str, int] = {}
    stored: dict[str, int] = {}
    for name, header in tensors.items():
        module, _, part = name.rpartition(".")
        packed = part in PACKED_PARTS
        place = _meaning(part) if packed and part not in CODES else _place(family, module)
        count = header.count if not packed else weights[module] if part in CODES else 0
        parameters[place] = parameters.get(place, 0) + count
        stored[place] = stored.get(place, 0) + header.bytes
    flops = {EMBEDDINGS: operations.head, ATTENTION_PART: operations.attention, FFN: operations.ffn}
    return tuple(
        Component(name=place, parameters=parameters[place], bytes=stored[place], flops_per_token=flops.get(place, 0))
        for place in (EMBEDDINGS, ATTENTION_PART, FFN, NORMS, SCALES, CODEBOOKS)
        if place in stored
    )


def _meaning(part: str) -> str:
    """The component of what says what codes mean."""
    return CODEBOOKS if part.startswith("codebook_") else SCALES


def _place(family: Family, module: str) -> str:
    """The component of a module."""
    if module in (family.embed, family.head):
        return EMBEDDINGS
    if module == family.norm or module.endswith(tuple(f".{norm}" for norm in (*family.norms, *family.head_norms))):
        return NORMS
    return ATTENTION_PART if f".{ATTENTION}" in f"{module}." else FFN
