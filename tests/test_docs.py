"""What is generated for readers and editors: fresh, complete, and a JSON Schema that agrees with the loader."""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import card_helpers
import pico
import pytest
import yaml
from plan_helpers import config_json, document, headers

from hubplugin.errors import ManifestError, PlanError
from hubplugin.manifest import base, methods, schema, source
from hubplugin.manifest.reading import loading, sections
from hubplugin.manifest.reading.hints import first_sentence, hint
from hubplugin.manifest.reading.json_schema import definition_of, json_schema
from hubplugin.manifest.steps import adapter, codebook, gptq, lowrank, masks, prune, quantization
from hubplugin.manifest.steps.training import base as training
from hubplugin.manifest.steps.training import distill, recover, tune
from hubplugin.plan import planner, table

ROOT = Path(__file__).parents[1]
MANIFESTS = sorted((ROOT / "manifests").glob("*.yaml"))
MODELINE = "# yaml-language-server: $schema=schema.json"
KEYS = ("tokens", "sequence_length")
# those with settings
STEPS = (adapter, codebook, distill, gptq, lowrank, masks, prune, quantization, recover, training, tune)
MODULES = (*STEPS, schema, source)
# base classes of steps
SHARED = (
    quantization.Quantization,
    gptq.GridQuantization,
    masks.Masking,
    training.Distilling,
    training.Training,
    adapter.Adapting,
)


def settings_classes() -> list[type[base.Settings]]:
    """All settings classes of the room, the shared base classes left out."""
    found = {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base.Settings)
    }
    return sorted(found - {base.Settings, base.StepSettings}, key=lambda found: found.__name__)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_fresh(generate: ModuleType) -> None:
    for path, text in generate.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make docs`"


def test_check_names_a_stale_file_and_changes_nothing(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "page.md"
    stale.write_text("old\n")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "generated", lambda: {stale: "new\n"})
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    said = capsys.readouterr().err
    assert "-old" in said and "+new" in said and "page.md is stale: run `make docs`" in said
    assert stale.read_text() == "old\n"
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0 and stale.read_text() == "new\n"
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0


def test_markers_that_are_missing_are_refused(generate: ModuleType) -> None:
    with pytest.raises(ValueError, match="no markers of a generated part 'x'"):
        generate.replaced("text", "x", "content")


def test_every_module_is_in_the_map_under_its_room() -> None:
    page = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    rooms = {part.split("\n")[0].rstrip("/"): part for part in page.split("\n## ")[1:]}
    top = rooms.pop("Before all rooms") + rooms.pop("After all rooms")
    for path in [*(ROOT / "hubplugin").rglob("*.py"), *(ROOT / "serve").rglob("*.py")]:
        parts = path.relative_to(ROOT).parts
        depth = 1 if parts[0] == "serve" else 2
        if len(parts) == 2 and parts[0] == "hubplugin":
            assert path.name == "__init__.py" or f"- `{path.name}`: " in top
            continue
        room, name = "/".join(parts[:depth]), "/".join(parts[depth:])
        if name == "__init__.py":
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert docstring and docstring in rooms[room]
        else:
            assert f"- `{name.replace('/__init__.py', '/')}`: " in rooms[room], path


def test_every_setting_has_a_description_and_examples_that_are_valid() -> None:
    for section in settings_classes():
        for name, field in section.model_fields.items():
            if section in SHARED and name == "method":
                continue  # their subclasses say which
            assert field.description and field.examples, f"{section.__name__}.{name}"
            assert first_sentence(field.description) and "\n" not in hint(field) and len(hint(field)) < 200


def test_every_setting_is_in_the_readmes_tables() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = text.split("<!-- generated: options -->")[1].split("<!-- /generated -->")[0]
    for section in settings_classes():
        for key in sections.keys_of(section):
            assert any(f"{before}{key}` |" in tables for before in ("`", ".")), f"{section.__name__}.{key}"
    for name in methods.METHODS:
        assert f"`method: {name}`" in tables


def test_the_schema_describes_every_key_and_refuses_unknown_ones() -> None:
    found = json_schema()
    for definition in (found, *found["$defs"].values()):
        assert definition["additionalProperties"] is False and definition["description"]
        for key, field in definition["properties"].items():
            assert field["description"] and field["examples"], key
    steps = found["properties"]["variants"]["additionalProperties"]["items"]
    assert steps["discriminator"]["propertyName"] == "method"
    assert steps["discriminator"]["mapping"] == {
        name: f"#/$defs/{definition_of(name)}" for name in sorted(methods.METHODS)
    }


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_name_their_schema_and_fit_it(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert comments[1] == MODELINE
    written = json.loads((path.parent / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(written)
    jsonschema.Draft202012Validator(written).validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not loading.load(path).notes


def test_reports_fit_their_schema_and_keys_are_described(generate: ModuleType) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    written = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    assert written == generate.report_schema()
    jsonschema.Draft202012Validator.check_schema(written)
    validator = jsonschema.Draft202012Validator(written)
    made = card_helpers.report().model_dump(mode="json")
    validator.validate(made)
    for other in ({**made, "schema_version": 2}, {**made, "unknown": 1}, {**made, "sizes": {}}):
        assert not validator.is_valid(other)
    assert all(definition["description"] for definition in (written, *written["$defs"].values()))
    assert written["properties"]["files"]["description"].startswith("name -> sha256")
    assert written["$defs"]["Base"]["properties"]["repo"]["description"] == "Hub id, or the local folder's name"


BAD: dict[str, dict[str, Any]] = {
    "an unknown key": {"modle": "a/b"},
    "an unknown method": {"variants": {"V": [{"method": "awq"}]}},
    "no method": {"variants": {"V": [{"bits": 4}]}},
    "another method's key": {"variants": {"V": [{"method": "gptq", "ffn": 0.2}]}},
    "five bits": {"variants": {"V": [{"method": "gptq", "bits": 5}]}},
    "a ratio of one": {"variants": {"V": [{"method": "prune", "ffn": 1}]}},
    "a wrong override": {"variants": {"V": [{"method": "gptq", "overrides": {"q_proj": {"bit": 8}}}]}},
    "no variants": {"variants": {}},
    "samples as text": {"calibrate": {"self": True, "samples": "many"}},
    "both names of the length": {"calibrate": {"self": True, "tokens": 64, "sequence_length": 64}},
    "a threshold below one": {"gate": {"perplexity_ratio": 0.9}},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_what_the_schema_refuses_the_loader_refuses_too(change: dict[str, Any], tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    good: dict[str, Any] = {"model": "a/b", "calibrate": {"self": True}, "variants": {"V": [{"method": "gptq"}]}}
    evaluated = {**good, "evaluate": {"perplexity": {"self": True, "seed": 1}}}
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(evaluated) and not validator.is_valid({**evaluated, **change})
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump({**evaluated, **change}))
    with pytest.raises(ManifestError):
        loading.load(path)


NEEDS: dict[str, dict[str, Any]] = {
    "prune": {"ffn": 0.1},
    "wanda": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "lowrank": {"ratio": 0.2},
    "eora": {"of": "Int4"},
    "lora": {"of": "Int4"},
}


def test_examples_of_sources_and_steps_are_valid_manifests() -> None:
    for name, field in schema.Manifest.model_fields.items():
        for example in field.examples or ():
            needed = {} if name != "gate" else {"evaluate": {"perplexity": {"self": True}}}
            data = {"model": "a/b", "calibrate": {"self": True}, "variants": {"V": [{"method": "gptq"}]}, **needed}
            schema.Manifest.model_validate({**data, name: example})
    for row in methods.METHODS.values():
        for name, field in row.settings.model_fields.items():
            needs = dict(NEEDS.get(row.name, {}))
            if name in ("attention", "mlp"):
                needs = {"layout": "per-layer"}
            elif name in (*prune.Prune.kinds, *prune.Prune.targets, "sparsity", "pattern"):
                needs = {}
            for example in field.examples or ():
                row.settings.model_validate({"method": row.name, **needs, name: example})


def test_the_former_name_of_the_sequence_length_is_accepted_with_a_note() -> None:
    steps = [{"method": "prune", "ffn": 0.2}, {"method": "recover", "data": {"self": True, "seed": 3, "tokens": 32}}]
    old = document(steps, calibrate={"self": True, "tokens": 64})
    new = document([{"method": "gptq"}], calibrate={"self": True, "sequence_length": 64})
    assert old.manifest.calibrate.sequence_length == new.manifest.calibrate.sequence_length == 64
    assert old.manifest.calibrate.model_dump() == new.manifest.calibrate.model_dump()
    assert old.notes == ("calibrate.tokens, variants.V[1].data.tokens: this key is now called sequence_length",)
    assert new.notes == ()


def test_a_plan_shows_the_note_and_its_errors_name_the_key_that_is_written() -> None:
    config = pico.config()
    raw, stored = config_json(config), headers(config)
    old, new = (document([{"method": "gptq", "group_size": 32}], calibrate={"self": True, key: 64}) for key in KEYS)
    assert "\n  calibrate.tokens: this key is now called" in table.render(planner.make(old, raw, stored))
    assert "is now called" not in table.render(planner.make(new, raw, stored))
    for key in KEYS:
        with pytest.raises(PlanError) as caught:
            planner.make(document([{"method": "gptq"}], calibrate={"self": True, key: 512}), raw, stored)
        assert caught.value.where == f"m.yaml: calibrate.{key}" and caught.value.fix == f"use {key}: 256 or fewer"
