"""What a model folder holds: which files are pulled, which are published, and what makes a folder unusable.

Knows names, config.json, a card's metadata and safetensors headers. Knows no weights and no network.
"""

import json
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from hubplugin import front_matter, report
from hubplugin.checkpoint.headers import Header
from hubplugin.errors import CheckpointError, HubError
from hubplugin.progress import progress

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = (SINGLE, "model-*.safetensors", INDEX)
CONFIGS = ("config.json", "generation_config.json")
TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("spiece.model", "tekken.json"),
)
NAMED_TEMPLATES = "additional_chat_templates"  # where transformers saves all templates but the default one
TEMPLATES = ("*.jinja", "chat_template*", f"{NAMED_TEMPLATES}/*.jinja")
PAPERS = (
    *("LICENSE*", "LICENCE*", "License*", "Licence*", "license*", "licence*", "COPYING*", "NOTICE*", "Notice*"),
    *("USE_POLICY*", "README.md"),
)
PULLED = WEIGHTS + CONFIGS + TOKENIZER + TEMPLATES + PAPERS
PLOTS = ("size-by-component.png", "loss-by-layer.png", "variants.png")  # of a card; drawn in evaluation/cards/plots.py
SCORES = ".eval_results"  # of registered benchmarks; written by evaluation/cards/benchmarks.py
SCORES_FILE = f"{SCORES}/hubplugin.yaml"
SIGNATURE = "model.sig"  # as the tools of OpenSSF model-signing name it
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # of a LoRA adapter, as PEFT names them
PUSHED = (*PULLED, "quantize_config.json", *ADAPTER, report.FILE_NAME, "manifest.yaml", *PLOTS, SCORES_FILE, SIGNATURE)
WRITTEN_ANEW = ("config.json", "README.md", *WEIGHTS)  # a variant has its own
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit


def allowed(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path inside a model's folder matches an allow-list, folder by folder: no star crosses a slash."""
    parts = name.split("/")
    return any(_matches(parts, pattern.split("/")) for pattern in patterns)


def _matches(parts: list[str], patterns: list[str]) -> bool:
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def outside(kept: str) -> list[str]:
    """Patterns whose stars cross slashes, and which together match all files of all subfolders, but those of `kept`."""
    shorter = [f"{kept[:length]}/*" for length in range(1, len(kept))]
    other = [f"{kept[:index]}[!{letter}]*/*" for index, letter in enumerate(kept)]
    return [*shorter, *other, f"{kept}[!/]*/*", f"{kept}/*/*"]


def listing(folder: Path) -> list[str]:
    """Paths of the files of a model's folder, relative to it: of its top, and of the templates' subfolder."""
    named = folder / NAMED_TEMPLATES
    inner = [f"{NAMED_TEMPLATES}/{file.name}" for file in named.iterdir() if file.is_file()] if named.is_dir() else []
    return sorted([*(file.name for file in folder.iterdir() if file.is_file()), *inner])


def copy(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy files by their paths inside a model folder; of links, as in the cache of a Hub, what they point to."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def check_names(names: Iterable[str], where: str) -> None:
    """Raise HubError where the list of files alone says that the model cannot be used."""
    names = set(names)
    if "config.json" not in names and names >= set(ADAPTER):
        fix = "name the model that it stands beside; `hubplugin serve MODEL --lora` serves both"
        raise HubError(where, "is a LoRA adapter, no model", fix)
    if "config.json" not in names:
        raise HubError(where, "has no config.json", "name a repo or folder of a transformers model")
    if SINGLE not in names and INDEX not in names:
        pickled = any(fnmatchcase(name, pattern) for name in names for pattern in PICKLES)
        what = "its weights are pickles, which can run code" if pickled else f"has no {SINGLE}"
        raise HubError(where, f"{what}; only safetensors are read", "use a repo converted to safetensors")
    complete = names & {"tokenizer.json", "tokenizer.model", "spiece.model"}
    if not complete and not {"vocab.json", "merges.txt"} <= names:
        raise HubError(where, "has no tokenizer", "add tokenizer.json and tokenizer_config.json to it")


def read_json(path: Path, where: str) -> dict[str, Any]:
    """A JSON file that holds a mapping. Raises HubError where it cannot be read or holds something else."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HubError(f"{where}: {path.name}", f"cannot be read: {error}", "repair or replace it") from error
    if not isinstance(values, dict):
        raise HubError(f"{where}: {path.name}", "holds no mapping", "repair or replace it")
    return values


def card_metadata(path: Path) -> dict[str, Any]:
    """The YAML front matter of README.md; empty where there is none or it is broken."""
    card = path / "README.md"
    try:
        lines = [line.rstrip() for line in card.read_text("utf-8-sig").split("\n")] if card.exists() else []
        if lines[:1] != ["---"] or "---" not in lines[1:]:
            return {}
        values = yaml.load("\n".join(lines[1 : lines.index("---", 1)]), front_matter.Loader)
    except (OSError, ValueError, yaml.YAMLError):
        progress(f"pull   warning: the metadata of {card} cannot be read, so no licence is known")
        return {}
    return values if isinstance(values, dict) else {}


def shards(path: Path) -> list[str]:
    """The weight files of a folder that holds model.safetensors or its index.

    Raises CheckpointError where the index is broken or names files outside the allow-list.
    """
    if (path / SINGLE).exists():
        return [SINGLE]
    index = path / INDEX
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(str(index), "is not a safetensors index", "replace it by a whole one") from error
    if not names or not all(isinstance(name, str) and allowed(name, WEIGHTS) for name in names):
        raise CheckpointError(str(index), "names files other than model-*.safetensors", "replace it")
    return names


@dataclass(frozen=True)
class Place:
    """Where a tensor's values stand: `header.bytes` of a file, from its byte `begin` on."""

    file: Path
    begin: int
    header: Header


def headers(path: Path) -> dict[str, Header]:
    """The headers of a folder's safetensors. Raises CheckpointError for a missing or damaged shard."""
    return {name: place.header for name, place in places(path).items()}


def places(path: Path) -> dict[str, Place]:
    """Where the values of a folder's tensors stand. Raises CheckpointError for a missing or damaged shard."""
    found: dict[str, Place] = {}
    for name in shards(path):
        found.update(_places(path / name))
    return found


def _places(file: Path) -> dict[str, Place]:
    """One file: 8 bytes of length, the JSON header; the tensors' offsets must reach the file's very end."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            entries: dict[str, Any] = json.loads(stream.read(min(length, MAX_HEADER)))
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        tensors = {
            name: Place(file, 8 + length + entry["data_offsets"][0], Header(entry["dtype"], tuple(entry["shape"])))
            for name, entry in entries.items()
        }
    except FileNotFoundError as error:
        raise CheckpointError(str(file), "is missing", "copy or pull it again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(str(file), "has no readable safetensors header", "copy or pull it again") from error
    if 8 + length + end != size:
        raise CheckpointError(
            str(file), f"has {size} bytes, its header promises {8 + length + end}", "copy or pull it again"
        )
    return tensors


def publishable(path: Path, files: tuple[str, ...]) -> list[str]:
    """The folder's files, by their paths inside it. Raises HubError for anything that must not be published."""
    names = []
    for entry in sorted(path.iterdir()):
        opened = entry.name in (NAMED_TEMPLATES, SCORES) and entry.is_dir() and not entry.is_symlink()
        for file in (sorted(entry.iterdir()) if opened else []) or [entry]:
            _check_publishable(file, name := file.relative_to(path).as_posix(), files)
            names.append(name)
    if not names:
        raise HubError(str(path), "is empty", "run `hubplugin run` first")
    return names


def _check_publishable(entry: Path, name: str, files: tuple[str, ...]) -> None:
    if entry.is_symlink():
        why = "is a link, and links can lead anywhere"
    elif entry.name.startswith("."):
        why = "is hidden"
    elif not entry.is_file() or not allowed(name, files):
        why = "is not among the files that may be published"
    else:
        return
    raise HubError(str(entry), f"{why}; nothing was published", "move it out of the folder")


def companions(base: Path) -> list[str]:
    """The tokenizer, template, generation and licence files of a model folder, by path: copied byte for byte."""
    return [name for name in listing(base) if allowed(name, PULLED) and not allowed(name, WRITTEN_ANEW)]
