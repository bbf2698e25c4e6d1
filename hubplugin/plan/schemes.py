"""How each linear is quantized: the step's own settings, its overrides and its ignored list, resolved name by name.

A pattern names linears as a shell does files: it must match the whole module path, or the end of it that begins after
a dot. `down_proj` is every block's, `layers.0.*` all of the first block, `model.layers.3.mlp.up_proj` one linear. The
first pattern that matches counts, and `ignore` counts before `overrides`. No shapes, no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from hubplugin.checkpoint.format_names import CODEBOOK, COMPRESSED_TENSORS, GPTQ, INT_QUANTIZED, NVFP4, PACK_QUANTIZED
from hubplugin.errors import PlanError
from hubplugin.manifest.steps.codebook import Codebook
from hubplugin.manifest.steps.gptq import GridQuantization, Override
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.manifest.steps.masks import Masking
from hubplugin.manifest.steps.quantization import Quantization

GPTQ_BITS = (4, 8)  # of symmetric grids: what stock vLLM reads of AutoGPTQ's format
HEAD_TILE = 64  # vLLM pads the vocabulary to multiples of it, and cannot pad AutoGPTQ's tensors


@dataclass(frozen=True)
class Scheme:
    """How one linear is quantized and stored."""

    bits: int
    group_size: int  # inputs that share a scale; -1: a whole row
    symmetric: bool
    activation_bits: int | None
    layout: str  # GPTQ, PACK_QUANTIZED, INT_QUANTIZED, NVFP4 or CODEBOOK

    @property
    def weight_only(self) -> bool:
        """Whether activations stay as they are at run time."""
        return self.activation_bits is None

    def __str__(self) -> str:
        group = "row" if self.group_size == -1 else f"g{self.group_size}"
        if self.layout == CODEBOOK:
            return f"codebook{self.bits} {group}"
        if self.layout == NVFP4:
            return f"fp{self.bits} {group}"
        return f"int{self.bits} {group}{'' if self.symmetric else ' zeros'}{'' if self.weight_only else ' A8'}"


DIFFER = "linears differ"


@dataclass(frozen=True)
class Stored:
    """What loaders must cope with in a checkpoint."""

    schemes: frozenset[Scheme | None]  # of the linears; None: some stay dense
    head: bool = False  # the output head is quantized too
    experts: bool = False  # linears of experts are among those
    factors: bool = False  # some are two factors

    @property
    def quantized(self) -> tuple[Scheme, ...]:
        """The schemes of what is quantized."""
        return tuple(scheme for scheme in self.schemes if scheme)

    @property
    def needs_plugin(self) -> bool:
        """Whether vLLM loads it with hubplugin's plugin alone, and nothing else does."""
        return self.factors or any(scheme.layout == CODEBOOK for scheme in self.quantized)

    @property
    def beyond_transformers(self) -> str:
        """Why transformers, with gptqmodel and optimum, does not read it in AutoGPTQ's format; empty where it does.

        They give every linear of the blocks the commonest scheme, whatever `dynamic` says, which ends in an error; and
        leave a quantized head and quantized experts without their weights, which does not.
        """
        if len(self.schemes) > 1:
            return DIFFER
        return "the head is quantized" if self.head else "experts are quantized" if self.experts else ""


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of the manifest names a module."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def is_ignored(step: Quantization | Masking | LowRank, name: str) -> bool:
    """Whether a linear stays as it is."""
    return any(matches(pattern, name) for pattern in step.ignore)


def not_ignored(step: Quantization | Masking | LowRank, names: Sequence[str], where: str, purpose: str) -> list[str]:
    """The linears that a step works on, of these paths. Raises PlanError where a pattern of `ignore` names none, or all
    are ignored; `purpose` ends the sentence "no linear is left to"."""
    check_named(step.ignore, names, f"{where}.ignore")
    found = [name for name in names if not is_ignored(step, name)]
    if not found:
        raise PlanError(f"{where}.ignore", f"no linear is left to {purpose}", "ignore less, or remove the step")
    return found


def check_named(patterns: Iterable[str], names: Sequence[str], where: str) -> None:
    """Raise PlanError where a pattern names none of these paths."""
    shorts = dict.fromkeys(name.rsplit(".", 1)[-1] for name in names)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            raise PlanError(
                where,
                f"{pattern!r} names no linear that this step sees",
                f"write a path's end or a pattern, such as {', '.join([*list(shorts)[:3], names[0]])}",
            )


def override_of(step: GridQuantization, name: str) -> str | None:
    """The pattern of the override that holds for a linear that is not ignored; None: the step's own settings."""
    return next((pattern for pattern in step.overrides if matches(pattern, name)), None)


def resolve(step: Quantization, names: Sequence[str], vocabulary: int) -> dict[str, Scheme | None]:
    """Every linear's scheme, None where it stays dense.

    Without a `format:` a grid's is AutoGPTQ's where all that loads this format reads all of it (`why_not_autogptq`),
    else compressed-tensors. `vocabulary`: the rows of a quantized head.
    """
    left = {name: not is_ignored(step, name) for name in names}
    if isinstance(step, Codebook):
        scheme = Scheme(step.bits, step.group_size, True, None, codebook_layout(step.values))
        return {name: scheme if coded else None for name, coded in left.items()}
    assert isinstance(step, GridQuantization)  # BASES has no other
    resolved = {name: _on_grid(step, name) if coded else None for name, coded in left.items()}
    default = COMPRESSED_TENSORS if why_not_autogptq(step, resolved, vocabulary) else GPTQ
    layout_name = step.format or default
    return {name: scheme and replace(scheme, layout=_layout(layout_name, scheme)) for name, scheme in resolved.items()}


def why_not_autogptq(step: GridQuantization, resolved: Mapping[str, Scheme | None], vocabulary: int) -> str:
    """Why a step without a `format:` does not get AutoGPTQ's; empty where it does.

    Stock vLLM reads 4 or 8 bits there, symmetric, weights alone, and a quantized head only where `vocabulary`, its
    rows, is whole tiles. transformers reads less: see `Stored`.
    """
    wanted = [scheme for scheme in resolved.values() if scheme] + _options(step)
    plain = all(scheme.bits in GPTQ_BITS and scheme.symmetric and scheme.weight_only for scheme in wanted)
    if not plain or (step.lm_head and vocabulary % HEAD_TILE):
        return "vLLM does not read all of it in AutoGPTQ's"
    experts = any(EXPERTS in name for name in resolved)
    beyond = DIFFER if step.budget else Stored(frozenset(resolved.values()), step.lm_head, experts).beyond_transformers
    return beyond and f"{beyond}: transformers reads no such checkpoint in AutoGPTQ's"


def _options(step: GridQuantization) -> list[Scheme]:
    """What a budget may choose, as far as the manifest says it."""
    options = step.budget.options if step.budget else ()
    return [Scheme(option.bits, option.group_size, option.symmetric, None, GPTQ) for option in options]


def codebook_layout(values: str) -> str:
    """The tensors that codebooks of these values are stored in."""
    return CODEBOOK if values == "free" else NVFP4


def _layout(chosen: str, scheme: Scheme) -> str:
    if chosen == GPTQ:
        return GPTQ
    return PACK_QUANTIZED if scheme.weight_only else INT_QUANTIZED


def _on_grid(step: GridQuantization, name: str) -> Scheme:
    pattern = override_of(step, name)
    override = step.overrides[pattern] if pattern else Override()
    return Scheme(
        bits=step.bits if override.bits is None else override.bits,
        group_size=step.group_size if override.group_size is None else override.group_size,
        symmetric=step.symmetric if override.symmetric is None else override.symmetric,
        activation_bits=step.activation_bits if override.activation_bits is None else override.activation_bits,
        layout=GPTQ,
    )


Format = Literal["gptq", "compressed-tensors", "hubplugin_codebook"]


def format_of(resolved: Iterable[Scheme | None]) -> Format:
    """The file format that resolved schemes are in."""
    layouts = {scheme.layout for scheme in resolved if scheme}
    return format_with(next(iter(layouts), PACK_QUANTIZED))


def format_with(layout: str) -> Format:
    """The file format that has such tensors."""
    if layout == CODEBOOK:
        return "hubplugin_codebook"
    return "gptq" if layout == GPTQ else "compressed-tensors"


def distinct(schemes: Iterable[Scheme | None]) -> list[Scheme]:
    """The different schemes among these, the commonest first, else in their order."""
    quantized = [scheme for scheme in schemes if scheme]
    return sorted(dict.fromkeys(quantized), key=lambda scheme: -quantized.count(scheme))


EXPERTS = ".experts."  # stands in the path of every expert's linears, before its number


@dataclass(frozen=True)
class Factors:
    """Two factors in place of a weight: B [outputs, rank] and A [rank, inputs]."""

    rank: int
    shared: bool = False  # one A for all linears of the stack
    stored: bool = True  # False: their product is, as a dense weight


@dataclass(frozen=True)
class LinearPlan:
    """One linear of one block. Shapes are [outputs, inputs]."""

    name: str  # full module path, e.g. model.layers.0.mlp.down_proj
    input_group: str
    before: tuple[int, int]
    after: tuple[int, int]
    scheme: Scheme | None  # None: stays dense; of factors it is that of both
    factors: Factors | None = None  # None: stays one matrix

    @property
    def bits(self) -> int | None:
        """Bits of a code; None where it stays dense."""
        return self.scheme.bits if self.scheme else None

    @property
    def group_size(self) -> int | None:
        """Inputs that share a scale, -1 for a whole row; None where it stays dense."""
        return self.scheme.group_size if self.scheme else None

    @property
    def short(self) -> str:
        """The last part of the path."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def experts(self) -> str:
        """The path of the experts that it belongs to; empty for a linear that every token passes."""
        before, marker, _ = self.name.rpartition(EXPERTS)
        return before + marker.rstrip(".")


def stored(linears: Sequence[LinearPlan], head: LinearPlan | None) -> Stored:
    """How the linears of the blocks are stored, and the head where it is quantized."""
    every = (*linears, head) if head else linears
    experts = any(linear.experts and linear.scheme for linear in linears)
    factors = any(linear.factors and linear.factors.stored for linear in linears)
    return Stored(frozenset(linear.scheme for linear in every), head is not None, experts, factors)
