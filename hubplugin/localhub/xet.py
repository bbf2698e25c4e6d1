"""The formats of Xet uploads: xorbs (containers of chunks) and shards (descriptions of files as ranges of chunks).

Clients upload large files this way. Here a file is reconstructed once, checked against its sha256 and stored whole;
downloads do not use Xet. This module knows bytes and hashes, and no HTTP request and no repo. The formats are
documented at https://huggingface.co/docs/xet, pages xorb and shard. All integers are little-endian.
"""

import hashlib
import struct
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


def reconstruct(file: ShardFile, xorb_folder: Path, path: Path) -> None:
    """Write a file from the xorbs in a folder. Raises 400 where a xorb is missing or the sha256 is another."""
    digest = hashlib.sha256()
    xorb_hash, xorb, offsets = "", b"", [0]
    with path.open("wb") as output:
        for segment in file.segments:
            if segment.xorb != xorb_hash:  # neighbouring segments are mostly in the same xorb
                try:
                    xorb = (xorb_folder / segment.xorb).read_bytes()
                except FileNotFoundError as error:
                    raise _format_error(f"unknown xorb {segment.xorb}") from error
                xorb_hash, offsets = segment.xorb, chunk_offsets(xorb)
            if not segment.start < segment.stop <= len(offsets):
                raise _format_error(f"the xorb has {len(offsets)} chunks, not {segment.stop}")
            data = b"".join(read_chunk(xorb, offset) for offset in offsets[segment.start : segment.stop])
            if len(data) != segment.size:
                raise _format_error("a segment does not have the size in the shard")
            digest.update(data)
            output.write(data)
    if digest.hexdigest() != file.sha256:
        raise _format_error(f"the chunks do not have the sha256 {file.sha256}")
