"""`hubplugin verify` of repos on a Hub: the base is read by ranged requests, and the verb's exit codes."""

import json
import shutil
from pathlib import Path

import pico
import pytest
from huggingface_hub import HfApi, constants
from verify_helpers import edit, failed, in_json, make, verify

from hubplugin import cli, verification
from hubplugin.errors import HubError
from hubplugin.hub import published
from hubplugin.hub.publishing import publish
from hubplugin.manifest.reading import loading
from hubplugin.verification import Outcome

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 2, sequence_length: 32}}
variants:
  Int4:
    - {{method: gptq, bits: 4, group_size: 32}}
evaluate: {{perplexity: {{self: true, samples: 2, sequence_length: 32, seed: 1}}}}
gate: {{perplexity_ratio: 1000, top1_agreement: 0}}
publish: {{repo: "local/{{model}}-{{variant}}", private: true}}
"""
REPO = "local/pico-Int4"


@pytest.fixture
def variant(hub: HfApi, tmp_path: Path) -> Path:
    """A variant of local/pico, published as REPO; its folder on this disk."""
    out = make(tmp_path, "local/pico", MANIFEST)
    publish.publish(loading.load(tmp_path / "m.yaml"), out)
    return out / "Int4"


def verb(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *words])
    return int(str(ended.value.code))


def test_a_published_variant_is_checked_against_its_base_on_the_hub(
    hub: HfApi, variant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another-home"))
    assert verb(REPO, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["revision"] == hub.model_info(REPO).sha and printed["holds"]
    left = [line["check"] for line in printed["lines"] if line["outcome"] == "not checked"]
    assert left == ["quality"]
    cached = {file.name for file in (tmp_path / "another-home").rglob("models--local--pico/snapshots/*/*")}
    assert "config.json" in cached and "model.safetensors" not in cached, "of the base only headers are read"
    assert verb(REPO, "--quality") == 0
    assert "passed       quality, mean KL" in capsys.readouterr().out

    hub.upload_file(
        path_or_fileobj=(variant / "README.md").read_text().replace("license: apache-2.0", "license: mit").encode(),
        path_in_repo="README.md",
        repo_id=REPO,
    )
    assert verb(REPO) == 1
    out = capsys.readouterr().out
    assert "FAILED       front matter, license: claimed mit, found apache-2.0; report.json says the latter" in out
    assert verb(f"{REPO}@{printed['revision']}") == 0
    assert verb("local/nothing") == 2
    error = capsys.readouterr().err
    assert [line.split(":")[0] for line in error.splitlines()[-3:]] == ["where", "what", "fix"]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from_cache = verification.verify(f"{REPO}@{printed['revision']}")
    assert from_cache.holds and len(from_cache.lines) == len(printed["lines"])
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        verification.verify("local/nothing")


def test_a_variant_of_another_base_is_found_on_the_hub(hub: HfApi, variant: Path, tmp_path: Path) -> None:
    hub.create_repo("local/other")
    hub.upload_folder(repo_id="local/other", folder_path=pico.write(tmp_path / "other", seed=4))
    swapped = shutil.copytree(variant, tmp_path / "swapped")
    in_json("report.json", "base", "repo", value="local/other")(swapped)
    in_json("report.json", "base", "revision", value=hub.model_info("local/other").sha)(swapped)
    edit("README.md", "base_model: local/pico", "base_model: local/other")(swapped)
    said = failed(verify(swapped))
    assert any("values of the base, model.norm.weight: claimed the values of local/other" in line for line in said)
    in_json("report.json", "base", "revision", value="0" * 40)(swapped)
    left = {line.check: line.detail for line in verify(swapped).lines if line.outcome is Outcome.NOT_CHECKED}
    assert "revision" in left["values of the base"], left


def test_a_sharded_base_is_read_where_its_index_says(hub: HfApi, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    pico.write(folder)
    pico.model().save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink()
    hub.create_repo("local/sharded")
    hub.upload_folder(repo_id="local/sharded", folder_path=folder)
    remote, local = published.base("local/sharded", tmp_path), published.base(str(folder), tmp_path)
    assert remote.weights_bytes == local.weights_bytes and remote.peek.tensors == local.peek.tensors
    for name in remote.peek.tensors:
        assert remote.values(name, 100) == local.values(name, 100), name
    assert remote.values("nothing", 100) is None
    assert remote.text("config.json") == (folder / "config.json").read_text() and remote.text("nothing") is None


def test_a_repo_without_card_and_tokenizer_is_no_error(hub: HfApi, pico_folder: Path) -> None:
    hub.create_repo("local/bare")
    for name in ("config.json", "model.safetensors"):
        hub.upload_file(path_or_fileobj=pico_folder / name, path_in_repo=name, repo_id="local/bare")
    found = verification.verify("local/bare")
    assert [line.split(":")[0] for line in failed(found)] == ["FAILED       tokenizer, files", "FAILED       card"]
