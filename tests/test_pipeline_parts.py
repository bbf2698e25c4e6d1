"""stream, compress, export, evaluate and gate on pico models of every family, without Hub or engine."""

import json
import signal
from pathlib import Path

import pico
import pytest
import torch
from gate_helpers import candidate
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress import export, stages
from hubplugin.compress.blocks import base_walk, blockwise
from hubplugin.compress.blocks.block_record import Block
from hubplugin.compress.calibration.self_sampling import sample_self
from hubplugin.disk import sha256
from hubplugin.errors import CheckpointError
from hubplugin.evaluation import gate, quality_metrics
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.hub import snapshots
from hubplugin.kernels import second_moments
from hubplugin.manifest.schema import Document, Manifest
from hubplugin.methods import linear_algebra
from hubplugin.model import activations, kl_divergence
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.model.layer_inputs import BlockStatistics
from hubplugin.plan import planner
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import Tokens

GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
PRUNE = {"method": "prune", "ffn": 0.25}
FAMILIES = sorted(pico.BY_TYPE)
PRUNABLE = [name for name in FAMILIES if families.FAMILIES[name].widths]
NOTHING = Tokens(source="test", sequences=4, tokens_per_sequence=48, seed=1, sha256="")


def planned(folder: Path, *steps: dict[str, object]) -> tuple[VariantPlan, families.Family, dict[str, object]]:
    manifest = Manifest.model_validate(
        {
            "model": str(folder),
            "calibrate": {"self": True, "samples": 4, "tokens": 48},
            "variants": {"V": list(steps)},
        }
    )
    document = Document(path=str(folder / "m.yaml"), text="", sha256="", manifest=manifest)
    peek = snapshots.peek(str(folder), folder)
    made = planner.make(document, peek.config, peek.tensors)
    return made.variants[0], families.match(peek.config, "x"), peek.config


def make(
    base: Path,
    out: Path,
    *steps: dict[str, object],
    tokens: torch.Tensor | None = None,
    spill: Path | None = None,
    device: str = "cpu",
) -> list[Block]:
    variant, row, config = planned(base, *steps)
    out.mkdir(parents=True)
    target = export.Folder(out, base, variant, row)
    made = []
    model = Model(DenseView(base), config, row, device=device)
    calibration = blockwise.Calibration(pico.tokens() if tokens is None else tokens, spill)
    for block in blockwise.blocks(model, calibration, variant, torch.bfloat16):
        target.add(block)
        made.append(block)
    target.finish()
    return made


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_streamed_forward_is_transformers_own(model_type: str, tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "m", model_type)
    ids = pico.tokens(3, 64)  # longer than the pico sliding window
    whole = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=("eager" if model_type == "gemma2" else "sdpa")
    )
    with torch.no_grad():
        expected = whole(ids.long()).logits
    model = open_model(folder, families.FAMILIES[model_type])
    assert torch.allclose(model.logits(model.hidden_states(ids)), expected, atol=1e-4)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_prunes_and_quantizes_into_a_folder_as_planned(model_type: str, tmp_path: Path) -> None:
    base, out = pico.write(tmp_path / "m", model_type), tmp_path / "v"
    steps = (PRUNE, GPTQ) if model_type in PRUNABLE else (GPTQ,)
    blocks = make(base, out, *steps)
    variant, row, _ = planned(base, *steps)
    samples = {name: rows for block in blocks for name, rows in block.samples.items()}
    assert gate.as_planned(candidate(out, variant)).passed, gate.as_planned(candidate(out, variant)).detail
    assert gate.as_compressed(candidate(out, samples=samples)).passed, gate.as_compressed(
        candidate(out, samples=samples)
    ).detail
    for line in (
        gate.finite(candidate(out)),
        gate.companions_equal(candidate(out, base=base)),
        gate.ties(candidate(out, variant)),
    ):
        assert line.passed, line.detail
    reference = quality_metrics.reference(base, row, pico.tokens(4, 48, seed=9), NOTHING)
    measured = quality_metrics.measure(out, row, reference, kl=True)
    assert 0 < measured.variant.mean_kl < 2
    prompts = [[1, 2, 3], [5, 6]]
    line = gate.generation(candidate(out, variant, generate=lambda *a: generate_dequantized(*a[:3]), prompts=prompts))
    assert line.passed, line.detail


@pytest.mark.parametrize("model_type", PRUNABLE)
def test_a_pruned_folder_is_a_plain_model_of_transformers_own_class(model_type: str, tmp_path: Path) -> None:
    base, out = pico.write(tmp_path / "m", model_type), tmp_path / "v"
    make(base, out, PRUNE)
    ids = pico.tokens(2, 40)
    loaded = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation=("eager" if model_type == "gemma2" else "sdpa")
    )
    assert loaded.config.intermediate_size == 96
    model = open_model(out, families.FAMILIES[model_type])
    with torch.no_grad():
        assert torch.allclose(loaded(ids.long()).logits, model.logits(model.hidden_states(ids)), atol=1e-4)


def test_a_repo_that_also_offers_its_own_code_is_run_by_transformers_class(tmp_path: Path) -> None:
    base = pico.write(tmp_path / "m", "phi3")
    config = json.loads((base / "config.json").read_text())
    own = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (base / "config.json").write_text(json.dumps({**config, "auto_map": own}))
    make(base, tmp_path / "v", GPTQ)
    assert "auto_map" not in (tmp_path / "v" / "config.json").read_text()
    assert sample_self(base, 2, 16, 0).shape == (2, 16)
    assert read_tokenizer(base).eos_token_id == 256


def in_pieces(base: Path, out: Path, step: dict[str, object], monkeypatch) -> tuple[list[Block], list[Block]]:
    """The same calibration in one batch, and one sequence at a time."""
    whole = make(base, out / "whole", step, tokens=pico.tokens(16, 48))
    monkeypatch.setattr("hubplugin.model.block_runner.MICRO_TOKENS", 48)
    return whole, make(base, out / "pieces", step, tokens=pico.tokens(16, 48))


def test_micro_batches_do_not_change_the_answer(pico_folder: Path, tmp_path: Path, monkeypatch) -> None:
    step = {**GPTQ, "qep": False}
    in_pieces(pico_folder, tmp_path, step, monkeypatch)
    whole, pieces = (DenseView(tmp_path / name) for name in ("whole", "pieces"))
    for linear in planned(pico_folder, step)[0].linears:
        same = whole.get(f"{linear.name}.weight") == pieces.get(f"{linear.name}.weight")
        assert float(same.float().mean()) > 0.999, "summation order may flip a rounding here and there"


def test_micro_batches_do_not_change_what_corrected_targets_are_worth(
    pico_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    # one flipped rounding moves everything that is corrected after it, so codes may differ; what they cost may not
    whole, pieces = in_pieces(pico_folder, tmp_path, GPTQ, monkeypatch)
    for one, other in zip(whole, pieces, strict=True):
        for made, again in zip(one.results, other.results, strict=True):
            assert made.loss == pytest.approx(again.loss, rel=0.05)


def test_targets_are_corrected_with_the_tokens_that_pass_through_the_base(pico_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("hubplugin.model.block_runner.MICRO_TOKENS", 32)
    model = open_model(pico_folder, families.FAMILIES["llama"])
    ours = model.embed(pico.tokens(6, 32))
    base = activations.copied(base_walk.spaced(ours, 64))
    assert [batch.first for batch in base] == [0, 3]
    for batch in base:
        batch.put("hidden", batch.hidden + torch.randn(batch.hidden.shape, generator=torch.Generator().manual_seed(0)))
    model.block(0)
    input_group, base_block = model.family.input_groups[0], model.copy_block(0)
    x, given = (list(model.capture_inputs(0, lane, input_group)) for lane in (ours, base))
    weight = torch.eye(x[0].shape[-1])
    both = activations.BlockActivations(ours, base)
    found = BlockStatistics(model, 0, both, base_block, "mlp.down_proj").with_corrections(input_group, weight)
    every, matched, (fit, check) = found.second_moments, found.matched, found.corrections
    everything = torch.cat([part.reshape(32, -1) for part in x])
    passed = torch.cat([part.reshape(32, -1) for part in (x[0], x[3])])
    expected = sum((b - a).reshape(32, -1).T @ a.reshape(32, -1) for a, b in zip((x[0], x[3]), given, strict=True))
    assert torch.allclose(every, everything.T @ everything, atol=1e-3)
    assert torch.allclose(matched, passed.T @ passed, atol=1e-3)
    assert torch.allclose(fit.sum(), expected, atol=1e-3)
    assert (fit.tokens, check.tokens) == (64, 0)


def test_as_many_tokens_as_there_are_correct_targets_as_all_do(pico_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hubplugin.model.block_runner.MICRO_TOKENS", 48)
    tokens, whole = pico.tokens(16, 48), {}
    for count in (16 * 48, 2**15, 8 * 48):
        make(pico_folder, tmp_path / str(count), {**GPTQ, "qep_tokens": count}, tokens=tokens)
        whole[count] = sha256(tmp_path / str(count) / "model.safetensors")
    assert whole[16 * 48] == whole[2**15] != whole[8 * 48]


def test_the_same_run_twice_writes_the_same_bytes(pico_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(pico_folder, tmp_path / name, PRUNE, GPTQ)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("steps", [(GPTQ,), ({**GPTQ, "qep_tokens": 96},), (PRUNE, GPTQ)])
def test_activations_in_files_change_no_byte_and_leave_few_behind(
    pico_folder: Path, tmp_path: Path, steps, monkeypatch
) -> None:
    monkeypatch.setattr("hubplugin.model.block_runner.MICRO_TOKENS", 48)
    make(pico_folder, tmp_path / "memory", *steps)
    (tmp_path / "spill").mkdir()
    make(pico_folder, tmp_path / "files", *steps, spill=tmp_path / "spill")
    one, two = (sha256(tmp_path / name / "model.safetensors") for name in ("memory", "files"))
    assert one == two
    assert {file.name.split(".", 1)[1] for file in (tmp_path / "spill").rglob("*.*")} == {"hidden"}


def test_later_blocks_are_calibrated_on_what_earlier_ones_became(pico_folder: Path, tmp_path: Path) -> None:
    _, second = make(pico_folder, tmp_path / "v", {**GPTQ, "qep": False})
    view = DenseView(tmp_path / "v")
    model = open_model(tmp_path / "v", families.FAMILIES["llama"])
    batches = model.embed(pico.tokens())
    model.block(0)
    model.forward_block(0, batches)
    model.block(1)
    moment = second_moments.SecondMoments()
    for inputs in model.capture_inputs(1, batches, families.FAMILIES["llama"].input_groups[0]):
        moment.add(inputs)
    seen = moment.matrix("x")
    base = DenseView(pico_folder)
    names = [f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv"]
    before, after = (torch.cat([source.get(name).float() for name in names]) for source in (base, view))
    assert second.results[0].loss == pytest.approx(linear_algebra.relative_loss(before, after, seen), rel=1e-2)


def test_norms_embeddings_and_everything_else_stay_byte_equal(pico_folder: Path, tmp_path: Path) -> None:
    make(pico_folder, tmp_path / "v", GPTQ)
    base, variant = (
        load_file(pico_folder / "model.safetensors"),
        load_file(tmp_path / "v" / "model.safetensors"),
    )
    untouched = [name for name in base if "_proj" not in name]
    assert len(untouched) == 6
    for name in untouched:
        assert torch.equal(base[name], variant[name]) and base[name].dtype == variant[name].dtype, name


def test_shards_do_not_change_what_is_read(tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.randn(10, 7) for index in range(9)}
    headers = {name: Header("F32", (10, 7)) for name in tensors}
    for name, size in (("one", 1 << 30), ("many", 600)):
        (tmp_path / name).mkdir()
        safetensors_io.write(tmp_path / name, headers, tensors.__getitem__, size)
    one, many = Reader(tmp_path / "one"), Reader(tmp_path / "many")
    assert one.headers == many.headers and len(list((tmp_path / "many").glob("model-*.safetensors"))) == 5
    assert all(torch.equal(one.get(key), many.get(key)) for key in tensors)
    assert not list(tmp_path.rglob(".*"))
    assert load_file(tmp_path / "one" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize(("mapped", "opened"), [(2**30, 1), (-1, 3)])
def test_a_file_stays_open_until_much_of_it_was_read(mapped: int, opened: int, pico_folder: Path, monkeypatch) -> None:
    reader, opens = Reader(pico_folder), []
    monkeypatch.setattr(safetensors_io, "MAPPED_BYTES", mapped)
    monkeypatch.setattr(safetensors_io, "safe_open", lambda *given: opens.append(given) or safe_open(*given))
    for name in list(reader.headers)[:3]:
        assert torch.equal(reader.get(name), load_file(pico_folder / "model.safetensors")[name])
    assert len(opens) == opened


def test_what_is_done_to_a_tensor_is_not_read_again(pico_folder: Path) -> None:
    reader = Reader(pico_folder)
    for _ in range(2):
        norm = reader.get("model.norm.weight")
        assert torch.equal(norm, load_file(pico_folder / "model.safetensors")["model.norm.weight"])
        norm.add_(1)


def test_corrupted_weights_are_an_error_with_a_place(pico_folder: Path, tmp_path: Path) -> None:
    data = (pico_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        Reader(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError):
        Reader(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        Reader(tmp_path)


def test_nan_weights_are_named(pico_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(pico_folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="NaN") as caught:
        Reader(tmp_path).get("model.norm.weight")
    assert "model.norm.weight" in caught.value.where


def test_kl_of_a_hand_computed_pair() -> None:
    base = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]))
    other = torch.log(torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]]))
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.25 * torch.log(torch.tensor(0.5))
    assert kl_divergence.divergence(base, other).tolist() == pytest.approx([float(expected), 0.0], abs=1e-7)


def test_perplexity_is_transformers_loss(pico_folder: Path) -> None:
    ids = pico.tokens(5, 32)
    whole = AutoModelForCausalLM.from_pretrained(pico_folder, dtype=torch.float32)
    with torch.no_grad():
        loss = whole(ids.long(), labels=ids.long()).loss
    found = quality_metrics.reference(pico_folder, families.FAMILIES["llama"], ids, NOTHING).quality
    assert found.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)


def test_a_copy_of_the_base_has_no_divergence(pico_folder: Path) -> None:
    row = families.FAMILIES["llama"]
    reference = quality_metrics.reference(pico_folder, row, pico.tokens(2, 40), NOTHING)
    same = quality_metrics.measure(pico_folder, row, reference, kl=True).variant
    assert same.mean_kl == pytest.approx(0, abs=1e-9) and same.top1_agreement == 1.0
    assert same.perplexity == reference.quality.perplexity


@pytest.fixture
def variant_folder(pico_folder: Path, tmp_path: Path) -> tuple[Path, VariantPlan, dict[str, torch.Tensor]]:
    blocks = make(pico_folder, tmp_path / "v", GPTQ)
    samples = {name: rows for block in blocks for name, rows in block.samples.items()}
    return tmp_path / "v", planned(pico_folder, GPTQ)[0], samples


def damage(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_the_gate_notices_one_flipped_code(variant_folder) -> None:
    folder, _, samples = variant_folder
    damage(folder, lambda t: t["model.layers.1.mlp.down_proj.qweight"][0, 0].bitwise_xor_(1))
    assert not gate.as_compressed(candidate(folder, samples=samples)).passed


def test_the_gate_notices_a_missing_tensor_and_a_wrong_dtype(variant_folder) -> None:
    folder, variant, _ = variant_folder
    damage(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.g_idx"))
    assert "g_idx" in gate.as_planned(candidate(folder, variant)).detail
    damage(folder, lambda t: t.update({"model.layers.0.mlp.up_proj.g_idx": torch.zeros(64)}))
    assert not gate.as_planned(candidate(folder, variant)).passed


def test_the_gate_notices_nan_and_zero_scales(variant_folder) -> None:
    folder, _, _ = variant_folder
    damage(folder, lambda t: t["model.layers.0.mlp.up_proj.scales"][0, 0].fill_(0))
    assert not gate.finite(candidate(folder)).passed
    damage(folder, lambda t: t["model.layers.0.mlp.up_proj.scales"][0, 0].fill_(float("inf")))
    assert not gate.finite(candidate(folder)).passed


def test_the_gate_notices_a_changed_tokenizer_or_template(variant_folder, pico_folder: Path) -> None:
    folder, _, _ = variant_folder
    assert gate.companions_equal(candidate(folder, base=pico_folder)).passed
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert "chat_template.jinja" in gate.companions_equal(candidate(folder, base=pico_folder)).detail


def test_the_gate_notices_untied_embeddings(variant_folder) -> None:
    folder, variant, _ = variant_folder
    assert gate.ties(candidate(folder, variant)).passed
    damage(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert not gate.ties(candidate(folder, variant)).passed


def test_the_gate_notices_an_engine_that_computes_something_else(variant_folder) -> None:
    folder, variant, _ = variant_folder

    def wrong(*asked) -> Generated:
        made = generate_dequantized(*asked[:3])
        return Generated(made.engine, made.token_ids, [[value - 1 for value in row] for row in made.logprobs])

    assert not gate.generation(candidate(folder, variant, generate=wrong, prompts=[[1, 2, 3]])).passed


def test_our_folder_is_what_autogptq_itself_would_have_packed_and_computes_the_same(variant_folder) -> None:
    """The checkpoint format belongs to AutoGPTQ: its own (archived) module reads ours, and packs the same words."""
    autogptq = pytest.importorskip("interop", reason="needs auto-gptq").quant_linear()
    folder, _, _ = variant_folder
    tensors = load_file(folder / "model.safetensors")
    view = DenseView(folder)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        dense = view.get(f"{name}.weight")
        outputs, inputs = dense.shape
        theirs = autogptq(4, 32, inputs, outputs, False, weight_dtype=torch.float32)
        linear = torch.nn.Linear(inputs, outputs, bias=False)
        linear.weight.data = dense
        scales = tensors[f"{name}.scales"].float().T.contiguous()
        theirs.pack(linear, scales, torch.full_like(scales, 8.0), g_idx=tensors[f"{name}.g_idx"])
        assert torch.equal(theirs.qweight, tensors[f"{name}.qweight"])
        assert torch.equal(theirs.qzeros, tensors[f"{name}.qzeros"])
        x = torch.randn(3, inputs)
        assert torch.allclose(theirs(x), x @ dense.T, atol=1e-4)


def test_a_variant_is_compressed_on_a_gpu_that_has_room_for_it(pico_folder: Path, monkeypatch) -> None:
    variant, _, _ = planned(pico_folder, GPTQ)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert stages.device_for(variant) == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for free, device in ((variant.memory.device, "cuda"), (variant.memory.device - 1, "cpu")):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda free=free: (free, 2 * free))
        assert stages.device_for(variant) == device


@pytest.mark.gpu
@pytest.mark.parametrize("qep", [False, True])
def test_codes_of_a_gpu_are_worth_what_those_of_a_cpu_are(qep: bool, tmp_path: Path) -> None:
    base = pico.write(tmp_path / "m", "llama")
    row, step = families.FAMILIES["llama"], {**GPTQ, "qep": qep}
    reference = quality_metrics.reference(base, row, pico.tokens(8, 48, seed=9), NOTHING)
    found = []
    for device in ("cpu", "cuda"):
        made = make(base, tmp_path / device, step, tokens=pico.tokens(16, 48), device=device)
        assert all(rows.device.type == "cpu" for block in made for rows in block.samples.values())
        found.append(quality_metrics.measure(tmp_path / device, row, reference, kl=True).variant.mean_kl)
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_ctrl_c_while_a_tensor_is_read_is_still_ctrl_c(pico_folder: Path, monkeypatch) -> None:
    class Reading:
        def __init__(self, *arguments: object) -> None: ...

        def __enter__(self) -> "Reading":
            return self

        def __exit__(self, *arguments: object) -> None: ...

        def get_tensor(self, name: str) -> torch.Tensor:
            try:  # as safetensors does: whatever happens while it builds a tensor becomes its own error
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ValueError("could not determine the shape") from None
            return torch.zeros(1)

    reader = Reader(pico_folder)
    monkeypatch.setattr("hubplugin.checkpoint.safetensors_io.safe_open", Reading)
    with pytest.raises(KeyboardInterrupt):
        reader.get("model.norm.weight")
