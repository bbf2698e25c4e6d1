"""Xet uploads: chunks and shards written by hand, and uploads by the official client."""

import hashlib
import os
import struct
from pathlib import Path

import lz4.frame
import pytest
from fastapi import HTTPException
from localhub_helpers import api_of, client, http_of

from hubplugin import localhub
from hubplugin.localhub.transfers import xet
from hubplugin.localhub.transfers.xet import Compression


def chunk(data: bytes, compression: int, size: int | None = None) -> bytes:
    body = data
    if compression == Compression.BYTE_GROUPING_4_LZ4:
        body = b"".join(data[phase::4] for phase in range(4))
    if compression in (Compression.LZ4, Compression.BYTE_GROUPING_4_LZ4):
        body = lz4.frame.compress(body)
    sizes = len(body).to_bytes(3, "little") + bytes([compression])
    return b"\0" + sizes + (len(data) if size is None else size).to_bytes(3, "little") + body


def raw_hash(text: str) -> bytes:
    return struct.pack("<4Q", *(int(text[at : at + 16], 16) for at in range(0, 64, 16)))


def shard(sha256: str, segments: list[tuple[str, int, int, int]], flags: int = xet.HAS_SHA256) -> bytes:
    out = xet.SHARD_TAG.ljust(32, b"\0") + struct.pack("<QQ", 2, 0)
    out += b"\1" * 32 + struct.pack("<IIQ", flags, len(segments), 0)
    for xorb, size, start, stop in segments:
        out += raw_hash(xorb) + struct.pack("<4I", 0, size, start, stop)
    if flags & xet.HAS_VERIFICATION:
        out += b"\2" * 48 * len(segments)
    if flags & xet.HAS_SHA256:
        out += raw_hash(sha256) + bytes(16)
    return out + xet.END_OF_FILES + bytes(16)


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.LZ4, Compression.BYTE_GROUPING_4_LZ4])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 1023, 65537])
def test_a_chunk_is_read_as_it_was_written(compression: int, size: int) -> None:
    data = bytes(at * 7 % 251 for at in range(size))
    assert xet.read_chunk(chunk(data, compression), 0) == data


def test_ungroup_puts_bytes_back_in_order() -> None:
    assert xet.ungroup_bytes(b"aebfcgdh") == b"abcdefgh"
    assert xet.ungroup_bytes(b"aebfcd") == b"abcdef"


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"abcd" * 100, Compression.LZ4, size=399),
        chunk(b"abcd" * 100, Compression.LZ4, size=401),
        chunk(bytes(2**20), Compression.LZ4, size=16),  # would decompress to more than its header says
        chunk(b"abcd", Compression.NONE, size=5),
        chunk(b"abcd", 3),
        b"\0\4\0\0\1\4\0\0" + b"nope",
    ],
)
def test_a_broken_chunk_is_refused(broken: bytes) -> None:
    with pytest.raises(HTTPException) as error:
        xet.read_chunk(broken, 0)
    assert error.value.status_code == 400


def test_a_file_is_assembled_from_runs_of_chunks_of_several_xorbs(tmp_path: Path) -> None:
    parts = [bytes([number]) * (1000 + number) for number in range(5)]
    first, second = "a" * 64, "0123456789abcdef" * 4
    (tmp_path / first).write_bytes(b"".join(chunk(part, Compression.LZ4) for part in parts[:3]) + b"XETBLOB footer")
    (tmp_path / second).write_bytes(b"".join(chunk(part, Compression.NONE) for part in parts[3:]))
    whole = parts[1] + parts[2] + parts[3] + parts[0]
    segments = [(first, 2003, 1, 3), (second, 1003, 0, 1), (first, 1000, 0, 1)]
    sha256 = hashlib.sha256(whole).hexdigest()
    for flags in (xet.HAS_SHA256, xet.HAS_SHA256 | xet.HAS_VERIFICATION):
        (file,) = xet.parse_shard(shard(sha256, segments, flags))
        assert (file.sha256, file.size) == (sha256, len(whole))
        xet.reconstruct(file, tmp_path, tmp_path / "part")
        assert (tmp_path / "part").read_bytes() == whole


@pytest.mark.parametrize(
    ("sha256", "segment"),
    [
        ("0" * 64, ("a" * 64, 1000, 0, 1)),  # another hash
        (None, ("b" * 64, 1000, 0, 1)),  # no such xorb
        (None, ("a" * 64, 1000, 0, 2)),  # no such chunk
        (None, ("a" * 64, 1000, 1, 1)),  # no chunk at all
        (None, ("a" * 64, 999, 0, 1)),  # another size
    ],
)
def test_a_file_that_does_not_add_up_is_refused(tmp_path: Path, sha256: str | None, segment: tuple) -> None:
    data = bytes(1000)
    (tmp_path / ("a" * 64)).write_bytes(chunk(data, Compression.LZ4))
    (file,) = xet.parse_shard(shard(sha256 or hashlib.sha256(data).hexdigest(), [segment]))
    with pytest.raises(HTTPException) as error:
        xet.reconstruct(file, tmp_path, tmp_path / "part")
    assert error.value.status_code == 400


def test_a_shard_cut_anywhere_is_refused() -> None:
    whole = shard("0" * 64, [("a" * 64, 10, 0, 1)], xet.HAS_SHA256 | xet.HAS_VERIFICATION)
    for size in range(len(whole) - 48):
        with pytest.raises(HTTPException):
            xet.parse_shard(whole[:size])


def test_a_shard_without_a_sha256_is_refused() -> None:
    with pytest.raises(HTTPException, match="400"):
        xet.parse_shard(shard("0" * 64, [("a" * 64, 10, 0, 1)], flags=0))


CONTENTS = """
files = {
    "fp32.bin": struct.pack("<300000f", *(at * 1e-4 for at in range(300000))),
    "bf16.bin": b"".join(struct.pack("<f", at * 1e-3)[2:] for at in range(200000)),
    "text.model": b"The same words again and again, with a number: %d\\n" * 9000,
    "odd.bin": os.urandom(65536 * 3 + 1),
    "tiny.bin": b"\\0",
    "random.bin": os.urandom(70_000_000),  # more than one xorb holds
}
for name, data in files.items():
    Path(name).write_bytes(data)
"""


def test_what_the_real_client_takes_apart_comes_back_whole(tmp_path: Path) -> None:
    with localhub.start(tmp_path / "hub") as hub:
        client(
            hub,
            tmp_path,
            CONTENTS
            + """
api.create_repo("local/m")
api.create_commit("local/m", [CommitOperationAdd(name, name) for name in files], commit_message="all")
folder = Path(snapshot_download("local/m"))
for name, data in files.items():
    assert (folder / name).read_bytes() == data, name
    assert api.get_paths_info("local/m", name)[0].lfs.sha256 == hashlib.sha256(data).hexdigest()
""",
        )
        assert len(list(hub.root.glob("xorbs/*/*"))) >= 2


def test_chunks_known_from_one_repo_are_sent_again_to_another(tmp_path: Path) -> None:
    """The client remembers which chunks it has uploaded. A repo must not depend on chunks of another repo."""
    with localhub.start(tmp_path / "hub") as hub:
        client(
            hub,
            tmp_path,
            """
            data = os.urandom(300_000)
            for repo, content in (("local/a", data), ("local/b", data), ("local/b", data + b"more")):
                api.create_repo(repo, exist_ok=True)
                api.upload_file(path_or_fileobj=content, path_in_repo="x.bin", repo_id=repo)
                assert Path(hf_hub_download(repo, "x.bin")).read_bytes() == content
            """,
        )


def test_a_hub_that_forgot_everything_takes_the_same_upload_again(tmp_path: Path) -> None:
    """Same URL and same client cache, but an empty hub: it does not have the chunks that the client remembers."""
    script = """
    data = bytes(range(256)) * 2000
    api.create_repo("local/m")
    api.upload_file(path_or_fileobj=data, path_in_repo="x.bin", repo_id="local/m")
    assert Path(hf_hub_download("local/m", "x.bin")).read_bytes() == data
    """
    with localhub.start(tmp_path / "hub", token="one") as hub:
        client(hub, tmp_path, script)
        port = int(hub.url.rsplit(":", 1)[1])
    with localhub.start(tmp_path / "other", port=port, token="one") as hub:
        client(hub, tmp_path, script)


# Xorbs are not kept once files have their chunks


def packed(folder: Path) -> list[Path]:
    return [path for path in folder.glob("xorbs/*/*") if path.suffix != xet.INDEX_SUFFIX]


def test_xorbs_are_swept_while_the_hub_runs_and_their_chunks_are_still_known(tmp_path: Path) -> None:
    with localhub.start(tmp_path / "hub") as hub:
        client(
            hub,
            tmp_path,
            """
            api.create_repo("local/m")
            data = os.urandom(1_000_000)
            for number in range(8):
                content = data + bytes([number]) * 1000
                api.upload_file(path_or_fileobj=content, path_in_repo=f"{number}.bin", repo_id="local/m")
                assert Path(hf_hub_download("local/m", f"{number}.bin")).read_bytes() == content
            """,
        )
        assert packed(hub.root) == []
        xorbs = sum(path.stat().st_size for path in hub.root.glob("xorbs/*/*"))
        assert 0 < xorbs < 100_000  # the places of chunks; the first push alone had 1 MB


def test_a_released_xorb_is_read_from_the_files_that_have_its_chunks(tmp_path: Path) -> None:
    parts = [bytes([number]) * 1000 for number in range(4)]
    name = "a" * 64
    (tmp_path / name).write_bytes(b"".join(chunk(part, Compression.LZ4) for part in parts))

    def rebuild(data: bytes, segments: list[tuple[str, int, int, int]], blob: str) -> None:
        (file,) = xet.parse_shard(shard(hashlib.sha256(data).hexdigest(), segments))
        places = xet.reconstruct(file, tmp_path, tmp_path / blob)
        assert (tmp_path / blob).read_bytes() == data
        xet.release(tmp_path, places, tmp_path / blob)

    rebuild(parts[0] + parts[1], [(name, 2000, 0, 2)], "first")
    assert (tmp_path / name).exists()  # two of its chunks are in no file yet
    rebuild(parts[3] + parts[2], [(name, 1000, 3, 4), (name, 1000, 2, 3)], "second")
    assert not (tmp_path / name).exists()
    rebuild(b"".join(parts), [(name, 4000, 0, 4)], "third")
    rebuild(parts[2], [(name, 1000, 2, 3)], "fourth")
    with pytest.raises(HTTPException, match="has 4 chunks"):
        rebuild(parts[0], [(name, 1000, 4, 5)], "fifth")


def test_xorbs_of_uploads_that_broke_off_are_swept_after_a_day(tmp_path: Path) -> None:
    parts = [bytes([number]) * 1000 for number in range(2)]
    old, new = tmp_path / ("a" * 64), tmp_path / ("b" * 64)
    for path in (old, new):
        path.write_bytes(b"".join(chunk(part, Compression.NONE) for part in parts))
    (file,) = xet.parse_shard(shard(hashlib.sha256(parts[1]).hexdigest(), [(old.name, 1000, 1, 2)]))
    xet.release(tmp_path, xet.reconstruct(file, tmp_path, tmp_path / "blob"), tmp_path / "blob")
    os.utime(old, (1, 1))
    xet.sweep(tmp_path)
    assert not old.exists() and new.exists()
    xet.reconstruct(file, tmp_path, tmp_path / "again")  # the chunk that a file has is still known
    (lost,) = xet.parse_shard(shard(hashlib.sha256(parts[0]).hexdigest(), [(old.name, 1000, 0, 1)]))
    with pytest.raises(HTTPException, match="not kept any longer"):
        xet.reconstruct(lost, tmp_path, tmp_path / "lost")
    xet.sweep(tmp_path / "never made")


@pytest.mark.parametrize(
    ("transfers", "ref", "revision"),
    [
        (["basic", "multipart", "xet"], {"name": "main"}, "main"),
        (["xet"], {"name": "feat/x"}, "feat%2Fx"),
        (["basic", "xet"], None, "None"),
        (["basic", "multipart"], {"name": "main"}, None),
        (None, None, None),
    ],
)
def test_a_client_that_offers_xet_gets_xet(
    tmp_path: Path, transfers: list[str] | None, ref: dict[str, str] | None, revision: str | None
) -> None:
    with localhub.start(tmp_path / "hub") as hub, http_of(hub) as http:
        api_of(hub).create_repo("local/m")
        body = {"operation": "upload", "objects": [{"oid": "a" * 64, "size": 5}], "transfers": transfers, "ref": ref}
        answer = http.post("/local/m.git/info/lfs/objects/batch", json=body).raise_for_status().json()
        upload = answer["objects"][0]["actions"]["upload"]
        if revision is None:
            assert "transfer" not in answer and "/lfs/put/" in upload["href"]
        else:
            assert answer["transfer"] == "xet" and upload["href"].endswith(f"/xet-write-token/{revision}")
            assert set(upload["header"]) == {"X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration"}
            api_of(hub).create_branch("local/m", branch="feat/x")
            assert http.get(upload["href"]).raise_for_status().json()["accessToken"]
