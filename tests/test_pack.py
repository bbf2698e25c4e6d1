import pytest
import torch

from hubplugin.checkpoint import packing


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (40, 64), (131, 248), (7, 545)])
def test_unpack_takes_back_what_pack_did(bits: int, rows: int, columns: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    words = packing.pack(codes, bits)
    assert words.shape == (rows, -(-columns * bits // 32)) and words.dtype == torch.int32
    assert torch.equal(packing.unpack(words, bits, columns), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_row_is_one_long_binary_number(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 50), dtype=torch.uint8)
    for row, words in zip(codes.tolist(), packing.pack(codes, bits).tolist(), strict=True):
        number = sum(code << (index * bits) for index, code in enumerate(row))
        assert [word & 0xFFFFFFFF for word in words] == [
            number >> (32 * index) & 0xFFFFFFFF for index in range(len(words))
        ]


def test_hand_packed_words_low_bits_first() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.uint8)
    assert packing.pack(codes, 4).item() & 0xFFFFFFFF == 0x87654321
    assert packing.pack(codes[:, :4], 8).item() == 0x04030201
    assert packing.pack(codes[:, :3], 2).item() == 0b11_10_01


def test_an_eleventh_code_of_three_bits_lies_across_two_words() -> None:
    codes = torch.tensor([[0] * 10 + [0b110, 0b101]], dtype=torch.uint8)
    first, second = (word & 0xFFFFFFFF for word in packing.pack(codes, 3)[0].tolist())
    assert first == 0b10 << 30  # two of its bits; the third opens the next word
    assert second == 0b101_1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_whole_codes_per_word_are_the_same_words_where_the_bits_divide_32(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 96), dtype=torch.uint8)
    assert torch.equal(packing.unpack_padded(packing.pack(codes, bits), bits, 96), codes)


def test_ten_codes_of_three_bits_per_word_are_read_too() -> None:
    words = torch.tensor([[sum((index % 8) << (3 * index) for index in range(10)), 5]], dtype=torch.int32)
    assert packing.unpack_padded(words, 3, 11).tolist() == [[index % 8 for index in range(10)] + [5]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_that_lie_in_memory_by_columns_are_packed_and_unpacked_alike(bits: int) -> None:
    codes = torch.randint(2**bits, (24, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    by_columns = codes.T.contiguous().T
    words = packing.pack(codes, bits)
    assert torch.equal(packing.pack(by_columns, bits), words)
    assert torch.equal(packing.unpack(words.T.contiguous().T, bits, 40), codes)
