"""The real vLLM, with our plugin, gives codes of factors the log-probabilities of our own forward."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pico
import pytest
import torch
from gate_helpers import candidate
from lowrank_helpers import GPTQ, MIXED_32, make, settled

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import ServeError
from hubplugin.evaluation import engine_choice, gate
from serve import smoke

PROMPTS = [[5, 6, 7, 8, 9], [100, 200], list(range(40, 56))]
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}

pytestmark = pytest.mark.serve


def written(folder: Path, model_type: str = "llama", **settings: Any) -> tuple[Path, Any]:
    """A variant of shared, mixed and whole linears, all of codes."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}  # of 32 in every family
    base = pico.write(folder / "base", model_type, **WIDE, **heads)
    variant = settled(base, MIXED_32, then=({**GPTQ, **settings},), rank_multiple=32)
    make(base, folder / "v", variant)
    return folder / "v", variant


def same_as_ours(folder: Path, variant: Any) -> None:
    line = gate.generation(candidate(folder, variant, generate=engine_choice.generate, prompts=PROMPTS))
    assert line.passed and line.detail.startswith("vLLM on c"), line.detail


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma2"])
def test_factors_shared_mixed_and_beside_whole_linears(model_type: str, tmp_path: Path) -> None:
    same_as_ours(*written(tmp_path, model_type))


def test_zero_points_rows_and_factors_without_codes(tmp_path: Path) -> None:
    same_as_ours(
        *written(tmp_path, symmetric=False, group_size=-1, ignore=["gate_proj", "up_proj", "layers.1.mlp.down_proj"])
    )


def test_a_rank_that_the_tensors_do_not_have_is_an_error_and_no_answer(tmp_path: Path) -> None:
    folder, _ = written(tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('1.mlp.down_proj": 64', '1.mlp.down_proj": 32'))
    with pytest.raises(ServeError) as refusal:
        smoke.generate(folder, PROMPTS, 2, 240)
    assert "config.json" in f"{refusal.value.what} {refusal.value.fix}"


# -- without an engine


class Matrix(torch.nn.Module):
    """In place of a linear of vLLM's: parts that are filled one by one, multiplied in float32."""

    def __init__(self, inputs: int, parts: list[int], **others: Any) -> None:
        super().__init__()
        self.parts, self.found = parts, {part: {} for part in range(len(parts))}
        self.quant_method = SimpleNamespace(process_weights_after_loading=self.fill, apply=self.multiply)
        for name in ("weight_packed", "weight_scale", "weight_shape"):
            parameter = torch.nn.Parameter(torch.empty(0), requires_grad=False)
            parameter.weight_loader = partial(self.keep, name)
            self.register_parameter(name, parameter)

    def keep(self, name: str, parameter: torch.Tensor, loaded: torch.Tensor, part: int) -> None:
        self.found[part][f"x.{name}"] = loaded

    def fill(self, linear: Any) -> None:
        self.matrix = torch.cat([formats.dense(Tensors(one), "x", {4}, 0) for one in self.found.values()])  # type: ignore[arg-type]

    def multiply(self, linear: Any, x: torch.Tensor, bias: Any) -> torch.Tensor:
        return x @ self.matrix.T


class Tensors(dict[str, torch.Tensor]):
    """A source of weights."""

    def get(self, name: str) -> torch.Tensor:  # type: ignore[override]
        return self[name]


def layer(method: Any, sizes: list[int], inputs: int, devices: int = 1) -> Any:
    made = torch.nn.Module()
    made.prefix, made.tp_size = "layer", devices
    method.create_weights(made, inputs, sizes, inputs, sum(sizes), torch.float32)
    return made


@pytest.mark.parametrize("name", ["layers.0.self_attn", "layers.1.self_attn"])
def test_parts_of_a_checkpoint_find_their_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """q of two factors beside whole k and v; and a common A of all three."""
    from serve import coded_factors
    from serve.projections import Projection

    monkeypatch.setattr(coded_factors, "MergedColumnParallelLinear", Matrix)
    folder, variant = written(tmp_path)
    reader, config = Reader(folder), json.loads((folder / "config.json").read_text())["quantization_config"]
    ranks = {shard: config["ranks"].get(f"model.{name}.{shard}_proj", 0) for shard in "qkv"}
    method = coded_factors.CodedFactorsMethod(
        [Projection(shard, rank) for shard, rank in ranks.items()],
        "1" in name,
        SimpleNamespace(),  # type: ignore[arg-type]
    )
    sizes = [variant.linear(f"model.{name}.{shard}_proj").after[0] for shard in "qkv"]
    made = layer(method, sizes, 128)
    with pytest.raises(ValueError, match="were not initialized from checkpoint: layer: lr_a weight_packed of"):
        method.process_weights_after_loading(made)
    for full in reader.headers:
        if full.startswith(f"model.{name}.") and "o_proj" not in full:
            linear, *rest = full.removeprefix(f"model.{name}.").split(".")
            parameter = made.get_parameter(".".join(rest))
            parameter.weight_loader(parameter, reader.get(full), None if linear == "qkv_proj" else linear[0])
    method.process_weights_after_loading(made)
    from hubplugin.checkpoint.dense_view import DenseView

    view = DenseView(folder)
    whole = torch.cat([view.get(f"model.{name}.{shard}_proj.weight").float() for shard in "qkv"])
    x, bias = torch.randn(3, 128), torch.randn(sum(sizes))
    assert torch.allclose(method.apply(made, x, bias), x @ whole.T + bias, atol=1e-4)


def test_several_devices_are_refused() -> None:
    from serve.coded_factors import CodedFactorsMethod
    from serve.projections import Projection

    with pytest.raises(ValueError, match="not split over 2 devices"):
        layer(CodedFactorsMethod([Projection(None, 32)], False, SimpleNamespace()), [128], 128, 2)  # type: ignore[arg-type]
