"""What the worker makes of weights that gptqmodel dequantized. Its process is tested with the engine."""

import pytest
import torch

from hubplugin.compress.gptqmodel import worker as worker
from hubplugin.manifest.steps.gptq import Gptq


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs", "groups"), [(8, 96, 3), (24, 160, 1)])
def test_codes_come_back_from_the_weights_they_stand_for(bits: int, outputs: int, inputs: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    wanted = torch.randint(0, 2**bits, (outputs, inputs), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(outputs, groups, generator=generator) + 1e-3).half()
    spread = scales.float().repeat_interleave(inputs // groups, dim=1)
    weight = spread * (wanted.float() - 2 ** (bits - 1))
    assert worker.codes("x", weight, scales, bits).equal(wanted)


def test_weights_off_the_grid_are_refused() -> None:
    scales = torch.ones(4, 2).half()
    weight = torch.zeros(4, 64)
    for spoilt in (weight + 0.5, weight + 8, weight - 9):
        with pytest.raises(ValueError, match="up_proj is no symmetric grid of 4 bits"):
            worker.codes("up_proj", spoilt, scales, 4)
    with pytest.raises(ValueError, match="float16 scales"):
        worker.codes("up_proj", weight, scales.bfloat16(), 4)


@pytest.mark.parametrize(("group_size", "act_order"), [(-1, True), (32, True), (-1, False), (32, False)])
def test_activation_order_is_asked_for_in_gptqmodels_words(group_size: int, act_order: bool) -> None:
    step = Gptq.model_validate({"method": "gptq", "group_size": group_size, "act_order": act_order})
    asked = worker.arguments(step.model_dump())
    assert asked["act_group_aware"] == (act_order and group_size == 32)
    assert asked["desc_act"] == (act_order and group_size == -1), "it takes no groups of a whole row with the other"
    assert asked["mse"] == 2 and asked["damp_percent"] == step.damp
