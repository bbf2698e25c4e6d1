"""Token sequences sampled from the base model itself: calibration without data.

Knows a model folder and the forward pass. Knows no method and no manifest.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress.calibration import vocabulary
from hubplugin.errors import CalibrationError
from hubplugin.kernels import token_draws
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.model.devices import default_device
from hubplugin.progress import progress

BATCH = 32  # sequences sampled together; bounds the KV cache
SMALL_MODEL = 50_000_000  # parameters, under which one decoding step is too short to be shared between threads


def sample_self(folder: Path, count: int, tokens: int, seed: int) -> Tensor:
    """int32 [count, tokens] drawn from a model by ancestral sampling at temperature 1, without top-k or top-p.

    Rows start with BOS where the tokenizer or the config has one, else with a random ordinary token each. EOS is a
    token like any other: what follows it is drawn from the model's distribution too. The result depends on the seed
    alone. Raises CalibrationError for more tokens than the model's context, and for a BOS that it has no embedding for.
    """
    tokenizer = read_tokenizer(folder)
    device = torch.device(default_device())
    view = DenseView(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    opened = Model(view, view.config, families.match(view.config, f"{folder}/config.json"), dtype, device.type)
    context = getattr(opened.settings, "max_position_embeddings", None)
    if context and tokens > context:
        raise CalibrationError("self: tokens", f"{tokens} exceeds the context of {context}", f"use at most {context}")
    generator = torch.Generator().manual_seed(seed)
    bos = _bos(tokenizer, opened)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    rows = min(len(tokenizer), opened.vocabulary)
    ordinary = torch.tensor([token for token in range(rows) if token not in special])
    random_first = ordinary[torch.randint(len(ordinary), (count,), generator=generator)]
    first = random_first if bos is None else torch.full((count,), bos)
    # all randomness is drawn here, so that batches and threads cannot change the result
    uniform = torch.rand(count, tokens, generator=generator, dtype=torch.float64)
    model: Any = opened.load_all(stacked=True)

    def sample_batch(start: int) -> Tensor:
        stop = min(start + BATCH, count)
        sampled = _sample_rows(model, first[start:stop].to(device), uniform[start:stop].to(device))
        progress(f"sample rows {start + 1}-{stop} of {count}, {tokens} tokens each, from the base itself")
        return sampled

    small = device.type == "cpu" and model.num_parameters() < SMALL_MODEL
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if small else threads)
    try:
        with ThreadPoolExecutor(threads if small else 1) as pool:
            return torch.cat(list(pool.map(sample_batch, range(0, count, BATCH))))
    finally:
        torch.set_num_threads(threads)


def _bos(tokenizer: Any, model: Model) -> int | None:
    """The token that rows start with; None where tokenizer and config name none that the embedding knows."""
    if tokenizer.bos_token_id is None:
        bos = model.settings.bos_token_id
        return bos if bos is not None and 0 <= bos < model.vocabulary else None
    where = "self: the BOS that samples start with"
    vocabulary.check([tokenizer.bos_token_id], tokenizer, model.vocabulary, where)
    return int(tokenizer.bos_token_id)


@torch.inference_mode()
def _sample_rows(model: Any, first: Tensor, uniform: Tensor) -> Tensor:
    """int32 [rows, tokens] on the CPU, from each row's first token and uniform draws [rows, tokens]."""
    cache = buffered_cache(model.config, uniform.shape[1])
    ids = torch.empty(uniform.shape, dtype=torch.long, device=uniform.device)
    ids[:, 0] = first
    for position in range(uniform.shape[1] - 1):
        step = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        p = step.logits[:, -1].float().softmax(-1)
        ids[:, position + 1] = token_draws.drawn(p, uniform[:, position : position + 1])
    return ids.to("cpu", torch.int32)


def buffered_cache(config: Any, capacity: int) -> Any:
    """transformers' growing cache, whose full-attention layers write into one preallocated buffer.

    The original concatenates, and so copies all keys and values at every step: with transformers 5.19 8 to 13 % of the
    CPU time at 256 tokens, and a third at 960.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class BufferedLayer(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            states = (key_states, value_states)
            if not self.is_initialized:
                self.lazy_initialization(*states)
                self.buffers = [state.new_empty(*state.shape[:2], capacity, state.shape[3]) for state in states]
            start = self.get_seq_length()
            stop = start + key_states.shape[2]
            for buffer, state in zip(self.buffers, states, strict=True):
                buffer[:, :, start:stop] = state
            self.keys, self.values = (buffer[:, :, :stop] for buffer in self.buffers)
            return self.keys, self.values

    cache = DynamicCache(config=config)
    cache.layers = [BufferedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
