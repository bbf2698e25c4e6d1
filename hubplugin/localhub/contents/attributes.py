"""Which files of a repo are LFS files and which are ignored: .gitattributes and .gitignore.

New repos begin with the Hub's own .gitattributes. This module knows texts and paths, and no repo.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from pathspec import GitIgnoreSpec

ATTRIBUTES_FILE, IGNORE_FILE = ".gitattributes", ".gitignore"
LFS_ATTRIBUTES = "filter=lfs diff=lfs merge=lfs -text"
_WEIGHTS = [
    "*.7z",
    "*.arrow",
    "*.bin",
    "*.bz2",
    "*.ckpt",
    "*.ftz",
    "*.gz",
    "*.h5",
    "*.joblib",
    "*.lfs.*",
    "*.mlmodel",
    "*.model",
    "*.msgpack",
    "*.npy",
    "*.npz",
    "*.onnx",
    "*.ot",
    "*.parquet",
    "*.pb",
    "*.pickle",
    "*.pkl",
    "*.pt",
    "*.pth",
    "*.rar",
    "*.safetensors",
    "saved_model/**/*",
    "*.tar.*",
    "*.tar",
    "*.tflite",
    "*.tgz",
    "*.wasm",
    "*.xz",
    "*.zip",
    "*.zst",
    "*tfevents*",
]
_MEDIA = [
    "*.avro",
    "*.lz4",
    "*.mds",
    "*.pcm",
    "*.sam",
    "*.raw",
    "*.aac",
    "*.flac",
    "*.mp3",
    "*.ogg",
    "*.wav",
    "*.bmp",
    "*.gif",
    "*.png",
    "*.tiff",
    "*.jpg",
    "*.jpeg",
    "*.webp",
    "*.mp4",
    "*.webm",
]


def default_attributes(kind: str) -> bytes:
    """The .gitattributes of a new repo: weights and archives are LFS files, and media too in a dataset."""
    return with_lfs_paths(b"", _WEIGHTS + (_MEDIA if kind == "datasets" else []))


def with_lfs_paths(attributes: bytes, patterns: Iterable[str]) -> bytes:
    """A .gitattributes with lines that make LFS files of what the patterns match."""
    begun = attributes + b"\n" if attributes and not attributes.endswith(b"\n") else attributes
    return begun + "".join(f"{pattern} {LFS_ATTRIBUTES}\n" for pattern in patterns).encode()


def literal_pattern(path: str) -> str:
    """The pattern that matches one path, whatever its characters."""
    return re.sub(r'([*?\[\]!#"\\])', r"\\\1", path).replace(" ", "[[:space:]]")


@lru_cache(maxsize=64)
def _lfs_rules(attributes: str) -> tuple[tuple[GitIgnoreSpec, bool], ...]:
    """Every pattern that sets or unsets `filter`, and whether it sets it to LFS."""
    rules = []
    for line in attributes.splitlines():
        pattern, *values = line.split() or ["#"]
        filters = [value for value in values if re.fullmatch(r"[-!]?filter(=.*)?", value)]
        if filters and not pattern.startswith(("#", "!", "[attr]")):
            spec = GitIgnoreSpec.from_lines([pattern.replace("[[:space:]]", "[ ]").strip('"')])
            rules.append((spec, filters[-1] == "filter=lfs"))
    return tuple(rules)


def is_lfs(attributes: str, path: str) -> bool:
    """Whether a .gitattributes makes a path an LFS file. Of several lines that match, the last one counts."""
    return next((lfs for spec, lfs in reversed(_lfs_rules(attributes)) if spec.match_file(path)), False)


def ignored(gitignore: str, paths: Iterable[str]) -> set[str]:
    """The paths that a .gitignore leaves out."""
    return set(GitIgnoreSpec.from_lines(gitignore.splitlines()).match_files(paths))
