"""What the Hub reads out of a model's files: config.json, and the dtypes and shapes in safetensors headers.

Blobs never change, so what is small of what was read is kept. This module knows trees and blobs, and no repo.
"""

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from hubplugin.localhub.contents.git import Tree

MAX_JSON_BYTES = 10 * 2**20
MAX_HEADER_BYTES = 25 * 2**20
CONFIG_KEYS = ("architectures", "auto_map", "model_type", "quantization_config")
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
FORMAT_TAGS = {".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx"}


def config(blobs: Path, tree: Tree) -> dict[str, Any] | None:
    """The keys of config.json that the Hub shows; None without a config.json."""
    whole = read_json(blobs, tree, "config.json")
    return {key: whole[key] for key in CONFIG_KEYS if key in whole} if whole is not None else None


def read_json(blobs: Path, tree: Tree, path: str) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none."""
    entry = tree.get(path)
    return _parse_json(blobs / entry.sha256) if entry and entry.size <= MAX_JSON_BYTES else None


def parameters(blobs: Path, tree: Tree) -> dict[str, Any] | None:
    """The number of parameters by dtype, and in total; None without weights in safetensors files."""
    counts: dict[str, int] = {}
    weights = [path for path in tree if SHARD.fullmatch(path)] or [
        path for path in tree if path.endswith(".safetensors") and "/" not in path
    ]
    for path in weights:
        for dtype, count in _count_by_dtype(blobs / tree[path].sha256).items():
            counts[dtype] = counts.get(dtype, 0) + count
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


def format_tags(tree: Tree) -> list[str]:
    """Tags for the formats of the weights."""
    return [tag for suffix, tag in FORMAT_TAGS.items() if any(path.endswith(suffix) for path in tree)]


@lru_cache(maxsize=256)
def _parse_json(blob: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(blob.read_bytes())
    except (ValueError, RecursionError, OSError):
        return None
    return value if isinstance(value, dict) else None


@lru_cache(maxsize=4096)
def _count_by_dtype(blob: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, tensor in (safetensors_header(blob) or {}).items():
        if name != "__metadata__":
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return counts


def safetensors_header(blob: Path) -> dict[str, Any] | None:
    """The header of a safetensors file: by name of a tensor its dtype, shape and offsets. None where it is none."""
    try:
        with blob.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if 0 < size <= MAX_HEADER_BYTES else None
        assert isinstance(header, dict)
        for name, tensor in header.items():
            assert name == "__metadata__" or (isinstance(tensor["dtype"], str) and math.prod(tensor["shape"]) >= 0)
    except (ValueError, RecursionError, OSError, AssertionError, KeyError, TypeError):
        return None
    return header
