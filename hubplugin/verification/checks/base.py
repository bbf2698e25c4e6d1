"""Checks of the base: that it is the model which report or card names, by sizes and by values no method changes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.evaluation.cards import steps
from hubplugin.hub.published import BaseFiles
from hubplugin.manifest.methods import Kind
from hubplugin.model.architectures import configs
from hubplugin.verification.outcome import Finding, compared, passed, unchecked
from hubplugin.verification.subject import CONFIG, Subject

# keys that quantization leaves alone
SIZES = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
LOOKED_AT = 65536  # bytes of a tensor that are compared
ROUNDING = 2**-7  # relative: what bfloat16 leaves of a number


def identity(subject: Subject) -> Iterator[Finding]:
    """A quantized model has the sizes of the base that its card names."""
    if subject.report:
        return
    base, config = subject.base.peek, configs.with_defaults(subject.config)
    of_base = configs.with_defaults(base.config)
    differing = [key for key in SIZES if key in config and key in of_base and config[key] != of_base[key]]
    for key in differing:
        yield compared(f"{of_base[key]} in {base.repo}", f"{config[key]} in {CONFIG}", key, holds=False)
    if not differing:
        yield passed(f"{base.repo} has the same sizes")


def licence(subject: Subject) -> Iterator[Finding]:
    """The licence that the report says the base has is the one that the base's card names."""
    if subject.report is None:
        return
    said, found = subject.report.base.licence, subject.base.peek.licence
    yield compared(said or "none", found or "none")


def values(subject: Subject) -> Iterator[Finding]:
    """What no step works on holds the base's values: the final norm, and the first rows of the embedding."""
    if subject.family is None:
        return
    if subject.report and steps.step_of(subject.report, Kind.RECOVER):
        yield unchecked("all weights were trained")
        return
    ours, tuned = subject.report is not None, subject.report and steps.step_of(subject.report, Kind.TUNE)
    for name in (f"{subject.family.norm}.weight", f"{subject.family.embed}.weight"):
        if name not in subject.reader:
            continue
        if tuned and name.startswith(subject.family.norm):
            yield unchecked("norms were trained", name)
            continue
        near = _near(subject, subject.base, name)
        if near is None:
            yield unchecked(f"{subject.base.peek.repo} has no such tensor of this shape", name)
        elif near:
            yield passed(f"as in {subject.base.peek.repo}", name)
        elif ours or (subject.quantization and subject.quantization.is_gptq):
            yield compared(f"the values of {subject.base.peek.repo}", "others", name, holds=False)
        else:
            yield unchecked("differs from the base's; some methods fold scales into norms", name)


def _near(subject: Subject, base: BaseFiles, name: str) -> bool | None:
    """Whether a tensor begins with the base's values, up to a change of dtype; None where shapes differ."""
    header, of_base = subject.reader.headers[name], base.peek.tensors.get(name)
    if of_base is None or of_base.shape != header.shape:
        return None
    count = LOOKED_AT // max(header.itemsize, of_base.itemsize)
    stored = base.values(name, count * of_base.itemsize)
    if stored is None:
        return None
    one = subject.reader.get(name).flatten()[:count]
    other = torch.frombuffer(bytearray(stored), dtype=TORCH_DTYPES[of_base.dtype])
    return torch.equal(one, other) if header.dtype == of_base.dtype else _close(one, other)


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=ROUNDING, atol=1e-6)
