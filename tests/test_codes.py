"""Whether codes are computed with or become dense weights, as config.json and the processor decide."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from safetensors.torch import save_file

from hubplugin.errors import ServeError
from serve import codes, cpu_features, loaded_size, vllm_settings
from serve.cpu_features import AMX, AVX512, VNNI

LARGE = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "intermediate_size": 14336}
SMALL = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30}
SMALL |= {"intermediate_size": 1536}


def gptq(bits: int, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": 64, **more}}


def packed(*bits: int, **group: Any) -> dict[str, Any]:
    groups = {f"group_{at}": {"weights": {"num_bits": each, "type": "int"}, **group} for at, each in enumerate(bits)}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}


FP4 = {"num_bits": 4, "type": "float", "group_size": 16}
W8A8 = packed(8, input_activations={"num_bits": 8})
FACTORS = {"quantization_config": {"quant_method": "hubplugin_lowrank", "codes": packed(4)["quantization_config"]}}
FACTORS_INT3 = {"quantization_config": {"quant_method": "hubplugin_lowrank", "codes": packed(3)["quantization_config"]}}


@pytest.fixture
def having(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the processor these features alone."""
    return lambda *features: monkeypatch.setattr(cpu_features, "has", lambda feature, flags=None: feature in features)


@pytest.mark.parametrize(
    ("config", "features", "dense"),
    [
        ({**LARGE}, (AVX512,), False),
        ({**LARGE, **gptq(4)}, (AVX512,), False),
        ({**LARGE, **packed(4)}, (AVX512,), False),
        ({**LARGE, **gptq(4)}, (), True),  # vLLM's library for AVX2 has no kernel
        ({**LARGE, **gptq(8)}, (AVX512,), True),
        ({**LARGE, **gptq(4, dynamic={"+:x": {"bits": 8}, "-:y": {}})}, (AVX512,), True),
        ({**LARGE, **packed(4, 2)}, (AVX512,), True),
        ({**LARGE, **packed(4, weights=FP4)}, (AVX512,), True),
        ({**LARGE, **packed(4, weights={**FP4, "group_size": 32})}, (AVX512,), False),  # MXFP4 is not read
        ({**LARGE, **packed(8, weights={"num_bits": 8, "type": "float"})}, (AVX512,), False),
        ({**LARGE, **W8A8}, (), False),
        ({**SMALL, **W8A8}, (VNNI,), False),
        ({**SMALL, **gptq(4)}, (AVX512,), True),
        ({**SMALL, **gptq(4)}, (AVX512, AMX), False),  # not measured there
        ({**SMALL, **gptq(3)}, (AVX512, AMX), True),
        ({**SMALL}, (AVX512,), False),
        ({**SMALL, **FACTORS}, (AVX512,), False),
        ({**SMALL, **FACTORS_INT3}, (AVX512,), True),
        ({**SMALL, **gptq(4), "num_experts": 64}, (AVX512, AMX), False),
        ({**LARGE, **gptq(4), "num_experts": 64}, (AVX512,), True),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, (), False),
        ({"quantization_config": {"quant_method": "hubplugin_codebook", "bits": 2}}, (), False),
        ({"quantization_config": {"quant_method": "gptq"}}, (AVX512,), False),
        ({"quantization_config": "gptq"}, (), False),
        ({**SMALL, "quantization_config": {"quant_method": "gptq"}}, (AVX512,), False),  # of no width: vLLM says so
        ({**LARGE, **gptq(4, dynamic=["+:x"])}, (AVX512,), False),
        (gptq(4), (AVX512,), False),  # of a size that config.json does not say
    ],
)
def test_codes_become_dense_where_no_kernel_takes_them_and_where_a_model_is_small(
    config: dict[str, Any], features: tuple[str, ...], dense: bool, having: Callable[..., None]
) -> None:
    having(*features)
    assert codes.made_dense(config) is dense
    words = vllm_settings.arguments("cpu", config, 256)
    assert (codes.LOAD_FORMAT in words) is dense and ("--hf-overrides" in words) is dense
    assert codes.kept(config) is (codes.of(config) is not None and not dense)


@pytest.mark.parametrize("given", [codes.KEPT, ("--load-format=auto",), ("--quantization", "gptq"), ("-q", "gptq")])
def test_a_user_who_says_how_weights_are_loaded_decides(given: tuple[str, ...], having: Callable[..., None]) -> None:
    having(AVX512)
    assert codes.LOAD_FORMAT not in vllm_settings.arguments("cpu", {**SMALL, **gptq(4)}, 256, given)
    assert codes.LOAD_FORMAT in vllm_settings.arguments("cpu", {**SMALL, **gptq(4)}, 256, ("--max-num-seqs", "4"))
    assert codes.LOAD_FORMAT not in vllm_settings.arguments("cuda", {**SMALL, **gptq(4)}, 256)


def test_dense_weights_of_codes_are_float32_where_nothing_computes_in_half_precision(
    having: Callable[..., None],
) -> None:
    having()
    assert vllm_settings.cpu_dtype({**LARGE, **gptq(4)}) == ("--dtype", "float32")
    vllm_settings.refuse_unservable("cpu", {**LARGE, **gptq(4)}, "me/Int4")
    with pytest.raises(ServeError, match="need AVX-512"):
        vllm_settings.refuse_unservable("cpu", {**LARGE, **gptq(4)}, "me/Int4", codes.KEPT)


def test_memory_is_what_dense_weights_take(tmp_path: Path, having: Callable[..., None]) -> None:
    having(AVX512)
    tensors = {
        "model.embed_tokens.weight": torch.zeros(64, 32, dtype=torch.bfloat16),
        "a.qweight": torch.zeros(4, 48, dtype=torch.int32),  # 32 inputs of 4 bits
        "a.scales": torch.zeros(1, 48, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    stored = (tmp_path / "model.safetensors").stat().st_size
    assert loaded_size.loaded_bytes(tmp_path, {**LARGE, **gptq(4)}) == stored
    assert loaded_size.loaded_bytes(tmp_path, {**SMALL, **gptq(4)}) == stored + 32 * 48 * 2 - 32 * 48 // 2
    assert loaded_size.loaded_bytes(tmp_path, {**LARGE, **gptq(2)}) == stored + 64 * 48 * 2 - 64 * 48 // 4
    codebook = {"quantization_config": {"quant_method": "hubplugin_codebook", "bits": 4}}
    assert loaded_size.loaded_bytes(tmp_path, codebook) == stored + 32 * 48 * 2 - 32 * 48 // 2
    del codebook["quantization_config"]["bits"]  # vLLM says what is missing
    assert loaded_size.loaded_bytes(tmp_path, codebook) == stored


def test_the_size_of_a_model_is_that_of_its_linears() -> None:
    config = pico.config("llama").to_dict()
    linears = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128)
    assert codes._linears(config) == linears
