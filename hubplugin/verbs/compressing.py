"""The verbs that plan and make variants, and judge and describe finished ones."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubplugin import api, interrupt
from hubplugin.verbs.application import AsJson, Manifest, Variants, app

if TYPE_CHECKING:
    from hubplugin.report import Report


@app.command("plan")
def _plan(manifest: Manifest, as_json: AsJson = False) -> None:
    """Sizes, memory, time and whether vLLM loads it; reads no weights.

    Example: hubplugin plan manifests/demo.yaml
    """
    with interrupt.held():
        from hubplugin import memory
        from hubplugin.plan import draft, table

    planned = api.plan(manifest)
    # planning takes little of what a run has: what is free now is what it will find
    print(json.dumps(draft.as_json(planned), indent=1) if as_json else table.render(planned, memory.available()))


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
    _print_folders(api.run(manifest, out=out, only=only or (), revision=revision), api.folder(manifest, out))


@app.command("gate")
def _gate(manifest: Manifest, out: Variants = None) -> None:
    """Check finished variants again, and write their reports and cards.

    Everything that holds of a finished folder is checked anew, by the manifest's present thresholds.
    Compresses nothing.

    Example: hubplugin gate manifests/demo.yaml
    """
    _print_folders(api.judge(manifest, out=out), api.folder(manifest, out))


@app.command("card")
def _card(manifest: Manifest, out: Variants = None) -> None:
    """Write reports and cards of finished variants anew, after an edit.

    Of the gate only the thresholds are looked at again, and measured is only what the manifest measures otherwise than
    before. Compresses nothing.

    Example: hubplugin card manifests/demo.yaml
    """
    _print_folders(api.judge(manifest, out=out, thorough=False), api.folder(manifest, out))


def _print_folders(reports: "Iterable[Report]", out: Path) -> None:
    for made in reports:
        print(out / made.variant)
