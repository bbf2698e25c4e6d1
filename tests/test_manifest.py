"""The manifest's schema and its errors: what is accepted, what is refused, and in which words."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubplugin.errors import ManifestError
from hubplugin.manifest import schema
from hubplugin.manifest.reading import loading
from hubplugin.manifest.reading.yaml_file import MAX_ALIASES, MAX_BYTES
from hubplugin.manifest.source import Source
from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.manifest.steps.prune import Prune

GOOD: dict[str, Any] = {
    "model": "owner/base",
    "calibrate": {"self": True},
    "variants": {"Int4": [{"method": "gptq", "bits": 4, "group_size": 64}]},
    "evaluate": {"perplexity": {"self": True, "seed": 1}},
    "gate": {"perplexity_ratio": 1.1},
    "publish": {"repo": "me/{model}-{variant}"},
}


def load_text(folder: Path, text: str | bytes) -> schema.Document:
    path = folder / "m.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return loading.load(path)


def refused(folder: Path, text: str | bytes) -> ManifestError:
    """The error of a manifest text, its place given relative to the file."""
    with pytest.raises(ManifestError) as caught:
        load_text(folder, text)
    error = caught.value
    error.where = error.where.removeprefix(f"{folder / 'm.yaml'}")
    for part in (error.what, error.fix):
        assert part and "\n" not in part and len(part) < 240
        assert "pydantic" not in part and "Input should" not in part
    return error


def changed(place: str, value: Any) -> str:
    """GOOD with one value set, or removed where the value is None, as YAML."""
    data = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = (int(part) if part.isdigit() else part for part in place.split("."))
    at = data
    for part in parents:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return yaml.safe_dump(data)


def test_a_full_manifest_is_read_with_its_text_and_hash(tmp_path):
    text = yaml.safe_dump(GOOD)
    document = load_text(tmp_path, text)
    assert document.text == text
    assert document.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert document.folder == tmp_path.resolve()
    (step,) = document.manifest.variants["Int4"]
    assert isinstance(step, Gptq) and (step.bits, step.group_size) == (4, 64)
    assert document.manifest.calibrate.self_ and document.manifest.calibrate.sequence_length == 2048


def test_defaults_are_those_the_readme_promises(tmp_path):
    text = "model: a/b\ncalibrate: {self: true}\nvariants: {P: [{method: prune, ffn: 0.25}, {method: gptq}]}\n"
    read = load_text(tmp_path, text).manifest
    prune, gptq = read.variants["P"]
    assert gptq == Gptq(method="gptq", bits=4, group_size=128, act_order=True, damp=0.01)
    assert prune == Prune(method="prune", ffn=0.25, damp=0.01)
    assert read.evaluate is None and read.publish is None and read.gate == schema.Gate()


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path):
    text = "\ufeff" + yaml.safe_dump(GOOD).replace("\n", "\r\n")
    assert load_text(tmp_path, text).manifest.model == "owner/base"


@pytest.mark.parametrize(
    ("place", "value", "where", "fix"),
    [
        ("variants.Int4.0.group_size", 96, ": variants.Int4[0].group_size", "use -1, 32, 64 or 128"),
        ("variants.Int4.0.bits", 5, ": variants.Int4[0].bits", "use 2, 3, 4 or 8"),
        ("variants.Int4.0.format", "awq", ": variants.Int4[0].format", "use 'gptq' or 'compressed-tensors'"),
        ("variants.Int4.0.activation_bits", 4, ": variants.Int4[0].activation_bits", "use 8"),
        ("variants.Int4.0.ignore", "down_proj", ": variants.Int4[0].ignore", "[down_proj, layers.0.*]"),
        ("variants.Int4.0.overrides", ["down_proj"], ": variants.Int4[0].overrides", "{down_proj: {bits: 8}}"),
        (
            "variants.Int4.0.overrides",
            {"down_proj": {"bits": 5}},
            ": variants.Int4[0].overrides.down_proj.bits",
            "use 2, 3, 4 or 8",
        ),
        (
            "variants.Int4.0.overrides",
            {"down_proj": {"bit": 8}},
            ": variants.Int4[0].overrides.down_proj.bit",
            "did you mean `bits`?",
        ),
        ("variants.Int4.0.damp", 0, ": variants.Int4[0].damp", "above 0 and at most 1"),
        ("variants.Int4.0.act_order", "sometimes", ": variants.Int4[0].act_order", "true or false"),
        ("variants.Int4.0.method", "awq", ": variants.Int4[0].method", "gptq, prune"),
        ("variants.Int4.0", {"bits": 4}, ": variants.Int4[0].method", "gptq, prune"),
        ("variants.Int4.0", {"method": "prune", "ffn": 1.2}, ": variants.Int4[0].ffn", "such as 0.25"),
        ("variants.Int4.0", {"method": "prune", "ffn": 0}, ": variants.Int4[0].ffn", "such as 0.25"),
        ("variants.Int4.0", {"method": "prune", "ffn": -0.2}, ": variants.Int4[0].ffn", "such as 0.25"),
        ("variants.Int4.0", {"method": "prune", "ffn": "25%"}, ": variants.Int4[0].ffn", "such as 0.25"),
        ("variants.Int4.0", {"method": "prune", "ffn": True}, ": variants.Int4[0].ffn", "such as 0.25"),
        ("variants.Int4.0", {"method": "prune", "ffn": float("nan")}, ": variants.Int4[0].ffn", "0.25"),
        ("variants.Int4.0", {"method": "prune"}, ": variants.Int4[0]", "write one of ffn: 0.25"),
        ("variants.Int4.0", {"method": "prune", "heads": 1}, ": variants.Int4[0].heads", "such as 0.25"),
        ("variants.Int4.0", {"method": "prune", "kv_heads": 2}, ": variants.Int4[0].kv_heads", "such as 0.25"),
        ("variants.Int4.0", {"method": "prune", "layers": 0}, ": variants.Int4[0].layers", "how many layers"),
        ("variants.Int4.0", {"method": "prune", "layers": 0.5}, ": variants.Int4[0].layers", "how many layers"),
        ("variants.Int4.0", {"method": "prune", "layers": True}, ": variants.Int4[0].layers", "how many layers"),
        ("variants.Int4.0", {"method": "prune", "params": 1.5e8}, ": variants.Int4[0].params", "how many parameters"),
        ("variants.Int4.0", {"method": "prune", "ratio": 0}, ": variants.Int4[0].ratio", "such as 0.3"),
        ("variants.Int4.0", {"method": "prune", "latency": 1}, ": variants.Int4[0].latency", "such as 0.8"),
        ("variants.Int4.0", {"method": "prune", "layout": "even"}, ": variants.Int4[0].layout", "'uniform' or 'per-"),
        ("variants.Int4.0", {"method": "prune", "ratio": 0.3, "params": 9}, ": variants.Int4[0].ratio", "one target"),
        ("variants.Int4.0", {"method": "prune", "ratio": 0.3, "ffn": 0.2}, ": variants.Int4[0].ratio", "one target"),
        ("variants.Int4.0", {"method": "prune", "latency": 0.3, "mlp": 2}, ": variants.Int4[0].latency", "one target"),
        ("variants.Int4.0", {"method": "prune", "attention": 1}, ": variants.Int4[0].attention", "layout: per-layer"),
        ("variants.Int4.0", {"method": "prune", "mlp": 1}, ": variants.Int4[0].mlp", "layout: per-layer"),
        (
            "variants.Int4.0",
            {"method": "prune", "ffn": 0.2, "bias": True, "refit": False},
            ": variants.Int4[0].bias",
            "remove it, or remove refit: false",
        ),
        ("variants.Int4.0", {"method": "prune", "layout": "per-layer"}, ": variants.Int4[0]", "or ratio: 0.3"),
        ("variants.Int4.0", {"method": "recover", "blocks": -1}, ": variants.Int4[0].blocks", "a number of epochs"),
        ("variants.Int4.0", {"method": "recover", "lora": 0}, ": variants.Int4[0].lora", "the rank of adapters"),
        ("variants.Int4.0", {"method": "recover", "lora": 8, "distill": 0}, ": variants.Int4[0].lora", "set distill"),
        ("variants.Int4.0", {"method": "recover", "blocks": 0, "distill": 0}, ": variants.Int4[0]", "an epoch"),
        ("variants.Int4.0", {"method": "recover", "minutes": "ten"}, ": variants.Int4[0].minutes", "such as 10"),
        ("variants.Int4.0", {"method": "recover", "data": {}}, ": variants.Int4[0].data", "write one"),
        ("variants.Int4.0", "gptq", ": variants.Int4[0]", "{method: gptq, bits: 4}"),
        ("variants.Int4", {"method": "gptq"}, ": variants.Int4", "- {method: gptq, bits: 4}"),
        ("variants.Int4", [], ": variants.Int4", "- {method: gptq, bits: 4}"),
        ("variants", {}, ": variants", "names with lists of steps"),
        ("variants", [], ": variants", "names with lists of steps"),
        ("variants", None, ": variants", "names with lists of steps"),
        ("variants", {4: [{"method": "gptq"}]}, ": variants.4", 'in quotes: "4"'),
        ("variants", {"a b": [{"method": "gptq"}]}, ": variants", "letters, digits"),
        ("variants", {"../up": [{"method": "gptq"}]}, ": variants", "letters, digits"),
        ("variants", {"x" * 65: [{"method": "gptq"}]}, ": variants", "at most 64"),
        ("model", None, ": model", "owner/name"),
        ("model", "", ": model", "one line"),
        ("model", "a/b\nc", ": model", "one line"),
        ("model", 7, ": model", 'in quotes: "7"'),
        ("model", ["a/b"], ": model", "owner/name"),
        ("calibrate", "HuggingFaceH4/ultrachat_200k", ": calibrate", "{dataset: owner/name"),
        ("calibrate", {}, ": calibrate", "{self: true}"),
        ("calibrate", {"self": False}, ": calibrate", "{self: true}"),
        ("calibrate.dataset", "a/b", ": calibrate", "keep one"),
        ("calibrate.split", "test", ": calibrate.split", "remove it"),
        ("calibrate.column", "text", ": calibrate.column", "remove it"),
        ("calibrate.samples", 0, ": calibrate.samples", "from 1 to 65536"),
        ("calibrate.samples", True, ": calibrate.samples", "from 1 to 65536"),
        ("calibrate.samples", "many", ": calibrate.samples", "from 1 to 65536"),
        ("calibrate.tokens", 10**9, ": calibrate.tokens", "from 16 to 131072"),
        ("calibrate.seed", -1, ": calibrate.seed", "0 or more"),
        ("calibrate", {"files": []}, ": calibrate", "write one"),
        ("calibrate", {"files": "a.txt"}, ": calibrate.files", "a list of paths"),
        ("calibrate", {"files": ["a.txt", 3]}, ": calibrate.files[1]", 'in quotes: "3"'),
        ("evaluate", {"kl": True}, ": evaluate.perplexity", "a source"),
        ("gate.perplexity_ratio", 0.9, ": gate.perplexity_ratio", "1 or more"),
        ("gate.perplexity_ratio", float("inf"), ": gate.perplexity_ratio", "1 or more"),
        ("gate.mean_kl", "low", ": gate.mean_kl", "nats per token"),
        ("gate.variants", {"Int5": {}}, ": gate.variants.Int5", "did you mean `Int4`?"),
        ("gate.variants", {"Int4": {"mean_kl": 0}}, ": gate.variants.Int4.mean_kl", "nats per token"),
        ("evaluate", None, ": gate.perplexity_ratio", "add evaluate"),
        ("publish.repo", "me", ": publish.repo", "owner/{model}-{variant}"),
        ("publish.repo", "me/{model}", ": publish.repo", "owner/{model}-{variant}"),
        ("publish.repo", "me/{name}-{variant}", ": publish.repo", "owner/{model}-{variant}"),
        ("publish.repo", "mé/{variant}", ": publish.repo", "owner/{model}-{variant}"),
        ("publish.repo", "../{variant}", ": publish.repo", "owner/{model}-{variant}"),
        ("publish.collection", "x" * 60, ": publish.collection", "at most 59"),
        ("publish.private", "no way", ": publish.private", "true or false"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_what_to_write(tmp_path, place, value, where, fix):
    error = refused(tmp_path, changed(place, value))
    assert error.where == where
    assert fix in error.fix, (error.what, error.fix)


@pytest.mark.parametrize(
    ("place", "where", "fix"),
    [
        ("modle", ": modle", "did you mean `model`?"),
        ("calibrate.sample", ": calibrate.sample", "did you mean `samples`?"),
        ("calibrate.self_", ": calibrate.self_", "did you mean `self`?"),
        ("variants.Int4.0.group_sise", ": variants.Int4[0].group_sise", "did you mean `group_size`?"),
        ("variants.Int4.0.ffn", ": variants.Int4[0].ffn", "allowed here: method, bits, group_size"),
        ("evaluate.perplexity.splits", ": evaluate.perplexity.splits", "did you mean `split`?"),
        ("gate.perplexity", ": gate.perplexity", "did you mean `perplexity_ratio`?"),
        ("publish.accept_licence", ": publish.accept_licence", "did you mean `accept_license`?"),
        ("bits", ": bits", "allowed here: model, calibrate, variants, evaluate, gate, publish"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one_that_is_allowed_there(tmp_path, place, where, fix):
    error = refused(tmp_path, changed(place, 1))
    assert error.where == where
    assert fix in error.fix, error.fix


def test_other_problems_are_counted(tmp_path):
    text = changed("variants.Int4.0.bits", 5).replace("self: true", "self: true\n  sampels: 3")
    assert "more)" in refused(tmp_path, text).what


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("model: a\nmodel: b\n", ":2:1", "'model' stands twice"),
        ("variants:\n  A: [{method: gptq, bits: 4, bits: 8}]\n", ":2:31", "'bits' stands twice"),
        ("model: [a\ncalibrate: x\n", ":2:10", "not valid YAML"),
        ("model: a\n\tcalibrate: x\n", ":2:1", "not valid YAML"),
        ("model: *nowhere\n", ":1:8", "undefined alias"),
        ("? [a, b]\n: c\n", ":1:3", "a key must be a word"),
        ("model: !!python/object/apply:os.system ['true']\n", ":1:8", "could not determine a constructor"),
        ("--- {model: a}\n--- {model: b}\n", ":2:1", "expected a single document"),
        ("model: a\x00b\n", "", "U+0000"),
        ("[" * 5000, "", "nested too deeply"),
        ("revision: 2024-13-45\n", "", "not valid YAML"),
        ("samples: " + "9" * 5000 + "\n", "", "not valid YAML"),
    ],
)
def test_bad_yaml_is_refused_with_line_and_column(tmp_path, text, place, what):
    error = refused(tmp_path, text)
    assert error.where == place
    assert what in error.what


def test_bytes_that_are_no_utf8_are_refused(tmp_path):
    assert "not UTF-8 at byte 7" in refused(tmp_path, b"model: \xff\xfe\n").what
    assert "not UTF-8" in refused(tmp_path, "model: a/b".encode("utf-16")).what


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    assert refused(tmp_path, text).what == "is empty"


@pytest.mark.parametrize("text", ["- model\n", "just words\n", "42\n"])
def test_a_file_without_a_mapping_is_refused(tmp_path, text):
    assert "no mapping" in refused(tmp_path, text).what


def test_a_huge_file_is_refused_without_being_read_to_its_end(tmp_path):
    assert "bytes" in refused(tmp_path, "#" * (MAX_BYTES + 1)).what
    if os.path.exists("/dev/zero"):
        with pytest.raises(ManifestError, match="bytes"):
            loading.load("/dev/zero")


def test_a_file_of_exactly_the_allowed_size_is_read(tmp_path):
    text = yaml.safe_dump(GOOD)
    assert load_text(tmp_path, text + "#" * (MAX_BYTES - len(text))).manifest.model == "owner/base"


def test_a_few_aliases_are_allowed_and_many_are_not(tmp_path):
    source = "calibrate: &s {self: true, seed: 5}\nmodel: a/b\nvariants: {A: [&q {method: gptq}], B: [*q]}\n"
    read = load_text(tmp_path, source).manifest
    assert read.variants["A"] == read.variants["B"]
    bomb = "a: &a [x, x]\n" + "".join(
        f"{new}: &{new} [*{old}, *{old}, *{old}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
    )
    error = refused(tmp_path, bomb)
    assert f"more than {MAX_ALIASES} aliases" in error.what
    assert error.where.startswith(":4:")


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "model: &m\n  model: *m\n", "variants: &v {A: *v}\n"])
def test_an_alias_to_itself_is_refused(tmp_path, text):
    refused(tmp_path, text)


def test_a_lone_surrogate_is_refused(tmp_path):
    refused(tmp_path, yaml.safe_dump(GOOD).replace("owner/base", '"\\ud800"'))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path, "nul\0.yaml"):
        with pytest.raises(ManifestError, match="cannot be read") as caught:
            loading.load(path)
        assert caught.value.fix == "give the path of a manifest"


def test_yaml_that_reads_as_another_type_is_answered_with_quotes(tmp_path):
    text = changed("calibrate", {"dataset": "a/b"}).replace("dataset: a/b", "dataset: a/b\n  revision: 1234567")
    error = refused(tmp_path, text)
    assert error.where == ": calibrate.revision"
    assert error.fix == 'put it in quotes: "1234567"'


def test_manifests_cannot_be_changed_after_loading(tmp_path):
    read = load_text(tmp_path, yaml.safe_dump(GOOD)).manifest
    with pytest.raises(ValueError, match="frozen"):
        read.calibrate.samples = 1


def test_a_variants_own_thresholds_override_the_general_ones_one_by_one():
    gate = schema.Gate(perplexity_ratio=1.1, mean_kl=0.05, variants={"Small": schema.Thresholds(perplexity_ratio=2)})
    assert gate.of("Other") == schema.Thresholds(perplexity_ratio=1.1, mean_kl=0.05)
    assert gate.of("Small") == schema.Thresholds(perplexity_ratio=2, mean_kl=0.05)


def test_a_kl_threshold_needs_the_kl_to_be_measured(tmp_path):
    text = changed("gate", {"mean_kl": 0.1}).replace("  perplexity:", "  kl: false\n  perplexity:")
    assert refused(tmp_path, text).where == ": gate.mean_kl"


@pytest.mark.parametrize(
    ("model", "repo"),
    [
        ("owner/base", "me/base-Int4"),
        ("owner/base@v1.0", "me/base-Int4"),
        ("/models/base/", "me/base-Int4"),
        ("base", "me/base-Int4"),
    ],
)
def test_a_repo_is_named_after_the_last_part_of_the_model(tmp_path, model, repo):
    assert load_text(tmp_path, changed("model", model)).manifest.repo_of("Int4") == repo


def test_a_manifest_that_publishes_nothing_names_no_repo(tmp_path):
    with pytest.raises(ManifestError, match="names no repo"):
        load_text(tmp_path, changed("publish", None)).manifest.repo_of("Int4")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"self": True}, "samples of the base model itself"),
        ({"files": ["a/b.txt", "c.jsonl"]}, "files b.txt, c.jsonl"),
        ({"dataset": "o/d", "split": "test"}, "dataset o/d, split test"),
        ({"dataset": "o/d", "config": "en"}, "dataset o/d (en), split train"),
    ],
)
def test_a_source_describes_itself_in_one_line(source, words):
    assert Source.model_validate(source).describe() == words


def test_both_names_of_the_sequence_length_are_refused_and_errors_name_the_one_that_is_written(tmp_path):
    error = refused(tmp_path, changed("calibrate", {"self": True, "tokens": 64, "sequence_length": 64}))
    assert error.where == ": calibrate.tokens" and error.fix == "remove it"
    assert error.what == "is the former name of sequence_length, which is given too"
    for key in ("tokens", "sequence_length"):
        error = refused(tmp_path, changed(f"calibrate.{key}", 8))
        assert error.where == f": calibrate.{key}" and "from 16 to 131072" in error.fix
    assert "did you mean `sequence_length`?" in refused(tmp_path, changed("calibrate.sequence_lenght", 8)).fix


@pytest.mark.parametrize(
    ("place", "value", "fix"),
    [
        ("variants.Int4.0.budget", {"bits_per_weigth": 4.5}, "did you mean `bits_per_weight`?"),
        ("variants.Int4.0.budget", {"bytes": 9, "options": [{"bit": 4}]}, "add it: bits per weight, such as 4"),
        ("variants.Int4.0", {"method": "recover", "data": {"sample": 3}}, "did you mean `samples`?"),
        ("gate.variants", {"Int4": {"mean_k": 1}}, "did you mean `mean_kl`?"),
        ("calibrate.files", [["a"]], "a list of paths"),
    ],
)
def test_hints_come_from_the_section_that_the_key_is_in(tmp_path, place, value, fix):
    assert fix in refused(tmp_path, changed(place, value)).fix
