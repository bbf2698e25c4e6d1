"""Where and in which precision a model is computed. Knows devices; no weights and no method."""

import torch


def computing_dtype(stored: torch.dtype, device: str = "cpu") -> torch.dtype:
    """What to compute a model in: bfloat16 where it is stored so and the device multiplies it, else float32."""
    fast = device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if stored == torch.bfloat16 and fast else torch.float32
