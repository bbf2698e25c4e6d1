"""Layouts word by word, and against the tools whose formats they are: AutoGPTQ and compressed-tensors."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hubplugin.checkpoint import formats, packing
from hubplugin.checkpoint.encodings import Grid
from hubplugin.errors import CheckpointError

LAYOUTS = [("gptq", bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)] + [
    ("pack-quantized", bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)
]


class Shelf(dict[str, Tensor]):
    """Tensors by name, as a folder hands them out."""

    def get(self, name: str) -> Tensor:  # type: ignore[override]
        return self[name]

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        return ((name[len(prefix) + 1 :], self[name]) for name in self if name.startswith(prefix + "."))


def grid(bits: int, symmetric: bool = True, outputs: int = 96, inputs: int = 160, group: int = 32) -> Grid:
    torch.manual_seed(bits)
    groups = inputs // group
    scales = (torch.rand(outputs, groups) * 0.1 + 0.01).bfloat16().half()
    scales[0, 0] *= -1  # a mirrored grid
    return Grid(
        codes=torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8),
        scales=scales,
        bits=bits,
        group_size=group,
        # a zero of 0 is what AutoGPTQ's first format stores as -1, and some readers stumble over
        zeros=None if symmetric else torch.randint(1, 2**bits, (outputs, groups), dtype=torch.uint8),
    )


def meaning(made: Grid) -> Tensor:
    """scale * (code - zero), one weight at a time."""
    zeros = torch.full(made.scales.shape, 2 ** (made.bits - 1)) if made.zeros is None else made.zeros
    spread = [tensor.float().repeat_interleave(made.group_size, dim=1) for tensor in (made.scales, zeros)]
    return spread[0] * (made.codes.float() - spread[1])


def shelf(made: Grid, kind: str, dtype: torch.dtype = torch.bfloat16) -> Shelf:
    return Shelf({f"a.{part}": tensor for part, tensor in formats.tensors(made, kind, dtype).items()})


@pytest.mark.parametrize(("kind", "bits", "symmetric"), LAYOUTS)
def test_every_layout_reads_back_what_was_written(kind: str, bits: int, symmetric: bool) -> None:
    made = grid(bits, symmetric)
    assert torch.equal(formats.dense(shelf(made, kind), "a", {bits}, 1), meaning(made))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_widths_are_told_apart_by_the_words_they_take(bits: int) -> None:
    for kind in ("gptq", "pack-quantized"):
        assert torch.equal(formats.dense(shelf(grid(bits), kind), "a", {2, 3, 4, 8}, 1), meaning(grid(bits)))


def test_int8_weights_hold_the_code_less_128_and_one_scale_per_output() -> None:
    made = grid(8, inputs=64, group=64)
    tensors = formats.tensors(made, "int-quantized", torch.float32)
    assert tensors["weight"].dtype == torch.int8 and tensors["weight_scale"].shape == (96, 1)
    assert torch.equal(tensors["weight"].int(), made.codes.int() - 128)
    assert torch.equal(formats.dense(shelf(made, "int-quantized"), "a", {8}, 0), meaning(made))


@pytest.mark.parametrize("wrong", [grid(4, inputs=32), grid(8, False, inputs=32), grid(8)])
def test_int8_weights_of_another_grid_are_refused(wrong: Grid) -> None:
    with pytest.raises(ValueError, match="one scale per output"):
        formats.tensors(wrong, "int-quantized", torch.float32)


def test_autogptqs_tensors_by_hand() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]] * 8, dtype=torch.uint8)
    made = Grid(codes, torch.full((8, 2), 0.5).half(), 4, 4, torch.tensor([[1, 16 - 1]] * 8, dtype=torch.uint8))
    tensors = formats.tensors(made, "gptq", torch.bfloat16)
    assert [word & 0xFFFFFFFF for word in tensors["qweight"][0].tolist()] == [0x87654321] * 8
    assert [word & 0xFFFFFFFF for word in tensors["qzeros"].flatten().tolist()] == [0x00000000, 0xEEEEEEEE]
    assert tensors["g_idx"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert tensors["scales"].dtype == torch.float16 and tensors["scales"].shape == (2, 8)
    symmetric = formats.tensors(Grid(codes, made.scales, 4, 4), "gptq", torch.bfloat16)["qzeros"]
    assert [word & 0xFFFFFFFF for word in symmetric.flatten().tolist()] == [0x77777777] * 2


def test_compressed_tensors_by_hand() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]] * 8, dtype=torch.uint8)
    zeros = torch.tensor([[row, 15 - row] for row in range(8)], dtype=torch.uint8)
    tensors = formats.tensors(
        Grid(codes, torch.full((8, 2), 0.5).half(), 4, 4, zeros), "pack-quantized", torch.bfloat16
    )
    assert [word & 0xFFFFFFFF for word in tensors["weight_packed"].flatten().tolist()] == [0x87654321] * 8
    assert [word & 0xFFFFFFFF for word in tensors["weight_zero_point"].flatten().tolist()] == [0x76543210, 0x89ABCDEF]
    assert tensors["weight_shape"].tolist() == [8, 8] and tensors["weight_scale"].dtype == torch.bfloat16


def test_three_bits_are_dense_in_both_directions() -> None:
    tensors = formats.tensors(grid(3, False, outputs=64, inputs=96), "pack-quantized", torch.float16)
    assert tensors["weight_packed"].shape == (64, 9) and tensors["weight_zero_point"].shape == (6, 3)
    tensors = formats.tensors(grid(3, False, outputs=64, inputs=96), "gptq", torch.float16)
    assert tensors["qweight"].shape == (9, 64) and tensors["qzeros"].shape == (3, 6)


def test_scales_of_a_grid_mean_the_same_in_every_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert torch.equal(formats.dense(shelf(grid(4), "pack-quantized", dtype), "a", {4}, 0), meaning(grid(4)))


# other tools' files


def test_zeros_of_autogptqs_second_format_are_not_shifted() -> None:
    made = grid(4, False)
    stored = shelf(made, "gptq")
    assert made.zeros is not None
    stored["a.qzeros"] = packing.pack(made.zeros.T, 4)
    assert torch.equal(formats.dense(stored, "a", {4}, 0), meaning(made))


def test_groups_that_a_stored_index_scatters_are_followed() -> None:
    made, order = grid(4, False), torch.randperm(160, generator=torch.Generator().manual_seed(0))
    for kind, index in (("gptq", "g_idx"), ("pack-quantized", "weight_g_idx")):
        shuffled = Grid(made.codes[:, order], made.scales, 4, 32, made.zeros)
        stored = shelf(shuffled, kind)
        stored[f"a.{index}"] = (order // 32).to(torch.int32)
        assert torch.equal(formats.dense(stored, "a", {4}, 1), meaning(made)[:, order]), kind


def test_three_bits_with_ten_codes_per_word_are_read() -> None:
    made = grid(3, False, outputs=60, inputs=96)
    stored = shelf(made, "pack-quantized")
    assert made.zeros is not None
    stored["a.weight_packed"], stored["a.weight_zero_point"] = padded(made.codes), padded(made.zeros.T).T
    assert stored["a.weight_packed"].shape == (60, 10)
    assert torch.equal(formats.dense(stored, "a", {3}, 0), meaning(made))


def padded(codes: Tensor) -> Tensor:
    """Ten 3-bit codes in each word."""
    words = -(-codes.shape[1] // 10)
    parts = torch.nn.functional.pad(codes, (0, words * 10 - codes.shape[1])).int().reshape(len(codes), words, 10)
    return (parts << (3 * torch.arange(10))).sum(dim=2).to(torch.int32)


def test_words_of_another_width_are_an_error() -> None:
    for kind in ("gptq", "pack-quantized"):
        with pytest.raises(CheckpointError, match=r"none of these widths: \[2, 3\]"):
            formats.dense(shelf(grid(4), kind), "a", {2, 3}, 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_autogptq_packs_the_same_words_and_computes_the_same(bits: int, symmetric: bool) -> None:
    autogptq = pytest.importorskip("interop", reason="needs auto-gptq").quant_linear()
    made = grid(bits, symmetric)
    dense, tensors = meaning(made), formats.tensors(made, "gptq", torch.bfloat16)
    zeros = torch.full(made.scales.shape, 2.0 ** (bits - 1)) if made.zeros is None else made.zeros.float()
    theirs = autogptq(bits, 32, 160, 96, False, weight_dtype=torch.float32)
    linear = torch.nn.Linear(160, 96, bias=False)
    linear.weight.data = dense
    theirs.pack(linear, made.scales.float(), zeros, g_idx=tensors["g_idx"])
    assert torch.equal(theirs.qweight, tensors["qweight"])
    assert torch.equal(theirs.qzeros, tensors["qzeros"])
    x = torch.randn(3, 160)
    assert torch.allclose(theirs(x), x @ dense.T, atol=1e-4)


def scheme(made: Grid, **activations: Any) -> Any:
    """What compressed-tensors calls this grid."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    channel = made.scales.shape[1] == 1
    weights = quantization.QuantizationArgs(
        num_bits=made.bits,
        symmetric=made.zeros is None,
        strategy="channel" if channel else "group",
        group_size=None if channel else made.group_size,
    )
    inputs = quantization.QuantizationArgs(**activations) if activations else None
    return quantization.QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)


@pytest.mark.parametrize("bits", [2, 4, 8])  # its release beside vLLM packs ten 3-bit codes per word, vLLM reads dense
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_packs_the_same_words_and_reads_ours(bits: int, symmetric: bool) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    packed = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    made = grid(bits, symmetric)
    ours = formats.tensors(made, "pack-quantized", torch.float32)
    assert torch.allclose(packed.decompress(dict(ours), scheme(made))["weight"], meaning(made), atol=1e-6)
    state = {"weight": meaning(made), "weight_scale": made.scales.float()}
    if made.zeros is not None:
        state["weight_zero_point"] = (made.zeros.int() - 2 ** (bits - 1)).to(torch.int8)
    theirs = packed.compress(state, scheme(made))
    assert theirs.keys() == ours.keys()
    for part in ours:
        assert torch.equal(theirs[part], ours[part]), part


def test_compressed_tensors_reads_our_int8_weights() -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    made = grid(8, inputs=64, group=64)
    ours = formats.tensors(made, "int-quantized", torch.float32)
    theirs = compressors.BaseCompressor.get_value_from_registry("int-quantized").decompress(
        dict(ours), scheme(made, num_bits=8, strategy="token", dynamic=True)
    )
    assert torch.allclose(theirs["weight"], meaning(made), atol=1e-6)


def test_activations_are_rounded_token_by_token() -> None:
    x = torch.tensor([[127.0, -63.5, 0.4], [1.27, 0.014, -1.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[127.0, -64.0, 0.0], [1.27, 0.01, -1.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(formats.int8_per_token(x), expected, atol=1e-6)
