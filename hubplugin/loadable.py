"""Which variants stock vLLM loads, and why not: the rules of vLLM 0.32, one function per kind of machine.

It knows shapes and bits; it starts no vLLM and imports none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hubplugin.architecture import Dimensions

CPU = "cpu"
TENSOR_PARALLEL = (1, 2, 4)
TARGETS = (CPU, *(f"cuda tp={tp}" for tp in TENSOR_PARALLEL))

CPU_BITS = (4,)  # its one integer kernel reads 4-bit codes; 8-bit GPTQ has no CPU kernel
CPU_TILE = 32  # that kernel's step along inputs and along outputs
CPU_HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
CUDA_HEAD_DIM_STEP, CUDA_HEAD_DIM_MAX = 8, 256  # FlashAttention's rule
# linears that vLLM stacks into one matrix before it picks a kernel
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ROW_PARALLEL = ("o_proj", "down_proj")  # split along inputs; all others along outputs
# vLLM's model class computes head_dim as hidden_size / num_attention_heads and ignores config.json's
COMPUTED_HEAD_DIM = ("qwen2",)


@dataclass(frozen=True)
class LinearPlan:
    """One linear of one block. Shapes are [outputs, inputs]."""

    name: str  # full module path, e.g. model.layers.0.mlp.down_proj
    tap: str
    before: tuple[int, int]
    after: tuple[int, int]
    bits: int | None  # None: stays dense
    group_size: int | None

    @property
    def short(self) -> str:
        """The last part of the path."""
        return self.name.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Verdict:
    """Whether stock vLLM loads the variant on one kind of machine."""

    target: str  # one of TARGETS
    loads: bool
    why: str  # empty where it loads
    note: str = ""  # what the machine must have, where it loads


def verdicts(model_type: str, sizes: Dimensions, block: Sequence[LinearPlan]) -> tuple[Verdict, ...]:
    """One verdict per target for a variant of these (pruned) sizes; `block` is any of its equal blocks."""
    quantized = any(linear.bits for linear in block)
    cpu, general = _on_cpu(sizes, block), _anywhere(model_type, sizes)
    found = [_verdict(CPU, general or cpu, "an x86 CPU with AVX-512" if quantized else "")]
    for tp in TENSOR_PARALLEL:
        note = "compute capability 7.5 or newer" if quantized else ""
        found.append(_verdict(f"cuda tp={tp}", general or _on_cuda(sizes, block, tp), note))
    return tuple(found)


def _verdict(target: str, why: str, note: str) -> Verdict:
    return Verdict(target, not why, why, "" if why else note)


def _anywhere(model_type: str, sizes: Dimensions) -> str:
    if model_type in COMPUTED_HEAD_DIM and sizes.head_dim * sizes.heads != sizes.hidden:
        return (
            f"vLLM's {model_type} takes head_dim to be hidden_size / num_attention_heads = "
            f"{sizes.hidden / sizes.heads:g}, this model has {sizes.head_dim}"
        )
    return ""


def _on_cpu(sizes: Dimensions, block: Sequence[LinearPlan]) -> str:
    if sizes.head_dim not in CPU_HEAD_DIMS:
        return f"no CPU attention kernel for head_dim {sizes.head_dim}"
    for linear in block:
        if linear.bits and linear.bits not in CPU_BITS:
            return f"no CPU kernel for {linear.bits}-bit GPTQ"
    for name, outputs, inputs in _fused(block):
        if inputs % CPU_TILE:
            return f"the CPU kernel needs multiples of {CPU_TILE}: {name} has {inputs} inputs"
        if outputs % CPU_TILE:
            return f"the CPU kernel needs multiples of {CPU_TILE}: {name} has {outputs} outputs"
    return ""


def _fused(block: Sequence[LinearPlan]) -> list[tuple[str, int, int]]:
    """Quantized linears as the kernel sees them: name, outputs, inputs."""
    quantized = {linear.short: linear.after for linear in block if linear.bits}
    found = []
    for names in FUSED:
        if all(name in quantized for name in names):
            inputs = quantized[names[0]][1]
            found.append(("+".join(names), sum(quantized.pop(name)[0] for name in names), inputs))
    return found + [(name, outputs, inputs) for name, (outputs, inputs) in quantized.items()]


def _on_cuda(sizes: Dimensions, block: Sequence[LinearPlan], tp: int) -> str:
    if sizes.head_dim % CUDA_HEAD_DIM_STEP or sizes.head_dim > CUDA_HEAD_DIM_MAX:
        return f"no CUDA attention kernel for head_dim {sizes.head_dim}"
    if sizes.heads % tp:
        return f"{sizes.heads} attention heads do not split over {tp} GPUs"
    if sizes.kv_heads % tp and tp % sizes.kv_heads:
        return f"{sizes.kv_heads} key/value heads neither split over nor repeat on {tp} GPUs"
    if sizes.ffn % tp:
        return f"{sizes.ffn} FFN channels do not split over {tp} GPUs"
    for linear in block:
        if linear.bits and (why := _split(linear, linear.bits, tp)):
            return why
    return ""


def _split(linear: LinearPlan, bits: int, tp: int) -> str:
    """Why one GPU's share of a quantized linear cannot be loaded; empty where it can.

    Outputs need no check of their own: whole heads of a multiple of 8 always fill the packed words, and FFN
    channels are down_proj's inputs.
    """
    inputs = linear.after[1] // tp if linear.short in ROW_PARALLEL else linear.after[1]
    if inputs % (32 // bits):
        return f"{linear.short}: {inputs} inputs per GPU do not fill whole words of {32 // bits} codes"
    if linear.group_size and linear.group_size > 0 and inputs % linear.group_size:
        return f"{linear.short}: group_size {linear.group_size} does not divide {inputs} inputs per GPU"
    return ""
