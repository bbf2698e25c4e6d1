"""What the functions of the Python API begin with: a manifest that is read, a plan that is made, a token in its place.

Knows where things stand: manifests, variants' folders, the base. Makes no variant.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubplugin import interrupt
from serve import idle_threads

if TYPE_CHECKING:
    from hubplugin.hub.client import Token
    from hubplugin.manifest.schema import Document
    from hubplugin.plan.draft import Plan

AnyPath = str | os.PathLike[str]
Manifest = AnyPath | Mapping[str, Any]

OUT = Path("out")


def document(manifest: Manifest) -> "Document":
    """The manifest, read and checked. Raises ManifestError."""
    with interrupt.held():
        from hubplugin.manifest.reading import loading

    return loading.from_mapping(manifest) if isinstance(manifest, Mapping) else loading.load(Path(manifest))


def folder(manifest: Manifest, out: AnyPath | None = None) -> Path:
    """Where its variants are: `out`, else out/<the file's name>, of a mapping out/<the model's name>.

    Raises ManifestError for a mapping that is no manifest.
    """
    if out is not None:
        return Path(out)
    if not isinstance(manifest, Mapping):
        return OUT / Path(manifest).stem
    with interrupt.held():
        from hubplugin.manifest import model_name

    return OUT / Path(model_name.repo(document(manifest).manifest.model)).resolve().name


def acting_for(token: "Token") -> AbstractContextManager[None]:
    """Requests inside the block carry this token; None leaves them as they are."""
    if token is None:
        return nullcontext()
    with interrupt.held():
        from hubplugin.hub import client

    return client.acting_for(token)


def planned(asked: "Document", *, reads_text: bool = False) -> "Plan":
    """The plan, from config.json, card and safetensors headers alone, remote or local.

    What publishing would refuse, and what transformers would refuse to build, is said before any work; with
    `reads_text`, which files of text are missing too: what is made already needs them no more.
    """
    with interrupt.held():
        from hubplugin.hub import client, named_models, snapshots
        from hubplugin.hub.publishing import publish as publishing
        from hubplugin.model.construction import verdicts
        from hubplugin.plan import planner
        from hubplugin.plan.checks import sources, tasks

    if reads_text:
        sources.check_files(asked)
    tasks.check_tasks(asked)
    peek = snapshots.peek(asked.manifest.model, asked.folder)
    others = named_models.look_at(asked)
    named = named_models.facts(others)
    made = planner.make(asked, peek.config, peek.tensors, revision=peek.sha, named=named)
    # like all that needs no torch, before it is loaded
    notes = publishing.preflight(asked, peek, [other.peek for other in others.values()])
    idle_threads.let_sleep()
    config = f"{asked.manifest.model}: config.json"
    verdicts.check(made.config, made.family, config, client.assets_folder("built"))
    return replace(made, notes=(*made.notes, *notes))
