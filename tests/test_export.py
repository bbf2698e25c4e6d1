"""Folders in every format: written as planned, read back as dense, and loaded by stock vLLM (marked serve)."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pico
import pytest
import torch
from gate_helpers import candidate
from safetensors.torch import load_file, save_file
from serve_helpers import skip_without_kernels
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoRoundConfig, GPTQConfig

import hubplugin
from hubplugin.checkpoint import encodings
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.encodings import Dense, Encoding, Grid
from hubplugin.compress import export
from hubplugin.compress.blocks.block_record import Block
from hubplugin.errors import CheckpointError
from hubplugin.evaluation import gate, quality_metrics
from hubplugin.evaluation.engine_choice import generate
from hubplugin.evaluation.generation import generate_dequantized, logprobs
from hubplugin.hub import snapshots
from hubplugin.manifest.schema import Document, Manifest
from hubplugin.methods.gptq import grid
from hubplugin.model import kl_divergence
from hubplugin.model.architectures import families
from hubplugin.plan import planner
from hubplugin.plan.schemes import LinearPlan
from hubplugin.plan.variant_plan import VariantPlan

BENCH = Path(__file__).parents[1] / "bench"
LLAMA = families.FAMILIES["llama"]
W8A8 = {"bits": 8, "group_size": -1, "activation_bits": 8}
STEPS: dict[str, dict[str, Any]] = {
    "gptq": {"group_size": 32},
    "gptq 8": {"bits": 8, "group_size": -1},
    "gptq mixed, head": {
        "group_size": 32,
        "overrides": {"self_attn.*": {"group_size": 64}},
        "ignore": ["layers.0.mlp.down_proj"],
        "lm_head": True,
        "format": "gptq",
    },
    "packed": {"group_size": 32, "format": "compressed-tensors"},
    "packed asymmetric": {"group_size": 64, "symmetric": False},
    "packed 8": {"bits": 8, "group_size": 32, "symmetric": False},
    "packed 3": {"bits": 3, "group_size": 32, "symmetric": False},
    "packed 2": {"bits": 2, "group_size": 32},
    "int8": W8A8,
    "all at once": {
        "group_size": 32,
        "symmetric": False,
        "overrides": {
            "self_attn.o_proj": {"bits": 4, "symmetric": True},
            "layers.1.mlp.*": {**W8A8, "symmetric": True},
        },
        "ignore": ["layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"],
        "lm_head": True,
    },
}
SERVED = ("gptq mixed, head", "packed asymmetric", "int8", "all at once")  # between them everything a CPU loads


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write(tmp_path_factory.mktemp("base") / "m", tie_word_embeddings=False, vocab_size=320)


def planned(base: Path, step: dict[str, Any]) -> VariantPlan:
    data = {
        "model": str(base),
        "calibrate": {"self": True, "samples": 4, "tokens": 48},
        "variants": {"V": [{"method": "gptq", **step}]},
    }
    document = Document(path=str(base / "m.yaml"), text="", sha256="", manifest=Manifest.model_validate(data))
    peek = snapshots.peek(str(base), base)
    return planner.make(document, peek.config, peek.tensors).variants[0]


def rounded(weight: Tensor, linear: LinearPlan) -> tuple[Encoding, Tensor]:
    """The nearest grid of a linear's scheme, and the weight it stands for: no method, so that formats stand alone."""
    scheme = linear.scheme
    if scheme is None:
        return Dense(), weight
    outputs, inputs = weight.shape
    group = inputs if scheme.group_size == -1 else scheme.group_size
    spec = grid.Spec(scheme.bits, group, scheme.symmetric)
    rows = weight.float().reshape(-1, group)
    scale, zero = (each[:, None] for each in grid.fit(rows, torch.ones(group), spec))
    codes = grid.codes(rows, scale, zero, spec.top)
    zeros = None if scheme.symmetric else zero.reshape(outputs, -1).to(torch.uint8)
    made = Grid(
        codes.to(torch.uint8).reshape(outputs, inputs), scale.reshape(outputs, -1).half(), scheme.bits, group, zeros
    )
    return made, encodings.values(codes, scale, zero).reshape(outputs, inputs)


def write(base: Path, out: Path, step: dict[str, Any]) -> tuple[VariantPlan, dict[str, Tensor]]:
    """A folder of plainly rounded weights, and what each of its linears stands for."""
    made, source = planned(base, step), DenseView(base)
    out.mkdir(parents=True)
    target, dense = export.Folder(out, base, made, LLAMA), {}
    for index in range(3 if made.head else 2):
        linears = [one for one in made.linears if f".{index}." in one.name] or [made.head]
        name = f"model.layers.{index}" if index < 2 else "lm_head"
        block = Block(index, name, name)
        for linear in linears:
            assert linear is not None
            encoding, dense[linear.name] = rounded(source.get(f"{linear.name}.weight"), linear)
            block.encodings[linear.name] = encoding
            block.weights[linear.name] = dense[linear.name]
        target.add(block)
    target.finish()
    return made, dense


@pytest.mark.parametrize("name", STEPS)
def test_every_format_is_written_as_planned_and_reads_back_as_it_was_meant(
    name: str, base: Path, tmp_path: Path
) -> None:
    made, dense = write(base, tmp_path / "v", STEPS[name])
    for line in (
        gate.as_planned(candidate(tmp_path / "v", made)),
        gate.finite(candidate(tmp_path / "v")),
        gate.ties(candidate(tmp_path / "v", made)),
        gate.as_compressed(
            candidate(tmp_path / "v", samples={linear: weight[:4].float() for linear, weight in dense.items()})
        ),
    ):
        assert line.passed, line.detail
    view = DenseView(tmp_path / "v")
    for linear, weight in dense.items():
        assert torch.equal(view.get(f"{linear}.weight").float(), weight.float()), linear
    assert {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")} <= {
        name for name, _ in view.below("model.layers.1")
    }
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "v" / "model.safetensors").values())
    assert stored == made.bytes


@pytest.mark.parametrize("name", STEPS)
def test_every_format_is_a_model_that_predicts(name: str, base: Path, tmp_path: Path) -> None:
    write(base, tmp_path / "v", STEPS[name])
    ids = pico.tokens(2, 24)
    model, whole = (quality_metrics.open_model(folder, LLAMA) for folder in (tmp_path / "v", base))
    kl = kl_divergence.divergence(*(each.logits(each.hidden_states(ids)).flatten(0, 1) for each in (whole, model)))
    assert 0 < float(kl.mean()) < (0.1 if "8" in name else 6)


def test_quantize_config_json_stands_beside_autogptqs_format_alone(base: Path, tmp_path: Path) -> None:
    for name, there in (("gptq", True), ("packed", False)):
        write(base, tmp_path / name, STEPS[name])
        assert (tmp_path / name / "quantize_config.json").is_file() is there
        assert "quantization_config" in json.loads((tmp_path / name / "config.json").read_text())


def test_what_made_a_gptq_folder_stands_where_no_loader_reads_it(base: Path, tmp_path: Path) -> None:
    """AutoRoundConfig refuses a dictionary with `meta`; all else is the same in both files."""
    for name in ("gptq", "gptq 8", "gptq mixed, head"):
        write(base, tmp_path / name, STEPS[name])
        config = json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        beside = json.loads((tmp_path / name / "quantize_config.json").read_text())
        assert beside.pop("meta")["quantizer"] == [f"hubplugin:{hubplugin.__version__}"]
        assert config == beside
        assert AutoRoundConfig.from_dict(dict(config)).bits == GPTQConfig.from_dict(dict(config)).bits == config["bits"]


def test_folders_that_name_their_maker_in_config_json_are_read_as_before(base: Path, tmp_path: Path) -> None:
    _, dense = write(base, tmp_path / "v", STEPS["gptq"])
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    config["quantization_config"]["meta"] = {"quantizer": ["hubplugin:0.1.0"], "damp_percent": 0.01}
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    view = DenseView(tmp_path / "v")
    assert all(torch.equal(view.get(f"{linear}.weight"), weight) for linear, weight in dense.items())


def test_rounded_activations_are_part_of_what_is_measured(base: Path, tmp_path: Path) -> None:
    write(base, tmp_path / "v", W8A8)
    view = DenseView(tmp_path / "v")
    assert len(view.int8_inputs) == 14 and not DenseView(base).int8_inputs
    ids = pico.tokens(2, 24)
    hidden = quality_metrics.open_model(tmp_path / "v", LLAMA).hidden_states(ids)
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    weights_alone = quality_metrics.open_model(tmp_path / "v", LLAMA).hidden_states(ids)
    change = float((hidden - weights_alone).norm() / weights_alone.norm())
    assert 0.001 < change < 0.1
    made = generate_dequantized(tmp_path / "v", [[1, 2, 3]], 4)
    ours = logprobs(tmp_path / "v", LLAMA, [[1, 2, 3]], made.token_ids)
    assert torch.allclose(ours, torch.tensor(made.logprobs[0]), atol=1e-4)


def test_a_report_says_that_inputs_were_rounded(base: Path, tmp_path: Path) -> None:
    write(base, tmp_path / "v", W8A8)
    description = quality_metrics.Tokens(source="test", sequences=2, tokens_per_sequence=24, seed=1, sha256="")
    reference = quality_metrics.reference(base, LLAMA, pico.tokens(2, 24), description)
    measured = quality_metrics.measure(tmp_path / "v", LLAMA, reference, kl=True)
    assert "inputs of 14 linears rounded to int8" in measured.protocol


def test_weights_quantized_in_another_way_are_an_error(base: Path, tmp_path: Path) -> None:
    write(base, tmp_path / "v", STEPS["gptq"])
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'awq' is no quantization that is read here"):
        DenseView(tmp_path / "v")


def test_zeros_of_autogptqs_second_format_are_read_as_such(base: Path, tmp_path: Path) -> None:
    _, dense = write(base, tmp_path / "v", STEPS["gptq"])
    tensors = load_file(tmp_path / "v" / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(".qzeros"):
            tensor += 0x11111111
    save_file(tensors, tmp_path / "v" / "model.safetensors")
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    view = DenseView(tmp_path / "v")
    assert all(torch.equal(view.get(f"{linear}.weight"), weight) for linear, weight in dense.items())


PACKED = [name for name in STEPS if not name.startswith("gptq")]


@pytest.mark.parametrize("name", [name for name in PACKED if "3" not in name])  # 0.17 packs 3 bits in its own way
def test_transformers_and_compressed_tensors_decompress_the_same_weights(name: str, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    _, dense = write(base, tmp_path / "v", STEPS[name])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "v", dtype=torch.float32)
    ids = pico.tokens(2, 24)
    with torch.no_grad():
        logits = theirs(ids.long()).logits
    state = theirs.state_dict()
    for linear, weight in dense.items():
        assert torch.equal(state[f"{linear}.weight"].float(), weight.float()), linear
    model = quality_metrics.open_model(tmp_path / "v", LLAMA)
    ours = model.logits(model.hidden_states(ids))
    if DenseView(tmp_path / "v").int8_inputs:  # it rounds activations too, to 255 levels where vLLM has 254
        assert float((ours - logits).abs().mean()) < 0.05
    else:
        assert torch.allclose(ours, logits, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_the_rivals_own_loaders_read_our_folders(name: str, base: Path, tmp_path: Path) -> None:
    """gptqmodel and llm-compressor's compressed-tensors, in the environments that bench/environments.py installs."""
    rival = "gptqmodel" if name.startswith("gptq") else "llmcompressor"
    python = BENCH / ".env" / rival / "bin" / "python"
    if not (BENCH / ".env" / rival / ".ready").is_file():
        pytest.skip(f"{rival} is not installed: python bench/environments.py {rival}")
    write(base, tmp_path / "v", STEPS[name])
    ids = pico.tokens(2, 24)
    numpy.save(tmp_path / "ids.npy", ids.numpy())
    command = [python, BENCH / "read_back.py", tmp_path / "v", tmp_path / "ids.npy", tmp_path / "logits.npy"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=300)
    model = quality_metrics.open_model(tmp_path / "v", LLAMA)
    ours, theirs = model.logits(model.hidden_states(ids)), torch.from_numpy(numpy.load(tmp_path / "logits.npy"))
    half = rival == "gptqmodel"  # it computes in float16 alone
    rounds = bool(DenseView(tmp_path / "v").int8_inputs)
    assert float((ours - theirs).abs().mean()) < (0.05 if rounds else 0.01 if half else 1e-4)


@pytest.mark.serve
@pytest.mark.parametrize("name", SERVED)
def test_vllm_loads_it_and_agrees_with_our_forward(name: str, base: Path, tmp_path: Path) -> None:
    skip_without_kernels(planned(base, STEPS[name]))
    made, _ = write(base, tmp_path / "v", STEPS[name])
    line = gate.generation(candidate(tmp_path / "v", made, generate=generate, prompts=[[1, 2, 3, 4], [70, 80]]))
    assert line.passed and line.detail.startswith("vLLM on"), line.detail
