"""The verbs that plan and make variants, and judge and describe finished ones."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubplugin import api, interrupt
from hubplugin.errors import HubPluginError
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
    manifests: Annotated[
        list[Path],
        typer.Argument(
            metavar="MANIFEST...", help="YAML file: a model and its variants. With --ray several, and folders of them."
        ),
    ],
    out: Variants = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Make only this variant; may be repeated.", show_default="all")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The base's commit, branch or tag.", show_default="as the manifest says")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Make the variants as tasks of a Ray cluster: auto (RAY_ADDRESS, or the one this machine is a node "
            "of), HOST:PORT, or local (one of this machine alone).",
            show_default="here, one after the other",
        ),
    ] = None,
    cpus_per_variant: Annotated[
        int | None, typer.Option(min=1, help="CPUs of a task on Ray.", show_default="a node's, shared")
    ] = None,
) -> None:
    """Pull, calibrate, compress, export, evaluate, gate, write cards.

    Prints the folder of each variant. Started again, it goes on where it was interrupted.

    Example: hubplugin run manifests/demo.yaml --out out/demo
    """
    if ray is not None:
        _run_on_ray(manifests, out=out, only=only or (), revision=revision, address=ray, cpus=cpus_per_variant)
        return
    manifest = _alone(manifests, cpus_per_variant)
    _print_folders(api.run(manifest, out=out, only=only or (), revision=revision), api.folder(manifest, out))


def _alone(manifests: Sequence[Path], cpus_per_variant: int | None) -> Path:
    """The one manifest of a run on this machine. Raises HubPluginError for what goes with --ray only."""
    for asked, what in (
        (len(manifests) > 1, "several manifests are run on Ray only"),
        (manifests[0].is_dir(), f"{manifests[0]} is a folder, whose manifests are run on Ray only"),
        (cpus_per_variant is not None, "--cpus-per-variant is for a run on Ray"),
    ):
        if asked:
            raise HubPluginError("hubplugin run", what, "add --ray local for this machine, or --ray auto for a cluster")
    return manifests[0]


def _run_on_ray(
    manifests: Sequence[Path],
    *,
    out: Path | None,
    only: Sequence[str],
    revision: str | None,
    address: str,
    cpus: int | None,
) -> None:
    """Prints the folders of variants that passed. Raises ClusterError at the end where one did not."""
    outcomes = api.run_on_ray(manifests, address=address, out=out, only=only, revision=revision, cpus_per_variant=cpus)
    with interrupt.held():
        from hubplugin.cluster import outcome

    for each in outcomes:
        if each.passed:
            print(each.folder)
    sys.stdout.flush()
    outcome.refuse_failed(outcomes)


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
