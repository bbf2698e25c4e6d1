"""All chat templates of a base travel, through pull, run and push, and render in a variant as they do in the base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pico
import pytest
from gate_helpers import candidate
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from test_pipeline import document, run
from test_pipeline_parts import GPTQ, make
from transformers import AutoTokenizer

from hubplugin.checkpoint import model_folder
from hubplugin.errors import HubError
from hubplugin.evaluation import gate
from hubplugin.evaluation.gate import templates
from hubplugin.hub import snapshots
from hubplugin.hub.publishing import publish
from hubplugin.report import GateLine

TOOLS = "{% for tool in tools %}<|system|>{{ tool.function | tojson }}<|end|>{% endfor %}" + pico.TEMPLATE
NAMED = {"default": pico.TEMPLATE, "tool_use": TOOLS, "rag": "{{ raise_exception('no documents') }}"}
INSIDE = f"{model_folder.NAMED_TEMPLATES}/tool_use.jinja"
MANIFEST = """\
model: MODEL
calibrate: {self: true, samples: 4, tokens: 64, seed: 0}
variants:
  Pruned:
    - {method: prune, ffn: 0.25}
evaluate: {perplexity: {self: true, samples: 4, tokens: 64, seed: 1}, kl: true}
gate: {mean_kl: 5, top1_agreement: 0}
publish: {repo: "local/{model}-{variant}", private: true}
"""


def with_templates(folder: Path, named: Any = NAMED) -> Path:
    """A pico model whose tokenizer has these templates, as transformers itself saves them."""
    pico.write(folder)
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    tokenizer = pico.tokenizer()
    tokenizer.chat_template = named
    tokenizer.save_pretrained(folder)
    return folder


def copied(base: Path, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder))


def compared(base: Path, folder: Path) -> GateLine:
    return gate.templates_equal(candidate(folder, base=base))


def test_transformers_saves_named_templates_where_they_are_looked_for(tmp_path: Path) -> None:
    assert (with_templates(tmp_path / "m") / INSIDE).is_file()
    assert INSIDE in model_folder.companions(tmp_path / "m")


def test_named_templates_travel_from_hub_to_hub(hub: HfApi, tmp_path: Path) -> None:
    base = with_templates(tmp_path / "m")
    for other in ("original/tokenizer.model", "onnx/x.jinja", f"{model_folder.NAMED_TEMPLATES}/deep/x.jinja"):
        (base / other).parent.mkdir(exist_ok=True)
        (base / other).write_text("unwanted")
    hub.create_repo("local/named")
    hub.upload_folder(repo_id="local/named", folder_path=base)
    pulled = snapshots.pull("local/named", tmp_path)
    assert {name for name in model_folder.listing(pulled.path) if "/" in name} == {
        INSIDE,
        INSIDE.replace("tool_use", "rag"),
    }
    assert not (pulled.path / "onnx").exists() and not (pulled.path / "original").exists()
    asked = document(tmp_path, MANIFEST.replace("MODEL", "local/named"))
    (made,) = run(asked, tmp_path / "out")
    assert made.passed and INSIDE in made.files
    line = next(line for line in made.gate if "templates" in line.name)
    assert line.detail.endswith("of default, tool_use, rag"), line.detail
    publish.publish(asked, tmp_path / "out")
    assert INSIDE in hub.list_repo_files("local/named-Pruned")
    again = hub.snapshot_download("local/named-Pruned", cache_dir=tmp_path / "cache")
    assert set(AutoTokenizer.from_pretrained(again).chat_template) == set(NAMED)
    assert not publish.publish(asked, tmp_path / "out")[0].changed


def test_named_templates_are_pulled_offline_too(hub: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create_repo("local/named")
    hub.upload_folder(repo_id="local/named", folder_path=with_templates(tmp_path / "m"))
    online = snapshots.pull("local/named", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert snapshots.pull(f"local/named@{online.sha}", tmp_path) == online
    (online.path / INSIDE).unlink()
    with pytest.raises(HubError):
        snapshots.pull(f"local/named@{online.sha}", tmp_path)


NAMES = (
    *("config.json", "model.safetensors", "model-00001-of-00002.safetensors", "chat_template.jinja", "other.jinja"),
    *("original/model-1.safetensors", "model-1/x.safetensors", "a/x.jinja", "additional/x.jinja", "x/y/z.jinja"),
    *(INSIDE, f"{INSIDE}.bak", "additional_chat_templates2/x.jinja", "additional_chat_templates/a/b.jinja"),
    *("additional_chat_templates", "additional_chat_template/x.jinja", "additional-chat-templates/x.jinja"),
    *(
        "additional_chat_templates/.jinja",
        "additional_chat_templates//x.jinja",
        "onnx/additional_chat_templates/x.jinja",
    ),
)


@pytest.mark.parametrize("name", NAMES)
def test_the_clients_patterns_and_the_allow_list_say_the_same(name: str) -> None:
    asked = list(filter_repo_objects([name], allow_patterns=snapshots.ALLOW, ignore_patterns=snapshots.IGNORE))
    assert bool(asked) is model_folder.allowed(name, model_folder.PULLED)


@pytest.mark.parametrize("change", ["link", "hidden", "other", "empty", "linked folder", "a file"])
def test_only_templates_are_published_of_their_folder(change: str, tmp_path: Path) -> None:
    base = with_templates(tmp_path / "m")
    inner = base / model_folder.NAMED_TEMPLATES
    if change == "link":
        (inner / "x.jinja").symlink_to("/etc/hostname")
    elif change in ("hidden", "other"):
        (inner / {"hidden": ".x.jinja", "other": "x.py"}[change]).write_text("x")
    else:
        shutil.move(inner, tmp_path / "moved")
        if change == "empty":
            inner.mkdir()
        elif change == "linked folder":
            inner.symlink_to(tmp_path / "moved")
        else:
            inner.write_text("x")
    with pytest.raises(HubError, match="nothing was published"):
        model_folder.publishable(base, model_folder.PUSHED)


LEGACY = [{"name": "default", "template": pico.TEMPLATE}, {"name": "tool_use", "template": TOOLS}]


def in_config(folder: Path, value: Any) -> None:
    """A template inside tokenizer_config.json, as older releases wrote it."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": value}))
    shutil.rmtree(folder / model_folder.NAMED_TEMPLATES)
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize("value", [pico.TEMPLATE, LEGACY])
def test_templates_inside_the_tokenizers_config_are_rendered(value: Any, tmp_path: Path) -> None:
    base = with_templates(tmp_path / "m")
    in_config(base, value)
    folder = copied(base, tmp_path / "v")
    line = compared(base, folder)
    assert line.passed and f"of {'default, tool_use' if value is LEGACY else 'default'}" in line.detail, line.detail
    in_config_again = json.loads((folder / "tokenizer_config.json").read_text())
    changed = json.dumps(in_config_again).replace("<|assistant|>", "<|user|>")
    (folder / "tokenizer_config.json").write_text(changed)
    assert not compared(base, folder).passed


@pytest.mark.parametrize("value", [TOOLS, {"default": pico.TEMPLATE, "tool_use": TOOLS}])
def test_the_template_that_older_releases_keep_in_a_json_file_is_rendered(value: Any, tmp_path: Path) -> None:
    base = with_templates(tmp_path / "m", pico.TEMPLATE)
    (base / "chat_template.json").write_text(json.dumps({"chat_template": value}))
    make(base, tmp_path / "v", GPTQ)
    line = compared(base, tmp_path / "v")
    assert line.passed and "chat_template.json" in line.detail, line.detail
    (tmp_path / "v" / "chat_template.json").write_text(json.dumps({"chat_template": "{{ tools }}"}))
    assert "characters in the base" in compared(base, tmp_path / "v").detail
    (tmp_path / "v" / "chat_template.json").write_text("[")
    assert not compared(base, tmp_path / "v").passed


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (INSIDE, None, "only the base has it"),
        (INSIDE, TOOLS + "{% if tools %}.{% endif %}", "tool_use, "),
        (f"{model_folder.NAMED_TEMPLATES}/rag.jinja", "{{ raise_exception('no document') }}", "rag"),
        ("chat_template.jinja", pico.TEMPLATE + "{% if messages[0].role == 'system' %}.{% endif %}", "default, system"),
        ("chat_template.jinja", pico.TEMPLATE + "{% if not add_generation_prompt %}.{% endif %}", "default, "),
        ("chat_template.jinja", "{% if", "TemplateSyntaxError"),
        (f"{model_folder.NAMED_TEMPLATES}/more.jinja", "x", "only the variant has it"),
    ],
)
def test_a_template_that_renders_otherwise_does_not_pass(
    name: str, text: str | None, said: str, tmp_path: Path
) -> None:
    base = with_templates(tmp_path / "m")
    folder = copied(base, tmp_path / "v")
    assert compared(base, folder).passed
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    line = compared(base, folder)
    assert not line.passed
    if said == "TemplateSyntaxError":
        assert any(said in outcome for outcome in templates.rendered(folder).values())
    else:
        assert said in line.detail, line.detail


def test_tools_a_system_turn_and_the_start_of_an_answer_are_all_rendered(tmp_path: Path) -> None:
    base = with_templates(tmp_path / "m")
    found = templates.rendered(base)
    assert len(found) == 8 * 4  # of three templates, and of the one that transformers chooses
    assert "look_up" in found["as chosen, tools"] and "look_up" not in found["default, tools"]
    assert "no documents" in found["rag, turns alone"]
    assert found["default, system + answer"].startswith("<|system|>")
    assert found["default, answer"].endswith("<|assistant|>") and not found["default, turns alone"].endswith("ant|>")


def test_a_template_that_names_the_time_is_compared_in_one_moment(tmp_path: Path) -> None:
    base = with_templates(tmp_path / "m", pico.TEMPLATE + "{{ strftime_now('%H:%M:%S.%f') }}")
    assert len(set(templates.rendered(base).values())) > 1
    assert compared(base, copied(base, tmp_path / "v")).passed
    assert all("12:00:00.000000" in text for text in templates.rendered(base).values())


def test_a_base_without_a_template_gets_a_variant_without_one(tmp_path: Path) -> None:
    base = with_templates(tmp_path / "m", None)
    folder = copied(base, tmp_path / "v")
    assert compared(base, folder).passed and "none" in compared(base, folder).detail
    (folder / "chat_template.jinja").write_text(pico.TEMPLATE)
    assert not compared(base, folder).passed


def test_a_tokenizer_that_cannot_be_read_is_said_in_the_line(tmp_path: Path) -> None:
    base = with_templates(tmp_path / "m")
    folder = copied(base, tmp_path / "v")
    (folder / "tokenizer.json").write_text("{}")
    assert "cannot be loaded" in compared(base, folder).detail
