"""Mixture-of-Experts: our linears against transformers' stacked experts, and what cold experts get."""

from pathlib import Path

import pico
import pytest
import torch
from gate_helpers import candidate
from plan_helpers import config_json, document, headers
from safetensors.torch import load_file, save_file
from serve_helpers import skip_without_kernels
from test_pipeline_parts import NOTHING, make, planned
from transformers import AutoModelForCausalLM

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.headers import Header
from hubplugin.compress import export
from hubplugin.compress.blocks import blockwise
from hubplugin.compress.quantization_config import quantization_config
from hubplugin.errors import FamilyError, PlanError
from hubplugin.evaluation import gate, quality_metrics
from hubplugin.evaluation.engine_choice import generate
from hubplugin.evaluation.generation import generate_dequantized
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.model import experts, layer_inputs
from hubplugin.model.architectures import architecture, families
from hubplugin.model.block_runner import Model
from hubplugin.plan import planner
from hubplugin.plan.vllm_support import DENSE

SPARSE = sorted(name for name, row in families.FAMILIES.items() if row.experts)
GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
ROUTER = {"mixtral": "block_sparse_moe.gate", "qwen3_moe": "mlp.gate"}
DOWN = {"mixtral": "w2", "qwen3_moe": "down_proj"}


@pytest.fixture(params=SPARSE)
def base(request, tmp_path: Path) -> tuple[str, Path]:
    return request.param, pico.write(tmp_path / "m", request.param)


def opened(folder: Path) -> Model:
    view = DenseView(folder)
    return Model(view, view.config, families.match(view.config, "x"))


def starve(folder: Path, model_type: str, expert: int) -> None:
    """Let no token of the first block reach an expert: all tokens share a direction that its router turns away from."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 5
    router = tensors[f"model.layers.0.{ROUTER[model_type]}.weight"]
    router[:, 0], router[expert] = 0, 0
    router[expert, 0] = -100
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("model_type", SPARSE)
def test_our_experts_give_what_transformers_own_give(model_type: str) -> None:
    model = pico.model(model_type, dtype=torch.float32)
    block = model.model.layers[0]
    hidden, chosen = torch.randn(50, 64), torch.randint(0, 3, (50, 2))  # nobody goes to the last one
    chosen[:, 1] = (chosen[:, 0] + 1) % 3
    weights = torch.rand(50, 2)
    with torch.no_grad():
        expected = block.mlp.experts(hidden, chosen, weights)
        names = families.FAMILIES[model_type].experts
        assert names
        experts.install(block, names)
        made = block.get_submodule(names.name)(hidden, chosen, weights)
    torch.testing.assert_close(made, expected)
    found = {name for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
    assert found == set(families.match(config_json(model.config), "x").linears())
    assert set(block.state_dict()) == {
        name.removeprefix("model.layers.0.") for name in headers(model.config) if name.startswith("model.layers.0.")
    }


@pytest.mark.parametrize("spilled", [False, True])
def test_every_tap_of_an_expert_sees_what_a_plain_pass_gives_its_linears(base, spilled: bool, tmp_path: Path) -> None:
    model, spill = opened(base[1]), tmp_path / "spill"
    spill.mkdir()
    batches = model.embed(pico.tokens(3, 64), spill if spilled else None)
    block, seen = model.block(0), {}
    input_groups = [input_group for input_group in model.family.input_groups if input_group.expert is not None]
    hooks = [
        block.get_submodule(input_group.linears[-1]).register_forward_pre_hook(
            lambda module, inputs, name=input_group.name: seen.update({name: inputs[0]})
        )
        for input_group in input_groups
    ]
    with torch.inference_mode():
        (expected,) = (block(batch.hidden, **batch.keywords[0]) for batch in batches)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 8
    for input_group in input_groups:
        (rows,) = model.capture_inputs(0, batches, input_group)
        assert torch.equal(rows, seen[input_group.name]), input_group.name
    model.forward_block(0, batches)
    assert torch.equal(batches[0].hidden, expected)
    assert "experts.hidden" not in batches[0] and len(list(spill.iterdir())) == spilled


def test_tokens_at_large_are_every_nth_of_all_batches(base, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hubplugin.model.block_runner.MICRO_TOKENS", 50)
    model = opened(base[1])
    batches = model.embed(pico.tokens(3, 50), tmp_path)
    model.block(0)
    input_group = next(input_group for input_group in model.family.input_groups if input_group.expert == 1)
    every = torch.cat(list(model.staged(0).unrouted_inputs(batches, input_group)))
    assert len(batches) == 3 and len(every) == 150
    assert torch.equal(torch.cat(list(model.staged(0).unrouted_inputs(batches, input_group, 22))), every[::7])


def test_all_experts_are_quantized_whether_or_not_tokens_reach_them(base, tmp_path: Path) -> None:
    model_type, folder = base
    starve(folder, model_type, 3)
    ids = pico.tokens(8, 96)
    step = {**GPTQ, "format": "gptq"}
    blocks = make(folder, tmp_path / "v", step, tokens=ids)
    variant, row, _ = planned(folder, step)
    assert len(variant.quantized) == 2 * (4 + 4 * 3)
    headers = export.Reader(tmp_path / "v").headers
    assert all(f"{linear.name}.qweight" in headers for linear in variant.quantized)
    assert headers[f"model.layers.0.{ROUTER[model_type]}.weight"].dtype == "BF16"
    told = {result.name: result.fallback for result in blocks[0].results}
    cold = {name: text for name, text in told.items() if ".experts.3." in name}
    assert len(cold) == 2 and all(text and text.startswith("saw 0 tokens: ") for text in cold.values())
    warm = [text for name, text in told.items() if ".experts." in name and DOWN[model_type] not in name]
    assert None in warm
    for line in (gate.as_planned(candidate(tmp_path / "v", variant)), gate.finite(candidate(tmp_path / "v"))):
        assert line.passed, line.detail
    reference = quality_metrics.reference(folder, row, pico.tokens(4, 48, seed=9), NOTHING)
    assert 0 < (quality_metrics.measure(tmp_path / "v", row, reference, kl=True).variant.mean_kl or 0) < 0.5


def test_cold_experts_are_better_off_than_with_their_own_few_tokens(base, tmp_path: Path, monkeypatch) -> None:
    """Judged where it counts: on tokens that calibration did not show it."""
    folder, losses = base[1], {}
    for cold in (4, 0):
        monkeypatch.setattr(layer_inputs, "COLD", cold)
        out = tmp_path / f"v{cold}"
        make(folder, out, GPTQ, tokens=pico.tokens(1, 40))
        before, after = opened(folder), opened(out)
        batches = before.embed(pico.tokens(16, 96, seed=3))
        block, made = before.block(0), after.block(0)
        losses[cold] = 0.0
        for input_group in before.family.input_groups:
            if input_group.expert is not None:
                x = torch.cat(list(before.capture_inputs(0, batches, input_group)))
                for name in input_group.linears:
                    change = block.get_submodule(name).weight - made.get_submodule(name).weight
                    losses[cold] += float((x @ change.T).square().sum())
    assert losses[4] < losses[0]


def test_the_dequantized_folder_is_a_model_of_transformers_own_class(base, tmp_path: Path) -> None:
    make(base[1], tmp_path / "v", GPTQ)
    view = DenseView(tmp_path / "v")
    plain = {name: view.get(name) for name in view.names()}
    config = {key: value for key, value in view.config.items() if key != "quantization_config"}
    (tmp_path / "d").mkdir()
    export._dump(config, tmp_path / "d" / "config.json")
    save_file(plain, tmp_path / "d" / "model.safetensors", metadata={"format": "pt"})
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "d", dtype=torch.float32)
    ids = pico.tokens(2, 40)
    model = open_model(tmp_path / "v", families.match(config, "x"))
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(model.hidden_states(ids)), whole(ids.long()).logits, atol=1e-4, rtol=1e-4
        )


def test_int8_inputs_of_experts_are_rounded_in_both_forward_passes(base, tmp_path: Path) -> None:
    step = {"method": "gptq", "bits": 8, "group_size": -1, "activation_bits": 8}
    make(base[1], tmp_path / "v", step)
    variant, _, _ = planned(base[1], step)
    line = gate.generation(
        candidate(
            tmp_path / "v", variant, generate=lambda *a: generate_dequantized(*a[:3]), prompts=[[1, 2, 3], [5, 6]]
        )
    )
    assert line.passed and "differ from float32 by 0.000" in line.detail, line.detail


def test_linears_of_experts_are_counted(base) -> None:
    variant, _, config = planned(base[1], GPTQ)
    width = config["moe_intermediate_size" if base[0] == "qwen3_moe" else "intermediate_size"]
    attention = 64 * 64 * 2 + 32 * 64 * 2
    assert variant.linear_parameters == 2 * (attention + 4 * 3 * 64 * width)
    assert 4.5 < variant.linear_bits_per_weight < 5.6
    assert variant.bytes == sum(header.bytes for header in variant.tensors.values())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"group_size": 64}, ""),
        ({"group_size": 32}, "the CPU kernel for experts has groups of 64, 128 or a row, not of 32"),
        ({"group_size": 64, "symmetric": False}, "no CPU kernel for experts with zeros"),
        ({"bits": 8, "group_size": -1, "activation_bits": 8}, ""),
    ],
)
def test_what_vllm_runs_of_experts_on_a_cpu(change, why) -> None:
    config = pico.config("mixtral", hidden_size=128, num_attention_heads=4)
    made = planner.make(document([{**GPTQ, **change}]), config_json(config), headers(config))
    verdict, end = made.variants[0].verdicts[0], "" if "activation_bits" in change else f"; on others {DENSE}"
    assert verdict.why == why and verdict.loads is not bool(why)
    assert verdict.note == ("" if why else f"an x86 CPU with AMX{end}")


def test_of_autogptqs_format_experts_need_whole_tiles_on_a_cpu() -> None:
    config = pico.config("mixtral", hidden_size=64)
    gptq, other = (
        planner.make(document([{**GPTQ, "group_size": 64, "format": name}]), config_json(config), headers(config))
        for name in ("gptq", "compressed-tensors")
    )
    assert "hidden_size of whole 128s" in gptq.variants[0].verdicts[0].why
    assert other.variants[0].verdicts[0].loads


def refused(config, *steps) -> PlanError:
    with pytest.raises(PlanError) as caught:
        planner.make(document(list(steps)), config_json(config), headers(config))
    return caught.value


def test_what_experts_exclude_is_refused_with_the_reason() -> None:
    config = pico.config("qwen3_moe")
    assert "channels of its own" in refused(config, {"method": "prune", "ffn": 0.25}).what
    error = refused(config, {**GPTQ, "ignore": ["experts.2.down_proj"]})
    assert "model.layers.0.mlp.experts" in error.what and "of every expert" in error.fix
    assert "losses" in refused(config, {"method": "gptq", "budget": {"bits_per_weight": 4.5}}).what


def test_experts_left_dense_are_named_as_vllm_and_others_ask_for_them() -> None:
    config = pico.config("mixtral", hidden_size=128, num_attention_heads=4)
    step = {**GPTQ, "format": "gptq", "ignore": ["experts.*"]}
    made = planner.make(document([step]), config_json(config), headers(config))
    quantization = quantization_config(made.variants[0])
    assert quantization is not None
    assert quantization["dynamic"] == {r"-:model\.layers\.(?:0|1)\.block_sparse_moe\.experts(?:\..+)?$": {}}


@pytest.mark.parametrize(
    ("model_type", "change", "place"),
    [
        ("qwen3_moe", {"num_experts": 0}, "num_experts"),
        ("qwen3_moe", {"num_experts": 10**9}, "num_experts"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ],
)
def test_a_config_that_counts_no_experts_is_refused(model_type, change, place) -> None:
    raw = config_json(pico.config(model_type))
    if "num_experts" in change:
        raw.pop("num_local_experts", None)
    with pytest.raises(FamilyError) as caught:
        families.match({**raw, **change}, "o/m/config.json")
    assert caught.value.where == f"o/m/config.json: {place}"


def test_stacked_experts_on_disk_are_refused_with_the_way_out() -> None:
    config = pico.config("qwen3_moe")
    row = families.match(config_json(config), "x")
    stored = headers(config) | {"model.layers.0.mlp.experts.gate_up_proj": Header("BF16", (4, 192, 64))}
    with pytest.raises(PlanError) as caught:
        architecture.check(stored, {name: each.shape for name, each in stored.items()}, row, "o/m")
    assert "save the model with transformers" in caught.value.fix


@pytest.mark.serve
@pytest.mark.parametrize(
    ("model_type", "step"),
    [
        ("mixtral", {**GPTQ, "group_size": 64, "format": "gptq"}),
        ("qwen3_moe", {**GPTQ, "group_size": 128, "format": "compressed-tensors"}),
        ("qwen3_moe", {"method": "gptq", "bits": 8, "group_size": -1, "activation_bits": 8}),
    ],
)
def test_vllm_loads_quantized_experts_and_agrees_with_our_forward(model_type, step, tmp_path: Path) -> None:
    base = pico.write(
        tmp_path / "m", model_type, hidden_size=128, num_attention_heads=4, moe_intermediate_size=128,
        intermediate_size=128,
    )  # fmt: skip
    make(base, tmp_path / "v", step, tokens=pico.tokens(8, 96))
    variant, _, _ = planned(base, step)
    skip_without_kernels(variant)
    line = gate.generation(candidate(tmp_path / "v", variant, generate=generate, prompts=[[1, 2, 3, 4], [70, 80]]))
    assert line.passed and line.detail.startswith("vLLM on"), line.detail


def test_an_interrupted_run_goes_on_with_the_experts_it_finished(base, tmp_path: Path) -> None:
    folder = base[1]
    whole = make(folder, tmp_path / "v", GPTQ)
    view = DenseView(tmp_path / "v")

    class Finished:
        finished = 1

        def dense(self, index: int) -> dict[str, torch.Tensor]:
            return dict(view.below(f"model.layers.{index}"))

    variant, _, _ = planned(folder, GPTQ)
    (second,) = blockwise.blocks(
        opened(folder), blockwise.Calibration(pico.tokens()), variant, torch.bfloat16, Finished()
    )
    assert second.index == 1 and second.encodings.keys() == whole[1].encodings.keys()
    for name, encoding in second.encodings.items():
        assert torch.equal(encoding.codes, whole[1].encodings[name].codes), name


@pytest.mark.parametrize(
    ("config", "billions"),  # sizes as published: Qwen3-30B-A3B and Mixtral-8x7B
    [
        (
            {
                "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32,
                "num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128,
                "num_experts_per_tok": 8, "num_hidden_layers": 48, "vocab_size": 151936,
            },
            30.5,
        ),
        (
            {
                "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
                "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 32,
                "vocab_size": 32000,
            },
            46.7,
        ),
    ],
)  # fmt: skip
def test_published_models_have_the_size_that_is_published(config, billions) -> None:
    row = families.match(config, "x")
    dims = architecture.dimensions(config, row, "x")
    count = sum(Header("BF16", shape).count for shape in architecture.expected(config, row, dims).values())
    assert round(count / 1e9, 1) == billions
