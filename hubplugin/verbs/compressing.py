"""The verbs that plan and make variants, and judge and describe finished ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubplugin import interrupt
from hubplugin.verbs.application import OUT, AsJson, Manifest, Variants, app, let_idle_threads_sleep

if TYPE_CHECKING:
    from hubplugin.manifest.schema import Document
    from hubplugin.plan.draft import Plan


@app.command("plan")
def _plan(manifest: Manifest, as_json: AsJson = False) -> None:
    """Sizes, memory, time and whether vLLM loads it; reads no weights.

    Example: hubplugin plan manifests/demo.yaml
    """
    with interrupt.held():
        from hubplugin import memory
        from hubplugin.manifest.reading import loading
        from hubplugin.plan import draft, table

    planned = _planned(loading.load(manifest))
    # planning takes little of what a run has: what is free now is what it will find
    print(json.dumps(draft.as_json(planned), indent=1) if as_json else table.render(planned, memory.available()))


def _planned(document: "Document") -> "Plan":
    """From config.json, card and safetensors headers alone, remote or local.

    What publishing would refuse, and what transformers would refuse to build, is said before any work.
    """
    with interrupt.held():
        from hubplugin.hub import snapshots
        from hubplugin.hub.publishing import publish
        from hubplugin.plan import planner

    peek = snapshots.peek(document.manifest.model, document.folder)
    planned = planner.make(document, peek.config, peek.tensors, revision=peek.sha)
    notes = publish.preflight(document, peek)  # like all that needs no torch, before it is loaded
    let_idle_threads_sleep()
    with interrupt.held():
        from hubplugin.model.construction import buildable

    buildable.check(planned.config, planned.family, f"{document.manifest.model}: config.json")
    return replace(planned, notes=(*planned.notes, *notes))


@app.command("run")
def _run(
    manifest: Manifest,
    out: Variants = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Make only this variant; may be repeated.", show_default="all")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The base's commit, branch or tag.", show_default="as the manifest says")
    ] = None,
) -> None:
    """Pull, calibrate, compress, export, evaluate, gate, write cards.

    Prints the folder of each variant. Started again, it goes on where it was interrupted.

    Example: hubplugin run manifests/demo.yaml --out out/demo
    """
    with interrupt.held():
        from hubplugin.manifest.reading.narrowing import narrowed

    _on_variants(
        manifest,
        out,
        lambda pipeline, *given: pipeline.run(*given),
        lambda document: narrowed(document, only or (), revision),
    )


@app.command("gate")
def _gate(manifest: Manifest, out: Variants = None) -> None:
    """Check finished variants again, and write their reports and cards.

    Everything that holds of a finished folder is checked anew, by the manifest's present thresholds.
    Compresses nothing.

    Example: hubplugin gate manifests/demo.yaml
    """
    _on_variants(manifest, out, lambda pipeline, *given: pipeline.judge(*given, thorough=True))


@app.command("card")
def _card(manifest: Manifest, out: Variants = None) -> None:
    """Write reports and cards of finished variants anew, after an edit.

    Of the gate only the thresholds are looked at again, and measured is only what the manifest measures otherwise than
    before. Compresses nothing.

    Example: hubplugin card manifests/demo.yaml
    """
    _on_variants(manifest, out, lambda pipeline, *given: pipeline.judge(*given, thorough=False))


def _on_variants(
    manifest: Path,
    out: Path | None,
    work: Callable[..., object],
    narrow: "Callable[[Document], Document]" = lambda document: document,
) -> None:
    """Plan, have the pipeline do its work, and print the folder of each variant."""
    with interrupt.held():
        from hubplugin.manifest.reading import loading

    document = narrow(loading.load(manifest))
    planned = _planned(document)  # whatever the manifest gets wrong is said before the pipeline is loaded
    with interrupt.held():
        from hubplugin import pipeline
        from hubplugin.evaluation import engine_choice

    folder = out or OUT / manifest.stem
    work(pipeline, document, planned, folder, engine_choice.generate, engine_choice.take_turn)
    for name in document.manifest.variants:
        print(folder / name)
