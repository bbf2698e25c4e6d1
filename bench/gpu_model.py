"""A Llama of a given shape whose weights are random and stand in host memory, and the work its compression is.

Made on the device, block by block, because a host takes minutes for what a device does in a second; kept pinned where
there is a device, as a server that is about to quantize would keep it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.headers import Header
from hubplugin.methods.linear_algebra import LOSS_ROWS


@dataclass(frozen=True)
class Shape:
    """A Llama, and the calibration tokens it gets."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    sequences: int
    length: int
    vocabulary: int = 8192  # small: embeddings and head are not compressed

    def config(self) -> LlamaConfig:
        """As transformers has it."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=max(self.length, 128),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            architectures=["LlamaForCausalLM"],
        )

    def input_groups(self) -> list[tuple[int, int]]:
        """Inputs and stacked outputs of the linears that share second moments, by layer."""
        key_value = self.hidden // self.heads * self.kv_heads
        return [
            (self.hidden, self.hidden + 2 * key_value),
            (self.hidden, self.hidden),
            (self.hidden, 2 * self.ffn),
            (self.ffn, self.hidden),
        ]

    def work(self, corrected: float) -> dict[str, float]:
        """What a stage cannot do without: floating-point operations, or bytes for a transfer, of the whole model.

        `corrected`: the share of the tokens that targets are corrected with: the base's own activations of these are
        carried along.
        """
        tokens, input_groups = self.sequences * self.length, self.input_groups()
        weights = sum(inputs * outputs for inputs, outputs in input_groups)
        attention = 2 * tokens * self.length * self.hidden  # causal: half of 4 * tokens * length * hidden
        per_layer = {
            "forward": (1 + corrected) * (2 * tokens * weights + attention),
            "second moments": sum(tokens * inputs**2 for inputs, _ in input_groups),  # one triangle
            # not symmetric; linears that end a part have their outputs formed first, with no more of these than inputs
            "cross moments": corrected
            * sum(
                2 * tokens * inputs * (inputs if outputs > inputs else 2 * outputs) for inputs, outputs in input_groups
            ),
            "factor": (1 + (0 < corrected < 1)) * sum(inputs**3 / 3 for inputs, _ in input_groups),
            "sweep": sum(outputs * inputs**2 for inputs, outputs in input_groups),  # feedback alone
            "loss": sum(4 * min(outputs, LOSS_ROWS) * inputs**2 for inputs, outputs in input_groups),
            "weights to the device": 2 * weights,
        }
        return {stage: self.layers * amount for stage, amount in per_layer.items()}


EIGHT_B = Shape(4096, 14336, 32, 32, 8, sequences=128, length=2048)
TINY = Shape(256, 384, 2, 4, 2, sequences=4, length=64, vocabulary=256)


class Weights:
    """A `stream.Source` of random weights in bfloat16; seeded, so two of one shape on one device are alike."""

    def __init__(self, shape: Shape, device: str, seed: int = 0) -> None:
        self.config: dict[str, Any] = shape.config().to_dict()
        with torch.device("meta"):
            empty = LlamaForCausalLM(shape.config()).state_dict()
        generator = torch.Generator(device).manual_seed(seed)
        self._tensors: dict[str, Tensor] = {}
        for name, like in empty.items():
            if name == "lm_head.weight":
                continue  # tied
            if like.dim() == 1:
                made = torch.ones(like.shape, dtype=torch.bfloat16, device=device)
            else:
                # as transformers initialises them, so that activations keep a sane size
                made = torch.empty(like.shape, dtype=torch.bfloat16, device=device).normal_(
                    0, 0.02, generator=generator
                )
            host = torch.empty(like.shape, dtype=torch.bfloat16, pin_memory=device != "cpu")
            self._tensors[name] = host.copy_(made)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str) -> Tensor:
        """One tensor."""
        return self._tensors[name]

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """All tensors under a prefix, by the rest of their name."""
        for name, tensor in self._tensors.items():
            if name.startswith(prefix + "."):
                yield name[len(prefix) + 1 :], tensor

    def headers(self) -> dict[str, Header]:
        """What a checkpoint of these would say in its headers."""
        return {name: Header("BF16", tuple(tensor.shape)) for name, tensor in self._tensors.items()}

    def write(self, folder: Path) -> None:
        """The weights as a checkpoint, for engines that read one."""
        safetensors_io.write(folder, self.headers(), self.get)
