"""Spending a budget on pico models: what is measured, what is chosen, and that it is the same each time."""

import json
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from moments_helpers import counted_inputs

from hubplugin import pipeline, report
from hubplugin.checkpoint import resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress.search import bit_allocation
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import snapshots
from hubplugin.manifest import schema
from hubplugin.manifest.reading import loading
from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.methods.gptq import gptq
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.plan import draft, planner, vllm_support
from hubplugin.plan.choices.mixed_precision import Budget

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 4, tokens: 64, seed: 0}}
variants:
  Budget:
    - {{method: gptq, format: compressed-tensors, budget: {{bits_per_weight: 4.5}}}}
evaluate: {{perplexity: {{self: true, samples: 4, tokens: 64, seed: 1}}, kl: true}}
gate: {{mean_kl: 9, top1_agreement: 0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write(tmp_path_factory.mktemp("allocate") / "pico")


def planned(folder: Path, path: Path) -> tuple[schema.Document, draft.Plan]:
    path.write_text(MANIFEST.format(model=folder), encoding="utf-8")
    document = loading.load(path)
    peek = snapshots.peek(document.manifest.model, document.folder)
    return document, planner.make(document, peek.config, peek.tensors)


def parts(folder: Path, path: Path) -> tuple[Model, Budget, Gptq]:
    _, made = planned(folder, path)
    draft = made.drafts[0]
    step = draft.estimate.steps[0]
    assert draft.budget and isinstance(step, Gptq)
    model = Model(DenseView(folder), made.config, families.match(made.config, "pico"))
    return model, draft.budget, step


def test_what_is_measured_is_the_model_with_one_unit_quantized(folder: Path, tmp_path: Path) -> None:
    model, budget, step = parts(folder, tmp_path / "m.yaml")
    tokens = pico.tokens(8, 64)
    found = bit_allocation.measure(model, tokens, budget.units, step)
    whole = pico.model().float()
    with torch.no_grad():
        for number, unit in enumerate(budget.units):
            linears = [whole.get_submodule(one.name) for one in unit.linears]
            x = counted_inputs(whole, unit.linears[0].name, tokens)
            expected = whole(tokens.long()).logits.double().log_softmax(-1)
            weight, scheme = torch.cat([one.weight for one in linears]), unit.options[found.probed[number]]
            own = {"bits": scheme.bits, "group_size": scheme.group_size}
            made = gptq.compress(weight, x.T @ x, step.model_copy(update=own))
            before = [one.weight.clone() for one in linears]
            for one, part in zip(linears, made.weight.split([len(one) for one in before]), strict=True):
                one.weight.copy_(part)
            after = whole(tokens.long()).logits.double().log_softmax(-1)
            for one, old in zip(linears, before, strict=True):
                one.weight.copy_(old)
            kl = float((expected.exp() * (expected - after)).sum(-1)[:, 16:].mean())  # a quarter is not judged
            assert scheme.bits == 3
            assert found.losses[number][found.probed[number]] == pytest.approx(made.loss, rel=0.02)
            assert found.kl[number] == pytest.approx(kl, rel=0.05)


def test_more_bits_lose_less_and_predictions_pass_through_the_measured_point(folder: Path, tmp_path: Path) -> None:
    model, budget, step = parts(folder, tmp_path / "m.yaml")
    found = bit_allocation.measure(model, pico.tokens(2, 32), budget.units, step)
    rows = zip(budget.units, found.losses, found.predicted_kl(), found.probed, found.kl, strict=True)
    for unit, losses, kl, probe, measured in rows:
        by_bits = {scheme.bits: loss for scheme, loss in zip(unit.options, losses, strict=True)}
        assert by_bits[2] > by_bits[3] > by_bits[4] > by_bits[8] > 0
        assert kl[probe] == pytest.approx(measured) and max(kl) == kl[0] > measured


def test_activations_on_disk_change_nothing(folder: Path, tmp_path: Path) -> None:
    model, budget, step = parts(folder, tmp_path / "m.yaml")
    (tmp_path / "spill").mkdir()
    here, there = (
        bit_allocation.measure(model, pico.tokens(2, 32), budget.units, step, spill)
        for spill in (None, tmp_path / "spill")
    )
    assert here.model_copy(update={"seconds": there.seconds}) == there


def test_what_was_found_is_kept_and_taken_again_under_its_fingerprint_alone(folder: Path, tmp_path: Path) -> None:
    model, budget, step = parts(folder, tmp_path / "m.yaml")
    store = tmp_path / "kept" / bit_allocation.FILE_NAME

    def decide(tokens: torch.Tensor, digest: str) -> report.Allocation:
        decision = resume.Decision(store, resume.Fingerprint({"base": digest}), report.Allocation)
        return decision.load_or_make(lambda: bit_allocation.allocate(model, tokens, budget, step))

    found = decide(pico.tokens(2, 32), "key")
    other = pico.tokens(2, 32, seed=7)
    assert decide(other, "key") == found
    assert decide(other, "another key") != found
    assert json.loads(store.read_text())["fingerprint"] == {"base": "another key"}


def generated(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)


def test_the_whole_arrow_holds_the_budget_and_says_what_it_chose(folder: Path, tmp_path: Path) -> None:
    document, made = planned(folder, tmp_path / "m.yaml")
    first, again = (pipeline.run(document, made, tmp_path / out, generated)[0] for out in ("a", "b"))
    assert first.passed and first.allocation and first.evaluation
    assert first.allocation == again.allocation
    assert {name: digest for name, digest in first.files.items() if name.endswith(".safetensors")} == {
        name: digest for name, digest in again.files.items() if name.endswith(".safetensors")
    }
    assert 0.97 * 4.5 < first.sizes.linear_bits_per_weight <= 4.5
    units = first.allocation.units
    weights = first.sizes.linear_parameters
    assert 8 * sum(unit.bytes for unit in units) / weights == pytest.approx(first.sizes.linear_bits_per_weight)
    assert len(units) == 8 and len({unit.bits for unit in units}) > 1
    config: dict[str, Any] = json.loads((tmp_path / "a" / "Budget" / "config.json").read_text())
    stored = {group["weights"]["num_bits"] for group in config["quantization_config"]["config_groups"].values()}
    assert stored == {unit.bits for unit in units}
    card = (tmp_path / "a" / "Budget" / "README.md").read_text()
    assert "8 units of linears were chosen" in card
    assert first.allocation.predicted_kl == pytest.approx(sum(unit.kl for unit in units))
    assert not (tmp_path / "a" / "Budget" / ".blocks").exists()
    assert vllm_support.CPU in {load.target for load in report.read(tmp_path / "a" / "Budget").loads}
