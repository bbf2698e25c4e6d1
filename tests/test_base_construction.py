"""Sampling and generation build the base as everything else does: the same numbers, from the listed files alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pipeline_parts import make
from transformers import AutoModelForCausalLM

from hubplugin.compress.calibration import self_sampling
from hubplugin.compress.calibration.self_sampling import sample_self
from hubplugin.evaluation.generation import generate_dequantized
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.model.architectures import families

OLD_TABLES = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.rotary_emb.inv_freq"]
GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}


def loaded(folder: Path, **settings: Any) -> Any:
    """What transformers' own loading makes of a folder; soft-capping needs eager attention."""
    attention = "eager" if "gemma2" in (folder / "config.json").read_text() else "sdpa"
    made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention, **settings)
    return made.eval()


def samples(model: Any, first: list[int], tokens: int) -> torch.Tensor:
    uniform = torch.rand(len(first), tokens, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return self_sampling._sample_rows(model, torch.tensor(first), uniform)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
def test_samples_are_those_of_transformers_own_loading(model_type, tied: bool, stored, tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "m", model_type, tie_word_embeddings=tied)
    tensors = {name: tensor.to(stored) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ours = open_model(folder, families.match(json.loads((folder / "config.json").read_text()), "x"))
    theirs = loaded(folder)
    assert torch.equal(samples(ours.load_all(stacked=True), [1, 2, 3], 70), samples(theirs, [1, 2, 3], 70))


@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
def test_generation_gives_the_numbers_of_transformers_own_loading(model_type: str, tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "m", model_type)
    made, theirs, prompt = generate_dequantized(folder, [[1, 2, 3]], 6), loaded(folder), torch.tensor([[1, 2, 3]])
    out = theirs.generate(
        prompt,
        max_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    answer = out.sequences[0, 3:]
    logs = torch.stack([logits[0] for logits in out.logits]).log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
    assert made.token_ids == [answer.tolist()] and made.logprobs == [logs.tolist()]


def test_nothing_beside_the_listed_files_is_read(pico_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(pico_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj"
    adapter = {f"{q_proj}.lora_A.weight": torch.ones(4, 64), f"{q_proj}.lora_B.weight": torch.ones(64, 4)}
    save_file(adapter, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(folder)}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(256)), "num_beams": 3}))
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    noise = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(noise, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    save_file(noise, folder / "other.safetensors", metadata={"format": "pt"})
    assert torch.equal(sample_self(folder, 2, 30, 0), sample_self(pico_folder, 2, 30, 0))
    assert generate_dequantized(folder, [[1, 2, 3]], 5) == generate_dequantized(pico_folder, [[1, 2, 3]], 5)


@pytest.mark.parametrize(
    "place", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.rotary_emb.inv_freq"]
)
def test_rotary_tables_of_old_checkpoints_are_left_aside(place: str, pico_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(pico_folder, folder)
    tensors = load_file(folder / "model.safetensors") | {place: torch.ones(16)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(sample_self(folder, 2, 20, 0), sample_self(pico_folder, 2, 20, 0))
    make(folder, tmp_path / "v", GPTQ)
    assert place not in load_file(tmp_path / "v" / "model.safetensors")


def test_a_soft_capped_model_is_sampled_as_it_computes(tmp_path: Path) -> None:
    """With caps so low that sampling without them gives other tokens."""
    folder = pico.write(tmp_path / "m", "gemma2", attn_logit_softcapping=0.2, final_logit_softcapping=2.0)
    model = open_model(folder, families.FAMILIES["gemma2"])
    ids = samples(model.load_all(stacked=True), [1, 2, 3, 4], 40)
    uncapped = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    assert torch.equal(ids, samples(loaded(folder), [1, 2, 3, 4], 40))
    assert not torch.equal(ids, samples(uncapped, [1, 2, 3, 4], 40))


def test_a_model_whose_blocks_differ_samples_too(tmp_path: Path, pico_folder: Path) -> None:
    prune = {"method": "prune", "mlp": 1, "layout": "per-layer"}
    make(pico_folder, tmp_path / "v", prune)
    assert sample_self(tmp_path / "v", 2, 20, 0).shape == (2, 20)
