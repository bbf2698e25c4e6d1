"""Wanda and SparseGPT against hand-computed cases and the paper's form; what plan, gate and card say of zeros."""

from pathlib import Path
from typing import Any

import card_helpers
import pico
import pytest
import torch
from gate_helpers import candidate
from moments_helpers import counted_inputs
from plan_helpers import GPTQ, PRUNE, config_json, document, headers
from transformers import AutoModelForCausalLM

from hubplugin import cli, report
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.encodings import Masked
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress.blocks import block_record, blockwise
from hubplugin.errors import ManifestError, PlanError
from hubplugin.evaluation import gate, zeros
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.manifest.methods import DENSE
from hubplugin.manifest.reading import loading
from hubplugin.manifest.steps.masks import SparseGpt, Wanda
from hubplugin.methods import linear_algebra, sparsegpt, wanda
from hubplugin.methods.base import Compressed
from hubplugin.methods.selection import lowest
from hubplugin.model import block_runner
from hubplugin.model.architectures import families
from hubplugin.plan import draft, planner, table
from hubplugin.plan.variant_plan import VariantPlan

INPUTS = 192  # one and a half blocks
MEASURES: list[dict[str, Any]] = [{"sparsity": 0.5}, {"sparsity": 0.3}, {"pattern": "2:4"}, {"pattern": "1:3"}]
METHODS = ["wanda", "sparsegpt"]


def problem(outputs: int = 37, inputs: int = INPUTS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(600, inputs, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), x.T @ x


def run(method: str, weight: torch.Tensor, h: torch.Tensor, **measure: Any) -> Compressed:
    if method == "wanda":
        return wanda.compress(weight, h, Wanda.model_validate({"method": method, **measure}))
    return sparsegpt.compress(weight, h, SparseGpt.model_validate({"method": method, **measure}))


def kept(made: Compressed) -> torch.Tensor:
    assert isinstance(made.encoding, Masked)
    assert torch.equal(made.encoding.keep, made.weight != 0), "the mask is where the weight is not zero"
    return made.encoding.keep


# -- by hand


def test_wanda_by_hand() -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0], [1.0, 1.0, -1.0, 1.5]])
    h = torch.diag(torch.tensor([1.0, 4.0, 9.0, 16.0]))
    # scores, |w| times 1, 2, 3, 4: [4, 6, 6, 4] and [1, 2, 3, 6]
    half = run("wanda", weight, h, sparsity=0.5)
    assert half.weight.tolist() == [[0, -3, 2, 0], [0, 0, -1, 1.5]]
    # what is lost of sum |w|^2 H_jj = 16 + 36 + 36 + 16 + 1 + 4 + 9 + 36 = 154
    assert half.loss == pytest.approx((16 + 16 + 1 + 4) / 154)
    assert run("wanda", weight, h, pattern="1:2").weight.tolist() == [[0, -3, 2, 0], [0, 1, 0, 1.5]]
    assert run("wanda", weight, h, sparsity=0.25).weight[1].tolist() == [0, 1, -1, 1.5]


def test_sparsegpt_by_hand() -> None:
    # H + damping = [[2, 1], [1, 2]] = M D M^T with M = [[1, 1/2], [0, 1]] and D = [3/2, 2]
    h = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) - 0.02 / 1.01 * torch.eye(2, dtype=torch.float64)
    weight = torch.tensor([[1.0, 3.0], [3.0, 1.0]], dtype=torch.float64)
    made = run("sparsegpt", weight, h, pattern="1:2")
    # costs D w^2: [1.5, 18] and [13.5, 2]. The first row loses 1 at once: the second weight becomes 3 + 1 * 1/2.
    # The second row loses its last weight, for which nothing is left to make up
    assert torch.allclose(made.weight, torch.tensor([[0, 3.5], [3, 0]], dtype=torch.float64))


def test_costs_of_all_outputs_compete_in_a_block_of_sparsegpt_and_not_in_wanda() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    assert run("sparsegpt", weight, eye, sparsity=0.5).weight.tolist() == [[0, 0], [3, 4]]
    assert run("wanda", weight, eye, sparsity=0.5).weight.tolist() == [[0, 2], [0, 4]]


# -- against the paper


def textbook(weight: torch.Tensor, h: torch.Tensor, step: SparseGpt) -> torch.Tensor:
    """The paper's loop: upper Cholesky factor of the inverse, every column updates all later ones at once."""
    upper = torch.linalg.cholesky(torch.linalg.inv(linear_algebra.damped(h, step.damp)), upper=True)
    weight = weight.clone()
    gone = torch.zeros_like(weight, dtype=torch.bool)
    every = step.kept[1] if step.kept else 128
    for column in range(weight.shape[1]):
        if column % every == 0:
            inside = slice(column, column + every)
            cost = (weight[:, inside] / upper.diagonal()[inside]).square()
            if step.kept:
                found = cost.argsort(dim=1)[:, : every - step.kept[0]]
                gone[:, inside] = torch.zeros_like(cost, dtype=torch.bool).scatter(1, found, True)
            else:
                limit = cost.flatten().sort().values[round(step.ratio * cost.numel())]
                gone[:, inside] = cost < limit
        new = weight[:, column].masked_fill(gone[:, column], 0)
        error = (weight[:, column] - new) / upper[column, column]
        weight[:, column + 1 :] -= torch.outer(error, upper[column, column + 1 :])
        weight[:, column] = new
    return weight


@pytest.mark.parametrize("measure", MEASURES)
def test_sparsegpt_equals_the_paper_in_float64(measure: dict[str, Any]) -> None:
    weight, h = problem()
    step = SparseGpt.model_validate({"method": "sparsegpt", **measure})
    made, wanted = sparsegpt.compress(weight, h, step).weight, textbook(weight, h, step)
    assert torch.equal(made == 0, wanted == 0)
    assert torch.allclose(made, wanted, atol=1e-8)


def test_float32_chooses_nearly_as_float64_does() -> None:
    weight, h = problem()
    exact, rough = (run("sparsegpt", weight.to(dtype), h.to(dtype), pattern="2:4") for dtype in (h.dtype, torch.float))
    assert rough.weight.dtype == torch.float32
    assert float((kept(exact) != kept(rough)).double().mean()) < 0.01
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)


# -- invariances


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("measure", MEASURES)
def test_as_many_zeros_as_asked(method: str, measure: dict[str, Any]) -> None:
    weight, h = problem()
    made = run(method, weight, h, **measure)
    step = Wanda.model_validate({"method": "wanda", **measure})
    assert zeros.fault(made.weight, step, before=0) == ""
    assert 1 - float(kept(made).double().mean()) == pytest.approx(step.ratio, abs=0.5 / INPUTS)
    if method == "wanda":
        rows = kept(made).sum(dim=1)
        assert int(rows.min()) == int(rows.max()), "every output keeps as many"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("measure", MEASURES)
def test_shuffled_outputs_give_the_same_weights_shuffled(method: str, measure: dict[str, Any]) -> None:
    weight, h = problem()
    order = torch.randperm(len(weight))
    plain, shuffled = run(method, weight, h, **measure), run(method, weight[order], h, **measure)
    assert torch.allclose(plain.weight[order], shuffled.weight, atol=1e-9)


def test_outputs_do_not_influence_each_other_where_a_pattern_is_kept() -> None:
    weight, h = problem()
    together = run("sparsegpt", weight, h, pattern="2:4").weight
    apart = [run("sparsegpt", part, h, pattern="2:4").weight for part in weight.split(10)]
    assert torch.allclose(together, torch.cat(apart), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_is_the_identity_and_the_caller_keeps_its_tensors(method: str) -> None:
    weight, h = problem()
    before = weight.clone(), h.clone()
    made = run(method, weight, h, sparsity=1e-9)
    assert torch.equal(made.weight, weight) and bool(kept(made).all()) and made.loss == 0
    run(method, weight, h, sparsity=0.5)
    assert torch.equal(weight, before[0]) and torch.equal(h, before[1])


def test_uncorrelated_inputs_give_magnitude_pruning() -> None:
    weight, _ = problem()
    eye = torch.eye(INPUTS, dtype=torch.float64)
    rows = weight.masked_fill(lowest(weight.abs(), INPUTS // 2, dim=1), 0)
    assert torch.equal(run("wanda", weight, eye, sparsity=0.5).weight, rows)
    blocks = [part.abs() for part in weight.split(sparsegpt.BLOCK, dim=1)]
    gone = [part <= part.flatten().sort().values[round(0.5 * part.numel()) - 1] for part in blocks]
    assert torch.equal(run("sparsegpt", weight, eye, sparsity=0.5).weight, weight.masked_fill(torch.cat(gone, 1), 0))
    groups = weight.abs().unflatten(1, (-1, 4))
    few = weight.masked_fill((groups.argsort(2).argsort(2) < 2).flatten(1), 0)
    for method in METHODS:
        assert torch.equal(run(method, weight, eye, pattern="2:4").weight, few)


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_the_second_moments_does_not_matter(method: str) -> None:
    weight, h = problem()
    one, other = (run(method, weight, scaled, sparsity=0.5) for scaled in (h, h * 4096))
    assert torch.equal(kept(one), kept(other))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("measure", MEASURES)
def test_sparsegpt_loses_less_than_wanda(measure: dict[str, Any], seed: int) -> None:
    weight, h = problem(seed=seed)
    assert run("sparsegpt", weight, h, **measure).loss < 0.8 * run("wanda", weight, h, **measure).loss


def test_the_update_lowers_the_loss_of_the_same_mask() -> None:
    weight, h = problem()
    made = run("sparsegpt", weight, h, sparsity=0.5)
    assert made.loss < 0.8 * linear_algebra.relative_loss(weight, weight * kept(made), h)


@pytest.mark.parametrize("method", METHODS)
def test_dead_inputs_go_first_and_what_is_kept_of_them_stays(method: str) -> None:
    weight, h = problem()
    dead = [3, 130, 131, 132]
    h[dead, :] = 0
    h[:, dead] = 0
    few = run(method, weight, h, sparsity=0.25)
    assert few.dead_inputs == 4 and not bool(few.weight[:, dead].any())
    one = run(method, weight, h, pattern="3:4").weight  # of inputs 128 to 131 two are dead and one weight goes
    assert bool(((one[:, [130, 131]] == weight[:, [130, 131]]).sum(dim=1) == 1).all())


def test_a_singular_matrix_is_damped_and_reported_not_hidden() -> None:
    weight, _ = problem()
    x = torch.ones(10, INPUTS, dtype=torch.float64)
    h = x.T @ x
    h[0, 1] = h[1, 0] = 10.5
    made = run("sparsegpt", weight, h, sparsity=0.5)
    assert made.fallback is not None and "damping raised" in made.fallback
    assert bool(torch.isfinite(made.weight).all())


@pytest.mark.parametrize(("outputs", "inputs", "pattern"), [(1, 60, "3:5"), (830, 66, "1:33"), (5, 258, "5:6")])
def test_ugly_shapes_and_patterns(outputs: int, inputs: int, pattern: str) -> None:
    weight, h = problem(outputs, inputs)
    for method in METHODS:
        made = run(method, weight, h, pattern=pattern)
        few, every = (int(part) for part in pattern.split(":"))
        assert bool((kept(made).unflatten(1, (-1, every)).sum(dim=2) == few).all())
    step = SparseGpt.model_validate({"method": "sparsegpt", "pattern": pattern})
    assert torch.allclose(made.weight, textbook(weight, h, step), atol=1e-7)


# -- manifest and plan


@pytest.mark.parametrize(
    ("step", "where", "what"),
    [
        ("{method: wanda}", "[0]", "exactly one of `sparsity:` and `pattern:`"),
        ('{method: sparsegpt, sparsity: 0.5, pattern: "2:4"}', "[0]", "exactly one"),
        ("{method: wanda, pattern: 2:4}", "[0].pattern", "124 is no pattern n:m"),
        ('{method: wanda, pattern: "4:4"}', "[0].pattern", "'4:4' is no pattern"),
        ('{method: wanda, pattern: "32:65"}', "[0].pattern", "m at most 64"),
        ("{method: wanda, sparsity: 1}", "[0].sparsity", "1"),
        ("{method: wanda, sparsity: 0.5, damp: 0.1}", "[0].damp", "no key here"),
    ],
)
def test_what_the_manifest_refuses(step: str, where: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"model: a/b\ncalibrate: {{self: true}}\nvariants: {{V: [{step}]}}\n")
    with pytest.raises(ManifestError) as refusal:
        loading.load(path)
    assert refusal.value.where.endswith(f"variants.V{where}")
    assert what in refusal.value.what


def planned(steps: list[dict[str, Any]], model_type: str = "llama", **changes: Any) -> draft.Plan:
    config = pico.config(model_type, **changes)
    return planner.make(document(steps), config_json(config), headers(config))


HALF = {"method": "wanda", "sparsity": 0.5}
FEW = {"method": "sparsegpt", "pattern": "2:4"}


@pytest.mark.parametrize(
    ("steps", "where", "what", "fix"),
    [
        ([HALF, GPTQ], "V[1].method", "gptq stands after wanda: codes would fill the zeros again", "a variant of each"),
        ([GPTQ, FEW], "V[1].method", "sparsegpt stands after gptq", "a variant of each"),
        ([FEW, PRUNE], "V[1].method", "prune stands after sparsegpt: its refit would fill", "put it first"),
        ([HALF, FEW], "V[1].method", "sparsegpt stands after wanda", "keep one"),
        ([PRUNE, HALF, GPTQ], "V[2].method", "gptq stands after wanda", "keep one"),
        ([HALF, HALF], "V[1].method", "wanda stands twice", "keep one"),
        ([{**HALF, "ignore": ["no_proj"]}], "V[0].ignore", "'no_proj' names no linear", "q_proj"),
        ([{**HALF, "ignore": ["*"]}], "V[0].ignore", "no linear is left", "ignore less"),
        (
            [{**HALF, "sparsity": 0.001}],
            "V[0].sparsity",
            "0.001 of q_proj's 64 inputs rounds to 0",
            "use 0.016 to 0.98",
        ),
        ([{**HALF, "sparsity": 0.999}], "V[0].sparsity", "rounds to 64 of them", "use 0.016"),
        (
            [{"method": "wanda", "pattern": "2:5"}],
            "V[0].pattern",
            "groups of 5 do not divide q_proj's 64 inputs",
            "leave it whole with ignore: [q_proj], or use another pattern, such as 2:4",
        ),
    ],
)
def test_what_the_plan_refuses(steps: list[dict[str, Any]], where: str, what: str, fix: str) -> None:
    with pytest.raises(PlanError) as refusal:
        planned(steps)
    assert refusal.value.where == f"m.yaml: variants.{where}"
    assert what in refusal.value.what and fix in refusal.value.fix


def test_inputs_that_a_pattern_does_not_divide_can_be_ignored() -> None:
    odd = {"intermediate_size": 130}
    with pytest.raises(PlanError, match="groups of 4 do not divide down_proj's 130 inputs"):
        planned([FEW], **odd)
    made = planned([{**FEW, "ignore": ["down_proj"]}], **odd).variants[0]
    assert made.mask("model.layers.0.mlp.down_proj") is None
    assert made.mask("model.layers.0.mlp.up_proj") is not None


def test_the_plan_counts_zeros_as_weights_and_says_so() -> None:
    made = planned([FEW])
    variant = made.variants[0]
    assert variant.bytes == made.bytes and variant.parameters == made.parameters
    assert variant.linear_bits_per_weight == 16 and all(verdict.why == "" for verdict in variant.verdicts[:2])
    assert "quantization_config" not in variant.config
    text = " ".join(table.render(made).split())
    assert "2:4 zeros" in text and "V: vLLM runs this at dense speed and size: 2 of every 4 weights are zero" in text
    assert draft.as_json(made)["variants"][0]["notes"] == variant.notes
    assert DENSE not in table.render(planned([GPTQ]))


def test_a_pattern_holds_for_pruned_widths() -> None:
    variant = planned([PRUNE, FEW]).variants[0]
    assert variant.widths == {"intermediate_size": (128, 96)} and variant.notes
    with pytest.raises(PlanError, match="groups of 64 do not divide down_proj's 96 inputs"):
        planned([PRUNE, {"method": "wanda", "pattern": "32:64"}])


# -- the pipeline


MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 4, tokens: 64, seed: 0}}
variants:
  Wanda: [{{method: wanda, sparsity: 0.5}}]
  SparseGPT: [{{method: sparsegpt, pattern: "2:4", ignore: [o_proj]}}]
  Pruned: [{{method: prune, ffn: 0.25}}, {{method: sparsegpt, sparsity: 0.3}}]
evaluate: {{perplexity: {{self: true, samples: 4, tokens: 64, seed: 1}}, kl: true}}
gate: {{mean_kl: 9, top1_agreement: 0}}
"""


def test_masked_variants_are_made_measured_and_said_to_be_dense(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "pico.yaml", tmp_path / "out"
    path.write_text(MANIFEST.format(model=pico_folder))

    def generate(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
        return generate_dequantized(folder, prompts, tokens)

    monkeypatch.setattr("hubplugin.evaluation.engine_choice.generate", generate)
    with pytest.raises(SystemExit) as done:
        cli.main(["run", str(path), "--out", str(out)])
    assert done.value.code == 0
    for name in ("Wanda", "SparseGPT", "Pruned"):
        made = report.read(out / name)
        line = next(line for line in made.gate if line.name == "zeros as asked")
        assert line.passed and made.passed
        assert made.notes[0].startswith(DENSE)
        assert {result.method for result in made.linears} - {"prune", "refit"} == {made.steps[-1]["method"]}
        assert name == "Pruned" or made.disk_ratio == pytest.approx(1, rel=0.02)
        card = (out / name / "README.md").read_text()
        assert DENSE in card and "- sparse\n" in card and "base_model_relation" not in card
        assert made.steps[-1]["method"] in card and "Fallbacks: none" in card
        assert "sparsity_config" not in (out / name / "config.json").read_text()
    assert report.read(out / "Wanda").sizes.sparsity == pytest.approx(0.5)
    assert report.read(out / "Pruned").sizes.sparsity == pytest.approx(0.3, abs=0.001)
    reader = Reader(out / "SparseGPT")
    for name in families.FAMILIES["llama"].linears():
        weight = reader.get(f"model.layers.1.{name}.weight")
        groups = (weight != 0).unflatten(1, (-1, 4)).sum(dim=2)
        assert bool((groups == 2).all()) != name.endswith("o_proj"), name
    sizes = report.read(out / "SparseGPT").sizes  # o_proj stays whole: 64 x 64 of each block's weights
    assert sizes.sparsity == pytest.approx(0.5 * (1 - 2 * 64 * 64 / sizes.linear_parameters))


@pytest.mark.parametrize("method", METHODS)
def test_the_card_of_a_masked_model_of_the_hub_claims_no_relation(method: str) -> None:
    step = loading.METHODS[method].settings.model_validate({"method": method, "pattern": "2:4"})
    notes = planned([{"method": method, "pattern": "2:4", "ignore": ["o_proj"]}]).variants[0].notes
    sizes = card_helpers.report().sizes.model_copy(update={"sparsity": 0.4321})
    made = card_helpers.report(steps=(step.model_dump(mode="json"),), widths={}, notes=notes, sizes=sizes)
    data = card.metadata(made)
    assert data["base_model"] == "ns/base" and "base_model_relation" not in data
    assert {"sparse", method} <= set(data["tags"]) and not {"quantized", "pruned"} & set(data["tags"])
    assert data["compression"]["sparsity"] == 0.4321
    text = card.render(made)
    assert "vLLM runs this at dense speed and size: 2 of every 4 weights are zero in all linears but o\\_proj" in text
    assert "| 43.21 % |" in text and step.paper in text
    assert ("only the other weights of the same row were updated" in text) == (method == "sparsegpt")


def test_the_gate_sees_a_zero_too_few_and_too_many() -> None:
    weight = torch.ones(4, 8)
    weight[:, ::2] = 0
    half, few = Wanda.model_validate(HALF), SparseGpt.model_validate(FEW)
    assert zeros.fault(weight, half, 0) == zeros.fault(weight, few, 0) == ""
    weight[:, 0] = 1
    assert zeros.fault(weight, few, 0) == "4 groups of 4 hold more than 2 weights that are not zero"
    assert zeros.fault(weight, half, 0) == ""  # to one weight of each output
    weight[0, 2] = 1
    assert "34.38% of its weights are zero" in zeros.fault(weight, half, 0)
    assert "100.00% of its weights" in zeros.fault(torch.zeros(4, 8), half, 3)
    assert zeros.fault(torch.zeros(4, 8), half, 12) == "", "these were the base's"


def test_the_gate_reads_the_files(pico_folder: Path) -> None:
    config = pico.config()
    made = planner.make(document([FEW]), config_json(config), headers(config)).variants[0]
    line = gate.as_masked(candidate(pico_folder, made, base=pico_folder))
    assert not line.passed and "q_proj" in line.detail and "hold more than 2" in line.detail


def masked(folder: Path, step: dict[str, Any]) -> tuple[VariantPlan, list[block_record.Block]]:
    """The plan of a variant of one step, and its blocks."""
    view = DenseView(folder)
    made = planner.make(document([step]), view.config, Reader(folder).headers).variants[0]
    model = block_runner.Model(view, view.config, families.match(view.config, "here"), torch.float32, "cpu")
    return made, list(blockwise.blocks(model, blockwise.Calibration(pico.tokens()), made, torch.bfloat16))


def test_a_linear_is_masked_under_what_the_masked_ones_before_it_make(pico_folder: Path) -> None:
    _, (block, _) = masked(pico_folder, HALF)
    model = AutoModelForCausalLM.from_pretrained(pico_folder, dtype=torch.float32)
    last = model.model.layers[0].mlp.down_proj
    original = last.weight.detach().clone()
    for name, weight in block.weights.items():
        model.get_submodule(name).weight.data = weight
    last.weight.data = original
    seen = counted_inputs(model, "model.layers.0.mlp.down_proj", pico.tokens())
    again = wanda.compress(original, seen.T @ seen, Wanda.model_validate(HALF)).weight
    differing = (again != block.weights[f"{block.prefix}.mlp.down_proj"]).double().mean()
    assert float(differing) < 0.002, "but for ties that rounding decides"


@pytest.mark.parametrize("model_type", ["phi3", "gemma2", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("step", [HALF, FEW])
def test_every_family_is_masked(model_type: str, step: dict[str, Any], tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "base", model_type)
    reader = Reader(folder)
    made, blocks = masked(folder, step)
    assert len(blocks) == 2
    for block in blocks:
        assert {result.name for result in block.results} == set(block.encodings)
        for result in block.results:  # 192 tokens, half of them for an expert of 64 or 96 inputs: all are cold
            assert (".experts." in result.name) == ("of the block at large" in (result.fallback or "")), result.name
        for name, weight in block.weights.items():
            assert zeros.fault(weight, made.mask(name), zeros.count(reader.get(f"{name}.weight"))) == "", name
            assert torch.equal(weight, weight.bfloat16().float()), "as it will be stored"
