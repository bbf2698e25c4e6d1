"""The real vLLM, with our loader, computes with the dense weights that codes stand for, on any CPU."""

from pathlib import Path
from typing import Any

import pico
import pytest
from gate_helpers import candidate
from prune_helpers import decided, make

from hubplugin.evaluation import engine_choice, gate
from serve import codes, cpu_features, smoke, vllm_settings

PROMPTS = [[5, 6, 7, 8, 9], [100, 200]]
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
PACKED = {"method": "gptq", "group_size": 64, "format": "compressed-tensors"}

pytestmark = pytest.mark.serve


def generated(source: Path, folder: Path, step: dict[str, Any]) -> str:
    """The line of the gate that has vLLM generate from a variant, which must have passed."""
    variant = decided(source, step)
    make(source, folder, variant)
    line = gate.generation(candidate(folder, variant, generate=engine_choice.generate, prompts=PROMPTS))
    assert line.passed, line.detail
    return line.detail


@pytest.mark.parametrize(
    ("model_type", "step"),
    [
        ("llama", {**PACKED, "bits": 2, "ignore": ["layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"]}),
        ("qwen2", {**PACKED, "bits": 3, "symmetric": False}),
        ("llama", {"method": "gptq", "bits": 8, "group_size": 32, "lm_head": True}),
        ("phi3", {"method": "codebook", "values": "e2m1"}),
        ("mixtral", {**PACKED, "bits": 8}),
    ],
)
def test_codes_without_a_cpu_kernel(model_type: str, step: dict[str, Any], tmp_path: Path) -> None:
    if vllm_settings.find_device() != "cpu":
        pytest.skip("a GPU has kernels for these codes")
    source = pico.write(tmp_path / "m", model_type, **WIDE, tie_word_embeddings="lm_head" not in step)
    assert "vLLM on cpu, codes made dense weights" in generated(source, tmp_path / "v", step)


def test_four_bits_on_a_cpu_without_avx512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if vllm_settings.find_device() != "cpu":
        pytest.skip("a GPU has kernels for these codes")
    monkeypatch.setattr(cpu_features, "has", lambda feature, flags=None: False)
    source = pico.write(tmp_path / "m", **WIDE)
    assert "codes made dense weights" in generated(source, tmp_path / "v", {"method": "gptq", "group_size": 64})


def test_what_is_proved_of_four_bits_is_the_kernel_where_there_is_one(tmp_path: Path) -> None:
    if not cpu_features.has(cpu_features.AVX512):
        pytest.skip("no kernel for packed codes")
    source = pico.write(tmp_path / "m", **WIDE)
    assert "vLLM on cpu:" in generated(source, tmp_path / "v", {"method": "gptq", "group_size": 64})
    served = smoke.generate(tmp_path / "v", PROMPTS, 8)  # as `serve` does, dense: it is a small model
    kernel = smoke.generate(tmp_path / "v", PROMPTS, 8, options=codes.KEPT)
    pairs = zip(served.logprobs, kernel.logprobs, strict=True)
    assert max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True)) < 0.1
