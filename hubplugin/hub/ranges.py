"""The first values of a tensor of a repo, by small ranged requests. Knows the Hub and safetensors' layout."""

import struct

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import get_session, hf_raise_for_status

from hubplugin.errors import CheckpointError
from hubplugin.hub.client import endpoint, headers


def values(repo: str, sha: str, file: str, offset: int, length: int) -> bytes:
    """`length` bytes of a safetensors file's data from an offset on, as its header counts offsets.

    The data begins after 8 bytes of length and the JSON header. Raises what the client raises, and CheckpointError
    where the file ends before.
    """
    (header,) = struct.unpack("<Q", _bytes(repo, sha, file, 0, 8))
    return _bytes(repo, sha, file, 8 + header + offset, length)


def _bytes(repo: str, sha: str, file: str, begin: int, length: int) -> bytes:
    url = hf_hub_url(repo, file, revision=sha, endpoint=endpoint())
    asked = {**headers(), "range": f"bytes={begin}-{begin + length - 1}"}
    response = get_session().get(url, headers=asked)
    hf_raise_for_status(response)
    if len(response.content) != length:
        raise CheckpointError(f"{repo}: {file}", "ends before its header says", "ask its owner to upload it again")
    return response.content
