"""Downloads by Xet: a file is presented as xorbs that were never stored, made from its bytes when they are asked for.

The name of a file is its sha256 here. Every xorb has the same number of bytes of it, in chunks that are not compressed.
Knows bytes, and no HTTP request and no repo.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubplugin.localhub.transfers.xet import CHUNK_HEADER_BYTES

CHUNK_BYTES = 2**16
XORB_BYTES = 2**24
CHUNKS = XORB_BYTES // CHUNK_BYTES  # in every xorb but the last


def plan(sha256: str, size: int, start: int, stop: int, url_of: Callable[[int], str]) -> dict[str, Any]:
    """How to make the bytes from `start` to `stop` of a file out of its xorbs. `url_of` gives the URL of each."""
    terms, fetch_info = [], {}
    for number in range(start // XORB_BYTES, -(-min(stop, size) // XORB_BYTES)):
        length = min(XORB_BYTES, size - number * XORB_BYTES)
        count = -(-length // CHUNK_BYTES)
        xorb = hashlib.sha256(f"{sha256} {number}".encode()).hexdigest()
        chunk_range = {"start": 0, "end": count}
        url_range = {"start": 0, "end": length + count * CHUNK_HEADER_BYTES - 1}
        terms.append({"hash": xorb, "unpacked_length": length, "range": chunk_range})
        fetch_info[xorb] = [{"range": chunk_range, "url": url_of(number), "url_range": url_range}]
    return {"offset_into_first_range": start % XORB_BYTES, "terms": terms, "fetch_info": fetch_info}


def xorb(blob: Path, number: int) -> bytes:
    """One xorb of a file; empty behind its end."""
    with blob.open("rb") as file:
        file.seek(number * XORB_BYTES)
        data = file.read(XORB_BYTES)
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    return b"".join(_header(len(chunk)) + chunk for chunk in chunks)


def _header(size: int) -> bytes:
    """Version 0, the stored size, no compression, the size."""
    return b"\0" + size.to_bytes(3, "little") + b"\0" + size.to_bytes(3, "little")
