"""Which manifests are meant by paths of files and folders. Reads none."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubplugin.errors import ManifestError
from hubplugin.manifest.reading.yaml_file import ENDINGS

Manifest = str | os.PathLike[str] | Mapping[str, Any]


def expanded(manifests: Manifest | Sequence[Manifest]) -> list[tuple[str, Manifest]]:
    """All manifests that are meant, each with its name: empty where one alone is meant, and by itself.

    A folder stands for the manifests in it. Raises ManifestError for a folder without any, for several of one name,
    and where several are meant and one of them is a mapping, which has no name.
    """
    given = [manifests] if isinstance(manifests, str | os.PathLike | Mapping) else list(manifests)
    if len(given) == 1 and not _is_folder(given[0]):
        return [("", given[0])]
    named: dict[str, Manifest] = {}
    for path in (path for each in given for path in _files(each)):
        if path.stem in named:
            what = f"has the name of {named[path.stem]}, and both would be written into one folder"
            raise ManifestError(str(path), what, "rename one of them")
        named[path.stem] = path
    if not named:
        raise ManifestError("manifests", "none is given", "give the path of one, or of a folder that holds some")
    return list(named.items())


def _is_folder(manifest: Manifest) -> bool:
    return not isinstance(manifest, Mapping) and Path(manifest).is_dir()


def _files(manifest: Manifest) -> list[Path]:
    if isinstance(manifest, Mapping):
        raise ManifestError("manifests", "one of several is a mapping, which has no name", "run it by itself")
    path = Path(manifest)
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.iterdir() if each.suffix in ENDINGS and not each.name.startswith("."))
    if not found:
        raise ManifestError(str(path), "holds no manifest", f"put files into it that end in {' or '.join(ENDINGS)}")
    return found
