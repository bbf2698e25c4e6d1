"""Pico models for the tests: transformers' own classes with seeded random weights, and a byte-level tokenizer.

Nothing is downloaded. A pico Llama has 2 layers, 64 hidden, 128 FFN channels and heads of 32, which stock vLLM loads.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
VOCABULARY = 288

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256,
}  # fmt: skip
BY_TYPE: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "mistral": {"head_dim": 32, "sliding_window": 48},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 32},
    "phi3": {"tie_word_embeddings": False, "original_max_position_embeddings": 256},
    "mixtral": {
        "head_dim": 32,
        "sliding_window": 48,
        "tie_word_embeddings": False,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "norm_topk_prob": True,
    },
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48, "num_hidden_layers": 2},
}


def config(model_type: str = "llama", **changes: Any) -> Any:
    """A transformers config of that family at pico size."""
    return AutoConfig.for_model(model_type, **{**SHAPE, **BY_TYPE[model_type], **changes})


def model(model_type: str = "llama", seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """A seeded random model with activations large enough that quantization is felt."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(model_type, **changes), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() >= 2:  # matrices, and the stacked ones of experts
                parameter.normal_(0, 0.12)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0, 0.05)
    return made.to(dtype).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[0], model_max_length=256)
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    made.chat_template = TEMPLATE
    return made


def write(folder: Path, model_type: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A whole pico model folder: config, weights, tokenizer, template, card."""
    folder.mkdir(parents=True, exist_ok=True)
    made = model(model_type, seed, **changes)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# pico\n", encoding="utf-8")
    (folder / "LICENSE").write_text("Apache License, Version 2.0\n", encoding="utf-8")
    return folder


def tokens(sequences: int = 4, length: int = 48, seed: int = 1) -> torch.Tensor:
    """Seeded random token ids int32 [sequences, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (sequences, length), generator=generator, dtype=torch.int32)


def headers(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Names, dtypes and shapes of a single-file checkpoint, read without any library."""
    with (folder / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    entries.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()}
