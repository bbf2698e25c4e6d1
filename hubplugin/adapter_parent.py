"""An adapter and the variant that it is for: run as one model, and named as the manifest publishes it.

Knows folders, a plan and a manifest's repos. Measures nothing.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from hubplugin.checkpoint.adapters import composed, peft_folder
from hubplugin.manifest.publish import MAIN
from hubplugin.manifest.schema import Manifest
from hubplugin.plan.variant_plan import VariantPlan


def together(variant: VariantPlan, folder: Path) -> AbstractContextManager[Path]:
    """A variant's folder as a model that can be run: of an adapter with the variant that it is for."""
    if variant.adapter is None:
        return nullcontext(folder)
    return composed.composed(folder.parent / variant.adapter.parent.name, folder)


def name(manifest: Manifest, variant: VariantPlan, folder: Path) -> None:
    """Let an adapter name the variant that it is for as the manifest publishes it, else by its folder."""
    if variant.adapter:
        parent = variant.adapter.parent.name
        branch = manifest.branch_of(parent)
        base = manifest.repo_of(parent) if manifest.publish else parent
        peft_folder.stands_beside(folder, base, None if branch == MAIN else branch)
