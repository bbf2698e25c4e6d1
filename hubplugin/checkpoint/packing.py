"""Codes <-> int32 words: a row of codes as one stream of bits, low bits first, none left out. Pure: tensor in and out.

Code j of a row lies at bits j * bits .. of the row's words, so of 3-bit codes some lie across two words and 32 of them
fill three. AutoGPTQ and compressed-tensors agree on this; they differ in which side of the weight is a row.
"""

from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD = 32  # bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, n] -> int32 words [rows, ceil(n * bits / 32)]; bits past the last code are zero."""
    rows, count = codes.shape
    per, words = _period(bits)
    padded = pad(codes, (0, -count % per)).reshape(rows, -1, per)
    made = torch.zeros((words, rows, padded.shape[1]), dtype=torch.int32, device=codes.device)
    for place in range(per):
        word, shift = divmod(place * bits, WORD)
        code = padded[:, :, place].to(torch.int32)
        made[word] |= code << shift
        if shift + bits > WORD:
            made[word + 1] |= code >> (WORD - shift)
    return made.permute(1, 2, 0).reshape(rows, -1)[:, : word_count(count, bits)].contiguous()


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 words [rows, ceil(count * bits / 32)] -> uint8 codes [rows, count]."""
    rows = words.shape[0]
    per, size = _period(bits)
    padded = pad(words, (0, -words.shape[1] % size)).reshape(rows, -1, size)
    codes = torch.empty((rows, padded.shape[1], per), dtype=torch.uint8, device=words.device)
    for place in range(per):
        word, shift = divmod(place * bits, WORD)
        code = padded[:, :, word] >> shift  # copies of the sign bit come in from the left; masked below
        if shift + bits > WORD:
            code = (code & (2 ** (WORD - shift) - 1)) | (padded[:, :, word + 1] << (WORD - shift))
        codes[:, :, place] = (code & (2**bits - 1)).to(torch.uint8)
    return codes.reshape(rows, -1)[:, :count].contiguous()


def unpack_padded(words: Tensor, bits: int, count: int) -> Tensor:
    """The same from words that hold 32 // bits whole codes each and leave the rest zero.

    So compressed-tensors up to 0.17 wrote 3 bits (and 5, 6, 7); for 2, 4 and 8 bits there is no difference.
    """
    shifts = torch.arange(WORD // bits, dtype=torch.int32, device=words.device) * bits
    codes = (words[:, :, None] >> shifts) & (2**bits - 1)
    return codes.reshape(words.shape[0], -1)[:, :count].to(torch.uint8)


def word_count(count: int, bits: int) -> int:
    """Words that `count` codes take."""
    return -(-count * bits // WORD)


def word_count_padded(count: int, bits: int) -> int:
    """Words that `count` codes take where no code lies across two words."""
    return -(-count // (WORD // bits))


def _period(bits: int) -> tuple[int, int]:
    """The shortest run of codes that fills whole words: how many codes, how many words."""
    shared = gcd(bits, WORD)
    return WORD // shared, bits // shared
