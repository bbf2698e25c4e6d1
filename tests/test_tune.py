"""Tuning: gradients and an optimum by hand, codes that stay or move by one, legal grids, interruptions, refusals."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from interruption_helpers import STOPS, check_killed, check_stopped, contents, stopped
from plan_helpers import config_json, document, headers, published
from prune_helpers import make, planned
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hubplugin import cli, report
from hubplugin.checkpoint import formats
from hubplugin.checkpoint.dense_view import DenseView, ReplacedWeights
from hubplugin.checkpoint.encodings import Grid
from hubplugin.errors import CheckpointError, CompressError, PlanError
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.manifest.steps.training.tune import Tune
from hubplugin.methods.gptq.grid import storable
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.plan import planner
from hubplugin.recovery import distillation, optimizers, recover, splitting
from hubplugin.recovery.grids import grid_weights
from hubplugin.recovery.grids.grid_linear import GridLinear, GridStart, InTraining
from hubplugin.recovery.grids.grid_weights import GridWeights
from hubplugin.recovery.trainable import as_function
from hubplugin.report import Recovery

GPTQ = {"method": "gptq", "bits": 3, "group_size": 32}
STEPS: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 4},
    "packed": {"bits": 3},
    "packed, zeros": {"bits": 2, "symmetric": False},
    "mixed, head": {
        "bits": 3,
        "group_size": 64,
        "overrides": {"mlp.*": {"bits": 4, "group_size": 32}},
        "ignore": ["layers.0.mlp.down_proj"],
        "lm_head": True,
    },
}
TOKENS = pico.tokens(129, 48)


def step(**settings: Any) -> Tune:
    return Tune(**{"method": "tune", "blocks": 1, "distill": 2, **settings})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write(tmp_path_factory.mktemp("base") / "m", tie_word_embeddings=False, vocab_size=320)


@pytest.fixture(scope="module")
def quantized(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base by GPTQ, in every format."""
    found = {}
    for name, settings in STEPS.items():
        _, plan = planned(base, {**GPTQ, **settings})
        found[name] = tmp_path_factory.mktemp("quantized") / "v"
        make(base, found[name], plan.variants[0])
    return found


def run(student: Path, base: Path, out: Path, settings: Tune | None = None, **others: Any) -> Recovery:
    return recover.run(student, base, out, TOKENS, settings or step(), **others)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


# -- one linear


def start(codes: list[list[int]], scales: list[list[float]], **others: Any) -> GridStart:
    """A linear of two bits in groups of two, on its symmetric grid."""
    made = torch.tensor(scales)
    return GridStart(
        codes=torch.tensor(codes, dtype=torch.uint8), scales=made, zeros=torch.full_like(made, 2.0),
        bits=2, group_size=2, symmetric=True, **others,
    )  # fmt: skip


def training(made: GridStart) -> InTraining:
    offset = None if made.between is None else nn.Parameter(torch.zeros(made.codes.shape))
    return InTraining(made, nn.Parameter(torch.zeros_like(made.scales)), offset)


def weight(linear: InTraining) -> Tensor:
    """Its weight [outputs, inputs], as products have it."""
    return linear.product(torch.eye(linear.start.codes.shape[1])).T


def test_the_gradient_of_scales_by_hand() -> None:
    linear = training(start([[3, 1, 0, 2]], [[0.5, -0.25]]))
    dense = weight(linear)
    assert dense.tolist() == [[0.5, -0.5, 0.5, 0.0]]  # scale * (code - 2)
    dense.backward(torch.tensor([[2.0, 4.0, 1.0, 8.0]]))
    # sum of gradient * (code - 2) over the group, times the scale that a change of 1 adds
    assert linear.change.grad is not None and linear.change.grad.tolist() == [[-2.0 * 0.5, -2.0 * -0.25]]


def test_the_gradient_of_a_rounding_is_the_weights_times_the_scale() -> None:
    linear = training(start([[3, 1, 0, 2]], [[0.5, -0.25]], between=torch.zeros(1, 4, dtype=torch.float16)))
    weight(linear).backward(torch.tensor([[2.0, 4.0, 1.0, 8.0]]))
    assert linear.offset is not None and linear.offset.grad is not None
    assert linear.offset.grad.tolist() == [[1.0, 2.0, -0.25, -2.0]]


def test_products_and_gradients_are_those_of_a_plain_linear() -> None:
    torch.manual_seed(0)
    made = start(torch.randint(0, 4, (6, 8)).tolist(), torch.rand(6, 4).add(0.5).bfloat16().tolist())
    linear, inputs, upstream = training(made), torch.randn(3, 5, 8, requires_grad=True), torch.randn(3, 5, 6)
    linear.product(inputs).backward(upstream)
    scale, other = made.scales.clone().requires_grad_(), inputs.detach().clone().requires_grad_()
    plain = ((made.codes.float().view(6, 4, 2) - 2) * scale[..., None]).view(6, 8)
    nn.functional.linear(other, plain).backward(upstream)
    assert scale.grad is not None
    torch.testing.assert_close(linear.change.grad, scale.grad * made.scales)
    torch.testing.assert_close(inputs.grad, other.grad)


def test_scales_reach_their_least_squares_on_one_linear() -> None:
    """min |x (w - s c)|^2 over s is s = c'H w / c'H c, H = x'x, for each output: here a group is all inputs."""
    torch.manual_seed(0)
    codes, inputs = torch.randint(0, 4, (3, 8), dtype=torch.uint8), torch.randn(64, 8)
    steps = codes.double() - 2
    target = 0.3 * steps * torch.tensor([[1.2], [0.9], [1.05]]) + 0.05 * torch.randn(3, 8)
    hessian = (inputs.T @ inputs).double()
    best = ((steps @ hessian) * target).sum(1) / ((steps @ hessian) * steps).sum(1)
    linear = training(GridStart(codes, torch.full((3, 1), 0.3), torch.full((3, 1), 2.0), 2, 8, True))
    optimizer, count = optimizers.adam({"scale": linear.change}, 0.02), 400
    for number in range(count):
        (linear.product(inputs) - inputs @ target.float().T).square().mean().backward()
        optimizer.step(optimizers.schedule(number, count))
    found = linear.start.scale(linear.change.detach()).squeeze(1).double()
    torch.testing.assert_close(found, best, rtol=2**-8, atol=0)  # what bfloat16 leaves of a scale


def test_codes_stay_at_first_and_move_by_one_at_most_inside_the_grid() -> None:
    codes = [[0, 1, 2, 3]]
    between = torch.tensor([[0.49, -0.49, 0.0, 0.49]], dtype=torch.float16)
    made = start(codes, [[1.0, 1.0]], between=between)
    assert made.moved(torch.zeros(1, 4)).tolist() == codes
    assert made.moved(torch.full((1, 4), 0.5)).tolist() == [[1, 1, 2, 3]]  # 3 is the grid's end; 2.5 goes to even
    assert made.moved(torch.full((1, 4), -0.5)).tolist() == [[0, 0, 2, 3]]
    assert made.moved(None).tolist() == codes


def test_signed_steps_have_one_length_and_end_at_half() -> None:
    value = nn.Parameter(torch.tensor([0.0, 0.4, -0.4]))
    descent = optimizers.with_rounding({"w": nn.Parameter(torch.zeros(1))}, 0.1, {"v": value}, 0.2)
    (value * torch.tensor([5.0, -1e-3, 1e-3])).sum().backward()
    descent.step(0.5)
    torch.testing.assert_close(value.detach(), torch.tensor([-0.1, 0.5, -0.5]))


# -- the folder's grids


@pytest.mark.parametrize("name", STEPS)
def test_a_grid_is_read_back_from_every_format(name: str, quantized: dict[str, Path]) -> None:
    view = DenseView(quantized[name])
    assert view.quantized
    for one in view.quantized:
        made: Grid = view.grid(one)
        assert torch.equal(made.dense(), view.get(f"{one}.weight"))
        layout = formats.layout(view.headers, one)
        written = formats.tensors(made, layout, torch.bfloat16)
        stored = {part: view._reader.get(f"{one}.{part}") for part in written}
        assert all(torch.equal(tensor, stored[part]) for part, tensor in written.items()), one


def test_int8_weights_are_a_grid_too(base: Path, tmp_path: Path) -> None:
    _, plan = planned(base, {"method": "gptq", "bits": 8, "group_size": -1, "activation_bits": 8})
    make(base, tmp_path / "v", plan.variants[0])
    view = DenseView(tmp_path / "v")
    one = view.quantized[0]
    assert torch.equal(view.grid(one).dense(), view.get(f"{one}.weight")) and view.grid(one).zeros is None


def test_groups_that_are_no_runs_are_refused(quantized: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(quantized["gptq"], tmp_path / "v")
    tensors = weights_of(tmp_path / "v")
    name = "model.layers.0.self_attn.q_proj.g_idx"
    tensors[name] = tensors[name].flip(0)
    save_file(tensors, tmp_path / "v" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="desc_act"):
        DenseView(tmp_path / "v").grid(name.removesuffix(".g_idx"))


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_what_training_sees_is_what_readers_see(
    name: str, rounds: bool, quantized: dict[str, Path], base: Path
) -> None:
    """After changes of everything, linears in training are bit for bit those of a folder with what is stored."""
    folder = quantized[name]
    view = DenseView(folder)
    model = Model(view, view.config, families.match(view.config, "x")).load_all()
    what = GridWeights(model, folder, dense=DenseView(base) if rounds else None)
    torch.manual_seed(1)
    for parameter in what.trained.values():
        parameter.data.uniform_(-0.5, 0.5)
    stored = what.values()
    read, dense = ReplacedWeights(folder, stored), what.dense(stored)
    for one in view.quantized:
        module = model.get_submodule(one)
        assert isinstance(module, GridLinear) and module.weight.is_meta
        seen = module.in_training.product(torch.eye(module.in_features)).T
        assert torch.equal(seen, read.get(f"{one}.weight")) and torch.equal(seen, dense[f"{one}.weight"]), one
    ids = pico.tokens(2, 16).long()
    with torch.no_grad():
        vectors = {name: dense[name] for name in what.weights()}
        trained, plain = (as_function(what, weights)(input_ids=ids).logits for weights in (vectors, dense))
    torch.testing.assert_close(trained, plain)
    moved = grid_weights.moved_codes(folder, stored)
    assert 0.02 < moved < 0.5 if rounds else moved == 0


# -- what comes out


@pytest.mark.parametrize("name", STEPS)
def test_tuning_lowers_the_held_out_divergence_and_leaves_codes_and_shapes(
    name: str, quantized: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    student, out = quantized[name], tmp_path / "out"
    done = run(student, base, out)
    assert done.kl_blocks is not None and done.kl_after < done.kl_before and done.moved_codes is None
    assert done.kl_after <= done.kl_blocks or done.kl_blocks > done.kl_before
    assert pico.headers(out) == pico.headers(student)
    same = set(contents(student)) - {"model.safetensors", "README.md"}
    assert {one: contents(out)[one] for one in same} == {one: contents(student)[one] for one in same}
    before, after = weights_of(student), weights_of(out)
    for tensor in before:
        part = tensor.rsplit(".", 1)[1]
        trained = part in grid_weights.SCALES or (before[tensor].dim() == 1 and part not in ("g_idx", "weight_shape"))
        assert before[tensor].equal(after[tensor]) != trained, tensor
        if part in grid_weights.SCALES:
            scale = after[tensor].float()
            assert bool(scale.isfinite().all()) and bool((scale != 0).all()) and torch.equal(storable(scale), scale)


def test_what_is_reported_is_what_the_folder_has(quantized: dict[str, Path], base: Path, tmp_path: Path) -> None:
    done = run(quantized["packed"], base, tmp_path / "out")
    held = splitting.split(TOKENS)[1].long()
    logits = []
    for folder in (base, tmp_path / "out"):
        view = DenseView(folder)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.load_state_dict({name: view.get(name).float() for name in view.names()})
        with torch.no_grad():
            logits.append(model(held).logits.double().log_softmax(-1))
    expected = float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())
    assert done.kl_after == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", STEPS)
def test_rounding_moves_codes_by_one_and_the_rest_stays_legal(
    name: str, quantized: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    student, out = quantized[name], tmp_path / "out"
    done = run(student, base, out, step(rounding=True, blocks=4, distill=0), dense=base)
    assert done.kl_after < done.kl_before and done.moved_codes is not None and 0 < done.moved_codes < 0.5
    one, other = DenseView(student), DenseView(out)
    for linear_name in one.quantized:
        before, after = one.grid(linear_name), other.grid(linear_name)
        distance = (before.codes.int() - after.codes.int()).abs()
        assert int(distance.max()) <= 1 and int(after.codes.max()) < 2**after.bits
        assert (before.zeros is None) == (after.zeros is None)
        assert before.zeros is None or torch.equal(before.zeros, after.zeros)
    assert pico.headers(out) == pico.headers(student)


def test_rounding_needs_the_weights_before(quantized: dict[str, Path], base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made from"):
        run(quantized["packed"], base, tmp_path / "out", step(rounding=True))


def test_distillation_keeps_the_codes_that_blocks_have_moved(
    quantized: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    settings = step(rounding=True, blocks=4, distill=4)
    done = run(quantized["packed"], base, tmp_path / "out", settings, dense=base)
    assert done.kl_blocks is not None and done.kl_after < done.kl_blocks < done.kl_before
    assert done.moved_codes is not None and done.moved_codes > 0


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_no_epochs_and_training_that_only_harms_return_the_students_files(
    quantized: dict[str, Path], base: Path, tmp_path: Path, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gptq", "packed"):
        if rate:
            monkeypatch.setattr(recover, "TUNE_RATE", 30.0)
            settings = step(blocks=0, distill=4)
        else:
            settings = Tune.model_construct(method="tune", blocks=0, distill=0)
        done = run(quantized[name], base, tmp_path / name, settings)
        assert done.kl_after == done.kl_before and (done.steps > 0) == bool(rate)
        expected = {file: data for file, data in contents(quantized[name]).items() if file != "README.md"}
        assert contents(tmp_path / name) == expected


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "phi3", "gemma2", "mixtral"])
def test_every_family_is_tuned(kind: str, tmp_path: Path) -> None:
    base = pico.write(tmp_path / "base", kind)
    _, plan = planned(base, GPTQ)
    make(base, tmp_path / "student", plan.variants[0])
    done = run(tmp_path / "student", base, tmp_path / "out", step(blocks=2))
    assert done.kl_after < done.kl_before
    before, after = weights_of(tmp_path / "student"), weights_of(tmp_path / "out")
    if kind == "qwen2":
        assert not before["model.layers.0.self_attn.q_proj.bias"].equal(after["model.layers.0.self_attn.q_proj.bias"])


# -- interruptions


WHOLE = step(distill=0.75, rounding=True, learning_rate=0.003)  # 113 sequences in steps of ten


def run_whole(student: Path, base: Path, out: Path) -> Recovery:
    return run(student, base, out, WHOLE, dense=base)


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_tuning_goes_on_to_the_same_bytes(
    quantized: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any
) -> None:
    check_stopped(lambda out: run_whole(quantized["packed"], base, out), tmp_path, stop, monkeypatch)


def test_another_dense_folder_does_not_resume(
    quantized: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped(0, distillation.Distillation, "_learn", monkeypatch):
        run_whole(quantized["packed"], base, tmp_path / "out")
    other = pico.write(tmp_path / "other", seed=3, tie_word_embeddings=False, vocab_size=320)
    with pytest.raises(CompressError, match="another dense,"):
        run(quantized["packed"], base, tmp_path / "out", WHOLE, dense=other)


@pytest.mark.slow
def test_kills_at_any_moment_end_in_the_same_bytes(quantized: dict[str, Path], base: Path, tmp_path: Path) -> None:
    check_killed(run_whole, (quantized["packed"], base), tmp_path)


# -- the plan


TUNE: dict[str, Any] = {"method": "tune"}
PRUNE = {"method": "prune", "ffn": 0.25}
A8 = {"method": "gptq", "bits": 8, "group_size": -1, "activation_bits": 8}
NOTHING = "trains what stands beside codes, and nothing is quantized before it"


@pytest.mark.parametrize(
    ("steps", "where", "what", "fix"),
    [
        ([TUNE], "[0].method", NOTHING, "trained by recover"),
        ([TUNE, GPTQ], "[0].method", NOTHING, "put it after a gptq step"),
        ([PRUNE, TUNE], "[1].method", NOTHING, "trained by recover"),
        ([PRUNE, {"method": "recover"}, TUNE], "[2].method", NOTHING, "put it after a gptq step"),
        ([GPTQ, TUNE, TUNE], "[2].method", "tune stands twice", "keep one"),
        ([GPTQ, {"method": "recover"}], "[1].method", "recover stands after gptq", "tune trains what stands beside"),
        ([A8, TUNE], "[1].method", "rounded to int8 at run time", "remove activation_bits"),
        ([{**GPTQ, "bits": 4, "engine": "gptqmodel"}, TUNE], "[1].method", "gptqmodel's scales", "remove engine"),
        ([PRUNE, GPTQ, {**TUNE, "rounding": True}], "[2].rounding", "no dense weights", "put a recover step between"),
        ([GPTQ, {**TUNE, "data": {"self": True, "samples": 1, "tokens": 16}}], "[1].data", "none to hold out", "2"),
        ([{**GPTQ, "ignore": ["nothing"]}, TUNE], "[0].ignore", "names no linear", "write a path's end"),
        ([GPTQ, {**TUNE, "data": {"self": True, "tokens": 999}}], "[1].data.tokens", "context of 256", "256 or fewer"),
    ],
)
def test_what_tuning_cannot_do_is_refused_by_the_plan(
    steps: list[dict[str, Any]], where: str, what: str, fix: str
) -> None:
    config = pico.config()
    with pytest.raises(PlanError) as caught:
        planner.make(document(steps), config_json(config), headers(config))
    assert caught.value.where == f"m.yaml: variants.V{where}"
    assert what in caught.value.what and fix in caught.value.fix


def test_a_plan_of_one_sequence_names_calibrate_too() -> None:
    config = pico.config()
    one = document([GPTQ, TUNE], calibrate={"self": True, "tokens": 64, "samples": 1})
    with pytest.raises(PlanError, match="none to hold out") as caught:
        planner.make(one, config_json(config), headers(config))
    assert "calibrate" in caught.value.fix


def test_estimates_have_tuning_in_them() -> None:
    raw, config = published("llama-3.1-8b-instruct")

    def estimate(*steps: dict[str, Any]) -> Any:
        return planner.make(document([*steps]), raw, headers(config)).variants[0]

    alone, blocks, whole = (
        estimate(GPTQ), estimate(GPTQ, {**TUNE, "distill": 0}), estimate(GPTQ, {**TUNE, "distill": 8})
    )  # fmt: skip
    assert alone.seconds < blocks.seconds < whole.seconds
    assert alone.bytes == blocks.bytes and alone.tensors == whole.tensors and alone.verdicts == whole.verdicts
    assert alone.peak_memory <= blocks.peak_memory < whole.peak_memory < 60e9  # the base in float32 takes 32e9


# -- the pipeline


MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 16, tokens: 64, seed: 0}}
variants:
  Tuned: [{{method: gptq, bits: 3, group_size: 32}}, {{method: tune, blocks: 1, distill: 1, rounding: true}}]
  All:
    - {{method: prune, ffn: 0.25, layers: 1}}
    - {{method: recover, blocks: 1, distill: 0}}
    - {{method: gptq, bits: 4, group_size: 32}}
    - {{method: tune, blocks: 1, distill: 1, rounding: true, data: {{self: true, samples: 16, tokens: 64, seed: 5}}}}
  Pruned: [{{method: prune, ffn: 0.25}}, {{method: gptq, bits: 2, group_size: 32}}, {{method: tune, blocks: 2}}]
evaluate: {{perplexity: {{self: true, samples: 4, tokens: 64, seed: 1}}, kl: true}}
gate: {{mean_kl: 9, top1_agreement: 0}}
"""
VARIANTS = ("Tuned", "All", "Pruned")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All variants of the manifest, made once."""
    folder = tmp_path_factory.mktemp("tuned")
    base = pico.write(folder / "base", num_hidden_layers=3)
    (folder / "pico.yaml").write_text(MANIFEST.format(model=base))

    def generate(made: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
        return generate_dequantized(made, prompts, tokens)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hubplugin.evaluation.engine_choice.generate", generate)
        with pytest.raises(SystemExit) as done:
            cli.main(["run", str(folder / "pico.yaml"), "--out", str(folder / "out")])
    assert done.value.code == 0
    return folder / "out"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_tuned_variant_passes_the_gate_and_says_what_was_done(name: str, out: Path) -> None:
    made = report.read(out / name)
    assert made.passed and not list((out / name).glob(".*"))
    assert made.tuning is not None and made.tuning.kl_after <= made.tuning.kl_before
    assert (made.recovery is not None) == (name == "All") == (made.tuning.data is not None)
    assert (made.tuning.moved_codes is not None) == (name != "Pruned")
    card = (out / name / "README.md").read_text()
    section = card.split("## Tuning")[1].split("\n## ")[0]
    assert "as quantized" in section and Tune.paper in card
    assert ("each by one step" in section) == (name != "Pruned")
    assert ("## Recovery" in card) == (name == "All")
    assert "base_model_relation" not in card or "base_model_relation: quantized" in card
    assert json.loads((out / name / "config.json").read_text())["quantization_config"]
    assert (made.evaluation is not None) and math.isfinite(made.evaluation.variant.mean_kl or math.nan)


def test_a_second_run_keeps_what_is_tuned(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (out / name / "report.json").stat().st_mtime_ns for name in VARIANTS}
    weights = {name: (out / name / "model.safetensors").read_bytes() for name in VARIANTS}
    with pytest.raises(SystemExit) as done:
        cli.main(["run", str(out.parent / "pico.yaml"), "--out", str(out)])
    assert done.value.code == 0 and before
    assert {name: (out / name / "model.safetensors").read_bytes() for name in VARIANTS} == weights
    assert "made again" not in capsys.readouterr().err


def test_verify_takes_trained_norms_for_what_they_are(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["verify", str(out / "Tuned"), "--base", str(out.parent / "base")])
    said = capsys.readouterr()
    assert done.value.code == 0, said
    assert "norms were trained" in said.out + said.err
