"""Greedy tokens of a finished folder by transformers, and the probabilities our own forward pass gives to tokens.

Knows folders and transformers. Knows no vLLM and starts no process: engine_choice.py does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CheckpointError, ServeError
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.model.architectures import configs
from hubplugin.model.architectures.families import Family, match
from hubplugin.plan.vllm_support import Verdict


@dataclass(frozen=True)
class Generated:
    """What an engine generated greedily: token ids and their log-probabilities, by prompt."""

    engine: str
    token_ids: list[list[int]]
    logprobs: list[list[float]]


Generate = Callable[[Path, list[list[int]], int, Sequence[Verdict]], Generated]


def served_dtype(folder: Path) -> torch.dtype:
    """The half precision an engine computes a folder in: the model's own, float16 for one in float32.

    Where config.json does not say, engines look at the weights; the embedding is never quantized.
    """
    config = DenseView(folder).config
    stored = config.get("dtype") or config.get("torch_dtype")
    if stored is None:
        embedding = Reader(folder).headers[f"{match(config, str(folder)).embed}.weight"]
        stored = configs.DTYPES[embedding.dtype]
    return torch.bfloat16 if stored == "bfloat16" else torch.float16


def logprobs(
    folder: Path,
    family: Family,
    prompts: list[list[int]],
    answers: list[list[int]],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Log-probability [all answer tokens] our own forward gives each answer token, in order."""
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # causal: what follows changes nothing
    model = open_model(folder, family, dtype)
    hidden = model.hidden_states(padded)
    gathered = []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        predicting = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        predicted = model.logits(hidden[index, predicting]).log_softmax(-1)
        gathered.append(predicted.gather(1, torch.tensor(answer)[:, None]).squeeze(1))
    return torch.cat(gathered)


def loaded(folder: Path) -> Any:
    """A folder's model in transformers' class, whose linears round their inputs where the format does."""
    view = DenseView(folder)
    model = open_model(folder, match(view.config, str(folder)))
    try:
        return model.load_all(stacked=not view.int8_inputs)  # stacked experts have no linears that could round
    except CheckpointError as error:
        raise ServeError(error.where, error.what, "run again") from error


@torch.inference_mode()
def generate_dequantized(folder: Path, prompts: list[list[int]], tokens: int) -> Generated:
    """Greedy generation by transformers from the dequantized folder, where the vLLM at hand cannot load the format."""
    model = loaded(folder)
    generated = Generated("transformers, from the dequantized folder", [], [])
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),  # left out, ids that are the padding's would not be attended to
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        answer = out.sequences[0, len(prompt) :]
        scores = torch.stack([logits[0] for logits in out.logits]).log_softmax(-1)
        generated.token_ids.append(answer.tolist())
        generated.logprobs.append(scores.gather(1, answer[:, None]).squeeze(1).tolist())
    return generated
