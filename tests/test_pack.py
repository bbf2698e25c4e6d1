import pytest
import torch

from hubplugin import pack


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(8, 1), (64, 40), (248, 131)])
def test_unpack_takes_back_what_pack_did(bits: int, rows: int, columns: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    words = pack.pack_rows(codes, bits)
    assert words.shape == (rows * bits // 32, columns) and words.dtype == torch.int32
    assert torch.equal(pack.unpack_rows(words, bits), codes)


def test_a_hand_packed_word_low_bits_first() -> None:
    codes = torch.tensor([[1], [2], [3], [4], [5], [6], [7], [8]], dtype=torch.uint8)
    assert pack.pack_rows(codes, 4).item() & 0xFFFFFFFF == 0x87654321


def test_zeros_are_stored_minus_one() -> None:
    assert pack.zeros(3, 16, 4).shape == (3, 2)
    assert pack.zeros(1, 8, 4).item() & 0xFFFFFFFF == 0x77777777
    assert pack.zeros(1, 4, 8).item() & 0xFFFFFFFF == 0x7F7F7F7F


def test_rows_that_do_not_fill_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        pack.pack_rows(torch.zeros(7, 4, dtype=torch.uint8), 4)
