"""A document for a part of its variants, or for a base at a commit: what `run --only --revision` asks for.

The text stays the whole manifest's: it is what reports and cards hold.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hubplugin.errors import ManifestError
from hubplugin.manifest import model_name
from hubplugin.manifest.methods import adapting_of
from hubplugin.manifest.schema import Document


def narrowed(document: Document, only: Sequence[str] = (), revision: str | None = None) -> Document:
    """The document with the variants that are named (none: all), and its base at a revision (None: as it is written).

    With an adapter comes the variant that it is for. Raises ManifestError for a name that no variant has, and for a
    revision of a local folder.
    """
    manifest = document.manifest
    changes: dict[str, Any] = {}
    for name in only:
        if name not in manifest.variants:
            near = difflib.get_close_matches(name, list(manifest.variants), n=1) or list(manifest.variants)[:1]
            what = "no variant of this manifest has this name"
            raise ManifestError(f"{document.path}: {name}", what, f"did you mean `{near[0]}`?")
    if only:
        steps = [adapting_of(manifest.variants[name]) for name in only]
        kept = {*only, *(step.of for step in steps if step)}
        changes["variants"] = {name: steps for name, steps in manifest.variants.items() if name in kept}
    if revision is not None:
        if (document.folder / Path(manifest.model).expanduser()).is_dir() and not model_name.cached_snapshot(
            manifest.model
        ):
            what = "the model is a local folder, which has no revisions"
            raise ManifestError(f"{document.path}: model", what, "leave --revision out, or name a repo of the Hub")
        changes["model"] = f"{model_name.repo(manifest.model)}@{revision}"
    return document.model_copy(update={"manifest": manifest.model_copy(update=changes)}) if changes else document
