"""Products of a model's head, written to memory that is there: the same logits as torch's own linear gives."""

from pathlib import Path

import pico
import pytest
import torch

from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.kernels import products
from hubplugin.model.architectures import families


@pytest.mark.parametrize("zen", [True, False])
def test_a_product_is_written_where_it_is_told(zen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_zen", lambda: zen)
    rows, weight, out = torch.randn(70, 48), torch.randn(500, 48), torch.full((80, 500), 7.0)
    found = products.product(rows[:, :], weight, out[:70])
    torch.testing.assert_close(found, rows @ weight.T)
    assert found.data_ptr() == out.data_ptr() and bool((out[70:] == 7).all())


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])  # gemma2 caps its logits
def test_logits_in_given_memory_are_the_logits(model_type: str, tmp_path: Path) -> None:
    base = pico.write(tmp_path / "m", model_type)
    model = open_model(base, families.FAMILIES[model_type])
    hidden = model.hidden_states(pico.tokens(3, 32)).flatten(0, 1)
    new = model.logits(hidden)
    memory = torch.empty(200, model.vocabulary)
    found = model.logits(hidden, memory[: len(hidden)])
    torch.testing.assert_close(found, new)
    assert found.data_ptr() == memory.data_ptr()
    assert model.logits(hidden).data_ptr() != memory.data_ptr(), "whoever gives no memory keeps what was computed"


def test_a_head_with_a_bias_or_in_another_dtype_computes_as_before() -> None:
    inputs = torch.randn(5, 16)
    for dtype, bias in ((torch.float32, True), (torch.bfloat16, False)):
        linear = torch.nn.Linear(16, 40, bias=bias, dtype=dtype).requires_grad_(False)
        expected = linear(inputs.to(dtype))
        linear.__class__ = products.Head
        linear.out = torch.empty(5, 40)
        assert torch.equal(linear(inputs.to(dtype)), expected)
