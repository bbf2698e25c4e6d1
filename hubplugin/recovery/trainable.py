"""What a training changes of a module, and the module's weights that follow: all weights, or adapters beside them.

`Trainable` is what both stages of a training know of a student; grid_weights.py has the one of a quantized model. Knows
modules and tensors by name. Knows no loss and no folder.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hubplugin.model.architectures.families import Family
from hubplugin.recovery.optimizers import Optimizers, adam, optimizers
from hubplugin.recovery.output_head import plain_head


class Trainable(Protocol):
    """A module in training."""

    module: nn.Module
    trained: dict[str, nn.Parameter]  # in float32, by a name of their own

    def optimizers(self, rate: float, steps: int) -> Optimizers:
        """What trains them at this peak rate, in so many steps."""

    def weights(self) -> dict[str, Tensor]:
        """The module's weights that follow from what is trained, differentiable; all others are the module's own."""

    def values(self) -> dict[str, Tensor]:
        """What would be stored now, by the names under which the module's folder stores it; not rounded yet."""

    def dense(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module's weights, in float32, that stored tensors of `values`' names stand for."""


def as_function(trainable: Trainable, weights: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The module as a function, with these weights in place of its own."""

    def call(*inputs: Tensor, **keywords: Any) -> Any:
        return functional_call(trainable.module, dict(weights), inputs, keywords)

    return call


class Student:
    """A model of transformers' in training, as a function of its inputs: weights follow anew with each call."""

    def __init__(self, trainable: Trainable) -> None:
        self._trainable, self.head = trainable, plain_head(trainable.module)

    def __call__(self, **inputs: Any) -> Any:
        """Of the weights as they are now, with a graph of their own."""
        return as_function(self._trainable, self._trainable.weights())(**inputs)


class AllWeights:
    """All weights of a dense module: Muon for `matrices`, by name; AdamW for what is no linear map of activations."""

    def __init__(self, module: nn.Module, matrices: Collection[str]) -> None:
        self.module = module.requires_grad_(True)
        self.trained = dict(module.named_parameters())
        self._matrices = set(matrices)

    def optimizers(self, rate: float, steps: int) -> Optimizers:
        """As `Trainable`."""
        matrices = {name: weight for name, weight in self.trained.items() if name in self._matrices}
        return optimizers(matrices, {name: self.trained[name] for name in self.trained if name not in matrices}, rate)

    def weights(self) -> dict[str, Tensor]:
        """None but the module's own."""
        return {}

    def values(self) -> dict[str, Tensor]:
        """Every weight."""
        return {name: weight.detach() for name, weight in self.trained.items()}

    def dense(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Trainable`."""
        return {name: tensor.to(self.trained[name]) for name, tensor in stored.items()}


ALPHA = 2  # times the rank: what an adapter's product is multiplied by
A, B = ".lora_A.default.weight", ".lora_B.default.weight"  # what PEFT's names end with in a model


class Adapters:
    """LoRA adapters at all linears of a model's blocks; `values` merges them, and ends the training."""

    def __init__(self, model: nn.Module, rank: int, family: Family) -> None:
        import peft

        suffixes = tuple(family.linears())
        linears = [
            name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.endswith(suffixes)
        ]
        config = peft.LoraConfig(r=rank, lora_alpha=ALPHA * rank, lora_dropout=0.0, target_modules=linears)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # of the adapters' first values
            self.module = cast(nn.Module, peft.get_peft_model(cast(Any, model.requires_grad_(False)), config))
        self.trained = {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def optimizers(self, rate: float, steps: int) -> Optimizers:
        """AdamW."""
        return adam(self.trained, rate)

    def weights(self) -> dict[str, Tensor]:
        """None but the module's own."""
        return {}

    def values(self) -> dict[str, Tensor]:
        """Every weight of the model without adapters."""
        merged = self.module.merge_and_unload()  # type: ignore[operator]
        return {name: weight.detach() for name, weight in merged.named_parameters()}

    def dense(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As they are."""
        return {name: tensor.float() for name, tensor in stored.items()}


class OwnAdapters(Adapters):
    """The same, whose `values` are the adapters alone, by PEFT's names; the model stays as it is."""

    def values(self) -> dict[str, Tensor]:
        """A and B of every linear."""
        return {_stored_name(name): weight.detach() for name, weight in self.trained.items()}

    @torch.no_grad()
    def begin_at(self, factors: Mapping[str, Tensor]) -> None:
        """Begin at the products B A of other adapters, by PEFT's names.

        A row of A and its column of B become equally long: AdamW moves both by the same steps.
        """
        for name in (name for name in self.trained if name.endswith(A)):
            places = name, f"{name.removesuffix(A)}{B}"
            a, b = (factors[_stored_name(place)].to(self.trained[place]) for place in places)
            lengths = a.norm(dim=1), b.norm(dim=0)
            ratio = torch.where(lengths[0] * lengths[1] > 0, lengths[1] / lengths[0], 1.0).sqrt()
            self.trained[places[0]].copy_(a * ratio[:, None])
            self.trained[places[1]].copy_(b / ratio / ALPHA)


def _stored_name(name: str) -> str:
    return name.replace(".default.", ".")
