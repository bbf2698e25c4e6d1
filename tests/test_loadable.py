"""What stock vLLM is said to load, by format. That it does is shown by the tests marked serve, on the CPU."""

from typing import Any

import pico
import pytest
from plan_helpers import config_json, document, headers

from hubplugin.plan import planner, vllm_support
from hubplugin.plan.variant_plan import VariantPlan

WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512}
W8A8 = {"bits": 8, "group_size": -1, "activation_bits": 8}


def variant(config: Any = None, **step: Any) -> VariantPlan:
    config = config or pico.config(**WIDE)
    return planner.make(
        document([{"method": "gptq", "group_size": 32, **step}]), config_json(config), headers(config)
    ).variants[0]


def said(made: VariantPlan) -> tuple[str, str, str]:
    """Why not on a CPU, why not on one GPU, and what that GPU must have."""
    cpu, one = made.verdicts[:2]
    return cpu.why, one.why, one.note


@pytest.mark.parametrize(
    ("step", "cpu", "note"),
    [
        ({"symmetric": False}, "", "compute capability 7.5 or newer"),
        ({"format": "compressed-tensors"}, "", "compute capability 7.5 or newer"),
        ({"bits": 8}, f"no CPU kernel for 8-bit weights; {vllm_support.DENSE}", "compute capability 7.5 or newer"),
        (
            {"bits": 8, "symmetric": False},
            f"no CPU kernel for 8-bit weights; {vllm_support.DENSE}",
            "compute capability 7.5 or newer, with vLLM's humming-kernels",
        ),
        (
            {"bits": 3},
            f"no CPU kernel for 3-bit weights; {vllm_support.DENSE}",
            "compute capability 7.5 or newer, with vLLM's humming-kernels",
        ),
        (W8A8, "", "compute capability 7.5 to 9.0"),
        (
            {"overrides": {"down_proj": {"bits": 8}}},
            f"no CPU kernel for 8-bit weights; {vllm_support.DENSE}",
            "compute capability 7.5 or newer",
        ),
        ({"overrides": {"down_proj": W8A8}}, "", "compute capability 7.5 to 9.0"),
    ],
)
def test_each_grid_on_each_machine(step: dict[str, Any], cpu: str, note: str) -> None:
    assert said(variant(**step)) == (cpu, "", note)


def test_int8_needs_vnni_without_which_sums_overflow_but_no_avx_512_and_no_tiles() -> None:
    config = pico.config(**WIDE | {"intermediate_size": 500})
    made = variant(config, **W8A8)
    assert said(made)[0] == "" and made.verdicts[0].note == "an x86 CPU with VNNI"


def test_three_bits_split_over_gpus_by_whole_words_of_32_codes() -> None:
    config = pico.config(**WIDE | {"intermediate_size": 32 * 6})
    made = variant(config, bits=3, symmetric=False)
    assert [verdict.why for verdict in made.verdicts[1:]] == [
        "",
        "",
        "gate_proj: zeros of 48 outputs per GPU do not fill whole words of 32",
    ]
    made = variant(config, bits=3)
    assert made.verdicts[3].why == "down_proj: 48 inputs per GPU do not fill whole words of 32 codes"


def test_a_head_that_vllm_pads_splits_by_its_padded_rows() -> None:
    config = pico.config(**WIDE, vocab_size=296, tie_word_embeddings=False)
    made = variant(config, lm_head=True, symmetric=False)
    assert made.head is not None and [verdict.why for verdict in made.verdicts] == [""] * 4


def test_stacks_are_found_block_by_block() -> None:
    stacks = [tuple(linear.short for linear in members) for members in vllm_support.fused(variant().linears)]
    one = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    assert stacks == one * 2
