"""Which variants stock vLLM loads, and why not: the rules of vLLM 0.32, one function per kind of machine.

It knows shapes and schemes; it starts no vLLM and imports none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd

from hubplugin.checkpoint.format_names import CODEBOOK, GPTQ, INT_QUANTIZED, NVFP4
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import FAMILIES, PER_LAYER
from hubplugin.plan.schemes import GPTQ_BITS, HEAD_TILE, LinearPlan, Scheme
from serve.cpu_features import AMX, AVX512, VNNI

CPU = "cpu"
TENSOR_PARALLEL = (1, 2, 4)
TARGETS = (CPU, *(f"cuda tp={tp}" for tp in TENSOR_PARALLEL))

CPU_BITS = (4,)  # the kernel for packed weights reads 4-bit codes; int8 weights with int8 activations have their own
CPU_TILE = 32  # the packed kernel's step along inputs and along outputs
CPU_EXPERT_GROUPS = (-1, 64, 128)  # of the kernel for 4-bit experts
EXPERT_TILE = 128  # hidden sizes outside its multiples go to a loader of AutoGPTQ's experts that has no CPU kernel
CPU_HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
CUDA_HEAD_DIM_STEP, CUDA_HEAD_DIM_MAX = 8, 256  # FlashAttention's rule
# linears that vLLM stacks into one matrix before it picks a kernel
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
ROW_PARALLEL = ("o_proj", "down_proj", "w2")  # split along inputs; all others along outputs
HEAD = "lm_head"
WORD = 32  # bits of the words that codes are packed into
HUMMING = ", with vLLM's humming-kernels"  # 2 and 3 bits, and 8 asymmetric; not tried on a GPU
PLUGIN = (
    "vLLM serves it with hubplugin installed beside it: layers differ in width, and a plugin of ours brings the class "
    "for that (no remote code); transformers alone cannot load it"
)
CODEBOOK_PLUGIN = (
    "vLLM serves it with hubplugin installed beside it, whose plugin makes dense weights of codebooks while it loads "
    "(no remote code); transformers alone cannot load it"
)
DENSE = "hubplugin makes dense weights of its codes"  # serve/codes.py


@dataclass(frozen=True)
class Verdict:
    """Whether stock vLLM loads the variant on one kind of machine."""

    target: str  # one of TARGETS
    loads: bool
    why: str  # empty where it loads
    note: str = ""  # what the machine must have, where it loads
    features: tuple[str, ...] = ()  # of a CPU, among that: AVX512, AMX, VNNI
    dense: bool = False  # whether hubplugin has vLLM load it all the same, as dense weights made of its codes


def notes(model_type: str, may_differ: bool) -> tuple[str, ...]:
    """What a user must know of the class that a variant leaves as, or may leave as once its shape is decided."""
    return (PLUGIN,) if may_differ or model_type == PER_LAYER else ()


def fused(linears: Sequence[LinearPlan]) -> list[tuple[LinearPlan, ...]]:
    """Linears as vLLM stacks them: q, k and v of a block together, gate and up together, all others alone.

    All experts of a block are one stack: one kernel runs them all.
    """
    return _grouped(linears, lambda linear: (linear.experts, "") if linear.experts else _place(linear))


def _place(linear: LinearPlan) -> tuple[str, str]:
    """What a linear shares with those it is stacked with: their parent's path, and the first of them."""
    return linear.name.removesuffix(linear.short), next(
        (stack[0] for stack in FUSED if linear.short in stack), linear.short
    )


def _grouped(
    linears: Sequence[LinearPlan], key: Callable[[LinearPlan], tuple[str, str]]
) -> list[tuple[LinearPlan, ...]]:
    groups: dict[tuple[str, str], list[LinearPlan]] = {}
    for linear in linears:
        groups.setdefault(key(linear), []).append(linear)
    return [tuple(members) for members in groups.values()]


def whole_words(scheme: Scheme) -> int:
    """The fewest codes that fill whole 32-bit words, in both directions; 1 where codes are not packed."""
    if scheme.layout in (INT_QUANTIZED, CODEBOOK):  # our codes may end inside a word
        return 1
    return 2 if scheme.layout == NVFP4 else WORD // gcd(scheme.bits, WORD)


def verdicts(model_type: str, sizes: Dimensions, linears: Sequence[LinearPlan]) -> tuple[Verdict, ...]:
    """One verdict per target for a variant of these (pruned) sizes and linears, its head among them if quantized."""
    units = [unit for unit in _units(linears) if unit.scheme.layout != CODEBOOK]  # which is dense once it is loaded
    general = _anywhere(model_type, sizes, units)
    by_target = [_verdict(CPU, general) if general else _cpu_verdict(sizes, units)]
    for tp in TENSOR_PARALLEL:
        by_target.append(_verdict(f"cuda tp={tp}", general or _on_cuda(sizes, units, tp), _cuda_note(units)))
    return tuple(by_target)


def of_report(target: str, loads: bool, why: str, note: str) -> Verdict:
    """A verdict as a report has it."""
    return Verdict(target, loads, why, note, features_in(note), DENSE in why or DENSE in note)


def features_in(note: str) -> tuple[str, ...]:
    """The features of a CPU that a verdict's note names: reports have notes alone."""
    return tuple(feature for feature in (AVX512, AMX, VNNI) if feature in note)


def _verdict(target: str, why: str, note: str = "") -> Verdict:
    return Verdict(target, False, why) if why else Verdict(target, True, "", note)


@dataclass(frozen=True)
class _Unit:
    """Quantized linears that one kernel sees as one matrix."""

    shorts: tuple[str, ...]
    outputs: tuple[int, ...]
    inputs: int
    scheme: Scheme
    experts: bool  # of every expert of a block

    @property
    def name(self) -> str:
        return "+".join(self.shorts)


def _units(linears: Sequence[LinearPlan]) -> list[_Unit]:
    """The different units of all blocks."""
    units: dict[_Unit, None] = {}
    for members in _grouped([linear for linear in linears if linear.scheme], _place):
        scheme = members[0].scheme
        assert scheme is not None
        if any(linear.factors and linear.factors.stored for linear in members):
            units |= dict.fromkeys(_factors(members, scheme))
            continue
        shorts, outputs = tuple(linear.short for linear in members), tuple(linear.after[0] for linear in members)
        units[_Unit(shorts, outputs, members[0].after[1], scheme, bool(members[0].experts))] = None
    return list(units)


def _factors(members: Sequence[LinearPlan], scheme: Scheme) -> Iterator[_Unit]:
    """What serve/coded_factors.py multiplies by: A of all factored linears, B of each or of all that share an A, ..."""
    ranks = [linear.factors.rank if linear.factors else 0 for linear in members]
    shared, inputs = any(linear.factors and linear.factors.shared for linear in members), members[0].after[1]
    sizes = [(linear.short, linear.after[0], rank) for linear, rank in zip(members, ranks, strict=True)]
    low = {f"{short}.lr_a": rank for short, _, rank in (sizes[:1] if shared else sizes) if rank}
    yield _Unit(tuple(low), tuple(low.values()), inputs, scheme, experts=False)
    if shared:
        high = {f"{short}.lr_b": outputs for short, outputs, _ in sizes}
        yield _Unit(tuple(high), tuple(high.values()), ranks[0], scheme, experts=False)
        return
    for short, outputs, rank in sizes:
        if rank:
            yield _Unit((f"{short}.lr_b",), (outputs,), rank, scheme, experts=False)
    if whole := [(short, outputs) for short, outputs, rank in sizes if not rank]:
        shorts, widths = zip(*whole, strict=True)
        yield _Unit(shorts, widths, inputs, scheme, experts=False)


def _anywhere(model_type: str, sizes: Dimensions, units: Sequence[_Unit]) -> str:
    if FAMILIES[model_type].computed_head_dim and sizes.head_dim * sizes.heads != sizes.hidden:
        return (
            f"vLLM's {model_type} takes head_dim to be hidden_size / num_attention_heads = "
            f"{sizes.hidden / sizes.heads:g}, this model has {sizes.head_dim}"
        )
    for unit in units:
        scheme = unit.scheme
        if scheme.layout == GPTQ and not (scheme.bits in GPTQ_BITS and scheme.symmetric):
            return "of AutoGPTQ's format it reads 4 and 8 bits and symmetric grids alone"
        if scheme.layout == GPTQ and unit.name == HEAD and unit.outputs[0] % HEAD_TILE:
            rows = unit.outputs[0]
            return f"of AutoGPTQ's format it reads a head of whole {HEAD_TILE}s alone, this one has {rows} rows"
    return ""


def _cpu_verdict(sizes: Dimensions, units: Sequence[_Unit]) -> Verdict:
    """Of a class that vLLM has: its codes are computed with, or dense weights are made of them, or neither."""
    packed = [unit for unit in units if unit.scheme.weight_only]
    tiles = any(unit.experts for unit in units)  # quantized experts are multiplied by AMX alone
    features = (AMX,) if tiles else (AVX512,) * bool(packed) + (VNNI,) * (len(packed) < len(units))
    weights_alone = bool(units) and len(packed) == len(units)
    if sizes.head_dim not in CPU_HEAD_DIMS:
        return _verdict(CPU, f"no CPU attention kernel for head_dim {sizes.head_dim}")
    if why := _no_such_kernel(packed):
        return Verdict(CPU, False, f"{why}; {DENSE}" if weights_alone else why, dense=weights_alone)
    if why := _unfit(sizes, packed):
        return _verdict(CPU, why)
    note = f"an x86 CPU with {' and '.join(features)}" if features else ""
    return Verdict(CPU, True, "", f"{note}; on others {DENSE}" if weights_alone else note, features, weights_alone)


def _no_such_kernel(packed: Sequence[_Unit]) -> str:
    """Which codes no CPU kernel reads, whatever the shape of their linear."""
    for unit in packed:
        if unit.scheme.layout == NVFP4:
            return "no CPU kernel for FP4 weights"
        if unit.scheme.bits not in CPU_BITS:
            return f"no CPU kernel for {unit.scheme.bits}-bit weights"
    return ""


def _unfit(sizes: Dimensions, packed: Sequence[_Unit]) -> str:
    """Which linear the CPU kernel for its codes does not take."""
    for unit in packed:
        if unit.experts and (why := _experts_on_cpu(sizes, unit.scheme)):
            return why
        if unit.inputs % CPU_TILE:
            return f"the CPU kernel needs multiples of {CPU_TILE}: {unit.name} has {unit.inputs} inputs"
        if sum(unit.outputs) % CPU_TILE and unit.name != HEAD:  # vLLM pads the head's
            return f"the CPU kernel needs multiples of {CPU_TILE}: {unit.name} has {sum(unit.outputs)} outputs"
    return ""


def _experts_on_cpu(sizes: Dimensions, scheme: Scheme) -> str:
    if not scheme.symmetric:
        return "no CPU kernel for experts with zeros"
    if scheme.group_size not in CPU_EXPERT_GROUPS:
        return f"the CPU kernel for experts has groups of 64, 128 or a row, not of {scheme.group_size}"
    if scheme.layout == GPTQ and sizes.hidden % EXPERT_TILE:
        return f"of AutoGPTQ's format its CPU kernel for experts needs a hidden_size of whole {EXPERT_TILE}s"
    return ""


def _on_cuda(sizes: Dimensions, units: Sequence[_Unit], tp: int) -> str:
    if sizes.head_dim % CUDA_HEAD_DIM_STEP or sizes.head_dim > CUDA_HEAD_DIM_MAX:
        return f"no CUDA attention kernel for head_dim {sizes.head_dim}"
    for block in dict.fromkeys(sizes.shapes()):
        if block.heads % tp:
            return f"{block.heads} attention heads do not split over {tp} GPUs"
        if block.heads and block.kv_heads % tp and tp % block.kv_heads:
            return f"{block.kv_heads} key/value heads neither split over nor repeat on {tp} GPUs"
        if block.ffn % tp:
            return f"{block.ffn} FFN channels do not split over {tp} GPUs"
    for unit in units:
        if unit.scheme.layout != INT_QUANTIZED and (why := _split(unit, tp, sizes.kv_heads)):
            return why
    return ""


def _cuda_note(units: Sequence[_Unit]) -> str:
    """What a GPU must be and have, for all units to run on it."""
    if not units:
        return ""
    newest = " to 9.0" if any(not unit.scheme.weight_only for unit in units) else " or newer"  # later ones dropped int8
    rare = any(_needs_humming(unit.scheme) for unit in units)
    return f"compute capability 7.5{newest}{HUMMING if rare else ''}"


def _needs_humming(scheme: Scheme) -> bool:
    """Whether none of vLLM's own CUDA kernels knows this grid, and those of the humming-kernels package do."""
    return scheme.weight_only and (scheme.bits not in GPTQ_BITS or (scheme.bits == 8 and not scheme.symmetric))


def _split(unit: _Unit, tp: int, kv_heads: int) -> str:
    """Why one GPU's share of a packed unit cannot be loaded; empty where it can.

    Packed along inputs are the codes; along outputs only the zeros of asymmetric grids (those of AutoGPTQ's symmetric
    ones are never read). Key and value heads are repeated where there are more GPUs than heads. Of two factors the one
    that reads the layer's inputs is split as they are, and the one that makes its outputs as those are.
    """
    scheme, whole = unit.scheme, whole_words(unit.scheme)
    linear, _, factor = unit.shorts[0].partition(".lr_")
    along_inputs = linear in ROW_PARALLEL
    inputs = unit.inputs // tp if along_inputs and factor != "b" else unit.inputs
    if inputs % whole:
        return f"{unit.name}: {inputs} inputs per GPU do not fill whole words of {whole} codes"
    if scheme.group_size > 0 and inputs % scheme.group_size:
        return f"{unit.name}: group_size {scheme.group_size} does not divide {inputs} inputs per GPU"
    if not scheme.symmetric and not along_inputs and factor != "a":
        for short, outputs in zip(unit.shorts, unit.outputs, strict=True):
            padded = -(-outputs // HEAD_TILE) * HEAD_TILE if short == HEAD else outputs
            share = padded // (min(tp, kv_heads) if short.removesuffix(".lr_b") in ("k_proj", "v_proj") else tp)
            if share % whole:
                return f"{short}: zeros of {share} outputs per GPU do not fill whole words of {whole}"
    return ""
