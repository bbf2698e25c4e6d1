"""`hubplugin verify` of variants that hubplugin made: green as made, red for each figure that is not the tensors'."""

import json
import shutil
from pathlib import Path

import pico
import pytest
import torch
import verify_helpers
from verify_helpers import (
    WEIGHTS,
    Spoil,
    copy,
    edit,
    failed,
    in_json,
    in_tensors,
    lines_of,
    looked,
    verify,
    without,
)

from hubplugin import report, verification
from hubplugin.evaluation.cards import card
from hubplugin.verification import Outcome

VARIANTS = ("GPTQ-Int4", "CT-Int8-asymmetric", "W8A8", "Mixed", "Pruned", "Wanda-2of4", "LowRank", "LowRank-Int4")
LINEAR = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> Path:
    """A base in `base`, and its variants in `out`."""
    made = tmp_path_factory.mktemp("verify")
    shutil.copytree(pico_folder, made / "base")
    verify_helpers.make(made, "./base")
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_as_it_was_made_holds_in_all_lines(name: str, place: Path) -> None:
    found = verify(place / "out" / name, place / "base")
    assert found.holds and found.made_by_hubplugin and not failed(found)
    left = [str(line) for line in found.lines if line.outcome is Outcome.NOT_CHECKED]
    assert left == ["not checked  quality: measured only with --quality"]
    quantized = name not in ("Pruned", "Wanda-2of4", "LowRank")
    configured = {"codes as configured"} if name == "LowRank" else set[str]()
    assert {"codes as configured", "codes as in the steps", "scales"} & looked(found) == (
        {"codes as configured", "codes as in the steps", "scales"} if quantized else configured
    )
    assert ("zeros as asked" in looked(found)) is (name == "Wanda-2of4")
    assert {"sizes", "sizes of the base", "values of the base", "card's lines"} <= looked(found)


@pytest.mark.parametrize("name", ["GPTQ-Int4", "W8A8", "Wanda-2of4", "LowRank"])
def test_quality_is_measured_again_on_the_same_tokens(name: str, place: Path) -> None:
    lines = lines_of(verify(place / "out" / name, place / "base", [verification.QUALITY]), "quality")
    assert all(line.outcome is Outcome.PASSED for line in lines)
    assert [line.what for line in lines] == [
        "tokens",
        "perplexity",
        "perplexity of the base",
        "perplexity ratio",
        "mean KL",
        "standard error of mean KL",
        "p99 KL",
        "top-1 agreement",
        "flips",
        "acceptance rate",
    ]


def flip(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.qweight"][0, 0] ^= 1


def half_the_words(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.qweight"] = tensors[f"{LINEAR}.qweight"][::2]


def no_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.scales"][0, 0] = float("nan")


def dead(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.scales"][0] = 0


def add_two_to_zeros(tensors: dict[str, torch.Tensor]) -> None:
    words = tensors[f"{LINEAR}.qzeros"].long() + sum(2 << shift for shift in range(0, 32, 4))
    tensors[f"{LINEAR}.qzeros"] = words.sub((words > 2**31 - 1) * 2**32).to(torch.int32)


def disorder(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.g_idx"] = tensors[f"{LINEAR}.g_idx"].flip(0)


# what is spoiled, the check that must fail, and words of its line
RED: dict[str, tuple[Spoil, str, str]] = {
    "a figure of the card's table": (edit("README.md", "92.48K | 92.48K", "92.48K | 46.24K"), "card's lines", "46.24K"),
    "a figure of the card's text": (
        edit("README.md", "2.07 times smaller", "20.7 times smaller"),
        "card's lines",
        "20.7",
    ),
    "a hash on the card": (edit("README.md", "sha256 of the ids `", "sha256 of the ids `0"), "card's lines", "ids `0"),
    "the licence of the card": (
        edit("README.md", "license: apache-2.0", "license: mit"),
        "front matter",
        "claimed mit, found apache-2.0",
    ),
    "bits of the card's metadata": (
        edit("README.md", "  bits: 4\n", "  bits: 2\n"),
        "front matter",
        "compression.bits: claimed 2, found 4",
    ),
    "a ratio of the card's metadata": (
        edit("README.md", "ratio_disk: 2", "ratio_disk: 9"),
        "front matter",
        "compression.ratio_disk",
    ),
    "a number of the model-index": (
        edit("README.md", "value: ", "value: 9"),
        "front matter",
        "model-index.0.results.0.metrics.perplexity.value",
    ),
    "a key that is gone": (edit("README.md", "license: apache-2.0\n", ""), "front matter", "has no such key"),
    "a tag that is gone": (edit("README.md", "- 4-bit\n", ""), "front matter", "4-bit"),
    "a front matter that is no YAML": (
        edit("README.md", "license: apache-2.0", "license: [apache-2.0"),
        "card",
        "no YAML",
    ),
    "no card": (without("README.md"), "card", "there is no README.md"),
    "a flipped bit": (in_tensors(flip), "files as measured", WEIGHTS),
    "weights that are gone": (without(WEIGHTS), "files as measured", "no such file"),
    "a tokenizer that is gone": (without("tokenizer.json"), "tokenizer", "there are none"),
    "half of the codes": (in_tensors(half_the_words), "sizes", ""),
    "a scale that is no number": (in_tensors(no_number), "finite weights", f"{LINEAR}.scales: holds NaN"),
    "scales of zero": (in_tensors(dead), "finite weights", "64 of 256 scales are zero"),
    "zero points of another version": (in_tensors(add_two_to_zeros), "checkpoint_format", "zero points of their own"),
    "groups out of order": (in_tensors(disorder), "g_idx", "desc_act is false"),
    "config.json of other bits": (
        in_json("config.json", "quantization_config", "bits", value=8),
        "codes as configured",
        "claimed 8 bits",
    ),
    "config.json of other groups": (
        in_json("config.json", "quantization_config", "group_size", value=64),
        "codes as configured",
        "64 inputs",
    ),
    "config.json of another format": (
        in_json("config.json", "quantization_config", "quant_method", value="awq"),
        "codes as configured",
        "awq",
    ),
    "config.json of no format": (
        in_json("config.json", "quantization_config", value=None),
        "files as measured",
        "config.json",
    ),
    "quantize_config.json of other bits": (
        in_json("quantize_config.json", "bits", value=8),
        "quantize_config.json",
        "8 in quantize_config.json",
    ),
    "another zero offset": (
        in_json("config.json", "quantization_config", "checkpoint_format", value="gptq_v2"),
        "checkpoint_format",
        "claimed gptq_v2, found gptq",
    ),
    "a head of its own": (
        in_json("config.json", "tie_word_embeddings", value=False),
        "output head",
        "no lm_head.weight",
    ),
    "another class": (
        in_json("config.json", "architectures", value=["MistralForCausalLM"]),
        "shape of the variant",
        "MistralForCausalLM",
    ),
    "another manifest": (edit("manifest.yaml", "bits: 4", "bits: 8"), "manifest", "manifest.yaml"),
    "scores of benchmarks that were not asked": (
        lambda folder: [(folder / ".eval_results").mkdir(), (folder / ".eval_results/hubplugin.yaml").write_text("[]")],
        "scores of benchmarks",
        "claimed nothing, found []",
    ),
    "a pickle": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "pickles", "pytorch_model.bin"),
    "weights beside": (
        lambda folder: shutil.copy(folder / WEIGHTS, folder / "model-00001-of-00002.safetensors"),
        "files as measured",
        "loaders read it",
    ),
    "a report of other bytes": (
        in_json("report.json", "sizes", "safetensors_bytes", value=1),
        "sizes",
        "claimed 1 bytes",
    ),
    "a report of a larger base": (
        in_json("report.json", "sizes_base", "parameters", value=10**9),
        "sizes of the base",
        "claimed 1000000000",
    ),
    "a report of fewer bits": (
        in_json("report.json", "sizes", "linear_bits_per_weight", value=2.0),
        "sizes",
        "claimed 2 bits",
    ),
    "a report of another licence": (
        in_json("report.json", "base", "licence", value="mit"),
        "licence of the base",
        "claimed mit",
    ),
}


@pytest.mark.parametrize("name", RED)
def test_what_is_no_longer_true_is_a_line_that_failed(name: str, place: Path, tmp_path: Path) -> None:
    spoil, check, words = RED[name]
    found = verify(copy(place / "out" / "GPTQ-Int4", tmp_path, spoil), place / "base")
    said = [line for line in failed(found) if line.startswith(f"FAILED       {check}") and words in line]
    assert not found.holds and said, found.text()


def test_a_figure_of_an_edited_card_is_the_only_thing_that_fails(place: Path, tmp_path: Path) -> None:
    spoil, _, _ = RED["a figure of the card's table"]
    found = verify(copy(place / "out" / "GPTQ-Int4", tmp_path, spoil), place / "base")
    assert failed(found) == [
        "FAILED       card's lines, parameters: claimed | parameters | 92.48K | 46.24K | 1.00 |, "
        "found | parameters | 92.48K | 92.48K | 1.00 |; report.json says the latter"
    ]


def test_an_edit_of_report_and_card_alike_is_found_by_measuring(place: Path, tmp_path: Path) -> None:
    folder = copy(
        place / "out" / "GPTQ-Int4", tmp_path, in_json("report.json", "evaluation", "variant", "mean_kl", value=1e-6)
    )
    (folder / "README.md").write_text(card.render(report.read(folder)), encoding="utf-8")
    assert verify(folder, place / "base").holds
    (line,) = failed(verify(folder, place / "base", [verification.QUALITY]))
    assert line.startswith("FAILED       quality, mean KL: claimed 1e-06 nats per token, found 0.0")


def test_another_base_of_the_same_shape_is_found_by_its_values(place: Path, tmp_path: Path) -> None:
    other = pico.write(tmp_path / "other", seed=5)
    found = verify(place / "out" / "GPTQ-Int4", other, [verification.QUALITY])
    assert {line.split(",")[0] for line in failed(found)} == {"FAILED       values of the base"}
    (tokens,) = lines_of(found, "quality")
    assert tokens.outcome is Outcome.NOT_CHECKED and "made anew they have the sha256" in tokens.detail


def test_a_larger_base_is_found_by_its_sizes(place: Path, tmp_path: Path) -> None:
    other = pico.write(tmp_path / "other", num_hidden_layers=3)
    assert any(
        "sizes of the base, parameters: claimed 92480" in line
        for line in failed(verify(place / "out" / "Pruned", other))
    )


def test_a_base_that_is_not_at_hand_leaves_its_lines_unchecked(place: Path) -> None:
    found = verify(place / "out" / "GPTQ-Int4")
    assert found.holds
    left = {line.check: line.detail for line in found.lines if line.outcome is Outcome.NOT_CHECKED}
    assert left.keys() == {"sizes of the base", "licence of the base", "values of the base", "quality"}
    assert "is a local folder" in left["sizes of the base"]


def test_zeros_that_are_gone_are_found(place: Path, tmp_path: Path) -> None:
    def fill(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LINEAR}.weight"][0, :4] = 1

    said = failed(verify(copy(place / "out" / "Wanda-2of4", tmp_path, in_tensors(fill)), place / "base"))
    assert any(f"zeros as asked, {LINEAR}: 1 groups of 4 hold more than 2" in line for line in said)
    assert any("sizes, sparsity" in line for line in said)


def test_what_people_add_to_a_card_is_named_and_not_judged(place: Path, tmp_path: Path) -> None:
    folder = copy(
        place / "out" / "GPTQ-Int4",
        tmp_path,
        edit("README.md", "tags:\n", "co2_eq_emissions: 3\ntags:\n- mine\n"),
        edit("README.md", "## Size", "It answers 100 questions.\n\n## Size"),
    )
    found = verify(folder, place / "base")
    assert found.holds
    left = [line.detail for line in found.lines if line.outcome is Outcome.NOT_CHECKED]
    assert "keys that hubplugin does not write: co2_eq_emissions" in left
    assert "1 lines with numbers that hubplugin did not write, first: It answers 100 questions." in left


def test_a_report_cannot_have_files_outside_the_folder_opened(place: Path, tmp_path: Path) -> None:
    spoil = in_json("report.json", "files", value={"../secret": "0" * 64, "/dev/zero": "0" * 64})
    (tmp_path / "secret").write_text("secret")
    said = failed(verify(copy(place / "out" / "GPTQ-Int4", tmp_path, spoil), place / "base"))
    assert [line.split("found ")[1] for line in said if "found no such" in line][:2] == ["no such file"] * 2


def test_the_object_that_json_prints_has_a_version_and_all_lines(place: Path) -> None:
    found = verify(place / "out" / "GPTQ-Int4", place / "base")
    printed = json.loads(found.json_text())
    assert printed["schema_version"] == 1 and printed["holds"] is True
    assert len(printed["lines"]) == len(found.text().splitlines())
    assert printed["lines"][0] == {
        "check": "files as measured",
        "what": "",
        "outcome": "passed",
        "claimed": None,
        "found": None,
        "detail": "9 files have the sha256 that the report says",
    }


def test_ranks_that_the_tensors_do_not_have(place: Path, tmp_path: Path) -> None:
    made = place / "out" / "LowRank"
    ranks = json.loads((made / "config.json").read_text())["quantization_config"]["ranks"]
    linear, rank = next(iter(ranks.items()))
    other = in_json("config.json", "quantization_config", "ranks", value={**ranks, linear: rank + 4})
    (line,) = failed(verify(copy(made, tmp_path / "rank", other), place / "base"), "files as measured")
    assert "codes as configured" in line and f"claimed {rank + 4}, found {rank}" in line and linear in line
    silent = in_json("config.json", "quantization_config", value=None)
    said = failed(verify(copy(made, tmp_path / "none", silent), place / "base"), "files as measured")
    assert any(f"says nothing of factors, and {len(ranks)} linears are stored as factors" in line for line in said)
    found = lines_of(verify(made, place / "base"), "codes as configured")
    assert found and all(line.outcome is Outcome.PASSED for line in found)


def test_codes_of_factors_that_config_json_says_otherwise(place: Path, tmp_path: Path) -> None:
    made = place / "out" / "LowRank-Int4"
    keys = "quantization_config", "codes", "config_groups", "group_0", "weights"
    weights = json.loads((made / "config.json").read_text())
    for key in keys:
        weights = weights[key]
    other = in_json("config.json", *keys, value={**weights, "num_bits": 3})
    found = failed(verify(copy(made, tmp_path / "bits", other), place / "base"), "files as measured")
    assert any("claimed 3 bits, a scale for a row" in line and "the width of its codes" in line for line in found)
    silent = in_json("config.json", "quantization_config", "codes", value=None)
    found = failed(verify(copy(made, tmp_path / "none", silent), place / "base"), "files as measured")
    assert any("says nothing of codes, and 14 linears are stored as codes" in line for line in found)
