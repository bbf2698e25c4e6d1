"""What vLLM's kernels need of a CPU, asked of flags as Linux lists them, and refused before vLLM starts."""

from pathlib import Path
from typing import Any

import pytest

from hubplugin.errors import ServeError
from serve import codes, cpu_features, vllm_settings
from serve.cpu_features import AMX, AVX512, FAST_BFLOAT16, VNNI

ZEN3 = frozenset("avx avx2 fma bmi2".split())  # noqa: SIM905 - as /proc/cpuinfo has them
SKYLAKE = ZEN3 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
BFLOAT16 = SKYLAKE | {"avx512_bf16", "avx512_vnni"}
ZEN4 = BFLOAT16 | {"AuthenticAMD"}
AMX_HIDDEN = BFLOAT16 | {"GenuineIntel"}  # Sapphire Rapids in most virtual machines
SAPPHIRE_RAPIDS = AMX_HIDDEN | {"amx_tile", "amx_bf16", "amx_int8"}
INT4 = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
PACKED = {"quantization_config": {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}}
INT8 = {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}
W8A8 = {"quantization_config": {"config_groups": {"group_0": INT8}}}


@pytest.mark.parametrize(
    ("flags", "features"),
    [
        (ZEN3, set()),
        (SKYLAKE, {AVX512}),
        (ZEN3 | {"avx_vnni"}, {VNNI}),
        (SKYLAKE | {"avx512_vnni"}, {AVX512, VNNI}),
        (ZEN4, {AVX512, VNNI, FAST_BFLOAT16}),
        (AMX_HIDDEN, {AVX512, VNNI}),
        (SAPPHIRE_RAPIDS, {AVX512, VNNI, FAST_BFLOAT16, AMX}),
    ],
)
def test_features_are_read_from_the_processors_flags(flags: frozenset[str], features: set[str]) -> None:
    assert {feature for feature in cpu_features.FLAGS if cpu_features.has(feature, flags)} == features


@pytest.mark.parametrize(
    ("config", "features"),
    [
        ({}, ()),
        (INT4, (AVX512,)),
        (PACKED, (AVX512,)),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, ()),  # vLLM itself says that it has no kernel
        (W8A8, (VNNI,)),
        ({**INT4, "num_local_experts": 8}, (AMX,)),
        ({**W8A8, "num_experts": 8}, (AMX,)),
        ({"num_experts": 8}, ()),
        ({"quantization_config": {"quant_method": "awq"}}, ()),
    ],
)
def test_a_config_says_which_kernels_it_needs(config: dict[str, Any], features: tuple[str, ...]) -> None:
    assert codes.needed_features(config) == features


def test_codes_that_this_cpu_cannot_run_are_refused_before_vllm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "has", lambda feature: False)
    with pytest.raises(ServeError) as caught:
        vllm_settings.refuse_unservable("cpu", W8A8, "me/W8A8")
    assert caught.value.where == "me/W8A8"
    assert caught.value.what == "vLLM's CPU kernels for its codes need VNNI, and this CPU has no VNNI"
    for device, config in (("cuda", W8A8), ("cpu", {}), ("cpu", None), ("cpu", INT4)):
        vllm_settings.refuse_unservable(device, config, "me/Model")
    with pytest.raises(ServeError, match="need AVX-512, and this CPU has no AVX-512"):
        vllm_settings.refuse_unservable("cpu", INT4, "me/Int4", codes.KEPT)


def test_flags_and_maker_are_read_of_the_first_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor : 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: avx2 avx512f avx512_bf16\n"
    )
    read = cpu_features._flags(tmp_path / "cpuinfo")
    assert read == {"AuthenticAMD", "avx2", "avx512f", "avx512_bf16"} and cpu_features.has(FAST_BFLOAT16, read)
    (tmp_path / "arm").write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert cpu_features._flags(tmp_path / "arm") == cpu_features._flags(tmp_path / "none") == frozenset()
