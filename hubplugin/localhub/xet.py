"""The write side of Xet: chunks of files in containers (xorbs), and lists of what files are made of (shards).

Official clients send every large file this way. A shard's files are put together again at once, checked
against their sha256 and kept as ordinary blobs, so reading needs no Xet at all. This file knows bytes and
hashes, no HTTP and no repo. Layouts: https://huggingface.co/docs/xet, pages xorb and shard. All integers
are little-endian.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import lz4.frame

from hubplugin.localhub.refusal import refuse

MAX_XORB = 64 * 2**20 + 2**20  # bytes; the format's 64 MiB of chunks, and room for headers and a footer
RECORD = 48  # bytes of every record in a shard
TAG = b"HFRepoMetaData\0"
END = b"\xff" * 32
HAS_VERIFICATION = 1 << 31
HAS_SHA256 = 1 << 30
RAW, LZ4, GROUPED_LZ4 = 0, 1, 2


@dataclass(frozen=True)
class Segment:
    """A run of chunks of one xorb."""

    xorb: str  # 64 hex digits
    size: int  # bytes, decompressed
    start: int  # first chunk
    stop: int  # one past the last chunk


@dataclass(frozen=True)
class XetFile:
    """A file as a shard describes it."""

    sha256: str
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(segment.size for segment in self.segments)


def _bad(what: str) -> Exception:
    return refuse(400, "BadXet", what)


def hex_hash(raw: bytes) -> str:
    """How the protocol writes 32 bytes: four 64-bit numbers, each as sixteen digits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def files(shard: bytes) -> list[XetFile]:
    """The files a shard describes. Raises 400 for a shard that is cut short or lacks a file's sha256."""
    if not shard.startswith(TAG):
        raise _bad("not a shard")
    found = []
    at = RECORD  # behind the header: a 32-byte tag, version, footer size
    try:
        while shard[at : at + 32] != END:
            _, flags, count = struct.unpack_from("<32sII8x", shard, at)
            if count * RECORD > len(shard) or not flags & HAS_SHA256:
                raise _bad("a file of the shard is cut short, or has no sha256")
            segments = []
            for index in range(count):
                xorb, _, size, start, stop = struct.unpack_from("<32s4I", shard, at + RECORD * (1 + index))
                segments.append(Segment(hex_hash(xorb), size, start, stop))
            at += RECORD * (1 + count * (2 if flags & HAS_VERIFICATION else 1))
            (sha256,) = struct.unpack_from("<32s16x", shard, at)
            at += RECORD
            found.append(XetFile(hex_hash(sha256), tuple(segments)))
    except struct.error as error:
        raise _bad("the shard is cut short") from error
    return found


def chunk_starts(xorb: bytes) -> list[int]:
    """Where each chunk's header begins: version, stored size (3 bytes), compression, size (3 bytes)."""
    starts = []
    at = 0
    while at + 8 <= len(xorb) and xorb[at] == 0:  # a footer, where there is one, begins with a letter
        starts.append(at)
        at += 8 + int.from_bytes(xorb[at + 1 : at + 4], "little")
    return starts


def chunk(xorb: bytes, start: int) -> bytes:
    """One chunk, decompressed. Raises 400; never unpacks more than the size that the header announces."""
    stored, scheme = int.from_bytes(xorb[start + 1 : start + 4], "little"), xorb[start + 4]
    size = int.from_bytes(xorb[start + 5 : start + 8], "little")
    data = xorb[start + 8 : start + 8 + stored]
    if scheme in (LZ4, GROUPED_LZ4):
        try:
            data = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
        except (RuntimeError, EOFError) as error:
            raise _bad("a chunk is no LZ4 frame") from error
    elif scheme != RAW:
        raise _bad(f"chunk compression {scheme} is unknown")
    if len(data) != size:
        raise _bad("a chunk has another size than its header says")
    return ungroup(data) if scheme == GROUPED_LZ4 else data


def ungroup(data: bytes) -> bytes:
    """Undo the grouping of bytes by their position modulo 4: all first bytes, then all second ones, ..."""
    out = bytearray(len(data))
    at = 0
    for phase in range(4):
        count = (len(data) - phase + 3) // 4
        out[phase::4] = data[at : at + count]
        at += count
    return bytes(out)


def assemble(file: XetFile, xorbs: Path, part: Path) -> None:
    """Write a file from the xorbs in a folder. Raises 400 for an unknown xorb or another sha256."""
    digest = hashlib.sha256()
    held, xorb, starts = "", b"", [0]
    with part.open("wb") as out:
        for segment in file.segments:
            if segment.xorb != held:  # neighbours mostly come from the same one
                try:
                    xorb = (xorbs / segment.xorb).read_bytes()
                except FileNotFoundError as error:
                    raise _bad(f"unknown xorb {segment.xorb}") from error
                held, starts = segment.xorb, chunk_starts(xorb)
            if not segment.start < segment.stop <= len(starts):
                raise _bad(f"the xorb has {len(starts)} chunks, not {segment.stop}")
            data = b"".join(chunk(xorb, start) for start in starts[segment.start : segment.stop])
            if len(data) != segment.size:
                raise _bad("a segment has another size than the shard says")
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != file.sha256:
        raise _bad(f"the chunks do not make {file.sha256}")
