"""What the rivals ask of the calibration tokens on the dense model: moments of inputs, gradients, layer by layer.

Every question is answered once and the answer kept; `saved` tells how many seconds that spared, so that a rival's time
can still be told in full. Knows no score and removes nothing.
"""

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 4  # sequences at a time


@dataclass(frozen=True)
class LayerInputs:
    """Moments over all tokens of what goes into o and down, per layer: [layers, features], float64."""

    mean: Tensor
    variance: Tensor
    square: Tensor  # mean square


class Calibration:
    """A dense model and token ids [sequences, tokens]."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.model, self.ids = model, ids.long()
        self.saved = 0.0  # seconds
        self._known: dict[Hashable, tuple[Any, float]] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The answer to a question, worked out where it is asked for the first time."""
        if key in self._known:
            self.saved += self._known[key][1]
        else:
            begun, saved = time.monotonic(), self.saved
            made = make()
            self._known[key] = made, time.monotonic() - begun + self.saved - saved
        return self._known[key][0]

    def inputs(self) -> dict[str, LayerInputs]:
        """Moments of the inputs of "o" and "down"."""
        return self.once("inputs", self._inputs)

    @torch.inference_mode()
    def _inputs(self) -> dict[str, LayerInputs]:
        layers = self.model.model.layers
        consumers = {
            "o": [layer.self_attn.o_proj for layer in layers],
            "down": [layer.mlp.down_proj for layer in layers],
        }
        sums = {
            name: torch.zeros(2, len(layers), linears[0].in_features).double() for name, linears in consumers.items()
        }

        def add(name: str, index: int) -> Callable[..., None]:
            def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                flat = given[0].flatten(0, -2).double()
                sums[name][0, index] += flat.sum(0)
                sums[name][1, index] += flat.square().sum(0)

            return hook

        watched = [
            linear.register_forward_pre_hook(add(name, index))
            for name, linears in consumers.items()
            for index, linear in enumerate(linears)
        ]
        with _removed(watched):
            for ids in self.ids.split(ROWS):
                self.model.model(ids, use_cache=False)
        count = self.ids.numel()
        found = {}
        for name, (total, squares) in sums.items():
            mean = total / count
            found[name] = LayerInputs(mean, (squares / count - mean.square()).clamp(min=0), squares / count)
        return found

    def gradients(self) -> dict[str, Tensor]:
        """Of the mean next-token loss, by parameter name, for the linears inside the blocks."""
        return self.once("gradients", self._gradients)

    def _gradients(self) -> dict[str, Tensor]:
        wanted = {name: each for name, each in self.model.named_parameters() if name.endswith("_proj.weight")}
        for each in wanted.values():
            each.requires_grad_(True)
        for ids in self.ids.split(ROWS):
            (next_token_loss(self.model, ids).sum() / self.ids.numel()).backward()
        found = {name: each.grad for name, each in wanted.items()}
        for each in wanted.values():
            each.requires_grad_(False)
            each.grad = None
        return found

    def influence(self) -> list[float]:
        """ShortGPT's Block Influence of every layer: 1 - mean cosine between what comes in and what goes out."""
        return self.once("influence", self._influence)

    @torch.inference_mode()
    def _influence(self) -> list[float]:
        layers = self.model.model.layers
        alike = [0.0] * len(layers)

        def add(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
                alike[index] += float(torch.cosine_similarity(given[0], out, dim=-1).double().sum())

            return hook

        watched = [layer.register_forward_hook(add(index)) for index, layer in enumerate(layers)]
        with _removed(watched):
            for ids in self.ids.split(ROWS):
                self.model.model(ids, use_cache=False)
        return [1 - total / self.ids.numel() for total in alike]

    @torch.inference_mode()
    def perplexity(self, model: nn.Module, sequences: int, inputs: Tensor | None = None) -> float:
        """Of a model on the first of the calibration tokens, or of its last layers on the inputs of the first of them.

        `inputs` [sequences, tokens, hidden].
        """
        few = self.ids[:sequences]
        parts: Iterable[Tensor | None] = repeat(None) if inputs is None else inputs.split(ROWS)
        losses = map(partial(next_token_loss, model), few.split(ROWS), parts)
        return math.exp(sum(float(each.double().sum()) for each in losses) / (few.numel() - len(few)))

    @torch.inference_mode()
    def hidden_states(self, model: nn.Module, sequences: int) -> list[Tensor]:
        """The inputs of every layer on the first of the calibration tokens: each [sequences, tokens, hidden]."""
        layers = model.model.layers
        found: list[list[Tensor]] = [[] for _ in layers]
        watched = [
            layer.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0]))
            for layer, kept in zip(layers, found, strict=True)
        ]
        with _removed(watched):
            for ids in self.ids[:sequences].split(ROWS):
                model.model(ids, use_cache=False)
        return [torch.cat(parts) for parts in found]


def next_token_loss(model: nn.Module, ids: Tensor, inputs: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of every token but the first; `inputs` [sequences, tokens, hidden] replace embeddings."""
    given = {"input_ids": ids} if inputs is None else {"inputs_embeds": inputs}
    logits = model(**given, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")


@contextmanager
def _removed(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
