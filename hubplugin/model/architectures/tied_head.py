"""Whether a head that config.json ties to the embedding is stored with values of its own. Knows files; no torch.

transformers and vLLM read both where both are stored, and tie them only where their values are equal: such a model is
computed with its own head, whatever config.json says.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.headers import FLOATS
from hubplugin.checkpoint.model_folder import Place
from hubplugin.errors import CheckpointError
from hubplugin.model.architectures.families import FAMILIES
from hubplugin.progress import progress

if TYPE_CHECKING:
    import numpy

PIECE = 2**22  # values of each tensor that are compared at once
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}  # bytes of a value


def is_tied(config: Mapping[str, Any]) -> bool:
    """What config.json says, or the family where it says nothing."""
    said, row = config.get("tie_word_embeddings"), FAMILIES.get(str(config.get("model_type")))
    return (row is not None and row.tied) if said is None else bool(said)


def has_own_values(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds a head that config.json ties, with other values than its embedding's.

    False where its weights are not all there: what is wrong with them is said by whoever needs them.
    """
    row = FAMILIES.get(str(config.get("model_type")))
    if row is None or not is_tied(config):
        return False
    names = (f"{row.head}.weight", f"{row.embed}.weight")
    try:
        found = model_folder.places(folder)
    except CheckpointError:
        return False
    if not all(name in found and found[name].header.dtype in FLOATS for name in names):
        return False
    files = {found[name].file for name in names}
    stamp = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files))
    return _differ(folder, names, stamp)


@lru_cache(maxsize=64)  # config.json is read often, and these two are the largest tensors of small models
def _differ(folder: Path, names: tuple[str, str], stamp: tuple[object, ...]) -> bool:
    """Whether two tensors of one shape differ in values; `stamp` changes when the folder's files do."""
    found = model_folder.places(folder)
    head, embed = (found[name] for name in names)
    if head.header.shape != embed.header.shape or _equal(head, embed):
        return False
    progress(
        f"base   {names[0]} has other values than {names[1]}, to which config.json ties it: it is kept, "
        "as transformers and vLLM do"
    )
    return True


def _equal(one: Place, other: Place) -> bool:
    import numpy

    pairs = zip(_values(one), _values(other), strict=True)
    return all(numpy.array_equal(values, others) for values, others in pairs)


def _values(place: Place) -> "Iterator[numpy.ndarray[Any, Any]]":
    """A tensor's values as float32, PIECE of them at a time."""
    width, left = WIDTHS[place.header.dtype], place.header.count
    with place.file.open("rb") as file:
        file.seek(place.begin)
        while left:
            read = file.read(width * min(left, PIECE))
            if len(read) < width:
                raise CheckpointError(str(place.file), "became shorter while it was read", "copy or pull it again")
            left -= len(read) // width
            yield decoded(read, place.header.dtype)


def decoded(stored: bytes, dtype: str) -> "numpy.ndarray[Any, Any]":
    """Bytes of a tensor as float32; `dtype` is one of FLOATS, in safetensors' words."""
    import numpy

    whole = stored[: len(stored) // WIDTHS[dtype] * WIDTHS[dtype]]
    if dtype == "BF16":  # the upper half of a float32
        return (numpy.frombuffer(whole, "<u2").astype("<u4") << 16).view("<f4")
    return numpy.frombuffer(whole, {"F16": "<f2", "F32": "<f4"}[dtype]).astype("<f4", copy=False)
