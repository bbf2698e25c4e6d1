"""Codes <-> int32 words: a row of codes as one stream of bits, low bits first, none left out.

Code j of a row lies at bits j * bits .. of the row's words, so of 3-bit codes some lie across two words and 32 of them
fill three. AutoGPTQ and compressed-tensors agree on this; they differ in which side of the weight is a row.
Knows tensors. Knows no format and no file.
"""

from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD, OCTET = 32, 8  # bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, n] -> int32 words [rows, ceil(n * bits / 32)]; bits past the last code are zero."""
    rows, count = codes.shape
    codes_per_period, words_per_period = _period(bits)
    padded = pad(codes, (0, -count % codes_per_period))
    if OCTET % bits == 0:  # no code lies across two octets, and words store their low bits first
        parts = padded.reshape(rows, -1, OCTET // bits)
        octets = parts[:, :, 0].clone(memory_format=torch.contiguous_format)
        for position in range(1, OCTET // bits):
            octets |= parts[:, :, position] << (position * bits)
        return octets.view(torch.int32)
    padded = padded.reshape(rows, -1, codes_per_period)
    words = torch.zeros((words_per_period, rows, padded.shape[1]), dtype=torch.int32, device=codes.device)
    for position in range(codes_per_period):
        word, shift = divmod(position * bits, WORD)
        code = padded[:, :, position].to(torch.int32)
        words[word] |= code << shift
        if shift + bits > WORD:
            words[word + 1] |= code >> (WORD - shift)
    return words.permute(1, 2, 0).reshape(rows, -1)[:, : word_count(count, bits)].contiguous()


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 words [rows, ceil(count * bits / 32)] -> uint8 codes [rows, count]."""
    rows = words.shape[0]
    if OCTET % bits == 0:
        octets = words.contiguous().view(torch.uint8)
        parts = [octets >> shift & (2**bits - 1) for shift in range(0, OCTET, bits)]
        return torch.stack(parts, dim=-1).reshape(rows, -1)[:, :count].contiguous()
    codes_per_period, words_per_period = _period(bits)
    padded = pad(words, (0, -words.shape[1] % words_per_period)).reshape(rows, -1, words_per_period)
    codes = torch.empty((rows, padded.shape[1], codes_per_period), dtype=torch.uint8, device=words.device)
    for position in range(codes_per_period):
        word, shift = divmod(position * bits, WORD)
        code = padded[:, :, word] >> shift  # copies of the sign bit come in from the left; masked below
        if shift + bits > WORD:
            code = (code & (2 ** (WORD - shift) - 1)) | (padded[:, :, word + 1] << (WORD - shift))
        codes[:, :, position] = (code & (2**bits - 1)).to(torch.uint8)
    return codes.reshape(rows, -1)[:, :count].contiguous()


def unpack_padded(words: Tensor, bits: int, count: int) -> Tensor:
    """As `unpack`, from words that hold 32 // bits codes each and zeros in the bits left.

    compressed-tensors up to 0.17 wrote 3 bits (and 5, 6, 7) like this; for 2, 4 and 8 bits there is no difference.
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
    """The shortest run of codes that fills words to the last bit: how many codes, how many words."""
    divisor = gcd(bits, WORD)
    return WORD // divisor, bits // divisor
