"""What config.json says about quantized weights and factors, for loaders: AutoGPTQ's dictionary, compressed-tensors',
or ours.

Linears that differ from the commonest are listed so that both vLLM, which stacks q, k, v and gate, up under names of
its own, and loaders that know the names of the checkpoint find them. Knows plans; no tensors and no files.
"""

import re
from collections.abc import Sequence
from typing import Any

import hubplugin
from hubplugin.checkpoint.format_names import CODEBOOK, COMPRESSED_TENSORS, GPTQ, LOW_RANK, NVFP4
from hubplugin.manifest.methods import grid_of
from hubplugin.manifest.steps.gptq import GPTQMODEL, GridQuantization
from hubplugin.plan import schemes, vllm_support
from hubplugin.plan.schemes import LinearPlan, Scheme
from hubplugin.plan.variant_plan import VariantPlan

# vLLM's names of what it stacks, by the first linear of the stack
STACKED = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}
NO_LINEARS = ("embed_tokens",)  # modules with a weight matrix that no loader takes for a linear


def quantization_config(plan: VariantPlan) -> dict[str, Any] | None:
    """The dictionary for config.json; None for a variant without quantization and factors."""
    distinct = schemes.distinct(linear.scheme for linear in plan.quantized)
    if plan.factored:  # codes, also those of factors, are said in compressed-tensors' words, by linear
        return _low_rank(plan.factored) | ({"codes": _compressed_tensors(plan, distinct)} if distinct else {})
    if not distinct:
        return None
    if distinct[0].layout == CODEBOOK:
        return _codebook(plan, distinct[0])
    if distinct[0].layout != GPTQ:
        return _compressed_tensors(plan, distinct)
    step = grid_of(plan.steps)
    assert step is not None
    return _gptq(plan, step, distinct)


def quantize_config(plan: VariantPlan) -> dict[str, Any] | None:
    """The dictionary for quantize_config.json, which stands beside AutoGPTQ's format alone; else None.

    It also says what made the codes. config.json does not: transformers' AutoRoundConfig refuses a dictionary with
    `meta`, and no loader needs it.
    """
    step, dictionary = grid_of(plan.steps), quantization_config(plan)
    if step is None or dictionary is None or dictionary["quant_method"] != GPTQ:
        return None
    quantizer = f"gptqmodel:{GPTQMODEL}" if step.engine == "gptqmodel" else f"hubplugin:{hubplugin.__version__}"
    meta = {
        "quantizer": [quantizer],
        "act_group_aware": step.act_order,
        "clip_search": step.clip_search,
        "damp_percent": step.damp,
        "report": "report.json",
    }
    return {**dictionary, "meta": meta}


def _low_rank(factored: Sequence[LinearPlan]) -> dict[str, Any]:
    """The rank of every linear that is two factors, and which of them read the A of their stack; all else is dense."""
    ranks = {linear.name: linear.factors.rank for linear in factored if linear.factors}
    shared = [linear.name for linear in factored if linear.factors and linear.factors.shared]
    return {"quant_method": LOW_RANK, "ranks": ranks, "shared": shared}


def _gptq(plan: VariantPlan, step: GridQuantization, distinct: Sequence[Scheme]) -> dict[str, Any]:
    commonest = distinct[0]
    entries = {
        "quant_method": "gptq",
        "bits": commonest.bits,
        "group_size": commonest.group_size,
        "sym": commonest.symmetric,
        "desc_act": False,  # columns went back to their places: g_idx is trivial and loaders may ignore it
        "static_groups": False,
        "true_sequential": True,
        "lm_head": plan.head is not None,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "damp_percent": step.damp,
        "model_name_or_path": None,
        "model_file_base_name": "model",
    }
    if dynamic := _dynamic(plan, distinct[1:]):
        entries["dynamic"] = dynamic
    return entries


def _codebook(plan: VariantPlan, scheme: Scheme) -> dict[str, Any]:
    """What serve/codebook_linear.py reads: a step of codebooks has one scheme."""
    return {
        "quant_method": CODEBOOK,
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "ignore": _dense(plan),
    }


def _dynamic(plan: VariantPlan, others: Sequence[Scheme]) -> dict[str, dict[str, Any]]:
    """GPTQModel's rules for linears unlike the rest: regular expressions on module paths, "-:" to leave one dense."""
    everything = (*plan.linears, *([plan.head] if plan.head else []))
    rules: dict[str, dict[str, Any]] = {}
    for scheme in (None, *others):
        alike = [linear for linear in everything if linear.scheme == scheme]
        settings = (
            {} if scheme is None else {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric}
        )
        sign = "-" if scheme is None else "+"
        rules |= {f"{sign}:{pattern}": settings for pattern in _expressions(alike)}
    return rules


def _expressions(linears: Sequence[LinearPlan]) -> list[str]:
    """Regular expressions that match exactly these linears and vLLM's stacks of them, one for each place in a block."""
    layers: dict[tuple[str, str, str], list[str]] = {}
    for members in vllm_support.fused(linears):
        shorts = [linear.short for linear in members]
        if len(shorts) > 1 and not members[0].experts:
            shorts.append(STACKED[shorts[0]])
        path = f"{members[0].experts}." if members[0].experts else members[0].name.removesuffix(shorts[0])
        numbered = re.fullmatch(r"(.*?\.)(\d+)(\..*\.)", path)
        before, number, after = numbered.groups() if numbered else (path, "", "")
        end = re.escape(shorts[0]) if len(shorts) == 1 else f"(?:{'|'.join(map(re.escape, shorts))})"
        if members[0].experts:  # vLLM asks for all of them at once, other loaders for each linear
            after, end = after.removesuffix("."), r"(?:\..+)?"
        layers.setdefault((before, after, end), []).append(number)
    return [
        f"{re.escape(before)}{_either(numbers)}{re.escape(after)}{end}$"
        for (before, after, end), numbers in layers.items()
    ]


def _either(numbers: Sequence[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"(?:{'|'.join(numbers)})"


def _compressed_tensors(plan: VariantPlan, distinct: Sequence[Scheme]) -> dict[str, Any]:
    layouts = {scheme.layout for scheme in distinct}
    groups = {}
    for index, scheme in enumerate(distinct):
        names = [linear.name for linear in plan.quantized if linear.scheme == scheme]
        if index == 0:  # "Linear" is every linear that is neither ignored nor named by another group, but vLLM's head
            names = ["Linear", *(name for name in names if plan.head and name == plan.head.name)]
        groups[f"group_{index}"] = _group(scheme, names)
    return {
        "quant_method": COMPRESSED_TENSORS,
        "format": distinct[0].layout if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": _dense(plan),
        "config_groups": groups,
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    whole = scheme.group_size == -1
    fp4 = scheme.layout == NVFP4
    weights = {
        "num_bits": scheme.bits,
        "type": "float" if fp4 else "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if whole else "tensor_group" if fp4 else "group",
        "group_size": None if whole else scheme.group_size,
        "dynamic": False,
        "actorder": None,  # columns went back to their places
    }
    activations = {
        "num_bits": scheme.activation_bits,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "group_size": None,
        "dynamic": True,
        "observer": None,
    }
    return {
        "targets": targets,
        "format": scheme.layout,
        "weights": weights,
        "input_activations": None if scheme.weight_only else activations,
        "output_activations": None,
    }


def _dense(plan: VariantPlan) -> list[str]:
    """Modules that loaders would take for linears of the first group and that are stored dense, the head included."""
    quantized = {linear.name for linear in plan.quantized}
    factors = [linear.name for linear in plan.factored if linear.name not in quantized]
    matrices = [name.removesuffix(".weight") for name, header in plan.tensors.items() if len(header.shape) == 2]
    ends = [name for name in matrices if f"{name}.weight" in plan.tensors and not name.endswith(NO_LINEARS)]
    dense = [name for name in ends if name not in quantized] + factors
    return dense + (["lm_head"] if "lm_head" not in {*dense, *quantized} else [])  # a tied head is a module too
