"""The real vLLM computes an adapter beside quantized weights as our own forward pass does, for every dense family."""

from pathlib import Path

import pico
import pytest
import torch
from gate_helpers import candidate
from test_adapters import MANIFEST
from verify_helpers import make

from hubplugin import report
from hubplugin.checkpoint.adapters import composed
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.evaluation import engine_choice, gate, generation
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.model.architectures import families
from hubplugin.plan import planner
from serve import cpu_features

PROMPTS = [[5, 6, 7, 8, 9], [100, 200], list(range(40, 56))]

pytestmark = pytest.mark.serve


def made(place: Path, kind: str, layout: str) -> Path:
    """A variant of 4-bit codes and EoRA's adapter for it."""
    pico.write(place / "base", kind)
    text = MANIFEST[: MANIFEST.index("  LoRA:")] + MANIFEST[MANIFEST.index("evaluate:") :]
    return make(place, "base", text.replace("compressed-tensors", layout))


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("llama", "compressed-tensors"),
        ("llama", "gptq"),
        ("mistral", "compressed-tensors"),
        ("qwen2", "gptq"),
        ("qwen3", "compressed-tensors"),
        ("gemma2", "compressed-tensors"),
        ("phi3", "compressed-tensors"),
    ],
)
def test_vllm_computes_what_our_forward_does(kind: str, layout: str, tmp_path: Path) -> None:
    heard(kind, layout, tmp_path)


def test_beside_dense_weights_that_are_made_of_codes_an_adapter_is_added_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_features, "has", lambda feature, flags=None: False)
    heard("llama", "gptq", tmp_path, "vLLM on cpu, codes made dense weights")


def heard(kind: str, layout: str, tmp_path: Path, engine: str = "vLLM on c") -> None:
    """Have vLLM compute an adapter beside codes, and compare with our own forward pass with it and without."""
    out = made(tmp_path, kind, layout)
    asked = loading.load(tmp_path / "m.yaml")
    peek = snapshots.peek(asked.manifest.model, asked.folder)
    plan = planner.make(asked, peek.config, peek.tensors).variants[1]
    family = families.match(DenseView(out / "Int4").config, "here")
    with composed.composed(out / "Int4", out / "EoRA") as both:
        served = engine_choice.generate(both, PROMPTS, 12, plan.verdicts)
        assert served.engine.startswith(engine)
        theirs = torch.tensor([value for row in served.logprobs for value in row])
        with_adapter, without = (
            generation.logprobs(folder, family, PROMPTS, served.token_ids) for folder in (both, out / "Int4")
        )
        again = candidate(out / "EoRA", plan, model=both, generate=lambda *given: served, prompts=PROMPTS)
        line = gate.generation(again)
    noise, effect = (theirs - with_adapter).abs().mean(), (theirs - without).abs().mean()
    assert line.passed, line.detail
    assert noise < 0.5 * effect, (float(noise), float(effect))  # it is the adapter that is heard
    assert report.read(out / "EoRA").passed
