"""`hubplugin verify` as a command: where one thing in a variant is changed, it ends with 1 and names the line.

What each check finds stands in test_verify_ours.py and test_verify_others.py.
"""

from pathlib import Path

import pico
import pytest
import torch
import verify_helpers
from verify_helpers import WEIGHTS, Spoil, copy, edit, in_json, in_tensors, without

from hubplugin import cli, disk

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 2, sequence_length: 32}}
variants:
  Int4:
    - {{method: gptq, bits: 4, group_size: 32}}
evaluate: {{perplexity: {{self: true, samples: 2, sequence_length: 32, seed: 1}}}}
gate: {{perplexity_ratio: 1000, top1_agreement: 0}}
"""
LINEAR = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in `base`, another one of the same shape in `other`, and a variant of the first in `out`."""
    made = tmp_path_factory.mktemp("verb")
    pico.write(made / "base")
    pico.write(made / "other", seed=7)
    verify_helpers.make(made, "./base", MANIFEST)
    return made


def verb(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str]]:
    """The exit code, and the lines that failed."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *map(str, words)])
    out = capsys.readouterr().out.splitlines()
    return int(str(ended.value.code)), [line for line in out if line.startswith("FAILED")]


def test_an_unspoiled_copy_ends_with_0(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(place / "out" / "Int4", tmp_path)
    assert verb(capsys, folder, "--base", place / "base") == (0, [])


FIGURES: dict[str, tuple[Spoil, str]] = {
    "parameters": (edit("README.md", "92.48K | 92.48K", "92.48K | 46.24K"), "card's lines, parameters: claimed"),
    "times smaller": (edit("README.md", " times smaller", "0 times smaller"), "0 times smaller"),
    "perplexity": (
        edit("README.md", "| perplexity, this / base | | ", "| perplexity, this / base | | 0."),
        "card's lines",
    ),
    "model-index": (edit("README.md", "value: ", "value: 9"), "model-index.0.results.0.metrics.perplexity.value"),
    "metadata": (edit("README.md", "  bits: 4\n", "  bits: 8\n"), "compression.bits: claimed 8, found 4"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_an_edited_figure_of_the_card(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = FIGURES[name]
    code, said = verb(capsys, copy(place / "out" / "Int4", tmp_path, spoil), "--base", place / "base")
    assert code == 1 and len(said) == 1 and words in said[0], said


def one_code(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.qweight"][0, 0] ^= 1


def one_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.scales"][0, 0] *= -1


def one_weight_of_a_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] += 0.5


def one_row_of_the_embedding(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"][2, 1] += 0.5


@pytest.mark.parametrize("change", [one_code, one_scale, one_weight_of_a_norm, one_row_of_the_embedding])
def test_one_changed_value_of_a_tensor(change, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(place / "out" / "Int4", tmp_path, in_tensors(change))
    code, said = verb(capsys, folder, "--base", place / "base")
    assert code == 1 and any(f"files as measured, {WEIGHTS}: claimed " in line for line in said), said


@pytest.mark.parametrize(
    ("change", "tensor"),
    [(one_weight_of_a_norm, "model.norm.weight"), (one_row_of_the_embedding, "model.embed_tokens.weight")],
)
def test_a_changed_value_whose_digest_is_changed_with_it(
    change, tensor: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(place / "out" / "Int4", tmp_path, in_tensors(change))
    in_json("report.json", "files", WEIGHTS, value=disk.sha256(folder / WEIGHTS))(folder)
    code, said = verb(capsys, folder, "--base", place / "base")
    assert code == 1 and said == [line for line in said if f"values of the base, {tensor}: " in line], said


# the file that is gone, and words of a line about it
MISSING = {
    WEIGHTS: "files as measured, model.safetensors: claimed ",
    "config.json": "files as measured, config.json: claimed ",
    "quantize_config.json": "files as measured, quantize_config.json: claimed ",
    "generation_config.json": "files as measured, generation_config.json: claimed ",
    "tokenizer.json": "files as measured, tokenizer.json: claimed ",
    "tokenizer_config.json": "files as measured, tokenizer_config.json: claimed ",
    "chat_template.jinja": "files as measured, chat_template.jinja: claimed ",
    "LICENSE": "files as measured, LICENSE: claimed ",
    "manifest.yaml": "manifest",
    "README.md": "card: there is no README.md",
    "report.json": "report: its card has the figures of hubplugin's report.json, and there is none",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file(name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(place / "out" / "Int4", tmp_path, without(name))
    code, said = verb(capsys, folder, "--base", place / "base")
    assert code == 1 and any(MISSING[name] in line for line in said), said


def test_every_file_of_a_variant_is_among_those_that_went_missing(place: Path) -> None:
    names = {file.name for file in (place / "out" / "Int4").iterdir()}
    assert names == set(MISSING)


def test_another_base(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = verb(capsys, copy(place / "out" / "Int4", tmp_path), "--base", place / "other")
    assert code == 1 and [line.split(": ")[0] for line in said] == [
        "FAILED       values of the base, model.norm.weight",
        "FAILED       values of the base, model.embed_tokens.weight",
    ]
