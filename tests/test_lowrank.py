"""Low-rank factors by hand and against the singular value decomposition; ranks; what plan, files and card say."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import card_helpers
import pico
import pytest
import torch
from lowrank_helpers import FACTOR, MIXED, make, settled
from moments_helpers import counted_inputs
from plan_helpers import GPTQ, PRUNE, RECOVER, config_json, document, headers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hubplugin import pipeline, report
from hubplugin.checkpoint import encodings, resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.format_names import factor_a
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress import export
from hubplugin.compress.search import rank_search
from hubplugin.errors import CheckpointError, PlanError
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.methods import linear_algebra, lowrank
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.plan import draft, planner, table
from hubplugin.plan.checks import lowrank as checks
from hubplugin.plan.choices import ranks
from hubplugin.plan.choices.ranks import Chosen, Group, Losses, RankSpace, Sensitivity, below_break_even
from hubplugin.plan.costs import operations
from hubplugin.plan.schemes import Factors, LinearPlan

STEP = LowRank(method="lowrank", ratio=0.2, damp=1e-12)
SHAPES = [(37, 60), (60, 37), (40, 40)]


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(600, inputs, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), x.T @ x


def lost(weight: torch.Tensor, other: torch.Tensor, h: torch.Tensor) -> float:
    """tr((W-W')H(W-W')^T)."""
    error = weight - other.to(weight.dtype)
    return float(torch.trace(error @ h @ error.T))


# -- by hand


def test_uncorrelated_inputs_of_one_size_give_the_plain_decomposition() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    made = lowrank.compress(weight, torch.eye(2), STEP, rank=1)
    assert torch.allclose(made.weight, torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    assert made.loss == pytest.approx(4 / 13)


def test_an_input_with_more_energy_is_kept_before_a_larger_weight() -> None:
    weight, h = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0]))
    # plain: 2 is the largest singular value. Whitened: 2 * 1 against 1 * 3
    made = lowrank.compress(weight, h, STEP, rank=1)
    assert torch.allclose(made.weight, torch.diag(torch.tensor([0.0, 1.0])), atol=1e-6)
    assert made.loss == pytest.approx(4 / 13)


def test_correlated_inputs_by_hand() -> None:
    # W H W^T = H has eigenvectors (1, 1) of 3 and (1, -1) of 1: W' is the projection on the first
    made = lowrank.compress(torch.eye(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]), STEP, rank=1)
    assert torch.allclose(made.weight, torch.full((2, 2), 0.5), atol=1e-6)
    assert made.loss == pytest.approx(1 / 4)


# -- against the decomposition


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_what_the_spectrum_leaves_out(shape: tuple[int, int]) -> None:
    weight, h = problem(*shape)
    energies = lowrank.spectrum(weight, lowrank.prepare(h, STEP))
    values = torch.linalg.svdvals(weight @ torch.linalg.cholesky(h))
    assert torch.allclose(energies, values**2, rtol=1e-6)
    for rank in (1, 7, 29, min(shape)):
        made = lowrank.compress(weight, h, STEP, rank=rank)
        left = float(energies[rank:].sum())
        assert lost(weight, made.weight, h) == pytest.approx(left, rel=1e-5, abs=1e-9 * float(energies.sum()))
        assert made.loss == pytest.approx(left / float(energies.sum()), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_other_matrix_of_the_rank_loses_less(shape: tuple[int, int]) -> None:
    weight, h = problem(*shape)
    made = lowrank.compress(weight, h, STEP, rank=5)
    assert isinstance(made.encoding, encodings.LowRank)
    least = lost(weight, made.weight, h)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        b, a = (
            part.double() + 0.01 * torch.randn(part.shape, generator=generator, dtype=torch.float64)
            for part in (made.encoding.b, made.encoding.a)
        )
        assert lost(weight, b @ a, h) > least
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    assert lost(weight, u[:, :5] * values[:5] @ v[:5], h) > least, "the plain decomposition is no better"


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_the_identity_and_the_caller_keeps_its_tensors(shape: tuple[int, int]) -> None:
    weight, h = problem(*shape)
    before = weight.clone(), h.clone()
    made = lowrank.compress(weight, h, STEP, rank=min(shape))
    assert torch.allclose(made.weight.double(), weight, atol=1e-5) and made.loss < 1e-10
    assert torch.equal(weight, before[0]) and torch.equal(h, before[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_shuffled_inputs_and_outputs_give_the_same_weights_shuffled(shape: tuple[int, int]) -> None:
    weight, h = problem(*shape)
    rows, columns = torch.randperm(shape[0]), torch.randperm(shape[1])
    plain = lowrank.compress(weight, h, STEP, rank=9).weight
    shuffled = lowrank.compress(weight[rows][:, columns], h[columns][:, columns], STEP, rank=9).weight
    assert torch.allclose(plain[rows][:, columns], shuffled, atol=1e-5)


def test_the_scale_of_the_second_moments_does_not_matter() -> None:
    weight, h = problem(37, 60)
    one, other = (lowrank.compress(weight, scaled, STEP, rank=9).weight for scaled in (h, h * 4096))
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_balanced_and_b_is_fitted_to_the_rounded_a(shape: tuple[int, int]) -> None:
    weight, h = problem(*shape)
    exact = lowrank.compress(weight, h, STEP, rank=20)
    assert isinstance(exact.encoding, encodings.LowRank)
    b, a = exact.encoding.b, exact.encoding.a
    assert torch.allclose(b.norm(dim=0), a.norm(dim=1), rtol=1e-5)
    rounded = lowrank.compress(weight, h, STEP, rank=20, stored=torch.bfloat16)
    assert isinstance(rounded.encoding, encodings.LowRank) and rounded.encoding.a.dtype == torch.bfloat16
    assert torch.equal(rounded.weight, rounded.encoding.dense())
    without = encodings.product(b.bfloat16(), a.bfloat16())
    assert lost(weight, rounded.weight, h) < lost(weight, without, h)


def test_a_weight_of_lower_rank_than_asked_for_is_kept_whole() -> None:
    weight, h = problem(37, 60)
    weight = weight[:, :4] @ weight[:4]
    for stored in (torch.float32, torch.bfloat16):
        made = lowrank.compress(weight, h, STEP, rank=9, stored=stored)
        assert bool(torch.isfinite(made.weight).all()) and made.loss < 1e-4


def test_dead_inputs_get_no_weights_and_are_counted() -> None:
    weight, h = problem(37, 60)
    h[[3, 9], :] = 0
    h[:, [3, 9]] = 0
    made = lowrank.compress(weight, h, STEP, rank=9)
    assert made.dead_inputs == 2 and not bool(made.weight[:, [3, 9]].abs().gt(1e-6).any())


def test_a_singular_matrix_is_damped_and_reported_not_hidden() -> None:
    weight, _ = problem(37, 60)
    x = torch.ones(10, 60, dtype=torch.float64)
    h = x.T @ x
    h[0, 1] = h[1, 0] = 10.5
    made = lowrank.compress(weight, h, LowRank(method="lowrank", ratio=0.2), rank=9)
    assert made.fallback is not None and "damping raised" in made.fallback
    assert bool(torch.isfinite(made.weight).all())


@pytest.mark.parametrize("rank", [0, 38])
def test_a_rank_that_is_none(rank: int) -> None:
    with pytest.raises(ValueError, match=r"no factors of rank"):
        lowrank.compress(*problem(37, 60), STEP, rank=rank)


# -- ranks


def group(
    *sizes: tuple[int, int], names: tuple[str, ...] = ("down_proj",), block: int = 0, ratio: float = 0.9
) -> Group:
    linears = tuple(
        LinearPlan(f"model.layers.{block}.mlp.{name}", "x", size, size, None)
        for name, size in zip(names, sizes, strict=True)
    )
    return Group(linears, LowRank(method="lowrank", ratio=ratio, rank_multiple=1))


def straight(*costs: float) -> list[Sensitivity]:
    """KL in proportion to the loss."""
    return [Sensitivity(((1.0, cost),)) for cost in costs]


def test_break_even_by_hand() -> None:
    assert list(below_break_even(4, 4, 1)) == [1]  # of rank 2, 2 * 8 are as many as 16
    assert list(below_break_even(6, 3, 1)) == [1]
    assert list(below_break_even(576, 576, 32)) == [32, 64, 96, 128, 160, 192, 224, 256]  # 288 is break-even
    assert list(below_break_even(32, 64, 32)) == []


def test_ranks_begin_near_half_of_what_the_ratio_alone_would_give() -> None:
    square = LinearPlan("model.layers.0.mlp.down_proj", "x", (576, 576), (576, 576), None)
    made = Group((square,), LowRank(method="lowrank", ratio=0.2))
    # 0.8 * 288 = 230.4, half of it 115.2: 128 is the nearest multiple; KL is measured there and at 224
    assert list(made.stack_ranks) == list(made.ranks(square)) == [128, 160, 192, 224, 256] and made.probes == (224, 128)
    assert Group((square,), LowRank(method="lowrank", ratio=0.95)).stack_ranks[0] == 32


def test_kl_lies_on_lines_through_what_was_measured() -> None:
    curve = Sensitivity(((0.1, 1.0), (0.3, 5.0)))
    assert [curve.kl(loss) for loss in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)] == pytest.approx([0, 0.5, 1, 3, 5, 7])
    assert Sensitivity(((0.0, 0.0),)).kl(0.5) == 0, "of a group whose probe lost nothing, nothing is known"


def test_ranks_of_two_known_spectra_by_hand() -> None:
    # 64 weights each, 16 for a rank, break-even at rank 4
    groups = (group((8, 8)), group((8, 8), block=1))
    one, two = Losses((), ((0.30, 0.10, 0.05),)), Losses((), ((0.60, 0.40, 0.35),))
    space = RankSpace(groups, 64, True)
    chosen = space.choose([one, two], straight(1, 1))
    assert [each.ranks for each in chosen] == [(2,), (2,)], "0.5: 1 and 3, or 3 and 1, lose 0.65"
    assert sum(each.weights for each in chosen) == 64
    # a dense one loses nothing: 32 + 64 of 96
    roomy = RankSpace(groups, 96, True)
    assert [each.ranks for each in roomy.choose([one, two], straight(1, 1))] == [(2,), (None,)]
    # where what the first loses costs the model a hundred times more
    assert [each.ranks for each in roomy.choose([one, two], straight(100, 1))] == [(None,), (2,)]


def test_linears_share_a_factor_where_that_loses_less_for_its_weights() -> None:
    stack = group((4, 8), (4, 8), names=("gate_proj", "up_proj"))
    assert stack.may_share and list(stack.shared_ranks) == [1, 2, 3] and list(stack.ranks(stack.linears[0])) == [1, 2]
    # both read the same direction: one rank for both, 1 * (8 + 8) weights, against 2 * (4 + 8)
    alike = Losses((0.0, 0.0, 0.0), ((0.0, 0.0), (0.0, 0.0)))
    assert RankSpace((stack,), 40, True).choose([alike], straight(1))[0] == Chosen((1, 1), True, 16, 0.0)
    # each its own: of a shared rank half is lost, and a single one says it all of either
    apart = Losses((0.5, 0.0, 0.0), ((0.0, 0.0), (0.0, 0.0)))
    assert RankSpace((stack,), 30, True).choose([apart], straight(1))[0] == Chosen((1, 1), False, 24, 0.0)
    # one of them needs all of its ranks, so it stays dense beside the factors of the other
    mixed = Losses((0.5, 0.4, 0.3), ((0.0, 0.0), (0.5, 0.4)))
    assert RankSpace((stack,), 44, True).choose([mixed], straight(1))[0].ranks == (1, None)


def test_only_a_whole_stack_has_a_name_for_a_common_factor() -> None:
    assert not group((4, 8)).may_share
    assert not group((4, 8), (4, 8), names=("q_proj", "k_proj")).may_share
    assert group((4, 8), (4, 8), (4, 8), names=("q_proj", "k_proj", "v_proj")).may_share
    assert factor_a("model.layers.0.self_attn.k_proj", shared=True) == "model.layers.0.self_attn.qkv_proj.lr_a"
    assert factor_a("model.layers.0.mlp.up_proj", shared=True) == "model.layers.0.mlp.gate_up_proj.lr_a"
    assert factor_a("model.layers.0.mlp.down_proj", shared=False) == "model.layers.0.mlp.down_proj.lr_a"


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_within_one_step_of_the_best_there_is(seed: int) -> None:
    draw = random.Random(seed)
    groups = tuple(group((8, 8), block=number) for number in range(4))
    losses = [Losses((), (tuple(sorted((draw.random() for _ in range(3)), reverse=True)),)) for _ in groups]
    weights = [draw.random() for _ in groups]
    space = RankSpace(groups, 4 * 40, True)
    chosen = space.choose(losses, straight(*weights))
    found = sum(each.loss * weight for each, weight in zip(chosen, weights, strict=True))
    options = [one.options(own) for one, own in zip(groups, losses, strict=True)]
    fitting = (each for each in itertools.product(*options) if sum(one.weights for one in each) <= space.room)
    best = min(sum(one.loss * weight for one, weight in zip(each, weights, strict=True)) for each in fitting)
    step = max(max(one.loss for one in each) * weight for each, weight in zip(options, weights, strict=True))
    assert sum(each.weights for each in chosen) <= space.room and best - 1e-12 <= found <= best + step


# -- manifest and plan


def planned(steps: list[dict[str, Any]], model_type: str = "llama", **changes: Any) -> draft.Plan:
    config = pico.config(model_type, **changes)
    return planner.make(document(steps), config_json(config), headers(config))


@pytest.mark.parametrize(
    ("steps", "where", "what", "fix"),
    [
        ([GPTQ, FACTOR], "V[1].method", "lowrank stands after gptq: codes cannot be factored", "put it first"),
        ([FACTOR, PRUNE], "V[1].method", "prune stands after lowrank: a row of a factor is no channel", "put it first"),
        ([PRUNE, FACTOR, RECOVER], "V[2].method", "recover stands after lowrank: it trains whole", "put it before"),
        ([FACTOR, FACTOR], "V[1].method", "lowrank stands twice", "keep one"),
        (
            [{"method": "wanda", "sparsity": 0.5}, FACTOR],
            "V[1].method",
            "lowrank stands after wanda: a product of factors would fill the zeros again",
            "a variant of each",
        ),
        ([{**FACTOR, "ignore": ["no_proj"]}], "V[0].ignore", "'no_proj' names no linear", "q_proj"),
        ([{**FACTOR, "ignore": ["*"]}], "V[0].ignore", "no linear is left", "ignore less"),
        (
            [{**FACTOR, "rank_multiple": 64}],
            "V[0].rank_multiple",
            "no multiple of 64 is below break-even: that is rank 51 of model.layers.0.mlp.{gate_proj,up_proj}",
            "use a rank_multiple of 51 or less",
        ),
        (
            [{**FACTOR, "ratio": 0.97}],
            "V[0].ratio",
            "the smallest ranks that are tried still hold 9.0% of the weights",
            "use 0.909 or less",
        ),
    ],
)
def test_what_the_plan_refuses(steps: list[dict[str, Any]], where: str, what: str, fix: str) -> None:
    with pytest.raises(PlanError) as refusal:
        planned(steps)
    assert refusal.value.where == f"m.yaml: variants.{where}"
    assert what in refusal.value.what and fix in refusal.value.fix


def test_families_that_stay_whole_are_refused_and_the_nearest_are_named() -> None:
    with pytest.raises(PlanError) as refusal:
        planned([FACTOR], "mixtral")
    assert "is an expert's" in refusal.value.what and 'ignore: ["*.experts.*"]' in refusal.value.fix
    assert planned([{**FACTOR, "ignore": ["*.experts.*"]}], "mixtral").variants[0].factored
    with pytest.raises(PlanError) as refusal:
        planned([FACTOR], "phi3")
    assert "qkv_proj of this family is one matrix" in refusal.value.what and "use layout: merged" in refusal.value.fix
    assert not planned([{**FACTOR, "layout": "merged"}], "phi3").variants[0].factored


def test_the_plan_weighs_factors_as_weights() -> None:
    made = planned([FACTOR])
    variant, base = made.variants[0], made.drafts[0].recipe.base
    factored = {linear.name: linear.factors for linear in variant.factored}
    assert factored
    for linear in variant.linears:
        found = variant.tensors.get(f"{linear.name}.lr_b")
        if own := factored.get(linear.name):
            assert found and found.shape == (linear.after[0], own.rank) and own.rank % 4 == 0
            assert variant.tensors[factor_a(linear.name, own.shared)].shape == (own.rank, linear.after[1])
            assert f"{linear.name}.weight" not in variant.tensors
        else:
            assert found is None and variant.tensors[f"{linear.name}.weight"].shape == linear.after
    gone = made.parameters - variant.parameters
    assert variant.linear_parameters == made.linear_parameters - gone <= 0.8 * made.linear_parameters
    assert made.bytes - variant.bytes == 2 * gone and variant.linear_bits_per_weight == 16
    before, after = (operations.of(one.family, one.dims, one.config, one.tensors) for one in (base, variant))
    assert before.per_token - after.per_token == 2 * gone and before.head == after.head
    text = table.render(made)
    assert "factored rank" in text and checks.PLUGIN in text and "stored that no variant needs" not in text
    assert draft.as_json(made)["variants"][0]["notes"] == (checks.PLUGIN,)
    assert all(verdict.loads for verdict in variant.verdicts if verdict.target in ("cpu", "cuda tp=1"))


def test_operations_of_factors_by_hand() -> None:
    variant = planned([{**FACTOR, "ignore": ["self_attn.*", "layers.0.*", "down_proj"], "ratio": 0.5}]).variants[0]
    # gate and up of the second block alone, [128, 64] each, of which half of the weights are gone
    shared = variant.linear("model.layers.1.mlp.up_proj").factors
    assert shared is not None and shared.shared
    plain = operations.of(variant.family, variant.dims, variant.config)
    assert plain.ffn - operations.of(variant.family, variant.dims, variant.config, variant.tensors).ffn == (
        2 * (2 * 128 * 64 - shared.rank * (64 + 256))
    )


def test_merged_factors_weigh_what_the_base_does_and_the_plan_says_so() -> None:
    made = planned([{**FACTOR, "layout": "merged"}])
    variant = made.variants[0]
    assert variant.bytes == made.bytes and variant.parameters == made.parameters
    assert not variant.factored and any(linear.factors for linear in variant.linears)
    assert variant.notes == (checks.MERGED,)
    assert not variant.needs_plugin and table.render(made).splitlines()[4].endswith("yes   yes   yes    no")


def test_factors_hold_for_pruned_widths() -> None:
    variant = planned([PRUNE, FACTOR]).variants[0]
    assert variant.widths == {"intermediate_size": (128, 96)} and len(variant.passes) == 2
    assert variant.passes[0].linear("model.layers.0.mlp.down_proj").factors is None
    assert {one.name: one.factors for one in variant.passes[1].linears} == {
        one.name: one.factors for one in variant.linears
    }


# -- blocks, files and back


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in float32, so that nothing but the factors makes a difference."""
    return pico.write(tmp_path_factory.mktemp("lowrank") / "base", dtype=torch.float32)


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    """As transformers itself loads a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(pico.tokens(2, 24).long()).logits


def test_factors_are_read_back_as_their_product(exact: Path, tmp_path: Path) -> None:
    variant = settled(exact, MIXED)
    make(exact, tmp_path / "v", variant)
    reader, view = Reader(tmp_path / "v"), DenseView(tmp_path / "v")
    assert reader.headers == variant.tensors
    for name, own in MIXED.items():
        a, b = reader.get(factor_a(name, own.shared)), reader.get(f"{name}.lr_b")
        assert torch.allclose(view.get(f"{name}.weight"), b @ a, atol=1e-5) and f"{name}.weight" in view
        assert int(torch.linalg.matrix_rank(view.get(f"{name}.weight"), rtol=1e-5)) == min(own.rank, 32)
    assert set(view.names()) == set(Reader(exact).headers)
    config = json.loads((tmp_path / "v" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "hubplugin_lowrank" and config["ranks"]["model.layers.1.mlp.down_proj"] == 32
    assert set(config["shared"]) == {name for name, own in MIXED.items() if own.shared}


def test_our_forward_transformers_and_the_merged_folder_agree(exact: Path, tmp_path: Path) -> None:
    merged = {name: Factors(own.rank, own.shared, stored=False) for name, own in MIXED.items()}
    make(exact, tmp_path / "v", settled(exact, MIXED))
    make(exact, tmp_path / "merged", settled(exact, merged, layout="merged"))
    view = DenseView(tmp_path / "v")
    model = open_model(tmp_path / "v", families.match(view.config, "here"))
    ours = model.logits(model.hidden_states(pico.tokens(2, 24)))
    assert torch.allclose(ours, logits(tmp_path / "merged"), atol=2e-4)
    assert float((ours - logits(exact)).abs().max()) > 0.1, "ranks are low enough to be seen"
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_a_killed_pass_goes_on_and_writes_the_same_bytes(exact: Path, tmp_path: Path) -> None:
    variant = settled(exact, MIXED)
    make(exact, tmp_path / "whole", variant)
    make(exact, tmp_path / "killed", variant, stop=1)
    make(exact, tmp_path / "killed", variant)
    whole, killed = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


def test_a_factor_that_is_missing_or_does_not_fit_is_no_weight(exact: Path, tmp_path: Path) -> None:
    make(exact, tmp_path / "v", settled(exact, MIXED))
    name = "model.layers.1.mlp.down_proj"
    tensors = load_file(tmp_path / "v" / "model.safetensors")

    class Source:
        def __init__(self, **changed: torch.Tensor) -> None:
            self.tensors = {**tensors, **{f"{name}.{part}": tensor for part, tensor in changed.items()}}

        def __contains__(self, key: str) -> bool:
            return key in self.tensors

        def get(self, key: str) -> torch.Tensor:
            return self.tensors[key]

    from hubplugin.checkpoint import formats

    assert formats.factors(Source(), name).dense().shape == (64, 128)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="have no product"):
        formats.factors(Source(lr_a=torch.ones(31, 128)), name)  # type: ignore[arg-type]


def test_linears_that_stay_dense_are_fitted_to_the_base(exact: Path, tmp_path: Path) -> None:
    few = {name: own for name, own in MIXED.items() if ".0." in name}
    for name, qep in (("fitted", True), ("plain", False)):
        make(exact, tmp_path / name, settled(exact, few, qep=qep))
    last = "model.layers.1.mlp.down_proj.weight"
    base, plain, fitted = (Reader(folder).get(last) for folder in (exact, tmp_path / "plain", tmp_path / "fitted"))
    assert torch.equal(base, plain) and not torch.equal(base, fitted)
    errors = []
    for name in ("plain", "fitted"):
        view = DenseView(tmp_path / name)
        model = open_model(tmp_path / name, families.match(view.config, "here"))
        made = model.logits(model.hidden_states(pico.tokens(8, 48)))  # the calibration's own
        with torch.no_grad():
            whole = AutoModelForCausalLM.from_pretrained(exact, dtype=torch.float32)
            wanted = whole(pico.tokens(8, 48).long()).logits
        errors.append(float((made - wanted).square().mean()))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3", "gemma2", "phi3"])
def test_every_family_is_factored(model_type: str, tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "base", model_type)
    layout = "merged" if model_type == "phi3" else "factored"
    variant = settled(folder, layout=layout)
    make(folder, tmp_path / "v", variant)
    view = DenseView(tmp_path / "v")
    for linear in variant.linears:
        weight = view.get(f"{linear.name}.weight").float()
        assert weight.shape == linear.after and bool(torch.isfinite(weight).all())
        if linear.factors and layout == "factored":
            assert int(torch.linalg.matrix_rank(weight, rtol=1e-4)) <= linear.factors.rank


# -- the search


def test_what_is_measured_is_the_model_with_one_group_cut(exact: Path) -> None:
    variant = settled(exact)
    step = variant.steps[0]
    assert isinstance(step, LowRank)
    space = ranks.make(step, variant.linears, "here")
    view = DenseView(exact)
    model = Model(view, view.config, families.match(view.config, "here"))
    tokens = pico.tokens(8, 48)
    found = rank_search.measure(model, tokens, space, step)
    whole = AutoModelForCausalLM.from_pretrained(exact, dtype=torch.float32)
    with torch.no_grad():
        expected = whole(tokens.long()).logits.double().log_softmax(-1)
        for number, one in enumerate(space.groups):
            linears = [whole.get_submodule(linear.name) for linear in one.linears]
            x = counted_inputs(whole, one.linears[0].name, tokens)
            weight, h = torch.cat([linear.weight for linear in linears]), x.T @ x
            damped, before = linear_algebra.damped(h, step.damp), [linear.weight.clone() for linear in linears]
            for rank, (loss, kl) in zip(one.probes, found.sensitivities[number].points, strict=True):
                made = lowrank.compress(weight, h, step, rank=rank).weight
                for linear, part in zip(linears, made.split([len(each) for each in before]), strict=True):
                    linear.weight.copy_(part)
                after = whole(tokens.long()).logits.double().log_softmax(-1)
                by_token = (expected.exp() * (expected - after)).sum(-1)[:, 12:]  # a quarter of them is not judged
                assert kl == pytest.approx(float(by_token.mean()), rel=0.05)
                left = float((((weight - made) @ damped) * (weight - made)).sum() / ((weight @ damped) * weight).sum())
                assert loss == pytest.approx(left, rel=0.02)
            for linear, old in zip(linears, before, strict=True):
                linear.weight.copy_(old)
    for own, one in zip(found.losses, space.groups, strict=True):
        for falling in (own.shared, *own.separate):
            assert list(falling) == sorted(falling, reverse=True)
        assert sum(each[0] if each else 0 for each in own.separate) < 1 and len(own.separate) == len(one.linears)


MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 8, sequence_length: 48, seed: 0}}
variants:
  LowRank: [{{method: lowrank, ratio: 0.2, rank_multiple: 4}}]
  Pruned:
    - {{method: prune, ffn: 0.25}}
    - {{method: recover, blocks: 1, distill: 0}}
    - {{method: lowrank, ratio: 0.1, rank_multiple: 4}}
evaluate: {{perplexity: {{self: true, samples: 4, sequence_length: 48, seed: 1}}, kl: true}}
gate: {{mean_kl: 9, top1_agreement: 0}}
"""


def dequantized(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)


def run(path: Path, out: Path) -> dict[str, report.Report]:
    asked = loading.load(path)
    peek = snapshots.peek(asked.manifest.model, asked.folder)
    made = pipeline.run(asked, planner.make(asked, peek.config, peek.tensors), out, dequantized)
    return {one.variant: one for one in made}


def weights(reports: dict[str, report.Report]) -> list[str]:
    return [one.files["model.safetensors"] for one in reports.values()]


def test_the_whole_arrow_holds_the_ratio_and_goes_on_after_a_kill(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST.format(model=pico_folder))
    made = run(path, tmp_path / "out")
    for name, ratio in (("LowRank", 0.2), ("Pruned", 0.1)):
        one = made[name]
        assert one.passed and one.ranking and one.evaluation, name
        pruned = one.sizes_base.linear_parameters - (2 * 3 * 32 * 64 if name == "Pruned" else 0)
        left = sum(group.weights for group in one.ranking.groups)
        assert one.sizes.linear_parameters <= (1 - ratio) * pruned < one.sizes.linear_parameters + 4 * 512
        assert left <= one.sizes.linear_parameters
        assert one.ranking.predicted_kl == pytest.approx(sum(group.kl for group in one.ranking.groups))
        stored = Reader(tmp_path / "out" / name).headers
        assert one.sizes.safetensors_bytes > sum(header.bytes for header in stored.values())
        assert {result.method for result in one.linears} <= {"lowrank", "refit", "prune"}
        said = (tmp_path / "out" / name / "README.md").read_text()
        assert "linears cut to low rank by SVD-LLM" in said and "- low-rank\n" in said and "library_name: vllm" in said
        assert "vLLM with hubplugin beside it loads it" in said and "## Load in Python" not in said
        assert "Ranks were chosen for the least predicted KL" in said and "Fallbacks: none" in said
    assert not list((tmp_path / "out" / "LowRank").glob(".*"))

    add, count = export.Folder.add, [0]

    def killed(self: export.Folder, block: Any) -> None:
        if count[0] == 1:
            raise KeyboardInterrupt
        count[0] += 1
        add(self, block)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(export.Folder, "add", killed)
        run(path, tmp_path / "again")
    assert (tmp_path / "again" / ".LowRank.part" / resume.BLOCKS / rank_search.FILE_NAME).is_file()
    searches = list[int]()
    measure = rank_search.measure

    def counted(*given: Any) -> Any:
        searches.append(1)
        return measure(*given)

    monkeypatch.setattr(rank_search, "measure", counted)
    assert weights(run(path, tmp_path / "again")) == weights(made)
    assert len(searches) == 1, "of the second variant: the first one's ranks were found before"
    assert weights(run(path, tmp_path / "again")) == weights(made) and len(searches) == 1, "finished ones are kept"


def test_the_card_names_ranks_and_who_loads_it() -> None:
    groups = (
        report.RankedGroup(name="a.{gate_proj,up_proj}", ranks=(64, 64), shared=True, weights=9, loss=0.1, kl=0.2),
        report.RankedGroup(name="a.{q_proj,k_proj}", ranks=(32, None), shared=False, weights=9, loss=0.1, kl=0.3),
    )
    ranking = report.Ranking(predicted_kl=0.5, tokens=4096, groups=groups)
    step = LowRank(method="lowrank", ratio=0.2)
    changes: dict[str, Any] = {"widths": {}, "ranking": ranking, "notes": (checks.PLUGIN,)}
    made = card_helpers.report(steps=(step.model_dump(mode="json"),), **changes)
    text, data = card.render(made), card.metadata(made)
    assert "3 linears have ranks of 32 to 64, 1 stayed dense" in text and "1 stack shares its first factor" in text
    assert "`layout" not in text.split("## Size")[0], "an escaped backtick shows"
    assert "\n\n\n" not in text.split("## Serve")[0] and "first factor\n- Calibration" in text
    assert data["library_name"] == "vllm" and "low-rank" in data["tags"] and "base_model_relation" not in data
    assert "from transformers import" not in text and step.paper in text
    merged = step.model_copy(update={"layout": "merged"}).model_dump(mode="json")
    text = card.render(card_helpers.report(steps=(merged,), **{**changes, "notes": (checks.MERGED,)}))
    assert "from transformers import" in text and "hubplugin beside it" not in text and checks.MERGED in text
