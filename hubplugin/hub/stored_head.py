"""Whether a base on the Hub stores a head of its own although config.json ties it, told from a few ranged requests.

Knows the Hub and safetensors' layout. A run compares all values once they are on this disk
(model/architectures/tied_head.py); a plan, which pulls nothing, looks at the first rows.
"""

import struct
from collections.abc import Mapping
from typing import Any

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.utils import SafetensorsFileMetadata

from hubplugin.checkpoint.headers import FLOATS
from hubplugin.model.architectures import tied_head
from hubplugin.model.architectures.families import FAMILIES

LOOKED_AT = 2**18  # bytes of each of the two tensors


def differs(
    api: HfApi, repo: str, sha: str, files: Mapping[str, SafetensorsFileMetadata], config: Mapping[str, Any]
) -> bool:
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
    system = HfFileSystem(endpoint=api.endpoint, token=api.token)
    begins = (_begin(system, f"{repo}@{sha}/{file}", info.data_offsets) for file, info in (head, embed))
    first, second = (tied_head.decoded(begin, str(head[1].dtype)) for begin in begins)
    return bool((first != second).any())


def _begin(system: HfFileSystem, path: str, offsets: tuple[int, int]) -> bytes:
    """The first bytes of a tensor: after 8 bytes of length and the JSON header, at its offset."""
    with system.open(path, "rb", block_size=LOOKED_AT, cache_type="none") as file:
        (header,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + header + offsets[0])
        return bytes(file.read(min(LOOKED_AT, offsets[1] - offsets[0])))
