from pathlib import Path

import pytest

from hubplugin.evaluation import engine_choice
from hubplugin.evaluation.generation import generate_dequantized, logprobs
from hubplugin.model.architectures import families
from hubplugin.plan.vllm_support import Verdict
from serve import cpu_features, smoke, vllm_settings

PROMPTS = [[1, 2, 3]]


def verdicts(on_cpu: str) -> list[Verdict]:
    return [Verdict("cpu", not on_cpu, on_cpu), Verdict("cuda tp=1", True, "")]


def test_vllm_generates_where_it_loads_the_format(pico_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(folder: Path, prompts: list[list[int]], tokens: int, **of_adapters: object) -> smoke.Smoke:
        asked.append((folder, prompts, tokens))
        return smoke.Smoke(["x"], [[7]], [[-0.5]])

    monkeypatch.setattr(smoke, "generate", answer)
    for device, name in (("cpu", "vLLM on cpu"), ("cuda", "vLLM on cuda tp=1")):
        monkeypatch.setattr(vllm_settings, "find_device", lambda device=device: device)
        made = engine_choice.generate(pico_folder, PROMPTS, 1, verdicts(""))
        assert (made.engine, made.token_ids, made.logprobs) == (name, [[7]], [[-0.5]])
    assert asked == [(pico_folder, PROMPTS, 1)] * 2


def test_transformers_generates_where_vllm_cannot_and_the_reason_is_kept(
    pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    monkeypatch.setattr(smoke, "generate", lambda *asked: pytest.fail("vLLM was started"))
    made = engine_choice.generate(pico_folder, PROMPTS, 2, verdicts("no CPU kernel for 8-bit GPTQ"))
    assert "transformers" in made.engine and "no CPU kernel for 8-bit GPTQ" in made.engine
    assert len(made.token_ids[0]) == 2


@pytest.mark.parametrize("feature", [cpu_features.AVX512, cpu_features.AMX, cpu_features.VNNI])
def test_transformers_generates_where_this_cpu_lacks_what_vllms_kernels_need(
    feature: str, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    monkeypatch.setattr(cpu_features, "has", lambda asked: asked != feature)
    monkeypatch.setattr(smoke, "generate", lambda *asked: pytest.fail("vLLM was started"))
    loads = [Verdict("cpu", True, "", f"an x86 CPU with {feature}", (feature,))]
    made = engine_choice.generate(pico_folder, PROMPTS, 1, loads)
    assert made.engine.endswith(f"(vLLM on cpu: needs an x86 CPU with {feature}, and this one has no {feature})")


def test_transformers_generates_where_no_vllm_is_installed_and_that_is_allowed(
    pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "generate", lambda *asked: pytest.fail("vLLM was started"))
    monkeypatch.setattr(vllm_settings, "version", lambda: "")
    made = engine_choice.generate_anyhow(pico_folder, PROMPTS, 2, verdicts(""))
    assert made.engine.endswith("(vLLM is not installed here)") and len(made.token_ids[0]) == 2
    asked = []
    monkeypatch.setattr(vllm_settings, "version", lambda: "1.0")
    monkeypatch.setattr(engine_choice, "generate", lambda *given: asked.append(given))
    engine_choice.generate_anyhow(pico_folder, PROMPTS, 2, verdicts(""))
    assert asked == [(pico_folder, PROMPTS, 2, verdicts(""))]


@pytest.mark.parametrize("prompt", [[5, 9, 7], [0, 9, 7, 0, 4], [256, 9, 7]])
def test_ids_that_are_used_for_padding_are_read_like_any_other(pico_folder: Path, prompt: list[int]) -> None:
    made = generate_dequantized(pico_folder, [prompt], 6)
    own = logprobs(pico_folder, families.FAMILIES["llama"], [prompt], made.token_ids)
    assert made.logprobs[0] == pytest.approx(own.tolist(), abs=1e-4)
