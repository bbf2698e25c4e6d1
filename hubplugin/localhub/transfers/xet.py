"""The formats of Xet uploads: xorbs (containers of chunks) and shards (descriptions of files as ranges of chunks).

Clients upload large files this way. Here a file is reconstructed once, checked against its sha256 and stored whole;
xorbs whose chunks all are in stored files are not kept. This module knows bytes and hashes, and no HTTP request and no
repo. The formats are documented at https://huggingface.co/docs/xet, pages xorb and shard. All integers are
little-endian.
"""

import contextlib
import hashlib
import json
import os
import struct
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import lz4.frame

from hubplugin.localhub.http_errors import http_error

MAX_XORB_BYTES = 64 * 2**20 + 2**20  # the format's 64 MiB of chunks, and room for headers and a footer
CHUNK_HEADER_BYTES = 8  # version, stored size (3 bytes), compression, size (3 bytes)
SHARD_RECORD_BYTES = 48  # every record of a shard has this size
SHARD_TAG = b"HFRepoMetaData\0"
END_OF_FILES = b"\xff" * 32
HAS_VERIFICATION = 1 << 31  # flag of a file: verification records follow
HAS_SHA256 = 1 << 30  # flag of a file: a record with its sha256 follows
INDEX_SUFFIX = ".chunks"  # of the file that says where the chunks of a xorb are
ORPHAN_SECONDS = 24 * 3600
RELEASE_LOCK = threading.Lock()


class Compression(IntEnum):
    """How a chunk is stored."""

    NONE = 0
    LZ4 = 1
    BYTE_GROUPING_4_LZ4 = 2


@dataclass(frozen=True)
class Segment:
    """A range of chunks in one xorb."""

    xorb: str  # hash, 64 hex digits
    size: int  # bytes, decompressed
    start: int  # first chunk
    stop: int  # one past the last chunk


@dataclass(frozen=True)
class ShardFile:
    """A file as a shard describes it."""

    sha256: str
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(segment.size for segment in self.segments)


def _format_error(message: str) -> Exception:
    return http_error(400, "BadXet", message)


def hash_to_hex(raw: bytes) -> str:
    """A hash of 32 bytes as Xet writes it: four 64-bit numbers of sixteen hex digits each."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def parse_shard(shard: bytes) -> list[ShardFile]:
    """The files that a shard describes. Raises 400 where the shard is truncated or a file has no sha256."""
    if not shard.startswith(SHARD_TAG):
        raise _format_error("not a shard")
    files = []
    offset = SHARD_RECORD_BYTES  # behind the header: a 32-byte tag, version, footer size
    try:
        while shard[offset : offset + 32] != END_OF_FILES:
            _, flags, count = struct.unpack_from("<32sII8x", shard, offset)
            if count * SHARD_RECORD_BYTES > len(shard) or not flags & HAS_SHA256:
                raise _format_error("a file of the shard is truncated or has no sha256")
            segments = []
            for index in range(count):
                segment_offset = offset + SHARD_RECORD_BYTES * (1 + index)
                xorb, _, size, start, stop = struct.unpack_from("<32s4I", shard, segment_offset)
                segments.append(Segment(hash_to_hex(xorb), size, start, stop))
            records_per_segment = 2 if flags & HAS_VERIFICATION else 1
            offset += SHARD_RECORD_BYTES * (1 + count * records_per_segment)
            (sha256,) = struct.unpack_from("<32s16x", shard, offset)
            offset += SHARD_RECORD_BYTES
            files.append(ShardFile(hash_to_hex(sha256), tuple(segments)))
    except struct.error as error:
        raise _format_error("the shard is truncated") from error
    return files


def chunk_offsets(xorb: bytes) -> list[int]:
    """The offset of each chunk's header in a xorb."""
    offsets = []
    offset = 0
    # The version of a chunk header is 0. A footer, where there is one, begins with a letter.
    while offset + CHUNK_HEADER_BYTES <= len(xorb) and xorb[offset] == 0:
        offsets.append(offset)
        offset += CHUNK_HEADER_BYTES + int.from_bytes(xorb[offset + 1 : offset + 4], "little")
    return offsets


def read_chunk(xorb: bytes, offset: int) -> bytes:
    """One chunk, decompressed. Raises 400. Never decompresses more than the size in the header."""
    stored_size = int.from_bytes(xorb[offset + 1 : offset + 4], "little")
    compression = xorb[offset + 4]
    size = int.from_bytes(xorb[offset + 5 : offset + 8], "little")
    data_offset = offset + CHUNK_HEADER_BYTES
    data = xorb[data_offset : data_offset + stored_size]
    if compression in (Compression.LZ4, Compression.BYTE_GROUPING_4_LZ4):
        try:
            data = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
        except (RuntimeError, EOFError) as error:
            raise _format_error("a chunk is not an LZ4 frame") from error
    elif compression != Compression.NONE:
        raise _format_error(f"unknown chunk compression {compression}")
    if len(data) != size:
        raise _format_error("a chunk does not have the size in its header")
    return ungroup_bytes(data) if compression == Compression.BYTE_GROUPING_4_LZ4 else data


def ungroup_bytes(data: bytes) -> bytes:
    """Undo byte grouping, which stores the bytes at positions 0, 4, 8, ... first, then those at 1, 5, 9, ..., etc."""
    ungrouped = bytearray(len(data))
    offset = 0
    for phase in range(4):
        count = (len(data) - phase + 3) // 4
        ungrouped[phase::4] = data[offset : offset + count]
        offset += count
    return bytes(ungrouped)


class PackedXorb:
    """A xorb as it was uploaded."""

    def __init__(self, data: bytes) -> None:
        self._data, self._offsets = data, chunk_offsets(data)
        self.count = len(self._offsets)

    def chunks(self, start: int, stop: int) -> list[bytes]:
        """Chunks, decompressed. Raises 400."""
        return [read_chunk(self._data, offset) for offset in self._offsets[start:stop]]


class ReleasedXorb:
    """A xorb that is no longer kept, because files have its chunks: [path, offset, size] of each."""

    def __init__(self, places: dict[str, tuple[str, int, int]]) -> None:
        self._places = places
        self.count = 1 + max(map(int, places))

    def chunks(self, start: int, stop: int) -> list[bytes]:
        """Chunks, out of the files that have them. Raises 400."""
        found = []
        for index in range(start, stop):
            if str(index) not in self._places:
                raise _format_error(f"chunk {index} is not kept any longer")
            path, offset, size = self._places[str(index)]
            with open(path, "rb") as file:
                file.seek(offset)
                found.append(file.read(size))
        return found


def _open_xorb(folder: Path, xorb: str) -> PackedXorb | ReleasedXorb:
    """A xorb that was uploaded to a folder, and perhaps released since. Raises 400."""
    for _ in range(2):  # it may be released between the two looks
        if (folder / f"{xorb}{INDEX_SUFFIX}").exists() and not (folder / xorb).exists():
            return ReleasedXorb(json.loads((folder / f"{xorb}{INDEX_SUFFIX}").read_bytes()))
        with contextlib.suppress(FileNotFoundError):
            return PackedXorb((folder / xorb).read_bytes())
    raise _format_error(f"unknown xorb {xorb}")


Places = dict[str, dict[int, tuple[int, int]]]  # by xorb and index of a chunk: its offset in a file, and its size


def reconstruct(file: ShardFile, xorb_folder: Path, path: Path) -> Places:
    """Write a file from the xorbs in a folder; return where each chunk is in it.

    Raises 400 where a xorb is missing or the sha256 is another.
    """
    digest = hashlib.sha256()
    places: Places = {}
    xorb_hash, xorb = "", None
    with path.open("wb") as output:
        for segment in file.segments:
            if segment.xorb != xorb_hash or xorb is None:  # neighbouring segments are mostly in the same xorb
                xorb_hash, xorb = segment.xorb, _open_xorb(xorb_folder, segment.xorb)
            if not segment.start < segment.stop <= xorb.count:
                raise _format_error(f"the xorb has {xorb.count} chunks, not {segment.stop}")
            chunks = xorb.chunks(segment.start, segment.stop)
            if sum(map(len, chunks)) != segment.size:
                raise _format_error("a segment does not have the size in the shard")
            for index, chunk in enumerate(chunks, segment.start):
                places.setdefault(segment.xorb, {})[index] = (output.tell(), len(chunk))
                digest.update(chunk)
                output.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise _format_error(f"the chunks do not have the sha256 {file.sha256}")
    return places


def sweep(xorb_folder: Path) -> None:
    """Delete xorbs that no shard has asked for in a day: their upload broke off."""
    for path in xorb_folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.suffix != INDEX_SUFFIX and path.stat().st_mtime < time.time() - ORPHAN_SECONDS:
                path.unlink()


def release(xorb_folder: Path, places: Places, blob: Path) -> None:
    """Note which chunks a stored file has, and delete the xorbs whose chunks all are in files now.

    Later shards may name these xorbs, since clients remember what they have uploaded. Their chunks are then read from
    the files.
    """
    with RELEASE_LOCK:
        for xorb, chunks in places.items():
            packed, index = xorb_folder / xorb, xorb_folder / f"{xorb}{INDEX_SUFFIX}"
            if packed.exists():
                known = json.loads(index.read_bytes()) if index.exists() else {}
                known |= {str(number): (str(blob), offset, size) for number, (offset, size) in chunks.items()}
                temporary = index.with_suffix(".part")
                temporary.write_text(json.dumps(known))
                os.replace(temporary, index)
                if len(known) == PackedXorb(packed.read_bytes()).count:
                    packed.unlink()
