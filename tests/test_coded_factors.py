"""Codes of both factors of a linear: by hand and against least squares; what plan, files and card say of them."""

import json
from pathlib import Path
from typing import Any

import card_helpers
import pico
import pytest
import torch
from lowrank_helpers import FACTOR, GPTQ, MIXED_32, make, settled
from plan_helpers import config_json, document, headers

from hubplugin.checkpoint import encodings, formats
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.encodings import CodedFactors
from hubplugin.checkpoint.encodings import LowRank as Factored
from hubplugin.checkpoint.format_names import factor_a
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CheckpointError, PlanError
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.methods import coded_factors, lowrank
from hubplugin.methods.gptq import gptq
from hubplugin.model.architectures import families
from hubplugin.plan import planner, sizes, table
from hubplugin.plan.checks import lowrank as checks
from hubplugin.plan.costs import operations
from hubplugin.plan.schemes import Factors
from hubplugin.verification import stored_linears
from serve import codes, cpu_features, vllm_settings

STEP = LowRank(method="lowrank", ratio=0.2, rank_multiple=32, damp=1e-9)
CODES = Gptq(method="gptq", bits=4, group_size=32, damp=1e-9)
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}  # holds ranks of 32
LOW = {**FACTOR, "rank_multiple": 32}


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [outputs, inputs], and tokens [600, inputs] with correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(600, inputs, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), x


# -- factors and their codes


def test_factors_on_the_grid_are_kept_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randint(-7, 8, shape, generator=generator).double() for shape in ((40, 32), (32, 64)))
    for column, value in ((0, -7), (1, 8)):  # so that every group's scale is 1, and 1/4, and its zero 7
        b[:, column], a[:, column::32] = value, value
    weight, h = b @ (a / 4), torch.eye(64, dtype=torch.float64)
    plain = CODES.model_copy(update={"clip_search": False, "symmetric": False})
    made = coded_factors.compress(weight, Factored(b, a / 4), plain, lowrank.prepare(h, STEP))
    assert isinstance(made.encoding, CodedFactors)
    assert torch.equal(made.encoding.a.dense(), a.float() / 4) and torch.equal(made.encoding.b.dense(), b.float())
    assert torch.equal(made.weight, weight.float()) and made.loss < 1e-12


@pytest.mark.parametrize("bits", [2, 4])
def test_b_is_fitted_to_the_codes_of_a_and_quantized_under_what_it_reads(bits: int) -> None:
    (weight, x), codes = problem(80, 96), CODES.model_copy(update={"bits": bits})
    h = x.T @ x
    floats = lowrank.compress(weight, h, STEP, rank=64).encoding
    assert isinstance(floats, Factored)
    made = coded_factors.compress(weight, floats, codes, lowrank.prepare(h, STEP))
    assert isinstance(made.encoding, CodedFactors)
    a = gptq.compress(floats.a, h, codes)
    assert torch.equal(made.encoding.a.dense(), a.weight.float())
    read = x @ a.weight.T.double()  # what B reads, token by token
    best = torch.linalg.lstsq(read, x @ weight.T).solution.T
    b = gptq.compress(best, read.T @ read, codes)
    assert torch.allclose(made.encoding.b.dense(), b.weight.float(), atol=1e-3 * float(b.weight.abs().max()))
    assert made.loss == pytest.approx(
        float(((weight - made.weight) @ x.T).square().sum() / (weight @ x.T).square().sum())
    )
    alone = gptq.compress(floats.b, read.T @ read, codes).weight.double() @ a.weight.double()
    assert made.loss < 0.9 * float(((weight - alone) @ x.T).square().sum() / (weight @ x.T).square().sum())


def test_rows_of_factors_are_those_of_the_product() -> None:
    weight, x = problem(48, 96)
    made = coded_factors.compress(
        weight, lowrank.compress(weight, x.T @ x, STEP, rank=32).encoding, CODES, lowrank.prepare(x.T @ x, STEP)
    )  # type: ignore[arg-type]
    assert isinstance(made.encoding, CodedFactors)
    assert torch.equal(made.encoding.rows(slice(8, 24)).dense(), made.weight[8:24])


# -- the plan


def planned(steps: list[dict[str, Any]], model_type: str = "llama", **changes: Any) -> Any:
    config = pico.config(model_type, **{**WIDE, **changes})
    return planner.make(document(steps), config_json(config), headers(config))


@pytest.mark.parametrize(
    ("steps", "where", "what", "fix"),
    [
        ([{**LOW, "layout": "merged"}, GPTQ], "V[0].layout", "of full rank again", "use layout: factored"),
        ([LOW, {"method": "codebook"}], "V[1].method", "no format and no kernel here has codebooks", "use gptq"),
        ([LOW, {**GPTQ, "format": "gptq"}], "V[1].format", "in compressed-tensors' format", "leave it out"),
        ([LOW, {**GPTQ, "overrides": {"q_proj": {"bits": 8}}}], "V[1].overrides", "for whole weights", "remove it"),
        ([LOW, {"method": "gptq", "budget": {"bits_per_weight": 4.5}}], "V[1].budget", "for whole weights", "remove"),
        ([LOW, {**GPTQ, "engine": "gptqmodel"}], "V[1].engine", "for whole weights", "remove it"),
        (
            [LOW, {**GPTQ, "group_size": 64}],
            "V[1].group_size",
            "64 does not divide ranks, which are multiples of 32",
            "use 32 or -1, or rank_multiple: 64",
        ),
        (
            [{**LOW, "rank_multiple": 4}, {**GPTQ, "group_size": -1}],
            "V[1].bits",
            "ranks are multiples of 4, and it takes 8 codes",
            "use rank_multiple: 8",
        ),
        ([LOW, GPTQ, {"method": "tune"}], "V[2].method", "tune stands after lowrank: it trains scales", "a variant"),
        ([LOW, {**GPTQ, "ignore": ["q_proj"]}], "V[1]", "vLLM stacks these linears", "all of q_proj, k_proj, v_proj"),
    ],
)
def test_what_the_plan_refuses(steps: list[dict[str, Any]], where: str, what: str, fix: str) -> None:
    with pytest.raises(PlanError) as refusal:
        planned(steps)
    assert refusal.value.where == f"m.yaml: variants.{where}"
    assert what in refusal.value.what and fix in refusal.value.fix


def test_experts_have_no_codes_beside_factors() -> None:
    with pytest.raises(PlanError, match="codes of experts not beside factors"):
        planned([{**LOW, "ignore": ["*.experts.*"]}, GPTQ], "mixtral")
    dense = {"ignore": ["*.experts.*"]}
    assert planned([{**LOW, **dense}, {**GPTQ, **dense}], "mixtral").variants[0].factored


def test_the_plan_weighs_the_codes_of_both_factors() -> None:
    made = planned([{**LOW, "ratio": 0.4}, {**GPTQ, "ignore": ["layers.0.mlp.down_proj"]}])
    variant = made.variants[0]
    assert variant.steps[1].format == "compressed-tensors" and not variant.passes
    factored = [linear for linear in variant.factored if linear.scheme]
    assert factored
    for linear in factored:
        for name, (outputs, inputs) in sizes.matrices(linear).items():
            assert variant.tensors[f"{name}.weight_packed"].shape == (outputs, inputs // 8)
            assert variant.tensors[f"{name}.weight_scale"].shape == (outputs, inputs // 32)
    same = planned([{**LOW, "ratio": 0.4}]).variants[0]
    assert (variant.parameters, variant.linear_parameters) == (same.parameters, same.linear_parameters)
    work, floats = (operations.of(one.family, one.dims, one.config, one.tensors) for one in (variant, same))
    assert work == floats
    whole = planned([{**LOW, "ratio": 0.4}, GPTQ]).variants[0]
    shapes = 64 * 2 * len({name for one in whole.linears for name in sizes.matrices(one)})  # bits of weight_shape
    assert whole.linear_bits_per_weight == pytest.approx(4 + 16 / 32 + shapes / whole.linear_parameters)
    text = table.render(made)
    assert "compressed-tensors (of factors there are codes in no other)" in text and checks.PLUGIN in text
    loads = {verdict.target: verdict.why for verdict in variant.verdicts}
    assert loads["cpu"] == loads["cuda tp=1"] == loads["cuda tp=2"] == ""
    assert "in Python" not in text


def test_factors_are_split_over_gpus_as_their_layer_is() -> None:
    """down's A reads a part of the inputs, in whole groups; its B is whole on each GPU, as is A of q, k and v."""

    def why(linear: str, rank: int, **settings: Any) -> str:
        steps = [{**LOW, "rank_multiple": rank}, {**GPTQ, "ignore": ["*.up_proj", "*.gate_proj"], **settings}]
        made = planned(steps).drafts[0].settle(factors={f"model.layers.0.{linear}": Factors(rank)})
        return {verdict.target: verdict.why for verdict in made.verdicts}["cuda tp=2"]

    assert why("mlp.down_proj", 32) == why("self_attn.v_proj", 32) == why("self_attn.q_proj", 32, symmetric=False) == ""
    part = "group_size 64 does not divide 32 inputs per GPU"
    assert why("mlp.down_proj", 64, group_size=64) == f"o_proj: {part}"
    assert why("self_attn.o_proj", 64, group_size=64) == f"o_proj.lr_a: {part}"


def test_zero_points_are_checked_part_by_part() -> None:
    for factors in (MIXED_32, {name: own for name, own in MIXED_32.items() if not own.shared}):
        made = planned([LOW, {**GPTQ, "symmetric": False}]).drafts[0].settle(factors=factors)
        assert [verdict.why for verdict in made.verdicts[:2]] == ["", ""]
    parts = MIXED_32["model.layers.1.self_attn.k_proj"].rank // 8, 128 // 32
    assert made.tensors["model.layers.0.self_attn.q_proj.lr_a.weight_zero_point"].shape == parts


def test_a_rank_that_the_cpu_kernel_does_not_take_is_said() -> None:
    variant = planned([{**LOW, "rank_multiple": 8}, {**GPTQ, "group_size": -1}]).variants[0]
    assert "the CPU kernel needs multiples of 32" in variant.verdicts[0].why


# -- blocks, files and back


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in float32, so that nothing but factors and codes makes a difference."""
    return pico.write(tmp_path_factory.mktemp("coded") / "base", dtype=torch.float32, **WIDE)


@pytest.fixture(scope="module")
def made(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coded") / "v"
    make(exact, out, settled(exact, MIXED_32, then=(GPTQ,), rank_multiple=32))
    return out


def test_codes_are_read_back_as_the_product_of_what_they_stand_for(exact: Path, made: Path) -> None:
    variant = settled(exact, MIXED_32, then=(GPTQ,), rank_multiple=32)
    reader, view = Reader(made), DenseView(made)
    assert reader.headers == variant.tensors and set(view.names()) == set(Reader(exact).headers)
    for name, own in MIXED_32.items():
        a, b = (formats.dense(reader, one, {4}, 0) for one in (factor_a(name, own.shared), f"{name}.lr_b"))
        assert torch.equal(view.get(f"{name}.weight"), encodings.product(b, a)) and own.rank == len(a)
        assert int(torch.linalg.matrix_rank(view.get(f"{name}.weight"), rtol=1e-5)) <= own.rank
    config = json.loads((made / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "hubplugin_lowrank" and config["ranks"]["model.layers.1.mlp.down_proj"] == 64
    assert config["codes"]["quant_method"] == "compressed-tensors" and config["codes"]["ignore"] == ["lm_head"]
    assert config["codes"]["config_groups"]["group_0"]["weights"]["group_size"] == 32


def test_codes_cost_little_beside_the_ranks(exact: Path, made: Path, tmp_path: Path) -> None:
    """8 bits are as good as floats to three digits of the error; 4 bits add to it."""
    eight = {**GPTQ, "bits": 8}
    make(exact, tmp_path / "floats", settled(exact, MIXED_32, rank_multiple=32))
    make(exact, tmp_path / "eight", settled(exact, MIXED_32, then=(eight,), rank_multiple=32))

    def logits(folder: Path) -> torch.Tensor:
        model = open_model(folder, families.match(DenseView(folder).config, "here"))
        return model.logits(model.hidden_states(pico.tokens(8, 48)))

    base = logits(exact)
    floats, eight_bits, four = (
        float((logits(folder) - base).square().mean()) for folder in (tmp_path / "floats", tmp_path / "eight", made)
    )
    assert eight_bits == pytest.approx(floats, rel=0.05) and floats < four < 2 * floats


def test_a_killed_pass_goes_on_and_writes_the_same_bytes(exact: Path, made: Path, tmp_path: Path) -> None:
    variant = settled(exact, MIXED_32, then=(GPTQ,), rank_multiple=32)
    make(exact, tmp_path / "killed", variant, stop=1)
    make(exact, tmp_path / "killed", variant)
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_factors_that_get_no_codes_stand_beside_those_that_do(exact: Path, tmp_path: Path) -> None:
    step = {**GPTQ, "ignore": ["gate_proj", "up_proj", "layers.1.mlp.down_proj"]}
    variant = settled(exact, MIXED_32, then=(step,), rank_multiple=32)
    make(exact, tmp_path / "v", variant)
    reader, config = Reader(tmp_path / "v"), DenseView(tmp_path / "v").config["quantization_config"]
    assert reader.headers == variant.tensors
    assert (
        "model.layers.1.mlp.down_proj.lr_b" in reader and "model.layers.0.self_attn.o_proj.lr_b.weight_packed" in reader
    )
    dense = {f"model.layers.{layer}.mlp.{name}" for layer in (0, 1) for name in ("gate_proj", "up_proj")}
    assert set(config["codes"]["ignore"]) == {*dense, "model.layers.1.mlp.down_proj", "lm_head"}


def test_what_the_tensors_say_of_a_linear_of_coded_factors(made: Path, tmp_path: Path) -> None:
    linear = stored_linears.read(Reader(made), "model.layers.1.mlp.down_proj")
    assert (linear.outputs, linear.inputs, linear.rank, linear.group_size) == (128, 256, 64, 32)
    assert (
        linear.codes and 4 in linear.bits and "model.layers.1.mlp.down_proj" in stored_linears.quantized(Reader(made))
    )
    reader = Reader(made)
    del reader.headers["model.layers.1.mlp.down_proj.lr_a.weight_packed"]  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="is missing"):
        stored_linears.read(reader, "model.layers.1.mlp.down_proj")


def test_the_engine_needs_what_kernels_for_codes_need(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((made / "config.json").read_text())
    assert codes.needed_features(config) == (cpu_features.AVX512,)
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: False)
    assert codes.made_dense(config) and vllm_settings.cpu_dtype(config) == ("--dtype", "float32")
    del config["quantization_config"]["codes"]
    assert codes.needed_features(config) == () and vllm_settings.cpu_dtype(config) == ("--dtype", "float32")


def test_the_card_says_both_and_names_no_other_loader() -> None:
    steps = (
        LowRank(method="lowrank", ratio=0.2).model_dump(mode="json"),
        Gptq(method="gptq", group_size=32, format="compressed-tensors").model_dump(mode="json"),
    )
    made = card_helpers.report(steps=steps, widths={}, notes=(checks.PLUGIN,))
    text, data = card.render(made), card.metadata(made)
    assert {"low-rank", "gptq", "4-bit"} <= set(data["tags"]) and data["library_name"] == "vllm"
    assert "from transformers import" not in text and "vLLM and hubplugin beside it" in text
    assert "cut to low rank by SVD-LLM, with its linears quantized to 4 bits by GPTQ" in text
    assert "how the codes of these and of all other linears are stored" in text and "with no option" not in text
