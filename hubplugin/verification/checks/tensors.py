"""Checks of values in the tensors: finite, not dead, zero points as the format has them, groups, the head."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from hubplugin.checkpoint import packing
from hubplugin.checkpoint.format_names import GPTQ, NVFP4
from hubplugin.checkpoint.headers import FLOATS
from hubplugin.errors import CheckpointError
from hubplugin.model.architectures import architecture, tied_head
from hubplugin.model.architectures.architecture import ROTARY
from hubplugin.verification import stored_linears
from hubplugin.verification.outcome import Finding, compared, failed, passed, unchecked
from hubplugin.verification.stored_linears import StoredLinear
from hubplugin.verification.subject import CONFIG, Subject

SCALES = (".scales", ".weight_scale", ".weight_global_scale")
FLOAT8 = "F8_E4M3"  # of NVFP4's scales
VERSIONS = {1: "gptq", 0: "gptq_v2"}  # AutoGPTQ's checkpoint_format, by what zero points are stored less
MOST = 8  # findings of one kind that are named one by one


def finite(subject: Subject) -> Iterator[Finding]:
    """No NaN and no infinity, no scale of zero, no matrix of nothing but zeros."""
    reader, faults = subject.reader, []
    for name, header in reader.headers.items():
        if header.dtype not in FLOATS and not (header.dtype == FLOAT8 and name.endswith(SCALES)):
            continue
        try:
            values = reader.get(name).float()
        except CheckpointError as error:
            faults.append((name, error.what))
            continue
        if name.endswith(SCALES) and not bool(values.all()):
            faults.append((name, f"{int((values == 0).sum())} of {values.numel()} scales are zero: dead weights"))
        elif values.dim() > 1 and not bool(values.any()):
            faults.append((name, "all of its weights are zero"))
    for name, what in faults[:MOST]:
        yield failed(what, name)
    if faults[MOST:]:
        yield failed(f"and {len(faults) - MOST} more")
    if not faults:
        yield passed(f"{len(reader.headers)} tensors, all finite, no scale is zero, none is all zeros")


def scale_dtypes(subject: Subject) -> Iterator[Finding]:
    """Scales are 16- or 32-bit floats."""
    dtypes = Counter(linear.scale_dtype for linear in subject.quantized if linear.layout != NVFP4)  # whose are float8
    wrong = [dtype for dtype in dtypes if dtype not in FLOATS]
    if wrong:
        yield compared(", ".join(FLOATS), ", ".join(wrong), holds=False)
    elif dtypes:
        yield passed(", ".join(f"{dtype} of {count} linears" for dtype, count in dtypes.items()))


def zero_offset(subject: Subject) -> Iterator[Finding]:
    """Zero points of symmetric grids are stored as checkpoint_format says: less one (gptq), or whole (gptq_v2)."""
    config = subject.quantization
    if config is None or not config.is_gptq:
        return
    config.check_known()
    said = config.layout or VERSIONS[1]
    asymmetric, found, odd = 0, Counter[int](), []
    for linear in subject.quantized:
        claimed = config.of(linear.name)
        if linear.layout != GPTQ or claimed is None or claimed.bits not in linear.bits:
            continue
        if not claimed.symmetric:
            asymmetric += 1
            continue
        offset = _offset(subject.reader.get(f"{linear.name}.qzeros"), linear, claimed.bits)
        if offset is None:
            odd.append(linear.name)
        else:
            found[offset] += 1
    if odd:
        yield failed(f"{len(odd)} symmetric linears have zero points of their own, first {odd[0]}")
    for offset, count in found.items():
        yield compared(said, VERSIONS[offset], detail=f"zero points of {count} linears")
    if asymmetric:
        yield unchecked(f"of {asymmetric} asymmetric linears, whose zero points do not tell the version", claimed=said)


def _offset(zeros: Tensor, linear: StoredLinear, bits: int) -> int | None:
    """What a symmetric grid's zero points are stored less by; None where they are no symmetric grid's."""
    stored = packing.unpack(zeros, bits, linear.outputs)
    middle = 2 ** (bits - 1)
    return next((offset for offset in VERSIONS if bool((stored == middle - offset).all())), None)


def group_index(subject: Subject) -> Iterator[Finding]:
    """g_idx names existing groups, each as often as it has inputs, and in order where desc_act is false."""
    config = subject.quantization
    indexed = [linear for linear in subject.quantized if f"{linear.name}.g_idx" in subject.reader]
    if config is None or not config.is_gptq or not indexed:
        return
    faults = []
    for linear in indexed:
        groups = subject.reader.get(f"{linear.name}.g_idx").long()
        if fault := _index_fault(groups, linear, ordered=not config.entries.get("desc_act")):
            faults.append((linear.name, fault))
    for name, fault in faults[:MOST]:
        yield failed(fault, name)
    if not faults:
        yield passed(f"of {len(indexed)} linears")


def _index_fault(groups: Tensor, linear: StoredLinear, ordered: bool) -> str:
    if bool(((groups < 0) | (groups >= linear.groups)).any()):
        return f"an input is in group {int(groups.max())}, and there are {linear.groups}"
    if int(groups.bincount(minlength=linear.groups).max()) > linear.group_size:
        return f"a group has more than {linear.group_size} inputs"
    trivial = torch.arange(linear.inputs) // linear.group_size
    if ordered and not torch.equal(groups, trivial):
        return "inputs are in other groups than their order says, desc_act is false, and loaders then ignore g_idx"
    return ""


def as_implied(subject: Subject) -> Iterator[Finding]:
    """The tensors that config.json implies are stored in its shapes. What else is stored is named."""
    if subject.family is None or subject.dims is None:
        yield unchecked(f"{subject.config.get('model_type')!r} is no family known here")
        return
    head = f"{subject.family.head}.weight"
    expected = architecture.expected(subject.config, subject.family, subject.dims)
    stored = stored_linears.dense_shapes(subject.reader, subject.linears)
    missing = [name for name in expected if name not in stored and name != head]
    shaped = [name for name in expected if name in stored and stored[name] != expected[name]]
    for name in shaped[:MOST]:
        yield compared(list(expected[name]), list(stored[name]), name)
    if missing:
        yield failed(f"{len(missing)} tensors that {CONFIG} implies are missing, first {missing[0]}")
    if not missing and not shaped:
        yield passed(f"{len(expected)} tensors")
    if more := [name for name in stored if name not in expected and name != head and not name.endswith(ROTARY)]:
        yield unchecked(f"{len(more)} tensors that {CONFIG} does not imply, first {more[0]}")


def head(subject: Subject) -> Iterator[Finding]:
    """The output head is stored where config.json has one of its own, and only there."""
    if subject.family is None:
        return
    module, embed = subject.family.head, f"{subject.family.embed}.weight"
    tied, reader = tied_head.is_tied(subject.config), subject.reader
    codes = module in subject.linears and bool(subject.linears[module].layout)
    stored = codes or f"{module}.weight" in reader
    copy = stored and not codes and embed in reader and _equal(reader.get(f"{module}.weight"), reader.get(embed))
    if not tied and not stored:
        yield compared("a head of its own", f"no {module}.weight", holds=False)
    elif tied and copy:
        size = reader.headers[f"{module}.weight"].bytes
        yield compared("tied to the embedding", f"stored a second time, {size} bytes", holds=False)
    elif tied and stored:
        yield compared("tied to the embedding", "stored with values of its own", holds=False)
    elif copy and tied_head.is_tied(subject.base.peek.config):
        yield compared("tied to the embedding in the base", "stored a second time", holds=False)
    else:
        yield passed("tied to the embedding" if tied else "stored")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
