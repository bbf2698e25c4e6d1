"""The folder of a student: what it is made from, and how it is written again with other weights. Knows no training."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hubplugin.checkpoint import model_folder, safetensors_io
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.disk import digest, sha256

QUANTIZE_CONFIG = "quantize_config.json"  # beside AutoGPTQ's format


def write(student: Path, headers: Mapping[str, Header], replaced: Mapping[str, Tensor], out: Path) -> None:
    """A student's folder with some tensors replaced; none: the student's own files. `headers` are of its tensors."""
    present = model_folder.listing(student)
    files = [*model_folder.companions(student), "config.json"]
    files += [name for name in present if name == QUANTIZE_CONFIG]
    if replaced:
        reader = Reader(student)

        def get(name: str) -> Tensor:
            return replaced[name] if name in replaced else reader.get(name)

        safetensors_io.write(out, headers, get)
    else:
        files += [name for name in present if model_folder.allowed(name, model_folder.WEIGHTS)]
    model_folder.copy(files, student, out)


def digest_of(folder: Path) -> str:
    """One digest of a folder's weights and config."""
    names = ("config.json", *model_folder.WEIGHTS)
    files = sorted(path for path in folder.iterdir() if model_folder.allowed(path.name, names))
    return digest("".join(f"{path.name} {sha256(path)}\n" for path in files))
