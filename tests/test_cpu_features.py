"""What vLLM's kernels need of a CPU, asked of flags as Linux lists them, and refused before vLLM starts."""

from typing import Any

import pytest

from hubplugin.errors import ServeError
from serve import cpu_features, vllm_settings

ZEN3 = frozenset("avx avx2 fma bmi2".split())  # noqa: SIM905 - as /proc/cpuinfo has them
SKYLAKE = ZEN3 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
SAPPHIRE_RAPIDS = SKYLAKE | {"avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}
INT4 = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
PACKED = {"quantization_config": {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}}
W8A8 = {
    "quantization_config": {
        "config_groups": {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}}
    }
}


@pytest.mark.parametrize(
    ("flags", "avx512", "amx"), [(ZEN3, False, False), (SKYLAKE, True, False), (SAPPHIRE_RAPIDS, True, True)]
)
def test_features_are_read_from_the_processors_flags(flags: frozenset[str], avx512: bool, amx: bool) -> None:
    assert cpu_features.has("", flags)
    assert cpu_features.has(cpu_features.AVX512, flags) is avx512
    assert cpu_features.has(cpu_features.AMX, flags) is amx


@pytest.mark.parametrize(
    ("config", "feature"),
    [
        ({}, ""),
        (INT4, cpu_features.AVX512),
        (PACKED, cpu_features.AVX512),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, ""),  # vLLM itself says that it has no kernel
        (W8A8, ""),
        ({**INT4, "num_local_experts": 8}, cpu_features.AMX),
        ({**W8A8, "num_experts": 8}, cpu_features.AMX),
        ({"num_experts": 8}, ""),
        ({"quantization_config": {"quant_method": "awq"}}, ""),
    ],
)
def test_a_config_says_which_kernels_it_needs(config: dict[str, Any], feature: str) -> None:
    assert vllm_settings.needed_feature(config) == feature


def test_codes_that_this_cpu_cannot_run_are_refused_before_vllm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "has", lambda feature: not feature)
    with pytest.raises(ServeError) as caught:
        vllm_settings.refuse_unservable("cpu", INT4, "me/Int4")
    assert caught.value.where == "me/Int4"
    assert caught.value.what == "vLLM's kernels for 4-bit weights need AVX-512, and this CPU has none"
    for device, config in (("cuda", INT4), ("cpu", W8A8), ("cpu", None)):
        vllm_settings.refuse_unservable(device, config, "me/Int4")
