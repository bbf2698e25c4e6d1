"""Codebooks from manifest to folder: what plan refuses and weighs, how codes are packed, what cards and verify say."""

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
import verify_helpers
from interruption_helpers import contents
from plan_helpers import config_json, document, headers
from prune_helpers import decided, make, model_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hubplugin.checkpoint import formats, resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.encodings import E2M1, Codebook, Fp4
from hubplugin.compress import export
from hubplugin.compress.blocks import blockwise
from hubplugin.errors import ManifestError, PlanError
from hubplugin.manifest.methods import STORAGE
from hubplugin.manifest.reading import loading
from hubplugin.model.architectures import families
from hubplugin.plan import planner, table, vllm_support
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.verification import Outcome, verify

WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 272,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 4, sequence_length: 32}}
variants:
  Row-4:
    - {{method: codebook, ignore: [layers.0.*.down_proj]}}
  Row-3:
    - {{method: codebook, bits: 3, qep: false, act_order: false}}
  Groups-2:
    - {{method: prune, ffn: 0.25}}
    - {{method: codebook, bits: 2, group_size: 64, ignore: [mlp.*]}}
  E2M1:
    - {{method: codebook, values: e2m1}}
evaluate: {{perplexity: {{self: true, samples: 2, sequence_length: 32, seed: 1}}}}
gate: {{perplexity_ratio: 1000, mean_kl: 1000, top1_agreement: 0}}
"""
FREE = ("Row-4", "Row-3", "Groups-2")


class Shelf(dict[str, Tensor]):
    """Tensors of a linear as a source."""

    def below(self, prefix: str) -> Any:
        raise NotImplementedError


def planned(*steps: dict[str, Any], model_type: str = "llama", **changes: Any) -> VariantPlan:
    config = pico.config(model_type, **{**WIDE, **changes})
    return planner.make(document(list(steps)), config_json(config), headers(config)).variants[0]


def step(**keys: Any) -> dict[str, Any]:
    return {"method": "codebook", **keys}


# -- plan


@pytest.mark.parametrize(
    ("keys", "changes", "place", "what", "fix"),
    [
        (
            {"bits": 4, "group_size": 128},
            {},
            "group_size",
            "16 centroids for 128 weights of q_proj take 2 bits",
            "-1, or",
        ),
        ({"bits": 4, "group_size": 64}, {}, "group_size", "take 4 bits per weight beside the 4 of codes", "bits: 2"),
        ({"bits": 4}, {"intermediate_size": 144}, "group_size", "144 weights of down_proj", "bits: 3 or 2, or gptq"),
        ({"bits": 2, "group_size": 16}, {}, "group_size", "take 4 bits per weight", "group_size: -1, or gptq"),
        ({"bits": 2, "group_size": 64}, {}, "group_size", "64 does not divide down_proj's 272 inputs", "use -1"),
        ({"values": "e2m1"}, {"intermediate_size": 264}, "values", "16 does not divide down_proj's 264", "use free"),
        (
            {"ignore": ["q_proj"]},
            {},
            "",
            "they differ: q_proj dense, k_proj codebook4 row",
            "let ignore name all of q_proj",
        ),
        ({"ignore": ["nothing"]}, {}, "ignore", "'nothing' names no linear", "write a path's end"),
    ],
)
def test_what_plan_refuses(keys: dict[str, Any], changes: dict[str, Any], place: str, what: str, fix: str) -> None:
    with pytest.raises(PlanError) as refusal:
        planned(step(**keys), **changes)
    error = refusal.value
    assert error.where.endswith(place) and what in error.what and fix in error.fix, error


@pytest.mark.parametrize("values", ["free", "e2m1"])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_experts_have_no_codebooks(model_type: str, values: str) -> None:
    with pytest.raises(PlanError, match="codebooks of experts have no loader"):
        planned(step(values=values), model_type=model_type)


def test_steps_that_exclude_one_another() -> None:
    for other in ({"method": "gptq"}, {"method": "wanda", "sparsity": 0.5}):
        with pytest.raises(PlanError, match="stands after"):
            planned(step(), other)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{method: codebook, bits: 8}", "2, 3 or 4"),
        ("{method: codebook, values: e2m1, bits: 3}", "e2m1 has bits 4 alone"),
        ("{method: codebook, values: e2m1, group_size: 64}", "e2m1 has group_size 16 alone"),
        ("{method: codebook, values: e2m1, refits: 1}", "nothing is refitted"),
        ("{method: codebook, values: nf4}", "e2m1"),
        ("{method: codebook, symmetric: false}", "no key here"),
        ("{method: codebook, budget: {bits_per_weight: 4}}", "no key here"),
    ],
)
def test_a_manifest_that_contradicts_itself(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"model: o/m\ncalibrate: {{self: true}}\nvariants: {{V: [{text}]}}\n")
    with pytest.raises(ManifestError) as refusal:
        loading.load(path)
    assert "variants.V[0]" in refusal.value.where and what in f"{refusal.value.what} {refusal.value.fix}"


def test_bits_per_weight_count_the_centroids() -> None:
    """By hand: 256 inputs of 3 bits are 24 words, 272 are 26; 8 centroids of 2 bytes an output; 16 bytes of shape."""
    made = planned(step(bits=3))
    shapes = [linear.after for linear in made.linears]
    stored = sum(outputs * (4 * ceil(3 * inputs / 32) + 16) + 16 for outputs, inputs in shapes)
    weights = sum(outputs * inputs for outputs, inputs in shapes)
    assert made.linear_bits_per_weight == pytest.approx(8 * stored / weights)
    books = 128 * sum(outputs for outputs, _ in shapes) / weights
    assert f"of its bits per weight {books:.2f} are centroids" in made.notes[0] and made.notes[0].startswith(STORAGE)


def test_what_loads_it_is_said_for_each_kind_of_machine() -> None:
    config = pico.config(**WIDE)
    steps = {"Free": [step()], "E2M1": [step(values="e2m1")]}
    plan = planner.make(document(steps), config_json(config), headers(config))
    free, e2m1 = plan.variants
    assert all(verdict.loads and not verdict.note for verdict in free.verdicts)
    assert vllm_support.CODEBOOK_PLUGIN in free.notes and not e2m1.notes
    by_target = {verdict.target: verdict for verdict in e2m1.verdicts}
    assert (by_target["cpu"].loads, by_target["cpu"].why) == (
        False,
        f"no CPU kernel for FP4 weights; {vllm_support.DENSE}",
    )
    assert by_target["cuda tp=1"].note == "compute capability 7.5 or newer"
    assert e2m1.linear_bits_per_weight == pytest.approx(4.5, abs=0.01)
    text = table.render(plan)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["Free"][-4:] == ["plugin"] * 4 and rows["E2M1"][-4:] == ["dense", "yes", "no", "no"], (
        "stock vLLM refuses Free"
    )
    assert "codebook4 row" in text and "fp4 g16" in text and STORAGE in text


# -- packing


@pytest.mark.parametrize(("outputs", "inputs", "groups"), [(3, 37, 1), (5, 33, 3), (1, 100, 2), (8, 64, 1)])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_of_any_shape_come_back_and_lie_where_they_should(
    bits: int, outputs: int, inputs: int, groups: int
) -> None:
    make = torch.Generator().manual_seed(inputs)
    codes = torch.randint(0, 2**bits, (outputs, inputs), generator=make, dtype=torch.uint8)
    centroids = torch.randn(outputs, groups, 2**bits, generator=make).bfloat16().half()
    encoding = Codebook(codes, centroids, bits)
    parts = formats.tensors(encoding, "hubplugin_codebook", torch.bfloat16)
    source = Shelf({f"x.{name}": tensor for name, tensor in parts.items()})
    assert torch.equal(formats.dense(source, "x", (bits,), 0), encoding.dense())
    for row in range(outputs):  # one long number, low bits first
        stream = int.from_bytes(parts["codebook_codes"][row].numpy().tobytes(), "little")
        for place in range(inputs):
            code = (stream >> (place * bits)) & (2**bits - 1)
            assert encoding.dense()[row, place] == centroids[row, place * groups // inputs, code]


def test_a_linear_whose_words_are_too_few_is_refused() -> None:
    encoding = Codebook(torch.zeros(2, 64, dtype=torch.uint8), torch.zeros(2, 1, 16).half(), 4)
    parts = formats.tensors(encoding, "hubplugin_codebook", torch.bfloat16)
    parts["codebook_shape"] = torch.tensor([2, 128])
    with pytest.raises(Exception, match="do not hold 128 codes of 4 bits"):
        formats.dense(Shelf({f"x.{name}": tensor for name, tensor in parts.items()}), "x", (4,), 0)


def fp4(outputs: int = 6, inputs: int = 64) -> Fp4:
    make = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (outputs, inputs), generator=make, dtype=torch.uint8)
    scales = (torch.rand(outputs, inputs // 16, generator=make) * 400 + 1).to(torch.float8_e4m3fn)
    return Fp4(codes, scales, 1024.0)


def test_compressed_tensors_reads_our_fp4_as_it_was_meant() -> None:
    """Bit for bit: the divisor is a power of two, so that no reader rounds."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    encoding = fp4()
    parts = formats.tensors(encoding, "nvfp4-pack-quantized", torch.bfloat16)
    scheme = quantization.preset_name_to_scheme("NVFP4A16", ["Linear"])
    reader = compressors.BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    read = reader.decompress(parts, scheme)["weight"]
    assert read.dtype == torch.bfloat16 and torch.equal(read.float(), encoding.dense())
    assert encoding.dense()[0, 0] == (-1) ** (int(encoding.codes[0, 0]) >> 3) * E2M1[int(encoding.codes[0, 0]) & 7] * (
        float(encoding.scales[0, 0]) / 1024
    )


# -- folders


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write(tmp_path_factory.mktemp("base") / "m", **WIDE)


@pytest.fixture(scope="module")
def out(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return verify_helpers.make(tmp_path_factory.mktemp("made"), str(base), MANIFEST)


@pytest.mark.parametrize("name", [*FREE, "E2M1"])
def test_a_run_ends_in_a_folder_that_gate_and_verify_accept(name: str, out: Path) -> None:
    made = json.loads((out / name / "report.json").read_text())
    assert all(line["passed"] for line in made["gate"]), [line for line in made["gate"] if not line["passed"]]
    found = verify(str(out / name))
    assert not [line for line in found.lines if line.outcome is Outcome.FAILED]
    passed = {line.check for line in found.lines if line.outcome is Outcome.PASSED}
    assert {"codes as configured", "codes as in the steps", "sizes", "finite weights", "shapes"} <= passed


def half_of_the_scales_zero(scales: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(scales[::2]), scales[1::2]])


@pytest.mark.parametrize(
    ("name", "part", "spoil", "said"),
    [
        ("E2M1", "weight_scale", half_of_the_scales_zero, "scales are zero"),
        ("E2M1", "weight_scale", lambda scales: torch.full_like(scales.float(), torch.nan).to(scales.dtype), "NaN"),
        ("E2M1", "weight_global_scale", torch.zeros_like, "1 of 1 scales are zero"),
        ("Row-4", "codebook_centroids", torch.zeros_like, "all of its weights are zero"),
    ],
)
def test_verify_finds_codes_that_mean_nothing(
    name: str, part: str, spoil: Callable[[torch.Tensor], torch.Tensor], said: str, out: Path, tmp_path: Path
) -> None:
    spoilt = shutil.copytree(out / name, tmp_path / name)
    tensors = load_file(spoilt / "model.safetensors")
    place = next(tensor for tensor in tensors if tensor.endswith(f".{part}"))
    save_file(tensors | {place: spoil(tensors[place])}, spoilt / "model.safetensors", {"format": "pt"})
    lines = [str(line) for line in verify(str(spoilt)).lines if line.check == "finite weights"]
    assert lines and "FAILED" in lines[0] and said in lines[0] and place in lines[0]


@pytest.mark.parametrize("name", [*FREE, "E2M1"])
def test_logits_are_those_of_transformers_with_the_dequantized_weights(name: str, base: Path, out: Path) -> None:
    view = DenseView(out / name)
    source = base if name != "Groups-2" else None
    model = AutoModelForCausalLM.from_pretrained(source or base, dtype=torch.float32)
    if source is None:
        config = json.loads((out / name / "config.json").read_text())
        model.config.intermediate_size = config["intermediate_size"]
        model = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    model.load_state_dict({name: view.get(name).float() for name in view.names()}, strict=False)
    model.eval()
    ids = pico.tokens(2, 24).long()
    ours = model_of(out / name)
    from hubplugin.evaluation.generation import generate_dequantized

    with torch.no_grad():
        expected = model(ids).logits[:, -1].argmax(dim=-1).tolist()
    generated = generate_dequantized(out / name, ids.tolist(), 1)
    assert [row[0] for row in generated.token_ids] == expected and len(ours) == 2


@pytest.mark.parametrize("name", FREE)
def test_card_and_configuration_say_what_a_free_codebook_is(name: str, out: Path) -> None:
    folder = out / name
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    bits = {"Row-4": 4, "Row-3": 3, "Groups-2": 2}[name]
    assert (config["quant_method"], config["bits"]) == ("hubplugin_codebook", bits)
    card = (folder / "README.md").read_text()
    assert "| codebooks |" in card and "| scales |" not in card, "centroids are no scales"
    assert "\n- free\n" not in card, "a tag that would be read as a price"
    assert STORAGE in card and vllm_support.CODEBOOK_PLUGIN in card and "format of hubplugin's own" in card
    assert "vLLM with hubplugin beside it loads it" in card and "## Load in Python" not in card
    assert "library_name: vllm" in card and "with its linears" in card.replace("and its", "with its")
    assert not (folder / "quantize_config.json").exists()


def test_card_and_configuration_of_e2m1_are_compressed_tensors(out: Path) -> None:
    config = json.loads((out / "E2M1" / "config.json").read_text())["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert (config["format"], weights["type"], weights["strategy"]) == ("nvfp4-pack-quantized", "float", "tensor_group")
    assert config["config_groups"]["group_0"]["input_activations"] is None  # else vLLM would quantize them
    card = (out / "E2M1" / "README.md").read_text()
    assert STORAGE not in card and f"| cpu | no: no CPU kernel for FP4 weights; {vllm_support.DENSE} |" in card
    assert "compressed-tensors' format" in card and "nvfp4" in card
    assert "quantized to 4 bits by codebooks of FP4's 16 values (NVFP4)." in card


def test_what_vllm_stacks_shares_its_global_scale(out: Path) -> None:
    with safe_open(out / "E2M1" / "model.safetensors", "pt") as file:
        layer = "model.layers.0."
        for stack in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            scales = {float(file.get_tensor(f"{layer}{linear}.weight_global_scale")) for linear in stack}
            assert len(scales) == 1


STEP = step(bits=3)


def interrupted(base: Path, out: Path, pause: float) -> int:
    """Write a variant's folder block by block; the number of blocks made now."""
    variant, row = decided(base, STEP), families.FAMILIES["llama"]
    out.mkdir(exist_ok=True)
    target, made = export.Folder(out, base, variant, row, resume.Fingerprint({"base": "b"})), 0
    calibration = blockwise.Calibration(pico.tokens(4, 48))
    for block in blockwise.blocks(model_of(base), calibration, variant, torch.bfloat16, target):
        target.add(block)
        made += 1
        time.sleep(pause)
    target.finish(keep_blocks=True)
    return made


def in_a_worker(base: Path, out: Path) -> None:
    torch.set_num_threads(1)  # as in this process: sums in another order would be other centroids
    interrupted(base, out, 60.0)


@pytest.mark.slow
def test_killed_after_a_block_it_ends_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    assert interrupted(base, tmp_path / "whole", 0) == 2
    worker = multiprocessing.get_context("spawn").Process(target=in_a_worker, args=(base, tmp_path / "killed"))
    worker.start()
    first = tmp_path / "killed" / resume.BLOCKS / "block-00000.safetensors"
    while not first.exists():
        assert worker.is_alive()
        time.sleep(0.05)
    worker.kill()
    worker.join()
    assert interrupted(base, tmp_path / "killed", 0) == 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_block_is_not_made_again(base: Path, tmp_path: Path) -> None:
    for name in ("whole", "part"):
        interrupted(base, tmp_path / name, 0)
    (tmp_path / "part" / resume.BLOCKS / "block-00001.safetensors").unlink()
    assert interrupted(base, tmp_path / "part", 0) == 1
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_samples_are_what_is_read_back_after_pruning(base: Path, tmp_path: Path) -> None:
    """Codes of pruned outputs are dropped with their codebooks: make() holds what the modules computed with."""
    variant = decided(base, {"method": "prune", "ffn": 0.25}, step(bits=2))
    blocks = make(base, tmp_path / "v", variant)
    view = DenseView(tmp_path / "v")
    for block in blocks:
        for name, rows in block.samples.items():
            assert torch.equal(view.get(f"{name}.weight")[: len(rows)].float(), rows)
