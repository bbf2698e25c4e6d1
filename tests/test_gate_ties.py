"""A head stored beside the embedding that it is said to be tied to: kept where values differ, dropped where not."""

import json
from pathlib import Path

import pico
import pytest
import torch
from gate_helpers import candidate
from safetensors.torch import load_file, save_file
from test_pipeline import document, run
from test_pipeline_parts import GPTQ, PRUNE, make, planned
from transformers import AutoModelForCausalLM

from hubplugin import report
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.evaluation import gate
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.model.architectures import configs, families, tied_head

HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
MANIFEST = """\
model: MODEL
calibrate: {self: true, samples: 4, tokens: 64, seed: 0}
variants:
  Int4:
    - {method: gptq, bits: 4, group_size: 32}
evaluate: {perplexity: {self: true, samples: 4, tokens: 64, seed: 1}, kl: true}
gate: {mean_kl: 5, top1_agreement: 0}
"""


def with_head(folder: Path, change: str, model_type: str = "llama") -> Path:
    """A pico model whose config.json ties the head, and a head in its files, changed as asked."""
    pico.write(folder, model_type, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    head = tensors[EMBED].clone()
    if change == "other":
        head = torch.randn(head.shape, generator=torch.Generator().manual_seed(3)).to(head.dtype) * 0.1
    elif change == "last value":
        head[-1, -1] += 1
    elif change == "float32":
        head = head.float()
    elif change == "float32, last value":
        head = head.float()
        head[-1, -1] += 1e-6
    elif change == "float16":
        tensors[EMBED] = tensors[EMBED].to(torch.float16)
        head = tensors[EMBED].float()
    elif change == "signed zero":
        tensors[EMBED][0, 0], head[0, 0] = 0.0, -0.0
    tensors[HEAD] = head
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


DIFFERENT, EQUAL = ("other", "last value", "float32, last value"), ("same", "float32", "float16", "signed zero")


@pytest.mark.parametrize("change", DIFFERENT + EQUAL)
def test_a_stored_head_is_told_from_its_embedding_by_its_values(change: str, tmp_path: Path) -> None:
    base = with_head(tmp_path / "m", change)
    kept = change in DIFFERENT
    assert configs.read_config(base, "m")["tie_word_embeddings"] is not kept
    variant, _, _ = planned(base, GPTQ)
    assert (HEAD in variant.tensors) is kept and variant.config["tie_word_embeddings"] is not kept


@pytest.mark.parametrize("pieces", [1, 7, 2**20])
def test_values_are_compared_in_pieces_of_any_size(pieces: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tied_head, "PIECE", pieces)
    for change in ("last value", "float32"):
        base = with_head(tmp_path / change, change)
        assert tied_head.has_own_values(base, {"model_type": "llama", "tie_word_embeddings": True}) is (
            change == "last value"
        )


def test_a_head_in_another_shard_than_the_embedding_is_found(tmp_path: Path) -> None:
    base = with_head(tmp_path / "m", "other")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    first = {name: tensor for name, tensor in tensors.items() if name != HEAD}
    for number, part in enumerate((first, {HEAD: tensors[HEAD]}), start=1):
        save_file(part, base / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
    weight_map = {name: f"model-0000{1 if name in first else 2}-of-00002.safetensors" for name in tensors}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert not configs.read_config(base, "m")["tie_word_embeddings"]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2"])
def test_a_head_of_its_own_travels_and_transformers_loads_what_was_compressed(model_type: str, tmp_path: Path) -> None:
    base, out = with_head(tmp_path / "m", "other", model_type), tmp_path / "v"
    make(base, out, *((PRUNE,) if families.FAMILIES[model_type].widths else (GPTQ,)))
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(Reader(out).get(HEAD), Reader(base).get(HEAD))
    line = gate.ties(candidate(out, base=base))
    assert line.passed and line.detail.startswith("separate"), line.detail
    ids = pico.tokens(2, 24)
    attention = "eager" if model_type == "gemma2" else "sdpa"
    for folder in (base, out):  # transformers takes the stored head of the base too
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
        model = open_model(folder, families.FAMILIES[model_type])
        with torch.no_grad():
            assert torch.allclose(whole(ids.long()).logits, model.logits(model.hidden_states(ids)), atol=1e-4)


def test_a_variant_that_lost_the_heads_values_does_not_pass(tmp_path: Path) -> None:
    base = with_head(tmp_path / "m", "other")
    tied = pico.write(tmp_path / "tied", tie_word_embeddings=True)  # as if the head had been dropped by its name
    assert not gate.ties(candidate(tied, base=base)).passed
    same = with_head(tmp_path / "same", "same")
    assert gate.ties(candidate(tied, base=same)).passed
    assert not gate.ties(candidate(same, base=same)).passed, "stored twice"


def test_run_keeps_the_head_of_a_base_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = with_head(tmp_path / "m", "other")
    (made,) = run(document(tmp_path, MANIFEST.replace("MODEL", str(base))), tmp_path / "out")
    assert made.passed and made.evaluation is not None
    assert made.evaluation.variant.mean_kl < 0.4, "with the embedding for a head it would be far away"
    assert HEAD in DenseView(tmp_path / "out" / "Int4")
    assert "lm_head.weight has other values than model.embed_tokens.weight" in capsys.readouterr().err


def test_run_keeps_the_head_of_a_base_whose_values_are_known_only_once_it_is_pulled(hub, tmp_path: Path) -> None:
    base = with_head(tmp_path / "m", "other")
    hub.create_repo("local/own-head")
    hub.upload_folder(repo_id="local/own-head", folder_path=base)
    asked = document(tmp_path, MANIFEST.replace("MODEL", "local/own-head"))
    (made,) = run(asked, tmp_path / "out")
    assert made.passed
    assert json.loads((tmp_path / "out" / "Int4" / "config.json").read_text())["tie_word_embeddings"] is False
    assert HEAD in Reader(tmp_path / "out" / "Int4")
    assert report.read(tmp_path / "out" / "Int4").sizes_base.parameters == made.sizes.parameters
