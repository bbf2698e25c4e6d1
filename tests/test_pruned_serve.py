"""Stock vLLM loads every class that pruning leaves models as, and refuses what the plan refuses."""

import json
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from gate_helpers import candidate
from prune_helpers import PER_LAYER, base, decided, make, planned, step
from safetensors.torch import load_file, save_file
from serve_helpers import skip_without_kernels

from hubplugin.errors import ServeError
from hubplugin.evaluation import engine_choice, gate
from hubplugin.model.architectures.architecture import BlockShape
from hubplugin.plan.choices.pruning_space import Shape
from hubplugin.plan.variant_plan import VariantPlan
from serve import smoke

GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
PROMPTS = [[5, 6, 7, 8, 9], [100, 200]]
DIFFERENT = Shape(
    (0, 1, 3, 4), (BlockShape(4, 2, 128), BlockShape(4, 2, 0), BlockShape(0, 0, 96), BlockShape(4, 2, 64))
)

pytestmark = pytest.mark.serve


def different(source: Path, *steps: dict[str, Any], shape: Shape = DIFFERENT) -> VariantPlan:
    """A variant whose blocks are narrower, without FFN and without attention, and one of the base's is gone."""
    _, made = planned(source, step(ratio=0.3, **PER_LAYER), *steps)
    return made.drafts[0].settle(shape=shape)


def served(source: Path, out: Path, variant: VariantPlan) -> dict[str, Any]:
    """Generate with vLLM from what becomes of a variant, and hold it against our own forward."""
    skip_without_kernels(variant)
    make(source, out, variant)
    verdict = next(verdict for verdict in variant.verdicts if verdict.target == "cpu")
    assert verdict.loads, verdict.why
    line = gate.generation(candidate(out, variant, generate=engine_choice.generate, prompts=PROMPTS))
    assert line.passed and line.detail.startswith("vLLM on c"), line.detail
    return json.loads((out / "config.json").read_text())


def test_fewer_groups_of_a_llama_as_a_mistral(tmp_path: Path) -> None:
    source = base(tmp_path / "m", "llama", num_key_value_heads=4, dtype=torch.bfloat16)
    config = served(source, tmp_path / "v", decided(source, step(kv_heads=0.25)))
    assert (config["model_type"], config["num_attention_heads"], config["hidden_size"]) == ("mistral", 3, 128)


def test_fewer_heads_of_a_qwen2_as_a_llama(tmp_path: Path) -> None:
    source = base(tmp_path / "m", "qwen2", dtype=torch.bfloat16)
    config = served(source, tmp_path / "v", decided(source, step(heads=0.5), GPTQ))
    assert (config["model_type"], config["attention_bias"]) == ("llama", True)


@pytest.mark.parametrize("steps", [(), (GPTQ,)], ids=["dense", "int4"])
def test_blocks_that_differ(steps: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    source = base(tmp_path / "m", "llama", num_hidden_layers=5, dtype=torch.bfloat16)
    config = served(source, tmp_path / "v", different(source, *steps))
    assert config["architectures"] == ["DeciLMForCausalLM"]


@pytest.mark.parametrize("steps", [(), (GPTQ,)], ids=["dense", "int4"])
def test_blocks_that_differ_in_heads(steps: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    source = base(tmp_path / "m", "llama", num_hidden_layers=3, dtype=torch.bfloat16)
    blocks = BlockShape(4, 2, 128), BlockShape(2, 1, 128), BlockShape(2, 2, 64)
    config = served(source, tmp_path / "v", different(source, *steps, shape=Shape((0, 1, 2), blocks)))
    assert config["architectures"] == ["UnevenHeadsForCausalLM"]
    assert [block["attention"].get("num_attention_heads") for block in config["block_configs"]] == [None, 2, 2]


def test_blocks_that_differ_with_biases_and_three_heads(tmp_path: Path) -> None:
    source = base(tmp_path / "m", "qwen2", num_hidden_layers=5, num_key_value_heads=4, dtype=torch.bfloat16)
    blocks = tuple(BlockShape(3, 3, one.ffn) if one.heads else one for one in DIFFERENT.blocks)
    config = served(source, tmp_path / "v", different(source, shape=Shape(DIFFERENT.sources, blocks)))
    assert (config["attention_bias"], config["num_attention_heads"]) == (True, 3)


def test_vllm_itself_refuses_a_qwen2_whose_heads_have_another_size(tmp_path: Path) -> None:
    source = base(tmp_path / "m", "qwen2", num_attention_heads=2, head_dim=32, dtype=torch.bfloat16)
    with pytest.raises(ServeError):
        smoke.generate(source, PROMPTS, 2, 240)


def test_vllm_itself_refuses_a_first_block_without_attention(tmp_path: Path) -> None:
    source = base(tmp_path / "m", "llama", num_hidden_layers=5, dtype=torch.bfloat16)
    make(source, tmp_path / "v", different(source))
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    config["block_configs"][0]["attention"] = {"no_op": True, "n_heads_in_group": None}
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "v" / "model.safetensors")
    gone = ("model.layers.0.self_attn.", "model.layers.0.input_layernorm.")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}
    assert len(kept) == len(tensors) - 5
    save_file(kept, tmp_path / "v" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ServeError):
        smoke.generate(tmp_path / "v", PROMPTS, 2, 240)


def test_a_pico_model_is_one_that_vllm_loads(tmp_path: Path) -> None:
    """So that the refusals above are those of their shapes."""
    source = base(tmp_path / "m", "qwen2", dtype=torch.bfloat16)
    assert all(smoke.generate(source, PROMPTS, 2, 240).token_ids) and pico.VOCABULARY == 288
