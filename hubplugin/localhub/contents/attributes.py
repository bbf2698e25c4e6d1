"""Which files of a repo are LFS files and which are ignored: .gitattributes and .gitignore.

New repos begin with the Hub's own .gitattributes. Patterns are matched segment by segment, because the regular
expressions of other packages take exponential time for some, and patterns come from whoever commits. This module knows
texts and paths, and no repo.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

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


@dataclass(frozen=True)
class _Rule:
    """A line of one of the files."""

    segments: tuple[str, ...]  # globs, in the syntax of fnmatch; ** stands for any number of segments
    folders_only: bool
    positive: bool  # makes an LFS file, or ignores

    def matches(self, path: list[str], folder: bool = False) -> bool:
        """Whether the segments of a path match."""
        if self.folders_only and not folder:
            return False
        reached = {0}  # how many segments of the path may have been used
        for at, segment in enumerate(self.segments):
            if segment == "**":
                fewest = min(reached) + (at == len(self.segments) - 1)  # at the end it is at least one
                reached = set(range(fewest, len(path) + 1))
            else:
                reached = {n + 1 for n in reached if n < len(path) and fnmatchcase(path[n], segment)}
            if not reached:
                return False
        return len(path) in reached


def _rule(pattern: str, positive: bool) -> _Rule:
    """A pattern as git reads it. Without a slash inside, it matches in every folder."""
    glob = re.sub(r"\\([*?\[])", r"[\1]", pattern.replace("[[:space:]]", "[ \t]").replace("[^", "[!"))
    glob = re.sub(r"\\(.)", r"\1", glob)
    segments = tuple(segment for segment in glob.split("/") if segment)
    anchored = "/" in glob.rstrip("/") or not segments
    return _Rule(segments if anchored else ("**", *segments), glob.endswith("/"), positive)


@lru_cache(maxsize=64)
def _lfs_rules(attributes: str) -> tuple[_Rule, ...]:
    """Every line that sets or unsets `filter`."""
    rules = []
    for line in attributes.splitlines():
        pattern, *values = line.split() or ["#"]
        filters = [value for value in values if re.fullmatch(r"[-!]?filter(=.*)?", value)]
        if filters and not pattern.startswith(("#", "!", "[attr]")):
            rules.append(_rule(pattern.strip('"'), filters[-1] == "filter=lfs"))
    return tuple(rules)


def is_lfs(attributes: str, path: str) -> bool:
    """Whether a .gitattributes makes a path an LFS file. Of several lines that match, the last one counts."""
    segments = path.split("/")
    return next((rule.positive for rule in reversed(_lfs_rules(attributes)) if rule.matches(segments)), False)


def ignored(gitignore: str, paths: Iterable[str]) -> set[str]:
    """The paths that a .gitignore leaves out: those that the last line to match ignores, and all in such a folder."""
    lines = [line.rstrip() for line in gitignore.splitlines() if line.strip() and not line.startswith("#")]
    rules = [_rule(line.removeprefix("!"), not line.startswith("!")) for line in reversed(lines)]

    def is_ignored(path: list[str], folder: bool) -> bool:
        return next((rule.positive for rule in rules if rule.matches(path, folder)), False)

    def any_ignored(segments: list[str]) -> bool:
        return any(is_ignored(segments[:count], count < len(segments)) for count in range(1, len(segments) + 1))

    return {path for path in paths if any_ignored(path.split("/"))}
