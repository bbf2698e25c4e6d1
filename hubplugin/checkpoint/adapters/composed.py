"""A model's folder with an adapter in it: for as long as somebody looks at both as one model. Knows files alone."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubplugin.checkpoint import model_folder

INSIDE = ".adapter"  # the folder in it that is the adapter


@contextmanager
def composed(parent: Path, adapter: Path) -> Iterator[Path]:
    """A folder with links to the files of a model, and to an adapter beside them; it is gone afterwards.

    Whoever reads weights through a DenseView sees the adapter added to them.
    """
    with tempfile.TemporaryDirectory(prefix="hubplugin-with-adapter-") as name:
        place = Path(name)
        for file in model_folder.listing(parent):
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).symlink_to((parent / file).resolve())
        (place / INSIDE).symlink_to(adapter.resolve(), target_is_directory=True)
        yield place


def inside(folder: Path) -> Path | None:
    """The adapter in a folder that `composed` has made; None in any other."""
    return found if (found := folder / INSIDE).is_dir() else None
