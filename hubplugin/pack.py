"""Codes <-> int32 words in the order AutoGPTQ writes them. Pure: shape in, shape out.

qweight [inputs / per_word, outputs]: word r of a column holds codes of inputs r*per_word .. , low bits first.
qzeros [groups, outputs / per_word]: the same along outputs, and each zero is stored minus one (format "gptq", v1).
"""

import torch
from torch import Tensor


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [n, m] -> int32 [n / per_word, m]. n must be a multiple of 32 / bits."""
    per_word = 32 // bits
    if codes.shape[0] % per_word:
        raise ValueError(f"{codes.shape[0]} rows do not fill words of {per_word} codes")
    parts = codes.reshape(-1, per_word, codes.shape[1]).to(torch.int64)
    shifts = torch.arange(per_word, dtype=torch.int64, device=codes.device)[None, :, None] * bits
    words = (parts << shifts).sum(dim=1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """int32 [n / per_word, m] -> uint8 codes [n, m]."""
    per_word = 32 // bits
    shifts = torch.arange(per_word, dtype=torch.int64, device=words.device)[None, :, None] * bits
    codes = (words.to(torch.int64)[:, None, :] >> shifts) & (2**bits - 1)
    return codes.reshape(-1, words.shape[1]).to(torch.uint8)


def zeros(groups: int, outputs: int, bits: int) -> Tensor:
    """The qzeros of a symmetric grid: every zero is 2^(bits-1), stored as one less. int32 [groups, outputs*bits/32]."""
    stored = torch.full((outputs, groups), 2 ** (bits - 1) - 1, dtype=torch.uint8)
    return pack_rows(stored, bits).T.contiguous()
