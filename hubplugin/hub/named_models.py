"""Models that distill steps name beside the base: what their headers say, and whether their tokens are the same.

Knows manifests, folders and repos. Reads no weight.
"""

from hubplugin.hub import published
from hubplugin.hub.published import BaseFiles
from hubplugin.manifest.methods import distillation_of
from hubplugin.manifest.schema import Document
from hubplugin.plan.base import Named
from hubplugin.plan.checks.training import tokenizers

TOKENIZER = "tokenizer.json"


def look_at(document: Document) -> dict[str, BaseFiles]:
    """Every model that a distill step of a manifest names, by that name.

    Raises HubError as `snapshots.peek` does, and PlanError where tokens are others than a step needs.
    """
    found: dict[str, BaseFiles] = {}
    base = document.manifest.model
    for variant, steps in document.manifest.variants.items():
        step = distillation_of(steps)
        if step is None:
            continue
        place = f"{document.path}: variants.{variant}[{list(steps).index(step)}]"
        for name in (step.student, step.teacher):
            if name is not None and name not in found:
                found[name] = published.base(name, document.folder)
        if step.student:
            fix = "use a student of the base's own family; or write it as model, and learn from the base's answers"
            _check(document, found, (step.student, base), f"{place}.student", fix)
        if step.teacher and step.reads_predictions:
            fix = "use a teacher of the student's own family, or learn from its answers, with answers: {}"
            _check(document, found, (step.teacher, step.student or base), f"{place}.teacher", fix)
    return found


def facts(found: dict[str, BaseFiles]) -> dict[str, Named]:
    """What a plan knows of them."""
    return {name: Named(one.peek.config, one.peek.tensors, one.peek.sha) for name, one in found.items()}


def _check(document: Document, found: dict[str, BaseFiles], names: tuple[str, str], place: str, fix: str) -> None:
    texts = [(found.get(name) or published.base(name, document.folder)).text(TOKENIZER) for name in names]
    if texts[0] is not None and texts[0] == texts[1]:
        return
    one, other = (tokenizers.read(text, name, place) for text, name in zip(texts, names, strict=True))
    one.check_same(other, place, fix)
