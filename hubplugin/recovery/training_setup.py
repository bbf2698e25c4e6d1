"""What the stages of a recovery share: both folders, the tokens, and how well a student is judged to be.

Knows folders, models and KL. Knows no training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hubplugin.checkpoint.dense_view import ReplacedWeights
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES, Reader
from hubplugin.kernels import stochastic_rounding
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import device_with
from hubplugin.model.kl_divergence import divergence, logits_pairs
from hubplugin.recovery.splitting import Split

BYTES_PER_WEIGHT = 24  # on a device: base, student, gradient, two moments of an optimizer, the best weights so far


@dataclass(frozen=True)
class TrainingSetup:
    """A student to be trained towards a base."""

    student: Path
    base: Path
    tokens: Split
    headers: Mapping[str, Header]  # of the student's tensors
    device: str

    def model(self, folder: Path, replaced: Mapping[str, Tensor] | None = None) -> Model:
        """A folder's model in float32, with some weights replaced, by full name."""
        source = ReplacedWeights(folder, replaced or {})
        return Model(source, source.config, families.match(source.config, str(folder)), device=self.device)

    @cached_property
    def _reference(self) -> tuple[Model, Tensor]:
        """The base, and its last hidden states [positions, hidden] of the held-out sequences."""
        base = self.model(self.base)
        return base, base.hidden_states(self.tokens.held_out).flatten(0, 1)

    def held_out_kl(self, replaced: Mapping[str, Tensor]) -> float:
        """Mean KL(base || student) in nats per held-out token, of the student with some weights replaced."""
        return self.kl_of(self.model(self.student, replaced))

    def kl_of(self, student: Model) -> float:
        """The same of any model."""
        base, base_hidden = self._reference
        student_hidden = student.hidden_states(self.tokens.held_out).flatten(0, 1)
        pairs = logits_pairs(base, base_hidden, student, student_hidden)
        return sum(float(divergence(*pair).sum()) for pair in pairs) / self.tokens.held_out.numel()

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtypes in which the student's weights are stored, by full name."""
        return {name: TORCH_DTYPES[header.dtype] for name, header in self.headers.items()}

    def as_stored(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as they will be stored: rounded, on the CPU."""
        return stochastic_rounding.stored({name: weight.cpu() for name, weight in weights.items()}, self.dtypes)


def device_for(student: Path, base: Path) -> str:
    """A CUDA device where both models and an optimizer's state fit, else the CPU."""
    weights = sum(header.count for folder in (student, base) for header in Reader(folder).headers.values())
    return device_with(BYTES_PER_WEIGHT * weights)
