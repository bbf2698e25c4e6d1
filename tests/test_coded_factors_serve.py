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
from lowrank_helpers import GPTQ, MIXED_32, layer_of, make, settled

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.dense_view import DenseView
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
        self.inputs, self.parts, self.found = inputs, parts, {part: {} for part in range(len(parts))}
        self.quant_method = SimpleNamespace(process_weights_after_loading=self.fill, apply=self.multiply)
        for name in ("weight_packed", "weight_scale", "weight_shape"):
            parameter = torch.nn.Parameter(torch.empty(0), requires_grad=False)
            parameter.weight_loader = partial(self.keep, name)
            self.register_parameter(name, parameter)

    def keep(self, name: str, parameter: torch.Tensor, loaded: torch.Tensor, part: int) -> None:
        shape = torch.tensor([self.parts[part], self.inputs])  # vLLM asks for no tensor's, which is the whole one's
        self.found[part][f"x.{name}"] = shape if name == "weight_shape" else loaded

    def fill(self, linear: Any) -> None:
        self.matrix = torch.cat([formats.dense(Tensors(one), "x", {4}, 0) for one in self.found.values()])  # type: ignore[arg-type]

    def multiply(self, linear: Any, x: torch.Tensor, bias: Any) -> torch.Tensor:
        return x @ self.matrix.T


class Tensors(dict[str, torch.Tensor]):
    """A source of weights."""

    def get(self, name: str) -> torch.Tensor:  # type: ignore[override]
        return self[name]


def method_of(folder: Path, names: dict[Any, str], shared: bool = False) -> Any:
    """For a layer of these projections, by the ids that vLLM's loader gives them."""
    from serve.coded_factors import CodedFactorsMethod
    from serve.projections import Projection

    ranks = json.loads((folder / "config.json").read_text())["quantization_config"]["ranks"]
    projections = [Projection(shard, ranks.get(name, 0)) for shard, name in names.items()]
    return CodedFactorsMethod(projections, shared, SimpleNamespace())  # type: ignore[arg-type]


def fill(layer: Any, folder: Path, prefix: str, linears: dict[str, Any]) -> None:
    """Give a layer the tensors of these linears below a prefix, as vLLM's loader of the model does."""
    reader = Reader(folder)
    for full in reader.headers:
        linear, _, name = full.removeprefix(prefix).partition(".")
        if full.startswith(prefix) and linear in linears:
            parameter = layer.get_parameter(name)
            parameter.weight_loader(parameter, reader.get(full), linears[linear])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", ["layers.0.self_attn", "layers.1.self_attn"])
def test_parts_of_a_checkpoint_find_their_place(
    name: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q of two factors beside whole k and v; and a common A of all three; outputs are split as vLLM splits heads."""
    from serve import coded_factors

    monkeypatch.setattr(coded_factors, "MergedColumnParallelLinear", Matrix)
    folder, _ = written(tmp_path)
    view = DenseView(folder)
    whole = {shard: view.get(f"model.{name}.{shard}_proj.weight").float() for shard in "qkv"}
    repeated, x = max(1, ranks // 2), torch.randn(3, 128)  # 4 query heads, 2 of keys and values
    sizes = {"q": 128 // ranks, "k": 64 * repeated // ranks, "v": 64 * repeated // ranks}
    for rank in range(ranks):
        method = method_of(folder, {shard: f"model.{name}.{shard}_proj" for shard in "qkv"}, "1" in name)
        processes = {"tp_rank": rank, "tp_size": ranks, "num_kv_head_replicas": repeated}
        made = layer_of("QKVParallelLinear", prefix="layer", **processes)
        method.create_weights(made, 128, list(sizes.values()), 128, 256, torch.float32)
        with pytest.raises(ValueError, match="were not initialized from checkpoint: layer: lr_a weight_packed of"):
            method.process_weights_after_loading(made)
        fill(made, folder, f"model.{name}.", {"qkv_proj": None, **{f"{shard}_proj": shard for shard in "qkv"}})
        method.process_weights_after_loading(made)
        places = {"q": rank, "k": rank // repeated, "v": rank // repeated}
        own = torch.cat([whole[one][places[one] * size : (places[one] + 1) * size] for one, size in sizes.items()])
        bias = torch.randn(len(own))
        assert torch.allclose(method.apply(made, x, bias), x @ own.T + bias, atol=1e-4)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("group_size", [32, -1])
def test_inputs_are_split_and_what_ranks_give_is_the_sum(
    ranks: int, group_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve import coded_factors

    monkeypatch.setattr(coded_factors, "MergedColumnParallelLinear", Matrix)
    folder, _ = written(tmp_path, group_size=group_size)
    name, part = "model.layers.1.mlp.down_proj", 256 // ranks
    x, total = torch.randn(3, 256), torch.zeros(3, 128)
    for rank in range(ranks):
        method = method_of(folder, {None: name})
        made = layer_of("RowParallelLinear", prefix="layer", tp_rank=rank, tp_size=ranks)
        method.create_weights(made, part, [128], 256, 128, torch.float32)
        fill(made, folder, "model.layers.1.mlp.", {"down_proj": None})
        method.process_weights_after_loading(made)
        total += method.apply(made, x[:, rank * part : (rank + 1) * part])
    assert torch.allclose(total, x @ DenseView(folder).get(f"{name}.weight").float().T, atol=1e-4)


def test_codes_that_are_no_equal_parts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve import coded_factors

    monkeypatch.setattr(coded_factors, "MergedColumnParallelLinear", Matrix)
    folder, _ = written(tmp_path)
    method = method_of(folder, {None: "model.layers.1.mlp.down_proj"})
    made = layer_of("RowParallelLinear", prefix="layer", tp_rank=0, tp_size=3)
    method.create_weights(made, 85, [128], 256, 128, torch.float32)
    with pytest.raises(ValueError, match=r"size mismatch: layer: lr_a weight_packed of None is \[64, 32\]"):
        fill(made, folder, "model.layers.1.mlp.", {"down_proj": None})
