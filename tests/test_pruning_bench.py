"""The pruning benchmark: what every reference of a rival must do on pico models, counts, and what the page says."""

import copy
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pico
import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import pruning  # noqa: E402
import pruning_ours  # noqa: E402
import pruning_page  # noqa: E402
import pruning_plots  # noqa: E402
import pruning_quality  # noqa: E402
import pruning_speed  # noqa: E402
import pruning_speed_page  # noqa: E402
from pruning_rivals import RIVALS, choose, depth, flap, llm_pruner, magnitude, parts, slicegpt, wanda_sp  # noqa: E402
from pruning_rivals.calibration import Calibration, next_token_loss  # noqa: E402
from pruning_rivals.parts import Shape  # noqa: E402

from hubplugin import evaluate, family, report  # noqa: E402

IDS = pico.tokens(4, 24)
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48,
}  # fmt: skip


def llama(**changes: Any) -> Any:
    """Four layers, two KV groups of two query heads each, 48 FFN channels."""
    return pico.model("llama", dtype=torch.float32, **{**SHAPE, **changes}).requires_grad_(False)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids.long(), use_cache=False).logits


def without(model: Any, layer: int, channel: int | None = None, group: int | None = None) -> Any:
    """The model with the output weights of one unit set to zero: what cutting it out must amount to."""
    made = copy.deepcopy(model)
    if channel is not None:
        made.model.layers[layer].mlp.down_proj.weight[:, channel] = 0
    if group is not None:
        made.model.layers[layer].self_attn.o_proj.weight[:, 32 * group : 32 * (group + 1)] = 0
    return made


def test_cutting_units_out_is_the_same_as_their_giving_nothing() -> None:
    model = llama()
    cut = copy.deepcopy(model)
    parts.cut_ffn(cut.model.layers[1], torch.tensor([each for each in range(48) if each != 7]))
    parts.cut_attention(cut.model.layers[2], torch.tensor([1]))
    expected = logits(without(without(model, 1, channel=7), 2, group=0))
    assert torch.allclose(logits(cut), expected, atol=1e-5)
    assert not torch.allclose(logits(cut), logits(model), atol=1e-3)


def test_counts_are_those_of_the_modules() -> None:
    model = llama()
    shape = Shape.of(model)
    assert parts.linear_parameters(model) == shape.all == 4 * (3 * 64 * 48 + 64 * (64 + 32 + 32 + 64))
    parts.cut_attention(model.model.layers[0], torch.tensor([0]), bias=torch.ones(64))
    parts.cut_ffn(model.model.layers[1], torch.arange(40))
    assert parts.linear_parameters(model) == shape.all - shape.group - 8 * shape.channel
    assert parts.added_parameters(model) == 64
    assert not parts.same_shapes(model) and parts.same_shapes(llama())
    fewer = llama()
    depth.drop(fewer, [(0, "self_attn"), (0, "mlp")])
    assert parts.same_shapes(fewer)


def test_a_folder_is_plain_where_all_layers_are_alike(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "alike")
    parts.cut_ffn(model.model.layers[1], torch.arange(40))
    model.save_pretrained(tmp_path / "unlike")
    assert pruning.same_shapes(tmp_path / "alike") and not pruning.same_shapes(tmp_path / "unlike")


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", [name for name in RIVALS if name != "blockpruner"])
def test_no_rival_keeps_less_than_it_is_asked_to(name: str, ratio: float) -> None:
    base = llama()
    keep = math.ceil(Shape.of(base).all * (1 - ratio))
    for setting in RIVALS[name].settings:
        model = copy.deepcopy(base)
        RIVALS[name].prune(model, Calibration(base, IDS), keep, **setting)
        kept, added = parts.linear_parameters(model), parts.added_parameters(model)
        counted = added if setting.get("count_rotations") else 0
        assert kept + counted >= keep, setting
        # and wastes no more than a layer
        assert kept + counted - keep < Shape.of(base).layer or kept == Shape.of(base).all, setting
        assert torch.isfinite(logits(model)).all(), setting


def test_blockpruner_fills_what_is_left_with_smaller_blocks() -> None:
    base, model = llama(), llama()
    shape = Shape.of(base)
    attention = shape.groups * shape.group
    depth.blockpruner(model, Calibration(base, IDS), shape.all - shape.layer - attention // 2)
    gone = shape.all - parts.linear_parameters(model)
    assert shape.layer - attention < gone <= shape.layer + attention // 2


def test_rivals_leave_the_model_that_calibration_holds_as_it_was() -> None:
    base = llama()
    before, calibration = logits(base), Calibration(base, IDS)
    for rival in RIVALS.values():
        rival.prune(copy.deepcopy(base), calibration, Shape.of(base).all // 2, **rival.settings[0])
        assert torch.equal(logits(base), before), rival.title


def test_magnitude_drops_the_smallest_channel_and_group() -> None:
    base = llama()
    shape = Shape.of(base)
    for layer, channel in enumerate((5, 11, 0, 47)):
        mlp = base.model.layers[layer].mlp
        for weight in (mlp.gate_proj.weight[channel], mlp.up_proj.weight[channel], mlp.down_proj.weight[:, channel]):
            weight *= 0.5
    model = copy.deepcopy(base)
    magnitude.prune(model, Calibration(base, IDS), shape.all - 4 * shape.channel, heads=False)
    kept = base
    for layer, channel in enumerate((5, 11, 0, 47)):
        kept = without(kept, layer, channel=channel)
    assert torch.allclose(logits(model), logits(kept), atol=1e-5)


def test_a_ranking_over_all_layers_goes_where_the_scores_are_lowest() -> None:
    shape = Shape(hidden=64, ffn=3, layers=2, groups=1, queries=1, head=16)
    channels = torch.tensor([[1.0, 2.0, 9.0], [3.0, 8.0, 7.0]])
    kept = choose.everywhere(shape, channels, torch.tensor([[4.0], [6.0]]), 3 * shape.channel + shape.group)
    assert [each.tolist() for each in kept.channels] == [[2], [1, 2]]
    assert [each.tolist() for each in kept.groups] == [[], [0]]
    # the group no longer fits: nothing behind it goes either
    kept = choose.everywhere(shape, channels, torch.tensor([[1.5], [6.0]]), shape.channel + shape.group - 1)
    assert [each.tolist() for each in kept.channels] == [[1, 2], [0, 1, 2]] and len(kept.groups[0]) == 1


def test_the_same_share_everywhere_leaves_the_ends_whole_where_asked() -> None:
    shape = Shape.of(llama())
    scores = torch.arange(48.0).flip(0).expand(4, 48), torch.tensor([[2.0, 1.0]]).expand(4, 2)
    kept = choose.uniform(shape, *scores, shape.all // 4, spare_ends=True)
    assert [len(each) for each in kept.channels][::3] == [48, 48] and len(kept.channels[1]) == len(kept.channels[2])
    assert kept.groups[0].tolist() == [0, 1] and kept.groups[1].tolist() == [0]
    assert kept.channels[1].tolist() == list(range(len(kept.channels[1])))  # the last ones have the lowest scores


def test_wanda_weighs_a_column_by_the_norm_of_its_input() -> None:
    base = llama()
    seen = []
    down = base.model.layers[1].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, 1)))
    logits(base)
    hook.remove()
    channels, groups = wanda_sp.scores(base, Calibration(base, IDS))
    expected = down.weight.abs().sum(0) * seen[0].square().mean(0).sqrt()
    assert torch.allclose(channels[1].float(), expected, rtol=1e-4) and groups.shape == (4, 2)


def test_flaps_bias_is_what_the_removed_columns_gave_on_average() -> None:
    base = llama()
    calibration = Calibration(base, IDS)
    seen = []
    down = base.model.layers[0].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, 1)))
    logits(base)
    hook.remove()
    gone = torch.tensor([3, 30])
    bias = flap.compensation(down.weight, gone, calibration.inputs()["down"].mean[0])
    assert bias is not None and torch.allclose(bias, down.weight[:, gone] @ seen[0].mean(0)[gone], atol=1e-5)
    scores, _ = flap.fluctuation(base, calibration)
    expected = seen[0].var(0, unbiased=False) * down.weight.square().sum(0)
    assert torch.allclose(scores[0].float(), expected, rtol=1e-3)
    # the mean of a block's output does not move: that is what the bias is for
    model = copy.deepcopy(base)
    flap.prune(model, calibration, Shape.of(base).all // 2)
    outputs = [each.model.layers[0].self_attn(**first_inputs(base))[0].mean((0, 1)) for each in (base, model)]
    assert not torch.equal(*outputs) and torch.allclose(*outputs, atol=1e-5)


def first_inputs(model: Any) -> dict[str, Any]:
    """What the first attention is called with."""
    found: dict[str, Any] = {}
    attention = model.model.layers[0].self_attn
    hook = attention.register_forward_pre_hook(lambda module, given, named: found.update(named), with_kwargs=True)
    logits(model)
    hook.remove()
    return found


def test_the_taylor_score_is_weight_times_gradient() -> None:
    base = llama()
    channels, _ = llm_pruner.scores(base, Calibration(base, IDS))
    weight = base.model.layers[2].mlp.up_proj.weight
    scaled = copy.deepcopy(base)
    # one element: the change of the loss for a small relative step is its part of the score
    gradient = Calibration(base, IDS).gradients()["model.layers.2.mlp.up_proj.weight"]
    row, column = divmod(int((weight * gradient).abs().argmax()), 64)
    losses = []
    for step in (0.98, 1.02):
        scaled.model.layers[2].mlp.up_proj.weight[row, column] = step * weight[row, column]
        with torch.inference_mode():
            losses.append(float(next_token_loss(scaled, IDS.long()).double().sum()) / IDS.numel())
    expected = (losses[1] - losses[0]) / 0.04
    assert expected == pytest.approx(float((weight * gradient)[row, column]), rel=0.05)
    assert float(channels[2, row]) >= abs(expected) * 0.95
    assert not base.model.layers[2].mlp.up_proj.weight.requires_grad


@pytest.mark.parametrize("signal", slicegpt.SIGNALS)
@pytest.mark.parametrize("tied", [True, False])
def test_slicegpt_with_nothing_sliced_is_the_identity(signal: str, tied: bool) -> None:
    base = llama(tie_word_embeddings=tied)
    model = copy.deepcopy(base)
    slicegpt.prune(model, Calibration(base, IDS), Shape.of(base).all, signal)
    assert torch.allclose(logits(model), logits(base), atol=1e-4)
    assert not torch.allclose(
        model.model.layers[0].self_attn.q_proj.weight, base.model.layers[0].self_attn.q_proj.weight
    )


def test_slicegpt_loses_nothing_where_the_stream_fills_only_part_of_its_width() -> None:
    base = llama()
    for name, weight in base.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            (weight if "embed" in name else weight.T)[:, 40:] = 0
    shape = Shape.of(base)
    model = copy.deepcopy(base)
    keep = shape.all * 40 // 64 + shape.ffn * (64 - 40)  # at width 40; the last down writes full width
    slicegpt.prune(model, Calibration(base, IDS), keep)
    assert model.model.embed_tokens.weight.shape[1] == 40 and parts.linear_parameters(model) == keep
    assert torch.allclose(logits(model), logits(base), atol=1e-3)


def test_the_influence_of_a_layer_that_does_nothing_is_lowest() -> None:
    base = llama()
    depth.drop(base, [(2, "self_attn"), (2, "mlp")])
    influence = Calibration(base, IDS).influence()
    assert min(influence) == influence[2] == pytest.approx(0, abs=1e-5) and sorted(influence)[1] > 1e-3


def test_shortgpt_drops_the_layer_that_does_nothing() -> None:
    base = llama()
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        base.model.layers[1].get_submodule(part).weight.zero_()
    model = copy.deepcopy(base)
    shape = Shape.of(base)
    depth.shortgpt(model, Calibration(base, IDS), shape.all - shape.layer)
    assert isinstance(model.model.layers[1].mlp, parts.Constant)
    assert parts.linear_parameters(model) == shape.all - shape.layer
    assert torch.allclose(logits(model), logits(base), atol=1e-5)


def test_greedy_removal_leaves_the_lowest_perplexity_of_all_layers_it_could_drop() -> None:
    base, model = llama(), llama()
    calibration = Calibration(base, IDS)
    depth.greedy_layers(model, calibration, Shape.of(base).all - Shape.of(base).layer)
    left = []
    for layer in range(4):
        tried = llama()
        depth.drop(tried, [(layer, "self_attn"), (layer, "mlp")])
        left.append(calibration.perplexity(tried, 4))
    assert calibration.perplexity(model, 4) == pytest.approx(min(left)) and min(left) < sorted(left)[1]


def test_what_is_known_already_still_counts_as_time() -> None:
    calibration = Calibration(llama(), IDS)
    calibration.once("slow", lambda: torch.ones(400, 400) @ torch.ones(400, 400))
    assert calibration.saved == 0
    calibration.once("slow", lambda: pytest.fail("asked twice"))
    assert calibration.saved > 0


def reference(folder: Path) -> evaluate.Reference:
    described = report.Tokens(source="ids", sequences=6, tokens_per_sequence=40, seed=2, sha256="0" * 64)
    return evaluate.reference(folder, family.FAMILIES["llama"], pico.tokens(6, 40, 2), described)


def test_a_module_and_its_folder_are_measured_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LOGITS", 5000)  # several pieces, which need not be the same in both ways
    base = reference(pico.write(tmp_path / "base"))
    dense = pruning_quality.measure(pruning.load(tmp_path / "base"), base)
    assert dense.perplexity == pytest.approx(base.quality.perplexity, rel=1e-5)
    assert dense.perplexity_stderr == pytest.approx(base.quality.perplexity_stderr, rel=1e-4)
    assert dense.mean_kl == pytest.approx(0, abs=1e-8) and dense.top1_agreement == 1
    moved = pico.write(tmp_path / "moved", seed=0)
    model = pruning.load(moved)
    model.model.layers[1].mlp.down_proj.weight *= 0.5  # exact in bfloat16
    model.save_pretrained(moved)
    expected = evaluate.measure(moved, family.FAMILIES["llama"], base, kl=True).variant.model_dump()
    found = pruning_quality.measure(model, base).model_dump()
    assert expected["mean_kl"] > 1e-3
    assert found == pytest.approx(expected, rel=1e-3)


def test_what_rivals_may_keep_is_what_ours_keeps_or_more(tmp_path: Path) -> None:
    base = pico.write(tmp_path / "base", intermediate_size=512)
    dense = pruning_ours.dense(base, tmp_path).linear_parameters
    for ratio in (0.1, 0.2, 0.3, 0.5):
        keep = pruning_ours.least(base, ratio, tmp_path)
        assert math.ceil(dense * (1 - ratio)) <= keep < dense
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def bench(folder: Path) -> pruning.Bench:
    base = pico.write(folder / "base", intermediate_size=512)
    described = report.Tokens(source="ids", sequences=4, tokens_per_sequence=24, seed=1, sha256="1" * 64)
    (folder / "results").mkdir()
    row = family.FAMILIES["llama"]
    return pruning.Bench(base, folder, folder / "results", row, reference(base), IDS, described, {"self": True})


def test_a_result_is_made_once_and_again_where_what_it_is_made_from_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path)
    path = pruning.path_of(made.results, "magnitude", 0.3)
    pruning.run(made, ["magnitude"], [0.3], force=False)
    first = path.read_text(encoding="utf-8")
    monkeypatch.setattr(pruning, "rival", lambda *_: pytest.fail("run again"))
    pruning.run(made, ["magnitude"], [0.3], force=False)
    assert path.read_text(encoding="utf-8") == first
    monkeypatch.setattr(pruning_ours, "least", lambda *_: 10**5)
    with pytest.raises(pytest.fail.Exception, match="run again"):
        pruning.run(made, ["magnitude"], [0.3], force=False)
    assert [each.name for each in made.results.iterdir()] == ["magnitude.30.json"]
    found = pruning_page.results(made.results)
    assert found[0]["linear_parameters"] >= found[0]["made_from"]["keep"]
    assert [each["setting"] for each in found[0]["tried"]] == [{"heads": True}, {"heads": False}]
    assert found[0]["plain"]
    assert "nan" not in pruning_page.render(found, []).lower()


def made_up(method: str, ratio: float | None, kept: int, perplexity: float, kl: float, **more: Any) -> dict[str, Any]:
    """One result as pruning.py writes it."""
    tokens = {"source": "ids; in order", "sequences": 4, "tokens_per_sequence": 24, "seed": 1, "sha256": "1" * 64}
    return {
        "method": method,
        "plain": False,
        "ratio": ratio,
        "made_from": {"calibration_sha256": "1", "held_out_sha256": "2"},
        "linear_parameters": kept,
        "added_parameters": 0,
        "parameters": kept + 500,
        "bytes": 2 * kept,
        "seconds": 1.25,
        "quality": {"perplexity": perplexity, "perplexity_stderr": 0.1, "mean_kl": kl, "p99_kl": 3 * kl},
        "calibration": tokens,
        "held_out": tokens,
        "base": {
            "perplexity": 20.0, "perplexity_stderr": 0.1, "linear_parameters": 1000, "parameters": 1500, "bytes": 3000
        },
        "machine": {"processor": "some", "cores": 2, "memory_gb": 25},
        **more,
    }  # fmt: skip


FOUND = [
    made_up("ours", 0.2, 800, 21.0, 0.02, plain=True),
    made_up("flap", 0.2, 810, 24.0, 0.10, setting={"standardise": "heads"}, tried=[
        {"setting": {"standardise": "channels"}, "perplexity": 25.0},
        {"setting": {"standardise": "heads"}, "perplexity": 24.5},
    ]),
    made_up("wanda-sp", 0.2, 800, 30.0, 0.4, plain=True),
    made_up("shortgpt", 0.2, 1000, 20.0, 0.0),
    made_up("int4", None, 1000, 20.5, 0.01),
    made_up("ours-int4", 0.2, 800, 21.6, 0.03),
]  # fmt: skip


def test_the_page_compares_ours_with_the_best_rival_that_removed_as_much() -> None:
    text = pruning_page.render(FOUND, [])
    nearest = "of the best rival that removed about as much (FLAP), 0.20 of its KL."
    plain = "of the best plain rival that removed about as much (Wanda-sp), 0.05 of its KL."
    assert f"- **hubplugin**: 0.25 of the excess {nearest}\n- **hubplugin**: 0.10 of the excess {plain}\n" in text
    assert "| **hubplugin** | yes | 800 | 20.0% | 0 | 0.00 | 21.000 | 1.000 | 0.0200 | 0.060 | 1.2 |" in text
    assert "| FLAP | 20% | standardise: heads | 24.500 | x |" in text
    order = [
        text.index(f"| {name} | ")
        for name in ("ShortGPT (whole layers), nothing fits", "**hubplugin**", "FLAP", "Wanda-sp")
    ]
    assert order == sorted(order)
    assert "to be run again" not in text


def test_the_page_says_which_rivals_kept_less_than_ours() -> None:
    text = pruning_page.render([FOUND[0], made_up("flap", 0.2, 790, 24.0, 0.1)], [])
    assert "FLAP (kept less than hubplugin: to be run again)" in text


@pytest.mark.parametrize("own", [20.0, 19.5, 21.0])
@pytest.mark.parametrize("rival", [20.0, 19.5, 21.0])
def test_the_page_never_shows_a_number_that_is_none(own: float, rival: float) -> None:
    found = [made_up("ours", 0.1, 900, own, 0.0), made_up("flap", 0.1, 900, rival, 0.0)]
    text = pruning_page.render(found, [])
    assert not re.search(r"\bnan\b|\binf\b", text.lower())
    assert "No results yet" in pruning_page.render([], [])


def test_plots_are_the_same_every_time_and_show_every_method(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        pruning_plots.write(FOUND, tmp_path / folder)
    for name in ("pruning-perplexity.svg", "pruning-bytes.svg"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second
        ElementTree.fromstring(first)
    text = (tmp_path / "one" / "pruning-perplexity.svg").read_text(encoding="utf-8")
    assert all(name in text for name in (">hubplugin<", ">FLAP<", ">Wanda-sp<")) and ">ShortGPT" not in text
    assert ">Int4<" in (tmp_path / "one" / "pruning-bytes.svg").read_text(encoding="utf-8")


def test_the_page_in_docs_is_what_the_results_say() -> None:
    found = pruning_page.results(pruning_page.RESULTS)
    expected = pruning_page.render(found, pruning_page.results(pruning_page.SPEED))
    assert pruning_page.PAGE.read_text(encoding="utf-8") == expected, "run `python bench/pruning_page.py`"
    assert {each["method"] for each in found} <= set(pruning_page.NAMES)


def test_results_name_no_path() -> None:
    for folder in (pruning_page.RESULTS, pruning_page.SPEED):
        for path in folder.glob("*.json"):
            assert not re.search(r'"(/|\w:\\\\)', path.read_text(encoding="utf-8")), path


METRICS = """# HELP vllm:time_to_first_token_seconds first
vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 3.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 3.0
vllm:request_time_per_output_token_seconds_sum{engine="0"} 0.3
vllm:request_time_per_output_token_seconds_count{engine="0"} 3.0
vllm:e2e_request_latency_seconds_sum{engine="0"} 6e+00
vllm:e2e_request_latency_seconds_count{engine="0"} 3.0
vllm:generation_tokens_total{engine="0"} 192.0
"""


def test_means_are_those_between_two_looks_at_vllms_histograms() -> None:
    before = pruning_speed.histograms("")
    after = pruning_speed.histograms(METRICS)
    assert after["tokens"][0] == 192
    assert pruning_speed.means(before, after) == pytest.approx({"ttft": 0.5, "tpot": 0.1, "e2e": 2.0})
    with pytest.raises(RuntimeError, match="counted nothing"):
        pruning_speed.means(after, after)


def test_the_speed_section_gives_medians_and_ratios_above_one_for_what_is_faster() -> None:
    runs = [
        {"variant": variant, "round": number, "concurrency": 8, "ttft": scale * 0.2, "tpot": scale * 0.02,
         "tokens_per_second": 100 / scale + number, "others_share": 0.01}
        for number in range(3)
        for variant, scale in (("dense", 1.0), ("pruned, 50%", 0.5))
    ]  # fmt: skip
    result = {
        "model": "350m", "vllm": "0.32.0", "machine": {"processor": "some", "cores": 2},
        "protocol": {"prompt": 128, "output": 64}, "variants": {"dense": 1000, "pruned, 50%": 500}, "runs": runs,
    }  # fmt: skip
    text = "\n".join(pruning_speed_page.section([result]))
    assert "| 8 | pruned, 50% | 500 | 100.0 | 2.00 | 10.00 | 2.00 | 201.0 | 1.99 |" in text
    assert "Not measured yet" in pruning_speed_page.section([])[0]
