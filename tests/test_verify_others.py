"""`hubplugin verify` of models that hubplugin did not make: card, name and configuration against the tensors."""

import json
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
import verify_helpers
from safetensors.torch import load_file, save_file
from verify_helpers import Spoil, edit, failed, foreign, in_json, in_tensors, lines_of, looked, verify, without

from hubplugin.errors import CheckpointError, HubError, HubPluginError
from hubplugin.verification import Outcome

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 2, sequence_length: 32}}
variants:
  Int4:
    - {{method: gptq, bits: 4, group_size: 32}}
  Packed:
    - {{method: gptq, bits: 4, group_size: 32, format: compressed-tensors}}
gate: {{}}
"""
LINEAR = "model.layers.1.mlp.down_proj"
CARD = "license: mit\nbase_model: {base}\ntags: [gptq, 4-bit]\nparameters: 92.5K"
QUANTIZATION = "quantization_config"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in `base`, and its variants in `out`."""
    made = tmp_path_factory.mktemp("others")
    pico.write(made / "base")
    verify_helpers.make(made, "./base", MANIFEST)
    return made


@pytest.fixture
def made(place: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a variant as another tool leaves it, spoiled."""

    def copied(*spoiled: Spoil, variant: str = "Int4", name: str = "pico-4bit-32g", card: str | None = CARD) -> Path:
        said = card and card.format(base=place / "base")
        return foreign(place / "out" / variant, tmp_path, name, *spoiled, card=said)

    return copied


@pytest.mark.parametrize("variant", ["Int4", "Packed"])
def test_what_is_true_of_another_tools_model_holds(variant: str, place: Path, made: Callable[..., Path]) -> None:
    folder = made(variant=variant)
    found = verify(folder)
    assert found.holds and not found.made_by_hubplugin and not failed(found)
    assert {"codes as configured", "codes as in words", "base", "values of the base", "front matter"} <= looked(found)
    words = {line.what: line.found for line in lines_of(found, "codes as in words")}
    assert words == {"bits by its name": "4", "group size by its name": "32", "bits by its tags": "4"}
    assert not [line for line in found.lines if line.outcome is Outcome.NOT_CHECKED]


def version_2(folder: Path) -> None:
    """Zero points as gptq_v2 has them: as they are."""
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(".qzeros"):
            tensors[name] = torch.full_like(tensors[name], -0x77777778)  # 0x88888888
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def bits_of_zeros(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.qzeros"] = tensors[f"{LINEAR}.qzeros"][:, :-1].contiguous()


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.scales"][1, 2] = float("inf")


def stored_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def own_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def dead_matrix(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"].zero_()


def lost_norm(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def group_beyond(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.g_idx"][0] = 99


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


RED: dict[str, tuple[Spoil, str]] = {
    "other bits": (in_json("config.json", QUANTIZATION, "bits", value=8), "claimed 8 bits"),
    "other groups": (in_json("config.json", QUANTIZATION, "group_size", value=128), "the number of its scales"),
    "files that differ": (in_json("quantize_config.json", "group_size", value=128), "quantize_config.json, group_size"),
    "a tag of other bits": (edit("README.md", "4-bit", "8-bit"), "bits by its tags: claimed 8, found 4"),
    "a size of another model": (edit("README.md", "92.5K", "7B"), "front matter, parameters: claimed 7B, found 92480"),
    "version 2 called version 1": (version_2, "checkpoint_format: claimed gptq, found gptq_v2"),
    "version 1 called version 2": (
        in_json("config.json", QUANTIZATION, "checkpoint_format", value="gptq_v2"),
        "checkpoint_format: claimed gptq_v2, found gptq",
    ),
    "zeros that fit no width": (in_tensors(bits_of_zeros), "fit no width"),
    "an infinite scale": (in_tensors(infinite), f"{LINEAR}.scales: holds NaN or infinite"),
    "a dead matrix": (in_tensors(dead_matrix), "all of its weights are zero"),
    "a head stored twice": (in_tensors(stored_head), "stored a second time"),
    "a head that is not tied": (in_tensors(own_head), "stored with values of its own"),
    "a head that is missing": (in_json("config.json", "tie_word_embeddings", value=False), "no lm_head.weight"),
    "a norm that is missing": (in_tensors(lost_norm), "first model.norm.weight"),
    "a group that is none": (in_tensors(group_beyond), "an input is in group 99"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer, files: there are none"),
    "no template": (no_template, "chat template: claimed the base has one, in chat_template.jinja, found none"),
    "no card": (without("README.md"), "card: there is no README.md"),
    "no front matter": (edit("README.md", "---\n", ""), "card: README.md has no front matter"),
    "a front matter without an end": (edit("README.md", "\n---\n", "\n"), "the front matter does not end"),
    "a damaged front matter": (edit("README.md", "license: mit", "license: [mit"), "card: the front matter is no YAML"),
    "a pickle": (lambda folder: (folder / "training_args.bin").write_bytes(b""), "pickles: training_args.bin"),
    "other layers": (in_json("config.json", "num_hidden_layers", value=3), "base, num_hidden_layers"),
    "another vocabulary": (in_json("config.json", "vocab_size", value=999), "model.embed_tokens.weight: claimed [999"),
}


@pytest.mark.parametrize("name", RED)
def test_what_is_false_is_a_line_that_failed(name: str, made: Callable[..., Path]) -> None:
    spoil, words = RED[name]
    found = verify(made(spoil))
    assert not found.holds and any(words in line for line in failed(found)), found.text()


def test_another_version_holds_where_it_is_named(made: Callable[..., Path]) -> None:
    folder = made(version_2, *(_version(name) for name in ("config.json", "quantize_config.json")))
    found = verify(folder)
    assert found.holds, failed(found)
    (line,) = lines_of(found, "checkpoint_format")
    assert line.found == "gptq_v2"


def _version(name: str) -> Spoil:
    path = (QUANTIZATION, "checkpoint_format") if name == "config.json" else ("checkpoint_format",)
    return in_json(name, *path, value="gptq_v2")


def test_a_base_of_other_values_is_found(made: Callable[..., Path], tmp_path: Path) -> None:
    found = verify(made(), pico.write(tmp_path / "other", seed=3))
    assert {line.split(",")[0] for line in failed(found)} == {"FAILED       values of the base"}


def test_a_name_of_other_bits_and_groups_is_found(made: Callable[..., Path]) -> None:
    said = failed(verify(made(name="pico-GPTQ-Int8-128g")))
    assert [line.split(": ")[1] for line in said] == ["claimed 8, found 4", "claimed 128, found 32"]


def test_a_name_of_bits_and_weights_without_codes(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pico-4bit"
    pico.write(folder)
    (line,) = failed(verify(folder, place / "base"))
    assert line == "FAILED       codes as in words, name: claimed 4 bits, found no linear is stored as codes"


def test_an_instruct_model_without_a_template_is_found_without_its_base(made: Callable[..., Path]) -> None:
    folder = made(no_template, name="pico-Instruct-4bit", card="license: mit")
    (line,) = failed(verify(folder))
    assert "name or tags say that it answers in conversations" in line


def test_zero_points_that_symmetry_excludes_are_found(made: Callable[..., Path]) -> None:
    def asymmetric(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config[QUANTIZATION]["config_groups"]["group_0"]["weights"]["symmetric"] = False
        (folder / "config.json").write_text(json.dumps(config))

    said = failed(verify(made(asymmetric, variant="Packed")))
    assert said and "stored zero points: 14 linears differ" in said[0]


def test_weights_under_a_name_of_their_own_are_read(made: Callable[..., Path]) -> None:
    folder = made()
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-32g.safetensors")
    assert verify(folder).holds


def test_a_tensor_of_an_unknown_dtype_and_an_unknown_family_are_named(made: Callable[..., Path]) -> None:
    def more(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.extra"] = torch.zeros(4, dtype=torch.float8_e4m3fn)

    found = verify(made(in_tensors(more), in_json("config.json", "model_type", value="brandnew"), card="license: mit"))
    left = {line.check: line.detail for line in found.lines if line.outcome is Outcome.NOT_CHECKED}
    assert "model.extra, which is F8_E4M3" in left["known tensors"] and "'brandnew' is no family" in left["shapes"]
    assert {"codes as configured", "finite weights", "checkpoint_format"} <= looked(found)


def test_weights_in_float8_are_named_and_not_judged(made: Callable[..., Path]) -> None:
    def in_float8(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".weight_packed")]:
            linear = name.removesuffix(".weight_packed")
            shape = tensors.pop(f"{linear}.weight_shape").tolist()
            tensors.pop(name)
            tensors[f"{linear}.weight"] = torch.ones(shape).to(torch.float8_e4m3fn)

    found = verify(made(in_tensors(in_float8), variant="Packed", name="pico", card="license: mit"))
    assert found.holds
    left = {line.check: line.detail for line in found.lines if line.outcome is Outcome.NOT_CHECKED}
    assert "which is F8_E4M3" in left["known tensors"] and "its weight is F8_E4M3" in left["codes as configured"]


def test_the_former_name_of_a_configuration_is_read(made: Callable[..., Path]) -> None:
    def former(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["compression_config"] = config.pop(QUANTIZATION)
        (folder / "config.json").write_text(json.dumps(config))

    found = verify(made(former, variant="Packed"))
    assert found.holds and "codes as configured" in looked(found)


def test_what_a_name_holds_for_terminals_is_not_printed(made: Callable[..., Path]) -> None:
    def escape(tensors: dict[str, torch.Tensor]) -> None:
        tensors["\x1b[31m.weight"] = torch.tensor([float("nan")])

    text = verify(made(in_tensors(escape))).text()
    assert "[31m.weight: holds NaN" in text and "\x1b" not in text


BAD: dict[str, tuple[Spoil, str]] = {
    "an unknown format": (in_json("config.json", QUANTIZATION, "quant_method", value="awq"), "'awq'"),
    "Marlin's words": (in_json("config.json", QUANTIZATION, "checkpoint_format", value="marlin"), "'marlin'"),
    "bits that are none": (in_json("config.json", QUANTIZATION, "bits", value="four"), "cannot be understood"),
    "no config.json": (without("config.json"), "has no config.json"),
    "a config.json that is no mapping": (lambda folder: (folder / "config.json").write_text("[]"), "no mapping"),
    "no weights": (without("model.safetensors"), "holds no safetensors"),
    "pickles alone": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "its weights are pickles",
    ),
    "a newer report": (
        lambda folder: (folder / "report.json").write_text('{"hubplugin": "9.0", "schema_version": 2}'),
        "upgrade hubplugin",
    ),
    "a broken report": (lambda folder: (folder / "report.json").write_text('{"hubplugin": '), "is not a report"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_checked_is_an_error(name: str, made: Callable[..., Path]) -> None:
    spoil, words = BAD[name]
    with pytest.raises((HubError, CheckpointError)) as caught:
        verify(made(spoil))
    assert words in caught.value.what + caught.value.fix


@pytest.mark.parametrize("target", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_is_none_is_an_error(target: str) -> None:
    with pytest.raises(HubPluginError, match="no such folder"):
        verify(Path(target)) if target.startswith("/") else verify_helpers.verification.verify(target)


STRANGE = (None, [], {}, "x", -1, 1e99, [[]], {"a": None})


@pytest.mark.parametrize("value", STRANGE, ids=repr)
def test_values_of_another_kind_are_lines_or_errors_and_no_crash(value: object, made: Callable[..., Path]) -> None:
    folder, packed = made(), made(variant="Packed", name="packed")
    for one, keys in (
        (folder, ("bits", "group_size", "dynamic", "checkpoint_format", "quant_method", "desc_act", "lm_head")),
        (packed, ("config_groups", "ignore", "format")),
        (folder, ("",)),
        (folder, ("model_type", "hidden_size", "tie_word_embeddings", "architectures")),
    ):
        text = (one / "config.json").read_text()
        for key in keys:
            config = json.loads(text)
            inside = key not in ("model_type", "hidden_size", "tie_word_embeddings", "architectures")
            (config[QUANTIZATION] if inside and key else config)[key or QUANTIZATION] = value
            (one / "config.json").write_text(json.dumps(config))
            try:
                verify(one).text()
            except HubPluginError as error:
                assert error.what and error.fix
        (one / "config.json").write_text(text)
