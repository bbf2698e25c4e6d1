"""What the benchmark compresses: base folders and token ids, made here from seeds so that anyone gets the same.

    python bench/models.py 75m bench/.work
    python bench/models.py smollm2-moved bench/.work --sequences 64 --text texts/a.txt

Trained models are `docs`, which ships with hubplugin, and `smollm2`, a real one out of packages of the index
(bench/smollm2.py), as it is or moved off the 4-bit grid on which it was published. The others are Llama shapes with
random weights, which cost what trained ones of that shape cost and whose quality means nothing; they have the docs
model's tokenizer.
"""

import argparse
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from hubplugin import report
from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.headers import Header
from hubplugin.compress.calibration import calibration_data
from hubplugin.demo import MODEL as DOCS
from hubplugin.demo import smollm2
from hubplugin.manifest.source import Source
from hubplugin.model.construction.tokenizer_files import read_tokenizer

SEQUENCE = 512  # tokens
REAL = ("smollm2", "smollm2-moved")
HELD_OUT = 1000  # the seed of held-out data; calibration seeds are small numbers
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int


SHAPES = {
    "tiny": Shape(256, 512, 2, 4, 2),  # to warm engines up, never measured
    "75m": Shape(768, 2048, 12, 12, 4),
    "350m": Shape(1024, 3584, 24, 16, 8),
    "1b": Shape(2048, 5632, 22, 32, 4),
    "900m": Shape(1024, 2048, 96, 16, 8),  # never in memory as a whole
    # the curve over layers
    "350m-3-layers": Shape(1024, 3584, 3, 16, 8),
    "75m-3-layers": Shape(768, 2048, 3, 12, 4),
    "75m-6-layers": Shape(768, 2048, 6, 12, 4),
    "75m-24-layers": Shape(768, 2048, 24, 12, 4),
}


def base(name: str, work: Path) -> Path:
    """The base folder of a model, made where it is missing."""
    if name == "docs":
        return DOCS
    folder = work / "models" / name
    if folder.exists():
        return folder
    if name in REAL:
        smollm2.make(folder, moved=name.endswith("-moved"))
    else:
        part = folder.with_name(f".{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        (_streamed if name == "900m" else _random)(SHAPES[name], part)
        os.replace(part, folder)
    return folder


def _random(shape: Shape, folder: Path) -> None:
    """Weights as transformers initialises them: normal, deviation 0.02, so that activations keep a sane size."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(_config(shape)).bfloat16().save_pretrained(folder)
    for file in TOKENIZER:
        shutil.copyfile(DOCS / file, folder / file)


def _streamed(shape: Shape, folder: Path) -> None:
    """The same, but other numbers, one tensor at a time."""
    from transformers import LlamaForCausalLM

    config = _config(shape)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    del state["lm_head.weight"]  # tied
    generator = torch.Generator().manual_seed(0)

    def get(name: str) -> torch.Tensor:
        made = torch.empty(state[name].shape)
        return (made.normal_(0, 0.02, generator=generator) if made.dim() > 1 else made.fill_(1)).bfloat16()

    safetensors_io.write(folder, {name: Header("BF16", tuple(tensor.shape)) for name, tensor in state.items()}, get)
    for file in TOKENIZER:
        shutil.copyfile(DOCS / file, folder / file)


def _config(shape: Shape) -> Any:
    from transformers import AutoConfig, LlamaConfig

    docs = AutoConfig.from_pretrained(DOCS)
    return LlamaConfig(
        vocab_size=docs.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=docs.eos_token_id,
        pad_token_id=docs.pad_token_id,
    )


def tokens(name: str, work: Path, sequences: int, seed: int, texts: Path | None) -> Path:
    """Token ids of a model as .npy, int32 [sequences, 512]; what they are stands in a .json of the same name.

    From a text file where one is given; else the docs model's own samples, or for random weights random ids. Raises
    SystemExit where a real model comes without a text.
    """
    if name in REAL and not texts:
        raise SystemExit(f"tokens for {name} are taken from a text file: give one for calibration and one held out")
    own = "self" if name == "docs" else "random"
    kind = f"text-{hashlib.sha256(texts.read_bytes()).hexdigest()[:8]}" if texts else own
    vocabulary = name.removesuffix("-moved") if name in ("docs", *REAL) else "any"
    path = work / "tokens" / f"{vocabulary}.{kind}.{sequences}.seed{seed}.npy"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(len(read_tokenizer(DOCS)), (sequences, SEQUENCE), generator=generator, dtype=torch.int32)
        made = report.Tokens(
            source="random token ids", sequences=sequences, tokens_per_sequence=SEQUENCE, seed=seed, sha256=_sha256(ids)
        )
    else:
        where = {"files": (texts.name,)} if texts else {"self": True}
        source = Source(samples=sequences, sequence_length=SEQUENCE, seed=seed, **where)
        folder = texts.parent if texts else Path()
        model = base(name, work) if name in REAL else DOCS
        # held-out text is read in order; calibration windows are chosen by the seed
        batch = calibration_data.tokens(source, read_tokenizer(model), folder, model, shuffle=seed != HELD_OUT)
        ids, made = batch.ids, batch.description
    path.with_suffix(".json").write_text(made.model_dump_json(indent=1), encoding="utf-8")
    part = path.with_name(f".{path.name}")
    numpy.save(part, ids.to(torch.int32).numpy())
    os.replace(part, path)
    return path


def _sha256(ids: torch.Tensor) -> str:
    return hashlib.sha256(ids.contiguous().numpy().astype("<i4").tobytes()).hexdigest()


def main() -> None:
    """Make one model and, where asked, tokens for it; print the paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["docs", *REAL, *SHAPES])
    parser.add_argument("work", type=Path)
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path, help="a text file to take tokens from")
    options = parser.parse_args()
    print(base(options.model, options.work))
    if options.sequences:
        print(tokens(options.model, options.work, options.sequences, options.seed, options.text))


if __name__ == "__main__":
    main()
