"""The gate looks at the base: its vocabulary, its tensors, and every one of its files."""

import shutil
from pathlib import Path

import card_helpers
import pico
import pytest
import torch
from gate_helpers import candidate
from safetensors.torch import load_file, save_file
from test_pipeline import document, run
from test_pipeline_parts import GPTQ, PRUNE, damage, make, planned

from hubplugin.checkpoint import model_folder
from hubplugin.evaluation import gate
from hubplugin.evaluation.gate.left_behind import left_behind
from hubplugin.manifest.metrics import GATE_KEYS, Thresholds
from hubplugin.report import GateLine, Quality

# -- vocabulary


def with_tokens(folder: Path, extra: int) -> Path:
    """A pico model whose tokenizer has so many tokens more."""
    pico.write(folder)
    tokenizer = pico.tokenizer()
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(extra)])
    tokenizer.save_pretrained(folder)
    return folder


def vocabulary(base: Path, folder: Path) -> GateLine:
    return gate.vocabulary_fits(candidate(folder, planned(base, GPTQ)[0], base=base))


@pytest.mark.parametrize(("extra", "beyond"), [(0, 0), (28, 0), (29, 1), (60, 32)])  # 260 tokens, 288 rows
def test_a_tokenizer_larger_than_the_bases_embedding_is_noted_and_not_the_variants_fault(
    extra: int, beyond: int, tmp_path: Path
) -> None:
    base = with_tokens(tmp_path / "m", extra)
    make(base, tmp_path / "v", GPTQ)
    line = vocabulary(base, tmp_path / "v")
    assert line.passed and line.detail.startswith(f"{260 + extra} token ids, 288 rows"), line.detail
    assert (f"{beyond} ids from 288 on have no row, in the base neither" in line.detail) is (beyond > 0)


def test_a_variant_whose_tokenizer_outgrew_its_embedding_does_not_pass(tmp_path: Path) -> None:
    base = with_tokens(tmp_path / "m", 4)
    make(base, tmp_path / "v", GPTQ)
    with_more = with_tokens(tmp_path / "more", 60)
    shutil.copyfile(with_more / "tokenizer.json", tmp_path / "v" / "tokenizer.json")
    assert not vocabulary(base, tmp_path / "v").passed


def test_a_variant_whose_embedding_lost_rows_does_not_pass(tmp_path: Path) -> None:
    base = with_tokens(tmp_path / "m", 4)
    make(base, tmp_path / "v", GPTQ)
    name = "model.embed_tokens.weight"
    damage(tmp_path / "v", lambda tensors: tensors.update({name: tensors[name][:262].clone()}))
    line = vocabulary(base, tmp_path / "v")
    assert not line.passed and line.detail.endswith("in the base, 262 has one"), line.detail


# -- tensors


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"]
)
def test_a_tensor_that_no_step_works_on_is_the_bases(name: str, pico_folder: Path, tmp_path: Path) -> None:
    make(pico_folder, tmp_path / "v", PRUNE, GPTQ)
    asked = candidate(tmp_path / "v", planned(pico_folder, PRUNE, GPTQ)[0], base=pico_folder)
    line = gate.as_in_base(asked)
    assert line.passed and line.detail == "6 tensors outside the linears"
    damage(tmp_path / "v", lambda tensors: tensors[name].view(-1)[-1:].add_(1))
    line = gate.as_in_base(asked)
    assert not line.passed and line.detail.startswith(f"1 differ, first {name}")


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "phi3", "mixtral", "gemma2"])
def test_in_every_kind_of_block_other_tensors_are_the_bases(model_type: str, tmp_path: Path) -> None:
    base = pico.write(tmp_path / "m", model_type)
    make(base, tmp_path / "v", GPTQ)
    line = gate.as_in_base(candidate(tmp_path / "v", planned(base, GPTQ)[0], base=base))
    assert line.passed, line.detail


def test_blocks_that_stay_after_others_went_are_compared_with_their_own(tmp_path: Path) -> None:
    base = pico.write(tmp_path / "m", num_hidden_layers=4)
    drop = {"method": "prune", "layers": 1}
    text = f"model: {base}\ncalibrate: {{self: true, samples: 4, tokens: 64, seed: 0}}\nvariants:\n  D:\n    - {drop}\n"
    (made,) = run(document(tmp_path, text), tmp_path / "out")
    line = next(line for line in made.gate if line.name == "other tensors as in the base")
    assert line.passed and line.detail == "8 tensors outside the linears", line.detail


@pytest.mark.parametrize(("factor", "said"), [(1.0, "they hold the same"), (0.5, "2 hold other values")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_tables_are_left_out_with_a_look_at_their_values(
    factor: float, said: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = pico.write(tmp_path / "m")
    tensors = load_file(base / "model.safetensors")
    frequencies = 1 / 10000 ** (torch.arange(0, 32, 2).float() / 32)
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = (frequencies * factor).to(dtype)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    make(base, tmp_path / "v", GPTQ)
    line = gate.as_in_base(candidate(tmp_path / "v", planned(base, GPTQ)[0], base=base))
    assert line.passed and "2 rotary tables are left out" in line.detail and said in line.detail, line.detail


# -- files

LEFT = {
    "pytorch_model.bin": "pickles",
    "consolidated.safetensors": "another format",
    "model-00001-of-00001.safetensors": "in other files",
    "model.gguf": "another format",
    "modeling_x.py": "never run",
    "picture.png": "picture",
    "USAGE.md": "text",
    "unheard.of": "no loader",
    "original/": "another format",
    "onnx/": "another framework",
    ".git/": "the repo",
    ".gitattributes": "the repo",
    "additional_chat_templates/notes.txt": "no loader",
    "broken": "leads nowhere",
    "README.md": "card of its own",
}


def test_every_file_of_the_base_is_copied_made_anew_or_named_with_a_reason(tmp_path: Path) -> None:
    base = pico.write(tmp_path / "m")
    kept = {"spiece.model", "tekken.json", "LICENCE.txt", "additional_chat_templates/x.jinja", "chat_template.json"}
    for name in (*LEFT, *kept):
        path = base / name
        (path if name.endswith("/") else path.parent).mkdir(exist_ok=True)
        if name == "broken":
            path.symlink_to(tmp_path / "nowhere")
        elif name.endswith("/"):
            (path / "weights.bin").write_text("x")
        elif name != "README.md":
            path.write_text("{}" if name.endswith(".json") else "x")
    found = {entry.file: entry.reason for entry in left_behind(base)}
    assert found.keys() == LEFT.keys()
    for name, reason in LEFT.items():
        assert reason in found[name], (name, found[name])
    assert kept <= set(model_folder.companions(base))
    everything = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}
    accounted = {*model_folder.companions(base), *found, "config.json", "model.safetensors"}
    assert all(name in accounted or f"{name.split('/')[0]}/" in accounted for name in everything)


def test_the_report_names_what_was_left_behind(tmp_path: Path) -> None:
    base = pico.write(tmp_path / "m")
    (base / "pytorch_model.bin").write_text("x")
    text = f"model: {base}\ncalibrate: {{self: true, samples: 4, tokens: 64, seed: 0}}\nvariants:\n  V:\n    - {GPTQ}\n"
    (made,) = run(document(tmp_path, text), tmp_path / "out")
    assert [entry.file for entry in made.left_behind] == ["README.md", "pytorch_model.bin"]
    line = next(line for line in made.gate if line.name == "tokenizer and chat template")
    assert line.detail == "5 files equal, 2 left behind"


# -- floors


def measured(**numbers: float) -> GateLine:
    evaluation = card_helpers.report().evaluation
    assert evaluation is not None
    variant = Quality.model_validate({**evaluation.variant.model_dump(), **numbers})
    return gate.quality(candidate(evaluation=evaluation.model_copy(update={"variant": variant})))


@pytest.mark.parametrize(
    ("numbers", "passed", "said"),
    [
        ({"top1_agreement": 0.027, "mean_kl": 0.61}, False, "top-1 agreement 0.0270: less than 0.5"),
        ({"top1_agreement": 0.4999}, False, "top-1 agreement"),
        ({"top1_agreement": 0.5, "mean_kl": 1.0}, True, "the manifest sets no threshold"),
        ({"mean_kl": 1.001}, False, "mean KL 1.0010: more than 1 passes only with"),
        ({"mean_kl": float("nan")}, False, "mean KL nan"),
        ({"perplexity": 1e6}, True, "the manifest sets no threshold"),
    ],
)
def test_without_a_threshold_a_broken_variant_does_not_pass(numbers: dict[str, float], passed: bool, said: str) -> None:
    line = measured(**numbers)
    assert line.passed is passed and said in line.detail, line.detail


def test_a_threshold_takes_the_place_of_its_own_metrics_floor_alone() -> None:
    evaluation = card_helpers.report().evaluation
    assert evaluation is not None
    numbers = {**evaluation.variant.model_dump(), "top1_agreement": 0.1, "mean_kl": 3.0}
    asked = evaluation.model_copy(update={"variant": Quality.model_validate(numbers)})

    def line(**limits: float) -> GateLine:
        return gate.quality(candidate(evaluation=asked, thresholds=Thresholds(**limits)))

    assert line(mean_kl=5, top1_agreement=0.05).passed
    assert "top-1 agreement 0.1000: less" in line(mean_kl=5).detail and not line(mean_kl=5).passed
    assert "mean KL 3.0000: more" in line(top1_agreement=0).detail and not line(top1_agreement=0).passed
    assert not line(mean_kl=2, top1_agreement=0).passed, "a threshold is kept, too"
    assert {key: row.floor for key, row in GATE_KEYS.items() if row.floor is not None} == {
        "mean_kl": 1.0,
        "top1_agreement": 0.5,
    }


def test_what_is_not_measured_has_no_floor() -> None:
    assert gate.quality(candidate(evaluation=None)).passed
    evaluation = card_helpers.report().evaluation
    assert evaluation is not None
    assert gate.quality(candidate(evaluation=evaluation.model_copy(update={"variant": evaluation.base}))).passed
