"""A folder as publishing finds it, edits by hand on the Hub, and manifests that publish."""

import shutil
from pathlib import Path
from typing import Any

import card_helpers
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hubplugin import report
from hubplugin.disk import sha256
from hubplugin.manifest.reading import loading
from hubplugin.manifest.schema import Document
from hubplugin.report import Base

REPO = "local/variant"
WEIGHTS = "model.safetensors"

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 4, sequence_length: 32}}
variants:
  Int4:
    - {{method: gptq, bits: 4, group_size: 32}}
  Int8:
    - {{method: gptq, bits: 8, group_size: 32}}
publish: {{repo: "{owner}/{{model}}-{{variant}}", private: {private}{more}}}
"""


def folder(place: Path, base: Path) -> Path:
    """A copy of a model's folder, with a report and a card."""
    shutil.copytree(base, place)
    (place / "report.json").write_text("{}")
    (place / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Ours\n")
    return place


def document(
    place: Path, model: str = "local/pico", owner: str = "local", private: bool = True, more: str = ""
) -> Document:
    """A manifest of two variants."""
    text = MANIFEST.format(model=model, owner=owner, private=str(private).lower(), more=more)
    (place / "m.yaml").write_text(text)
    return loading.load(place / "m.yaml")


def finished(place: Path, base: Path, asked: Document, **of_base: Any) -> Path:
    """The variants of a manifest as a run leaves them, but for their weights, which are the base's."""
    known: dict[str, Any] = {"repo": "local/pico", "revision": "a" * 40, "on_hub": True, "licence": "apache-2.0"}
    origin = Base(**{**known, "architecture": "LlamaForCausalLM", "model_type": "llama", **of_base})
    for name in asked.manifest.variants:
        made = folder(place / name, base)
        (made / "report.json").unlink()
        files = {file.name: sha256(file) for file in made.iterdir() if file.name != "README.md"}
        facts = {"variant": name, "manifest_sha256": asked.sha256, "base": origin, "files": files}
        report.write(card_helpers.report(**facts), made)
    return place


def by_hand(api: HfApi, repo: str = REPO, deleted: str = "", message: str = "By hand", **files: str | bytes) -> None:
    """One commit of somebody else's; `__` in a name stands for its dot."""
    contents = {name.replace("__", "."): data for name, data in files.items()}
    added = [
        CommitOperationAdd(name, data.encode() if isinstance(data, str) else data) for name, data in contents.items()
    ]
    api.create_commit(repo, [*added, *([CommitOperationDelete(deleted)] if deleted else [])], commit_message=message)


def read(api: HfApi, name: str, repo: str = REPO) -> str:
    """A file as it stands in a repo."""
    return Path(api.hf_hub_download(repo, name)).read_text()
