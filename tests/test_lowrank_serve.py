"""The real vLLM, with our plugin, gives factors the log-probabilities of our own forward; without it, it refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pico
import pytest
import torch
from gate_helpers import candidate
from lowrank_helpers import FACTOR, MIXED, layer_of, make, settled
from prune_helpers import PER_LAYER, base, planned, step

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.errors import ServeError
from hubplugin.evaluation import engine_choice, gate, generation
from hubplugin.model.architectures import families
from hubplugin.model.architectures.architecture import BlockShape
from hubplugin.plan.choices.pruning_space import Shape
from hubplugin.plan.schemes import Factors
from serve import smoke, vllm_errors, vllm_settings

PROMPTS = [[5, 6, 7, 8, 9], [100, 200], list(range(40, 72))]

pytestmark = pytest.mark.serve


def differences(folder: Path) -> torch.Tensor:
    """Of vLLM's log-probabilities of its own tokens, from those of our forward in float32."""
    served = smoke.generate(folder, PROMPTS, 12, 240)
    family = families.match(DenseView(folder).config, "here")
    ours = generation.logprobs(folder, family, PROMPTS, served.token_ids)
    return (ours - torch.tensor([value for row in served.logprobs for value in row])).abs()


def test_mixed_and_shared_factors_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pico.write(tmp_path / "base", dtype=torch.float32)
    make(folder, tmp_path / "v", settled(folder, MIXED))
    monkeypatch.setattr(vllm_settings, "cpu_dtype", lambda config: ("--dtype", "float32"))
    assert float(differences(tmp_path / "v").max()) < 1e-4


def test_mixed_and_shared_factors_in_bfloat16(tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "base")
    variant = settled(folder, MIXED)
    make(folder, tmp_path / "v", variant)
    line = gate.generation(
        candidate(tmp_path / "v", variant, generate=engine_choice.generate, prompts=[row[:16] for row in PROMPTS])
    )
    assert line.passed and line.detail.startswith("vLLM on c"), line.detail


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3", "gemma2", "mixtral"])
def test_every_family_that_the_plan_takes(model_type: str, tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "base", model_type)
    experts = {"ignore": ["*.experts.*"]} if model_type == "mixtral" else {}
    ranks = {name: own for name, own in MIXED.items() if not experts or ".self_attn." in name}
    variant = settled(folder, ranks, **experts)
    make(folder, tmp_path / "v", variant)
    line = gate.generation(
        candidate(tmp_path / "v", variant, generate=engine_choice.generate, prompts=[row[:16] for row in PROMPTS])
    )
    assert line.passed and line.detail.startswith("vLLM on c"), line.detail


def test_blocks_that_differ_in_width_and_have_factors(tmp_path: Path) -> None:
    source = base(tmp_path / "base", "llama", num_hidden_layers=5, dtype=torch.bfloat16)
    _, made = planned(source, step(ratio=0.3, **PER_LAYER), FACTOR)
    shape = Shape(
        (0, 1, 3, 4), (BlockShape(4, 2, 128), BlockShape(4, 2, 0), BlockShape(0, 0, 96), BlockShape(4, 2, 64))
    )
    variant = made.drafts[0].settle(shape=shape)
    assert variant.factored and variant.config["architectures"] == ["DeciLMForCausalLM"]
    make(source, tmp_path / "pruned", variant.passes[0])
    make(tmp_path / "pruned", tmp_path / "v", variant.passes[1])
    line = gate.generation(
        candidate(tmp_path / "v", variant, generate=engine_choice.generate, prompts=[row[:16] for row in PROMPTS])
    )
    assert line.passed and line.detail.startswith("vLLM on c"), line.detail


def test_without_the_plugin_vllm_refuses_it_and_the_cause_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pico.write(tmp_path / "base")
    make(folder, tmp_path / "v", settled(folder, {"model.layers.0.mlp.down_proj": Factors(16)}))
    monkeypatch.setenv("VLLM_PLUGINS", "hubplugin_amx,hubplugin_blocks")
    with pytest.raises(ServeError) as refusal:
        smoke.generate(tmp_path / "v", PROMPTS, 2, 240)
    assert "some of its linears are two factors" in refusal.value.what
    assert "VLLM_PLUGINS" in refusal.value.fix


def test_a_rank_that_the_tensors_do_not_have_is_an_error_and_no_answer(tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "base")
    variant = settled(folder, {"model.layers.0.mlp.down_proj": Factors(16)})
    make(folder, tmp_path / "v", variant)
    config = (tmp_path / "v" / "config.json").read_text()
    (tmp_path / "v" / "config.json").write_text(config.replace('down_proj": 16', 'down_proj": 20'))
    with pytest.raises(ServeError) as refusal:
        smoke.generate(tmp_path / "v", PROMPTS, 2, 240)
    assert vllm_errors.find_cause("RuntimeError: The size of tensor a (20) must match") is not None
    assert "config.json" in f"{refusal.value.what} {refusal.value.fix}"


def loaded(layer: Any, method: Any, sizes: list[int], inputs: int, tensors: dict[tuple[str, Any], torch.Tensor]) -> Any:
    """The layer with room made for these outputs and inputs, and filled."""
    method.create_weights(layer, inputs, sizes, 0, 0, torch.float64)
    for (name, shard), tensor in tensors.items():
        getattr(layer, name).weight_loader(getattr(layer, name), tensor, shard)
    # vLLM's own products on this machine are tried above; here the parts alone matter, in float64
    method._plain = SimpleNamespace(
        process_weights_after_loading=lambda matrix: None,
        apply=lambda matrix, x, bias=None: torch.nn.functional.linear(x, matrix.weight, bias),
    )
    method.process_weights_after_loading(layer)
    return layer


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("shared", [False, True])
def test_outputs_of_a_stack_are_split_as_vllm_splits_heads(ranks: int, shared: bool) -> None:
    from serve.low_rank import LowRankMethod, Projection

    torch.manual_seed(0)
    x, sizes = torch.randn(3, 24, dtype=torch.float64), {"q": 32, "k": 16, "v": 16}  # 4 query heads, 2 of keys, of 8
    own = {"q": 6, "k": 6 if shared else 0, "v": 6 if shared else 4}
    a = {shard: torch.randn(rank, 24, dtype=torch.float64) for shard, rank in own.items()}
    b = {shard: torch.randn(sizes[shard], rank, dtype=torch.float64) for shard, rank in own.items()}
    weight = torch.randn(16, 24, dtype=torch.float64)
    tensors = {("lr_b", shard): b[shard] for shard, rank in own.items() if rank}
    tensors |= {("lr_a", None): a["q"]} if shared else {("lr_a", shard): a[shard] for shard in ("q", "v")}
    tensors |= {} if shared else {("weight", "k"): weight}
    whole = {shard: b[shard] @ a["q" if shared else shard] if rank else weight for shard, rank in own.items()}
    kv_heads, repeated = max(1, 2 // ranks), max(1, ranks // 2)
    parts = {"q": 32 // ranks, "k": 8 * kv_heads, "v": 8 * kv_heads}
    for rank in range(ranks):
        layer = layer_of(
            "QKVParallelLinear", tp_rank=rank, tp_size=ranks, num_kv_head_replicas=repeated, prefix="qkv_proj"
        )
        method = LowRankMethod([Projection(shard, size) for shard, size in own.items()], shared)
        loaded(layer, method, list(parts.values()), 24, tensors)
        places = {"q": rank, "k": rank // repeated, "v": rank // repeated}
        rows = [whole[shard][places[shard] * size : (places[shard] + 1) * size] for shard, size in parts.items()]
        assert torch.allclose(method.apply(layer, x), x @ torch.cat(rows).T, atol=1e-9)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_inputs_are_split_and_what_ranks_give_is_the_sum(ranks: int) -> None:
    from serve.low_rank import LowRankMethod, Projection

    torch.manual_seed(0)
    x, a, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 32), (5, 32), (24, 5)))
    bias, total = torch.randn(24, dtype=torch.float64), torch.zeros(3, 24, dtype=torch.float64)
    for rank in range(ranks):
        part = 32 // ranks
        layer = layer_of("RowParallelLinear", tp_rank=rank, input_size_per_partition=part, prefix="down_proj")
        method = LowRankMethod([Projection(None, 5)], shared=False)
        loaded(layer, method, [24], part, {("lr_a", None): a, ("lr_b", None): b})
        total += method.apply(layer, x[:, rank * part : (rank + 1) * part], bias if rank == 0 else None)
    assert torch.allclose(total, x @ (b @ a).T + bias, atol=1e-9)


def test_what_is_missing_or_of_another_shape_is_an_error() -> None:
    from serve.low_rank import LowRankMethod, Projection

    a, b = torch.ones(5, 32, dtype=torch.float64), torch.ones(24, 5, dtype=torch.float64)
    for given, what in (
        ({("lr_a", None): a}, "were not initialized from checkpoint: down_proj: lr_b"),
        ({("lr_a", None): a, ("lr_b", None): b[:, :4]}, "size mismatch: down_proj: lr_b"),
        ({("lr_a", None): a, ("weight", None): a}, "size mismatch: down_proj has no weight"),
    ):
        layer = layer_of("RowParallelLinear", tp_rank=0, input_size_per_partition=32, prefix="down_proj")
        with pytest.raises(ValueError, match=what):
            loaded(layer, LowRankMethod([Projection(None, 5)], shared=False), [24], 32, given)
