"""Gradients at what the base's linears put out: those of the whole model, and variants that are made with them."""

from pathlib import Path

import pico
import pytest
import torch
from interruption_helpers import stopped
from plan_helpers import config_json
from pydantic import ValidationError
from sharing_helpers import alone, run, weights, write
from torch import Tensor, nn

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress import export
from hubplugin.compress.blocks import base_walk, output_gradients
from hubplugin.kernels import token_draws
from hubplugin.manifest.methods import Cost
from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import two_sided
from hubplugin.model.architectures import architecture, configs, families
from hubplugin.model.block_runner import Model
from hubplugin.plan.costs import estimates
from hubplugin.plan.costs.estimates import Work

INT4 = {"method": "gptq", "bits": 4, "group_size": 32}
FISHER = {**INT4, "fisher_tokens": 64}


def block_model(folder: Path) -> Model:
    config = configs.read_config(folder, "x")
    return Model(DenseView(folder), config, families.match(config, "x"))


def moments_of_whole_model(model: nn.Module, ids: Tensor, drawn: list[Tensor]) -> dict[str, Tensor]:
    """Second moments of the gradients at all linears' outputs, of the summed loss of drawn tokens, by one autograd."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> object:
        def hook(module: nn.Module, inputs: object, outputs: Tensor) -> None:
            outputs.register_hook(lambda g: sums.update({name: g.flatten(0, -2).T @ g.flatten(0, -2)}))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            module.register_forward_hook(watch(name))
    logits = model(input_ids=ids.long(), use_cache=False).logits.float().flatten(0, -2)
    nn.functional.cross_entropy(logits, torch.cat(drawn), reduction="sum").backward()
    return sums


@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
def test_they_are_those_of_the_whole_model(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ids = pico.write(tmp_path / "m", model_type), pico.tokens(3, 32)
    drawn: list[Tensor] = []
    real = token_draws.drawn
    monkeypatch.setattr(token_draws, "drawn", lambda *given: drawn.append(real(*given)) or drawn[-1])
    seen: dict[str, Tensor] = {}
    real_factored = two_sided.factored
    monkeypatch.setattr(two_sided, "factored", lambda moments: (moments, real_factored(moments)))
    model = block_model(folder)
    gradients = output_gradients.measured(model, ids)
    for index in range(len(model)):
        made = gradients.of_block(index, model.block(index))
        seen |= {f"model.layers.{index}.{name}": both[0] for name, both in made.items()}
    whole = moments_of_whole_model(model_type_as_float32(folder), ids, drawn)
    linears = [name for name in whole if "experts" not in name and not name.endswith(".gate")]
    assert sorted(seen) == sorted(linears) and len(linears) >= 4
    for name in linears:
        assert torch.allclose(seen[name], whole[name], rtol=1e-2, atol=2e-3 * float(whole[name].abs().max())), name


def model_type_as_float32(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-any-return]


def test_tokens_are_drawn_as_they_are_predicted() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(4000, 1)
    gradient = output_gradients._of_drawn(logits, torch.Generator().manual_seed(0))
    drawn = (gradient < 0).float().mean(dim=0)
    assert torch.allclose(drawn, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)
    assert torch.allclose(gradient.sum(dim=1), torch.zeros(4000), atol=1e-5)


def test_sequences_are_evenly_spaced() -> None:
    tokens = torch.arange(64)[:, None].expand(64, 16)
    assert tokens[base_walk.every_nth(64, 16, 16 * 16)][:, 0].tolist() == list(range(0, 64, 4))
    assert tokens[base_walk.every_nth(64, 16, 1)][:, 0].tolist() == [0]
    assert len(tokens[base_walk.every_nth(64, 16, 2**20)]) == 64


VARIANTS = {
    "Int4": [INT4],
    "Fisher": [FISHER],
    "Fisher-8": [{**FISHER, "bits": 8}],
    "Pruned-Fisher": [{"method": "prune", "ffn": 0.25}, FISHER],
    "Mixed": [
        {"method": "gptq", "format": "compressed-tensors", "budget": {"bits_per_weight": 5.0}, "fisher_tokens": 64}
    ],
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a base, texts and a manifest."""
    pico.write(tmp_path / "pico")
    write(tmp_path, VARIANTS, 4, perplexity_ratio=30)
    return tmp_path


def test_variants_together_are_those_of_each_alone(home: Path) -> None:
    run(home)
    alone(home)
    together = weights(home, "out")
    assert together == weights(home, "alone")
    assert together["Int4/model.safetensors"] != together["Fisher/model.safetensors"]


def test_a_killed_run_goes_on_to_the_same_bytes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, {"Fisher": [FISHER]}, 4, perplexity_ratio=30)
    run(home, "whole")
    with stopped(1, export.Folder, "add", monkeypatch):
        run(home)
    run(home)
    assert weights(home, "out") == weights(home, "whole")


def test_passes_that_would_undo_it_are_refused() -> None:
    for other in ({"descent": 1}, {"scale_refit": True}):
        with pytest.raises(ValidationError, match="undo"):
            Gptq.model_validate({**FISHER, **other})


def test_a_report_from_before_the_setting_still_describes_a_variant() -> None:
    assert Gptq.model_validate(FISHER).model_dump()["fisher_tokens"] == 64
    assert "fisher_tokens" not in Gptq.model_validate(INT4).model_dump()


def test_more_gradients_take_more_memory_and_time() -> None:
    few, many = (estimates_of({**FISHER, "fisher_tokens": count}) for count in (0, 2**20))
    assert many[0] > few[0] and many[1] > few[1]


def estimates_of(step: dict[str, object]) -> tuple[int, float]:
    """Bytes of the peak and seconds that are planned for a pico model."""
    config = config_json(pico.config())
    row = families.match(config, "")
    dims = architecture.dimensions(config, row, "")
    shapes = architecture.linear_shapes(row, dims)
    fisher = Gptq.model_validate(step).fisher_tokens
    work = Work(samples=64, tokens=512, quantizes=Cost(), prunes=None, fisher=fisher)
    return estimates.memory(row, dims, shapes, work).peak, estimates.seconds(row, dims, shapes, work)


def test_gradients_are_damped_as_much_as_the_documents_say() -> None:
    outputs = torch.diag(torch.tensor([1.0, 3.0]))
    factor = two_sided.factored(outputs)
    assert factor.order.tolist() == [1, 0]
    assert torch.equal(factor.unit_upper, linear_algebra.factor(outputs, two_sided.DAMP, factor.order).unit_upper)
