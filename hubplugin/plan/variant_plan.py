"""What a plan is: the base and its variants, each completely determined. Data only; `planner` makes it."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from hubplugin.checkpoint.headers import Header
from hubplugin.manifest.gptq import Quantization
from hubplugin.manifest.masks import Masking
from hubplugin.manifest.methods import mask_of, pruning_of, quantization_of
from hubplugin.manifest.prune import Prune
from hubplugin.manifest.schema import Step
from hubplugin.model import families
from hubplugin.model.architecture import Dimensions
from hubplugin.model.families import Family
from hubplugin.plan import estimates, schemes
from hubplugin.plan.choices.mixed_precision import Budget
from hubplugin.plan.choices.pruning_space import Space
from hubplugin.plan.schemes import LinearPlan
from hubplugin.plan.vllm_support import Verdict


@dataclass(frozen=True)
class VariantPlan:
    """One variant, completely determined."""

    name: str
    steps: tuple[Step, ...]  # as in the manifest; the format of quantized weights is filled in
    widths: dict[str, tuple[int, int]]  # config key -> before, after; unchanged widths are not listed
    dims: Dimensions  # its own sizes
    sources: tuple[int, ...]  # the blocks of the base that its blocks come from
    config: dict[str, Any]  # config.json of the variant, without quantization_config
    linears: tuple[LinearPlan, ...]  # of the blocks
    head: LinearPlan | None  # the output head where it is quantized; None: as in the base
    tensors: dict[str, Header]  # every tensor the folder will hold
    parameters: int  # logical weights, tied embeddings once; scales, zeros and g_idx not counted
    linear_parameters: int  # weights of the linears inside the blocks, biases not counted
    bytes: int  # of all tensors; the files add their headers
    linear_bits_per_weight: float  # codes, scales, zeros and g_idx over the variant's own linear_parameters
    model_bits_per_weight: float  # all tensor bytes over the variant's own parameters
    memory: estimates.Memory  # of compressing it
    seconds: float  # of compressing it on a CPU; rough
    verdicts: tuple[Verdict, ...]
    budget: Budget | None = None  # what the step's budget chooses among
    space: Space | None = None  # what measurements decide of its shape; until then, shape and sizes are a guess
    notes: tuple[str, ...] = ()  # what these numbers alone would not tell a user

    @property
    def prune(self) -> Prune | None:
        """The pruning step."""
        return pruning_of(self.steps)

    @property
    def family(self) -> Family:
        """Its own row of the table; a pruned model may have left its base's."""
        return families.match(self.config, self.name)

    @property
    def peak_memory(self) -> int:
        """Bytes of the process that compresses it, with all activations in memory."""
        return self.memory.peak

    @property
    def quantized(self) -> tuple[LinearPlan, ...]:
        """All linears that are stored as codes, the head last."""
        return tuple(linear for linear in (*self.linears, *([self.head] if self.head else [])) if linear.scheme)

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

    def settings(self, name: str) -> Quantization | None:
        """The quantization step as it holds for one linear, overrides resolved; None: the linear stays dense."""
        scheme = self.linear(name).scheme
        if scheme is None:
            return None
        step = quantization_of(self.steps)
        assert step is not None
        own = {"bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric}
        return step.model_copy(update=own)


@dataclass(frozen=True)
class Plan:
    """The base and all variants."""

    model: str
    revision: str | None
    model_type: str
    config: dict[str, Any]
    tensors: dict[str, Header]  # as stored
    parameters: int
    linear_parameters: int
    bytes: int  # as stored
    variants: tuple[VariantPlan, ...]
    notes: tuple[str, ...] = ()  # about the manifest

    @property
    def linear_bits_per_weight(self) -> float:
        """Bits of the base's own linears, as stored: 16 for a model in bf16."""
        linears = self.variants[0].linears
        stored = sum(self.tensors[f"{linear.name}.weight"].bytes for linear in linears)
        return 8 * stored / self.linear_parameters


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain lists, mappings, numbers and strings."""
    found = asdict(replace(plan, variants=()))
    found["variants"] = [
        {
            **asdict(replace(variant, steps=(), budget=None, space=None)),
            "steps": [step.model_dump(mode="json") for step in variant.steps],
            "compression_ratio": plan.bytes / variant.bytes,
        }
        for variant in plan.variants
    ]
    return found
