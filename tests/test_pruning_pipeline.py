"""`hubplugin run` with every kind of pruning: gate, report and card of what it makes, without an engine."""

import json
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from prune_helpers import WIDE, our_logits

from hubplugin import cli, report
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress.search import latency
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.manifest.steps.prune import Prune
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import FAMILIES
from hubplugin.plan.choices.pruning_space import Space

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 8, tokens: 64, seed: 0}}
variants:
  Ratio: [{{method: prune, ratio: 0.3}}]
  Uneven-Int4: [{{method: prune, ratio: 0.3, layout: per-layer}}, {{method: gptq, bits: 4, group_size: 32}}]
  Shorter: [{{method: prune, layers: 1, kv_heads: 0.5}}]
  Recovered-Int4:
    - {{method: prune, ffn: 0.25, layers: 1}}
    - {{method: recover, blocks: 1, distill: 0.5}}
    - {{method: gptq, bits: 4, group_size: 32}}
  Recovered: [{{method: prune, attention: 1, mlp: 2, layout: per-layer}}, {{method: recover, blocks: 1, distill: 0.5}}]
  Faster: [{{method: prune, latency: 0.7, layout: per-layer}}]
evaluate: {{perplexity: {{self: true, samples: 4, tokens: 64, seed: 1}}, kl: true}}
gate: {{mean_kl: 9, top1_agreement: 0}}
"""
PER_LAYER = ("Uneven-Int4", "Recovered", "Faster")


def weights(shapes: list[tuple[int, int]]) -> int:
    return sum(outputs * inputs for outputs, inputs in shapes)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All variants of the manifest, made once."""
    folder = tmp_path_factory.mktemp("pruned")
    base = pico.write(folder / "base", "llama", **WIDE, num_hidden_layers=4)
    (folder / "pico.yaml").write_text(MANIFEST.format(model=base))

    def generate(made: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
        return generate_dequantized(made, prompts, tokens)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hubplugin.evaluation.engine_choice.generate", generate)
        patched.setattr("hubplugin.compress.search.latency._median_seconds", lambda shapes: 1e-9 * weights(shapes))
        with pytest.raises(SystemExit) as done:
            cli.main(["run", str(folder / "pico.yaml"), "--out", str(folder / "out")])
    assert done.value.code == 0
    return folder / "out"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


VARIANTS = ("Ratio", "Uneven-Int4", "Shorter", "Recovered-Int4", "Recovered", "Faster")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_passes_the_gate_and_says_what_it_is(name: str, out: Path) -> None:
    made = report.read(out / name)
    assert made.passed and not list((out / name).glob(".*"))
    line = next(line for line in made.gate if line.name == "generation")
    assert line.detail.startswith("transformers, from the dequantized folder")
    assert made.evaluation is not None and 0 < made.evaluation.variant.mean_kl < 2
    assert made.sizes.linear_parameters < 0.9 * made.sizes_base.linear_parameters
    card = (out / name / "README.md").read_text()
    plugin = "vLLM serves it with hubplugin installed beside it"
    assert (plugin in card) == (name in PER_LAYER) == any(plugin in note for note in made.notes)
    assert (config_of(out / name)["model_type"] == "nemotron-nas") == (name in PER_LAYER)
    assert Prune.paper in card
    methods = {result.method for result in made.linears}
    assert ("gptq" in methods) == name.endswith("Int4")


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "Ratio"])
def test_the_shape_that_was_measured_is_the_shape_that_was_made(name: str, out: Path) -> None:
    made, config = report.read(out / name), config_of(out / name)
    assert made.shaping is not None and made.shaping.predicted_kl > 0
    blocks = made.shaping.blocks
    assert config["num_hidden_layers"] == len(blocks)
    assert config["intermediate_size"] == max(block.ffn for block in blocks)
    assert config["num_key_value_heads"] == max(block.kv_heads for block in blocks)
    for index, block in enumerate(config.get("block_configs", ())):
        assert block["ffn"]["intermediate_size"] == (blocks[index].ffn or None)
        assert block["attention"]["no_op"] == (blocks[index].heads == 0)
    assert [block.source for block in blocks] == sorted({block.source for block in blocks})


def test_a_ratio_is_met(out: Path) -> None:
    for name in ("Ratio", "Uneven-Int4"):
        sizes = report.read(out / name).sizes
        share = 1 - sizes.linear_parameters / report.read(out / name).sizes_base.linear_parameters
        assert share == pytest.approx(0.3, abs=0.1), name
    assert report.read(out / "Ratio").shaping is not None


def test_time_per_token_is_met_with_the_head_counted(out: Path) -> None:
    sizes, base = report.read(out / "Faster").sizes, report.read(out / "Faster").sizes_base
    head = pico.VOCABULARY * 128
    share = (sizes.linear_parameters + head) / (base.linear_parameters + head)
    assert 0.6 < share <= 0.7 + 16 * 3 * 128 / base.linear_parameters, "half a step of 32 channels"


def test_times_are_measured_for_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ROTATED", 2**16)
    base = Dimensions(4, 64, 128, 4, 2, 16, 300, None, True)
    asked = Prune.model_validate({"method": "prune", "latency": 0.5})
    space = Space(asked, FAMILIES["llama"], base, (64, 128), ((2, 1), (4, 2)))
    found = latency.measure(space)
    assert found.attention.keys() == {(0, 0), (2, 1), (4, 2)} and found.ffn.keys() == {0, 64, 128}
    assert found.attention[0, 0] == found.ffn[0] == 0
    assert min(found.attention[2, 1], found.ffn[64], found.rest) > 0
    whole = found.rest + 4 * (found.attention[4, 2] + found.ffn[128])
    assert latency.of_base(found, space) == pytest.approx(whole)


def test_times_are_those_of_linears_as_vllm_stacks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(latency, "_median_seconds", lambda shapes: timed.append(shapes) or float(weights(shapes)))
    base = Dimensions(4, 64, 128, 4, 2, 16, 300, None, True)
    asked = Prune.model_validate({"method": "prune", "latency": 0.5})
    latency.measure(Space(asked, FAMILIES["llama"], base, (96, 128), ((2, 1), (4, 2))))
    qkv, gate_up = [(64, 64), (64, 32)], [(192, 64), (64, 96)]
    assert timed == [qkv, [(128, 64), (64, 64)], gate_up, [(256, 64), (64, 128)], [(300, 64)]]


def test_removals_are_named(out: Path) -> None:
    shaping = report.read(out / "Recovered").shaping
    assert shaping is not None
    assert sorted(one.what for one in shaping.removed) == ["mlp", "mlp", "self_attn"]
    shaping = report.read(out / "Shorter").shaping
    assert shaping is not None and [one.what for one in shaping.removed] == ["layer"]
    assert shaping.removed[0].block not in [block.source for block in shaping.blocks]


def test_recovery_is_reported_with_both_sweeps_around_it(out: Path) -> None:
    for name in VARIANTS:
        made = report.read(out / name)
        assert (made.recovery is not None) == name.startswith("Recovered")
    for name in ("Recovered", "Recovered-Int4"):
        found = report.read(out / name).recovery
        assert found is not None and found.kl_after <= found.kl_before
        assert "## Recovery" in (out / name / "README.md").read_text()
    methods = [result.method for result in report.read(out / "Recovered-Int4").linears]
    assert methods.index("gptq") > methods.index("prune") and "prune" not in methods[methods.index("gptq") :]
    assert len([method for method in methods if method == "gptq"]) == 3 * 4, "every tap of three blocks"


def test_generation_by_transformers_is_our_own_forward(out: Path) -> None:
    prompt = pico.tokens(1, 12)[0].tolist()
    for name in PER_LAYER:
        made = generate_dequantized(out / name, [prompt], 4)
        ids = torch.tensor([prompt + made.token_ids[0]])
        expected = our_logits(out / name, ids).log_softmax(-1)[0, len(prompt) - 1 : -1]
        assert expected.argmax(-1).tolist() == made.token_ids[0]
        assert torch.allclose(expected.max(-1).values, torch.tensor(made.logprobs[0]), atol=1e-4)


def test_a_block_that_lacks_a_part_has_no_tensor_of_it(out: Path) -> None:
    view, config = DenseView(out / "Recovered"), config_of(out / "Recovered")
    for index, block in enumerate(config["block_configs"]):
        names = {name.split(".")[3] for name in view.names() if name.startswith(f"model.layers.{index}.")}
        assert ("self_attn" in names) == ("input_layernorm" in names) == (not block["attention"]["no_op"])
        assert ("mlp" in names) == ("post_attention_layernorm" in names) == (not block["ffn"]["no_op"])
