"""VariantPlan: all that is decided of one variant before its weights are made. Data; assembly.py makes it.

Knows no measurements: what they leave open is in draft.py.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hubplugin.checkpoint.headers import Header
from hubplugin.manifest.methods import factorization_of, mask_of, pruning_of, quantization_of, recovery_of
from hubplugin.manifest.schema import Step
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.manifest.steps.masks import Masking
from hubplugin.manifest.steps.prune import Prune
from hubplugin.manifest.steps.quantization import Quantization
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.plan import schemes, vllm_support
from hubplugin.plan.costs import estimates
from hubplugin.plan.schemes import LinearPlan
from hubplugin.plan.vllm_support import Verdict


@dataclass(frozen=True)
class AdapterPlan:
    """What an adapter adds to the variant that it is for."""

    parent: "VariantPlan"
    rank: int
    tensors: dict[str, Header]  # every tensor its folder will hold, as PEFT names them

    @property
    def parameters(self) -> int:
        """Weights of all factors."""
        return sum(header.count for header in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Of all its tensors; the file adds its header."""
        return sum(header.bytes for header in self.tensors.values())


@dataclass(frozen=True)
class VariantPlan:
    """One variant, completely determined."""

    name: str
    steps: tuple[Step, ...]  # as in the manifest; the format of quantized weights is filled in
    family: Family  # the row of its own class; a pruned model may have left its base's
    widths: dict[str, tuple[int, int]]  # config key -> before, after; unchanged widths are not listed
    dims: Dimensions  # its own sizes
    sources: tuple[int, ...]  # the blocks of the base that its blocks come from
    config: dict[str, Any]  # config.json of the variant, without quantization_config
    linears: tuple[LinearPlan, ...]  # of the blocks
    head: LinearPlan | None  # the output head where it is quantized; None: as in the base
    tensors: dict[str, Header]  # every tensor the folder will hold
    parameters: int  # logical weights, factors as such, tied embeddings once; scales, zeros and g_idx not counted
    linear_parameters: int  # weights of the linears inside the blocks, biases not counted
    bytes: int  # of all tensors; the files add their headers
    linear_bits_per_weight: float  # codes, scales, zeros and g_idx over the variant's own linear_parameters
    model_bits_per_weight: float  # all tensor bytes over the variant's own parameters
    memory: estimates.Memory  # of compressing it
    seconds: float  # of compressing it on a CPU; rough
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()  # what these numbers alone would not tell a user
    # the passes over all blocks that make it, each with steps of its own; empty: one pass, which this plan describes,
    # or none, of a student that is only trained
    passes: tuple["VariantPlan", ...] = ()
    adapter: AdapterPlan | None = (
        None  # its folder holds this alone; all else above is of the variant it is for, or of both
    )

    @property
    def prune(self) -> Prune | None:
        """The pruning step."""
        return pruning_of(self.steps)

    @property
    def trains_first(self) -> bool:
        """Whether a student is trained before any pass over its blocks, which then reads what was trained."""
        return recovery_of(self.steps) is not None and self.prune is None

    @property
    def peak_memory(self) -> int:
        """Bytes of the process that compresses it, with all activations in memory."""
        return self.memory.peak

    @property
    def quantized(self) -> tuple[LinearPlan, ...]:
        """All linears that are stored as codes, the head last."""
        return tuple(linear for linear in (*self.linears, *([self.head] if self.head else [])) if linear.scheme)

    @property
    def factored(self) -> tuple[LinearPlan, ...]:
        """All linears that are stored as two factors."""
        return tuple(linear for linear in self.linears if linear.factors and linear.factors.stored)

    @property
    def needs_plugin(self) -> bool:
        """Whether vLLM loads it with hubplugin's plugin alone, and nothing else does."""
        uneven = vllm_support.PLUGIN in self.notes
        return uneven or bool(self.factored) or schemes.stored(self.linears, self.head).needs_plugin

    def linear(self, name: str) -> LinearPlan:
        """The plan of one linear, by its full module path. Raises KeyError for a name that is none."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, LinearPlan]:
        return {linear.name: linear for linear in (*self.linears, *([self.head] if self.head else []))}

    def mask(self, name: str) -> Masking | None:
        """The step that sets weights of a linear to zero; None: there is none, or it ignores this linear."""
        step = mask_of(self.steps)
        return step if step and not schemes.is_ignored(step, name) else None

    def factorization(self, name: str) -> LowRank | None:
        """The step that makes two factors of a linear, or fits it as it stays dense; None: there is none, or it
        ignores this linear."""
        step = factorization_of(self.steps)
        return step if step and not schemes.is_ignored(step, name) else None

    def settings(self, name: str) -> Quantization | None:
        """The quantization step as it holds for one linear, overrides resolved; None: the linear stays dense."""
        scheme = self.linear(name).scheme
        if scheme is None:
            return None
        step = quantization_of(self.steps)
        assert step is not None
        if not isinstance(step, GridQuantization):  # it has one scheme for all
            return step
        grid = {"bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric}
        return step.model_copy(update=grid)
