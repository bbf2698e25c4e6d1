"""Whole layers and sub-blocks: which ones go, what their neighbours make up for, and runs that stop on the way."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from interruption_helpers import contents
from prune_helpers import PER_LAYER, base, decided, idle, loaded, logits, make, model_of, our_logits, planned, step
from safetensors.torch import load_file

from hubplugin.checkpoint import resume
from hubplugin.compress import export, stages
from hubplugin.compress.blocks.block_record import Block
from hubplugin.compress.search import pruning_search, width_curves
from hubplugin.errors import PlanError
from hubplugin.model.architectures.architecture import BlockShape
from hubplugin.plan.choices.pruning_space import Shape
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import Shaping

GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
IDS = pico.tokens(3, 64, seed=7)


# -- what goes


@pytest.mark.parametrize("lazy", [0, 1, 3])
def test_the_layer_that_does_nothing_goes(lazy: int, tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    idle(source, f"{lazy}.self_attn.o_proj", f"{lazy}.mlp.down_proj")
    variant = decided(source, step(layers=1))
    assert variant.sources == tuple(index for index in range(4) if index != lazy)
    make(source, tmp_path / "v", variant)
    assert torch.allclose(logits(loaded(tmp_path / "v"), IDS), logits(loaded(source), IDS), atol=1e-4)


def test_the_parts_that_do_nothing_go(tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    idle(source, "2.self_attn.o_proj", "0.mlp.down_proj", "3.mlp.down_proj")
    variant = decided(source, step(attention=1, mlp=2, **PER_LAYER))
    assert [bool(one.heads) for one in variant.dims.blocks] == [True, True, False, True]
    assert [bool(one.ffn) for one in variant.dims.blocks] == [False, True, True, False]
    make(source, tmp_path / "v", variant)
    assert torch.allclose(our_logits(tmp_path / "v", IDS), logits(loaded(source), IDS), atol=1e-4)


def test_parts_of_one_layer_that_both_go_are_a_layer_that_goes(tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    idle(source, "2.self_attn.o_proj", "2.mlp.down_proj")
    variant = decided(source, step(attention=1, mlp=1, **PER_LAYER))
    assert variant.sources == (0, 1, 3) and variant.config["model_type"] == "llama" and not variant.notes


def test_a_target_of_fewer_weights_takes_what_does_nothing_first(tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    idle(source, "1.self_attn.o_proj", "1.mlp.down_proj")
    for layout in ("uniform", "per-layer"):
        variant = decided(source, step(ratio=0.25, layout=layout))
        assert variant.sources == (0, 2, 3), layout
        assert variant.dims.at(0).ffn == 128 and variant.dims.at(1).heads == 4


def test_the_first_layer_keeps_its_attention_where_blocks_differ(tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=3)
    idle(source, "0.self_attn.o_proj", "0.mlp.down_proj")
    variant = decided(source, step(attention=1, mlp=2, **PER_LAYER))
    assert variant.dims.blocks[0].heads == 4 and variant.sources[0] == 0
    assert decided(source, step(ratio=0.4, **PER_LAYER)).dims.at(0).heads > 0


def test_the_divergence_that_is_reported_is_the_models_own(tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    _, made = planned(source, step(layers=2))
    space, ids = made.drafts[0].space, pico.tokens(8, 48)
    assert space is not None
    found = pruning_search.search(model_of(source), ids, pruning_search.Goal(space, 0, "V"))
    first, second = found.removed
    whole = logits(loaded(source), ids).log_softmax(-1).double()
    for gone, expected in (({first.block}, first.kl), ({first.block, second.block}, second.kl)):
        model = loaded(source)
        for index in gone:
            model.model.layers[index].self_attn.o_proj.weight.data.zero_()
            model.model.layers[index].mlp.down_proj.weight.data.zero_()
        other = logits(model, ids).log_softmax(-1).double()
        assert float((whole.exp() * (whole - other)).sum(-1).mean()) == pytest.approx(expected, rel=1e-3)
    assert found.predicted_kl == second.kl and found.tokens == 8 * 48


def test_a_target_that_no_shape_meets_is_refused(tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    _, made = planned(source, step(params=40000))
    with pytest.raises(PlanError) as caught:
        outside = made.parameters - made.linear_parameters
        assert made.drafts[0].space
        goal = pruning_search.Goal(made.drafts[0].space, outside, "m.yaml: V[0]")
        pruning_search.search(model_of(source), pico.tokens(8, 48), goal)
    assert caught.value.where == "m.yaml: V[0]" and caught.value.what == "no shape is that small"


def test_a_survey_is_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    _, made = planned(source, step(ratio=0.3))
    space, store = made.drafts[0].space, tmp_path / "work" / pruning_search.FILE_NAME
    assert space is not None
    outside = made.parameters - made.linear_parameters
    (tmp_path / "spill").mkdir()

    def decide(digest: str, spill: Path | None = None) -> Shaping:
        asked = (model_of(source), pico.tokens(8, 48), pruning_search.Goal(space, outside, "V"), spill)
        decision = resume.Decision(store, resume.Fingerprint({"base": digest}), Shaping)
        return decision.load_or_make(lambda: pruning_search.search(*asked))

    found = decide("key", tmp_path / "spill")
    assert decide("another key") == found, "activations in files change nothing"
    assert json.loads(store.read_text())["fingerprint"] == {"base": "another key"}
    monkeypatch.setattr(pruning_search, "search", lambda *_: pytest.fail("measured again"))
    assert decide("another key") == found
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        decide("key")


# -- what neighbours make up for


def structured(sequences: int, seed: int) -> torch.Tensor:
    """Text of sorts: every token is followed by one of three."""
    chance, rows = random.Random(seed), []
    for _ in range(sequences):
        row = [chance.randrange(64)]
        while len(row) < 64:
            row.append((row[-1] * 5 + chance.choice((1, 2, 3))) % 64)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int32)


def hidden(folder: Path) -> torch.Tensor:
    return model_of(folder).hidden_states(structured(16, seed=2))


@pytest.mark.parametrize(
    "keys",
    [
        {"layers": 1},
        {"mlp": 2, **PER_LAYER},
        {"attention": 2, **PER_LAYER},
        {"kv_heads": 0.5, "ffn": 0.25},
        {"ffn": 0.25, "bias": True},
    ],
    ids=lambda keys: " ".join(keys),
)
def test_what_stays_makes_up_for_what_is_gone(keys: dict[str, Any], tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    wanted, errors = hidden(source), {}
    for name, refit in (("fitted", True), ("cut", False)):
        plain = {key: value for key, value in keys.items() if refit or key != "bias"}
        tokens = structured(64, seed=1)
        variant = decided(source, step(refit=refit, **plain), tokens=tokens[:8])
        make(source, tmp_path / name, variant, tokens)
        errors[name] = float((hidden(tmp_path / name) - wanted).square().mean())
    assert errors["fitted"] < 0.96 * errors["cut"], errors


@pytest.mark.parametrize("sources", [(1, 2, 3), (2, 3), (0, 3), (0, 1)])
def test_neighbours_make_up_for_layers_wherever_they_stood(sources: tuple[int, ...], tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    wanted, errors = hidden(source), {}
    for refit in (True, False):
        _, made = planned(source, step(layers=4 - len(sources), refit=refit))
        shape = Shape(sources, made.variants[0].dims.shapes())
        make(source, tmp_path / str(refit), made.drafts[0].settle(shape=shape), structured(64, seed=1))
        errors[refit] = float((hidden(tmp_path / str(refit)) - wanted).square().mean())
    assert errors[True] < 0.96 * errors[False], errors


def test_biases_make_up_for_more(tmp_path: Path) -> None:
    source, errors = base(tmp_path / "m", num_hidden_layers=4), {}
    wanted = hidden(source)
    for bias in (False, True):
        variant = decided(source, step(ffn=0.5, bias=bias))
        make(source, tmp_path / str(bias), variant, structured(64, seed=1))
        errors[bias] = float((hidden(tmp_path / str(bias)) - wanted).square().mean())
    assert errors[True] < errors[False], errors
    tensors = load_file(tmp_path / "True" / "model.safetensors")
    fitted = [name for name, value in tensors.items() if name.endswith("_proj.bias") and value.any()]
    assert len(fitted) == 7 * 4 - 6, "all but those before the first channels that went"


# -- runs that stop, and activations in files


STEPS: dict[str, tuple[dict[str, Any], ...]] = {
    "layers, heads, codes": (step(layers=2, kv_heads=0.5), GPTQ),
    "layers": (step(layers=1),),
    "parts": (step(attention=1, mlp=2, layers=2, ffn=0.25, **PER_LAYER), GPTQ),
    "biases": (step(layers=1, ffn=0.25, bias=True), GPTQ),
}


# early blocks lack parts, so that those that a stopped run left are run without them
HOLLOW = Shape((1, 2, 4, 5), (BlockShape(4, 2, 0), BlockShape(0, 0, 96), BlockShape(4, 2, 0), BlockShape(4, 2, 96)))


def in_half_precision(folder: Path, name: str) -> tuple[Path, VariantPlan]:
    source = base(folder, num_hidden_layers=6, dtype=torch.bfloat16)
    if name != "parts":
        return source, decided(source, *STEPS[name])
    _, made = planned(source, *STEPS[name])
    return source, made.drafts[0].settle(shape=HOLLOW)


def killed_after(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add, seen = export.Folder.add, []

    def counted(self: export.Folder, block: Block) -> None:
        add(self, block)
        seen.append(block)
        if len(seen) == blocks:
            raise KeyboardInterrupt

    monkeypatch.setattr(export.Folder, "add", counted)


@pytest.mark.parametrize("name", STEPS)
def test_a_stopped_run_goes_on_to_the_same_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, variant = in_half_precision(tmp_path / "m", name)
    make(source, tmp_path / "whole", variant, finished=True)
    count = variant.dims.layers
    assert len(list((tmp_path / "whole" / resume.BLOCKS).glob("block-*.safetensors"))) == count < 6
    for stop in range(1, count):
        with monkeypatch.context() as patched:
            killed_after(stop, patched)
            with pytest.raises(KeyboardInterrupt):
                make(source, tmp_path / "part", variant, finished=True)
        assert len(make(source, tmp_path / "part", variant, finished=True)) == count - stop
        assert contents(tmp_path / "part") == contents(tmp_path / "whole"), stop
        shutil.rmtree(tmp_path / "part")


@pytest.mark.parametrize("name", STEPS)
def test_activations_in_files_change_no_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubplugin.model.block_runner.MICRO_TOKENS", 3 * 48)  # three batches
    source, variant = in_half_precision(tmp_path / "m", name)
    make(source, tmp_path / "memory", variant)
    (tmp_path / "spill").mkdir()
    make(source, tmp_path / "files", variant, spill=tmp_path / "spill")
    assert contents(tmp_path / "memory") == contents(tmp_path / "files")
    left = [file for file in (tmp_path / "spill").rglob("*") if file.is_file()]
    assert {file.name.split(".", 1)[1] for file in left} == {"hidden"}
    assert len({file.parent for file in left}) == 2, "of our lane and of the base's, and of no earlier one"


def test_the_plan_of_a_dropped_layer_takes_everything_from_the_layer_that_stays(tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=4)
    _, made = planned(source, step(layers=1, refit=False))
    shape = Shape((0, 2, 3), made.variants[0].dims.shapes())
    make(source, tmp_path / "v", made.drafts[0].settle(shape=shape))
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "v"))
    for number, index in enumerate((0, 2, 3)):
        own = {name: tensor for name, tensor in after.items() if name.startswith(f"model.layers.{number}.")}
        assert len(own) == 9
        for name, tensor in own.items():
            assert torch.equal(tensor, before[name.replace(f"layers.{number}.", f"layers.{index}.")]), name


def test_a_block_stands_for_all_up_to_the_next_that_stays(tmp_path: Path) -> None:
    source = base(tmp_path / "m", num_hidden_layers=6)
    _, made = planned(source, step(layers=3))
    for sources, ends in (((1, 3, 4), [2, 3, 5]), ((0, 1, 5), [0, 4, 5])):
        shape = Shape(sources, made.variants[0].dims.shapes())
        assert stages.stands_for(made.drafts[0].settle(shape=shape), 6) == ends


def test_curves_go_through_the_divergence_of_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ids = base(tmp_path / "m", num_hidden_layers=2), pico.tokens(8, 48)
    space = planned(source, step(ratio=0.3))[1].drafts[0].space
    assert space is not None
    seen, curves = [], width_curves._curves
    monkeypatch.setattr(width_curves, "_curves", lambda *given: seen.append(curves(*given)) or seen[-1])
    found = width_curves.measure(model_of(source), ids, space).blocks
    attention = [{(heads, kv_heads): kl for heads, kv_heads, kl in one.heads} for one in found]
    ffn = [dict(one.ffn) for one in found]
    whole = logits(loaded(source), ids).log_softmax(-1).double()
    for index, (heads, channels) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        for (curve, tried), costs, place in (
            (heads[width_curves.GROUPS], attention[index], "self_attn.o_proj"),
            (heads[width_curves.QUERIES], attention[index], "self_attn.o_proj"),
            (channels[width_curves.CHANNELS], ffn[index], "mlp.down_proj"),
        ):
            model = loaded(source)
            model.model.layers[index].get_submodule(place).weight.data.copy_(tried)
            other = logits(model, ids).log_softmax(-1).double()
            kl = float(
                (whole.exp() * (whole - other)).sum(-1)[:, 12:].mean()
            )  # a quarter of each sequence is not judged
            assert costs[curve.probed] == pytest.approx(kl, rel=1e-3)
            for choice, loss in curve.losses.items():
                assert costs[choice] == pytest.approx(kl * loss / curve.losses[curve.probed], rel=1e-3)
        assert attention[index][4, 2] == ffn[index][128] == 0
