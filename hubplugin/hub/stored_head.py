"""Whether a base on the Hub stores a head of its own although config.json ties it, told from a few ranged requests.

Knows headers. A run compares all values once they are on this disk
(model/architectures/tied_head.py); a plan, which pulls nothing, looks at the first rows.
"""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.utils import SafetensorsFileMetadata

from hubplugin.checkpoint.headers import FLOATS
from hubplugin.hub import ranges
from hubplugin.model.architectures import tied_head
from hubplugin.model.architectures.families import FAMILIES

LOOKED_AT = 2**18  # bytes of each of the two tensors


def differs(repo: str, sha: str, files: Mapping[str, SafetensorsFileMetadata], config: Mapping[str, Any]) -> bool:
    """Whether head and embedding are both stored, in one shape and dtype, and begin with different values.

    `files` are the repo's safetensors by name.
    """
    row = FAMILIES.get(str(config.get("model_type")))
    if row is None or not tied_head.is_tied(config):
        return False
    stored = {name: (file, info) for file, parsed in files.items() for name, info in parsed.tensors.items()}
    head, embed = (stored.get(f"{name}.weight") for name in (row.head, row.embed))
    if head is None or embed is None or (head[1].shape, head[1].dtype) != (embed[1].shape, embed[1].dtype):
        return False
    if head[1].dtype not in FLOATS:
        return False
    begins = (_begin(repo, sha, file, info.data_offsets) for file, info in (head, embed))
    first, second = (tied_head.decoded(begin, str(head[1].dtype)) for begin in begins)
    return bool((first != second).any())


def _begin(repo: str, sha: str, file: str, offsets: tuple[int, int]) -> bytes:
    begin, end = offsets
    return ranges.values(repo, sha, file, begin, min(LOOKED_AT, end - begin))
