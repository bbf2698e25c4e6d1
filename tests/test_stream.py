"""A staged pass through a block must see and give exactly what one plain pass does, whatever is kept where."""

from pathlib import Path

import pico
import pytest
import torch

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.model import staged_block
from hubplugin.model.activations import Batch
from hubplugin.model.architectures.families import InputGroup, match
from hubplugin.model.block_runner import Model


def opened(folder: Path, model_type: str) -> Model:
    view = DenseView(folder)
    return Model(view, view.config, match(view.config, model_type))


def plain_inputs(model: Model, batches: list[Batch], input_group: InputGroup) -> list[torch.Tensor]:
    """The inputs of a tap's first linear in one undisturbed pass through block 0."""
    seen: list[torch.Tensor] = []
    block = model.block(0)
    linear = block.get_submodule(input_group.linears[0])
    hook = linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    with torch.inference_mode():
        for batch in batches:
            block(batch.hidden, **batch.keywords[0])
    hook.remove()
    return seen


@pytest.mark.parametrize("spilled", [False, True])
@pytest.mark.parametrize("model_type", pico.BY_TYPE)
def test_every_stage_sees_what_a_plain_pass_sees(model_type: str, spilled: bool, tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "m", model_type)
    model = opened(folder, model_type)
    spill = tmp_path / "spill" if spilled else None
    if spill:
        spill.mkdir()
    batches = model.embed(pico.tokens(3, 64), spill)
    expected = {
        input_group.name: plain_inputs(model, batches, input_group) for input_group in model.family.input_groups
    }
    with torch.inference_mode():
        out = [model.block(0)(batch.hidden, **batch.keywords[0]) for batch in batches]
    for input_group in model.family.input_groups:
        for seen, plain in zip(model.capture_inputs(0, batches, input_group), expected[input_group.name], strict=True):
            assert torch.equal(seen, plain), input_group.name
    model.forward_block(0, batches)
    for batch, plain in zip(batches, out, strict=True):
        assert torch.equal(batch.hidden, plain[0] if isinstance(plain, tuple) else plain)
    if spill:
        assert {file.name.split(".", 1)[1] for file in spill.iterdir()} == {"hidden"}


def test_a_pass_that_visits_nothing_gives_the_same_output(pico_folder: Path) -> None:
    model = opened(pico_folder, "llama")
    staged, plain = model.embed(pico.tokens(3, 64)), model.embed(pico.tokens(3, 64))
    for input_group in (model.family.input_groups[3],):  # only the last one: attention is run and remembered on the way
        model.block(0)
        list(model.capture_inputs(0, staged, input_group))
    model.forward_block(0, staged)
    model.forward_block(0, plain)
    assert torch.equal(staged[0].hidden, plain[0].hidden)


def test_a_norm_runs_only_where_somebody_reads_it(pico_folder: Path) -> None:
    model = opened(pico_folder, "llama")
    batches, block, runs = model.embed(pico.tokens(3, 64)), model.block(0), []
    for part in model.family.sublayers:
        block.get_submodule(part.norm).register_forward_hook(
            lambda norm, inputs, out: runs.append(out is not inputs[0])
        )
    for input_group in model.family.input_groups:
        list(model.capture_inputs(0, batches, input_group))
    model.forward_block(0, batches)
    assert sum(runs) == 4 * len(batches)  # for each part before its first linears and on the way to its last


def test_what_changed_before_a_forgotten_tap_is_seen(pico_folder: Path) -> None:
    model = opened(pico_folder, "llama")
    batches = model.embed(pico.tokens(3, 64))
    block, input_group = model.block(0), model.family.input_groups[3]
    before = torch.cat(list(model.capture_inputs(0, batches, input_group)))
    block.get_submodule("mlp.up_proj").weight.mul_(2)
    staged_block.drop_inputs(batches, model.family.sublayers, "mlp.down_proj")
    assert torch.allclose(torch.cat(list(model.capture_inputs(0, batches, input_group))), 2 * before, rtol=1e-5)


def test_a_twin_keeps_its_weights_when_the_block_loses_them(pico_folder: Path) -> None:
    model = opened(pico_folder, "llama")
    block = model.block(0)
    base_block = model.copy_block(0)
    weight = block.get_submodule("mlp.up_proj").weight
    assert base_block.get_submodule("mlp.up_proj").weight.data_ptr() == weight.data_ptr(), "a twin costs no memory"
    block.get_submodule("mlp.up_proj").weight = torch.nn.Parameter(torch.zeros_like(weight), requires_grad=False)
    assert base_block.get_submodule("mlp.up_proj").weight is weight
