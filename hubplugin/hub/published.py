"""A published model as anybody may see it: names and files of a repo or folder, single bytes of a base by its headers.

Refuses nothing that a repo may lack: what is missing is for its reader to say. Knows repos and folders; no report.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError

from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.model_folder import INDEX, PULLED, PUSHED, SINGLE, WEIGHTS, allowed
from hubplugin.errors import HubError
from hubplugin.hub import ranges, snapshots
from hubplugin.hub.client import cache_folder, clear_errors, connect
from hubplugin.hub.snapshots import Peek

SAFETENSORS = "*.safetensors"
OTHER_NAMES = (SAFETENSORS, f"{SAFETENSORS}.index.json")  # weights as tools of 2023 named them


@dataclass(frozen=True)
class Published:
    """Files on this disk, and the names of those that were left where they are."""

    path: Path
    name: str  # Hub id, or the folder's
    sha: str | None  # commit; None for a folder
    names: tuple[str, ...]  # of all files, by their paths inside the repo or folder


def fetch(target: str) -> Published:
    """A folder as it stands, or "owner/name[@revision]" with the files that a model consists of.

    Raises HubError where there is no such folder or repo, and for whatever keeps it from being downloaded.
    """
    folder = Path(target).expanduser()
    if folder.is_dir():
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        return Published(folder, folder.resolve().name, None, tuple(names))
    repo, _, revision = target.partition("@")
    if folder.exists() or target.startswith(("./", "../", "/", "~")) or repo.count("/") > 1:
        what = "is no folder" if folder.exists() else "there is no such folder"
        raise HubError(target, what, "give the folder of a model, or a Hub id: owner/name")
    return _download(repo, revision or "main", target)


def _download(repo: str, revision: str, where: str) -> Published:
    def other_names(names: Collection[str]) -> tuple[str, ...]:
        return () if any(allowed(name, WEIGHTS) for name in names) else OTHER_NAMES

    brought = snapshots.bring(repo, revision, where, PUSHED, other_names)
    return Published(brought.path, repo, brought.sha, brought.names)


@dataclass(frozen=True)
class BaseFiles:
    """What config.json, headers and sizes of a base's files say, and single values on demand."""

    peek: Peek
    folder: Path | None  # where it is on this disk; None: on a Hub
    weights_bytes: int  # of its safetensors files, headers and all
    names: tuple[str, ...]

    def values(self, tensor: str, most: int) -> bytes | None:
        """The first `most` bytes of a tensor as stored; None where there is no such tensor."""
        if tensor not in self.peek.tensors:
            return None
        length = min(most, self.peek.tensors[tensor].bytes)
        if self.folder:
            place = model_folder.places(self.folder)[tensor]
            with place.file.open("rb") as stream:
                stream.seek(place.begin)
                return stream.read(length)
        return _ranged(self.peek.repo, str(self.peek.sha), tensor, length)

    def text(self, name: str) -> str | None:
        """A small file; None where there is none of that name."""
        if name not in self.names:
            return None
        if self.folder:
            return (self.folder / name).read_text("utf-8")
        with clear_errors(self.peek.repo):
            copy = connect().hf_hub_download(self.peek.repo, name, revision=self.peek.sha, cache_dir=cache_folder())
        return Path(copy).read_text("utf-8")


def base(model: str, folder: Path) -> BaseFiles:
    """A base as far as its headers tell: "owner/name[@revision]", or a folder relative to `folder`. Pulls no weights.

    Raises HubError and CheckpointError as `snapshots.peek` does.
    """
    peek = snapshots.peek(model, folder)
    local = folder / Path(model).expanduser()
    if local.is_dir():
        return BaseFiles(peek, local, _bytes_of(local), tuple(model_folder.listing(local)))
    if constants.HF_HUB_OFFLINE:
        with clear_errors(model):
            path = snapshots.cached(peek.repo, str(peek.sha), PULLED)
        return BaseFiles(peek, path, _bytes_of(path), tuple(model_folder.listing(path)))
    with clear_errors(model):
        info = connect().model_info(peek.repo, revision=peek.sha, files_metadata=True)
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    weights = sum(size for name, size in sizes.items() if allowed(name, WEIGHTS) and name.endswith(".safetensors"))
    return BaseFiles(peek, None, weights, tuple(sorted(sizes)))


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob(SAFETENSORS))


def _ranged(repo: str, sha: str, tensor: str, length: int) -> bytes:
    """The first bytes of a tensor of a repo, by three small requests: the header, its length, the values."""
    api = connect()
    with clear_errors(repo):
        file = _file_of(repo, sha, tensor)
        header = api.parse_safetensors_file_metadata(repo, file, revision=sha)
        begin, _ = header.tensors[tensor].data_offsets
        return ranges.values(repo, sha, file, begin, length)


def _file_of(repo: str, sha: str, tensor: str) -> str:
    try:
        index = connect().hf_hub_download(repo, INDEX, revision=sha, cache_dir=cache_folder())
    except EntryNotFoundError:
        return SINGLE
    return str(model_folder.read_json(Path(index), repo)["weight_map"][tensor])
