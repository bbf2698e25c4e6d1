"""A teacher in this process: answers sampled from a folder's model, token by token.

Knows a folder, its tokenizer and the forward pass. Knows no cache and no student.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.model_folder import read_json
from hubplugin.compress.calibration.chat_template import ChatTemplate
from hubplugin.compress.calibration.prompts import Prompt
from hubplugin.compress.calibration.self_sampling import buffered_cache
from hubplugin.disk import digest
from hubplugin.errors import CalibrationError
from hubplugin.kernels import token_draws
from hubplugin.manifest.steps.training.distill import Answers
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.model.devices import default_device
from hubplugin.recovery.answers.cache import Answer

BATCH = 32  # prompts of one length that are answered together


class InProcess:
    """A model that is loaded here. `length`: no answer makes a sequence longer than this."""

    def __init__(self, folder: Path, name: str, settings: Answers, length: int) -> None:
        self.name = name
        self._folder, self._settings, self._length = folder, settings, length
        self._tokenizer = read_tokenizer(folder)

    def answers(self, prompts: Sequence[Prompt], wanted: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """As `Teacher`. Batches are the same whatever is wanted of them, so that an interrupted run changes no answer.

        Raises CalibrationError for conversations without a chat template, and for prompts that leave no room.
        """
        asked = set(wanted)
        for batch in self._batches([self._ids(prompt) for prompt in prompts]):
            if not asked.isdisjoint(place for place, _ in batch):
                yield from self._answered(prompts, batch)

    def _ids(self, prompt: Prompt) -> list[int]:
        text = prompt.text
        if prompt.turns:
            text = ChatTemplate(self._tokenizer, self.name).question(prompt.messages)
        ids = list(self._tokenizer(text, add_special_tokens=not prompt.turns, verbose=False)["input_ids"])
        if not 0 < len(ids) < self._length:
            what = f"a prompt of {len(ids)} tokens leaves no room for an answer in {self._length}"
            raise CalibrationError(self.name, what, "use shorter prompts, or a larger sequence_length of the data")
        return ids

    @staticmethod
    def _batches(prompts: Sequence[list[int]]) -> Iterator[list[tuple[int, list[int]]]]:
        """Places and ids of prompts of one length, BATCH at most."""
        ordered = sorted(enumerate(prompts), key=lambda pair: len(pair[1]))
        for _, alike in groupby(ordered, key=lambda pair: len(pair[1])):
            group = list(alike)
            yield from (group[start : start + BATCH] for start in range(0, len(group), BATCH))

    def _answered(
        self, prompts: Sequence[Prompt], batch: Sequence[tuple[int, list[int]]]
    ) -> Iterator[tuple[int, Answer]]:
        ids = torch.tensor([ids for _, ids in batch])
        count = min(self._settings.max_tokens, self._length - ids.shape[1])
        draws = torch.stack([self._draws(prompts[place], count) for place, _ in batch])
        answers = continuations(self._model, ids, draws, self._settings.temperature, self._ends)
        for (place, _), tokens in zip(batch, answers, strict=True):
            ended = bool(tokens) and tokens[-1] in self._ends
            yield place, Answer(self._tokenizer.decode(tokens, skip_special_tokens=True), ended)

    def _draws(self, prompt: Prompt, count: int) -> Tensor:
        """Uniform draws float64 [count], which depend on the prompt and the seed alone."""
        seed = int(digest(f"{self._settings.seed} {prompt.as_json()}")[:15], 16)
        return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    @cached_property
    def _model(self) -> Any:
        device = default_device()
        view = DenseView(self._folder)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        family = families.match(view.config, f"{self._folder}/config.json")
        return Model(view, view.config, family, dtype, device).load_all(stacked=True)

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Tokens that end an answer: those of tokenizer, generation_config.json and config.json."""
        path = self._folder / "generation_config.json"
        generation = read_json(path, str(self._folder)) if path.is_file() else {}
        named = (self._tokenizer.eos_token_id, generation.get("eos_token_id"), self._model.config.eos_token_id)
        each = [one if isinstance(one, list) else [one] for one in named]
        return frozenset(token for tokens in each for token in tokens if isinstance(token, int))


@torch.inference_mode()
def continuations(
    model: Any, prompts: Tensor, draws: Tensor, temperature: float, ends: frozenset[int]
) -> list[list[int]]:
    """What follows prompts [rows, tokens] of one length: tokens up to the first of `ends`, that one too.

    `draws` [rows, most tokens] in [0, 1) choose from the cumulated probabilities; at temperature 0 the likeliest is
    taken.
    """
    device = next(model.parameters()).device
    cache = buffered_cache(model.config, prompts.shape[1] + draws.shape[1])
    found: list[list[int]] = [[] for _ in prompts]
    going, ids = torch.ones(len(prompts), dtype=torch.bool), prompts.to(device)
    for position in range(draws.shape[1]):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].float()
        chosen = _chosen(logits, draws[:, position : position + 1].to(device), temperature)
        for row in going.nonzero().flatten().tolist():
            found[row].append(int(chosen[row]))
            going[row] = found[row][-1] not in ends
        if not going.any():
            break
        ids = chosen[:, None]
    return found


def _chosen(logits: Tensor, draws: Tensor, temperature: float) -> Tensor:
    """A token of each row of logits [rows, vocabulary]."""
    return token_draws.drawn((logits / temperature).softmax(-1), draws) if temperature else logits.argmax(-1)
