"""The verbs that publish variants, show them on a page, and hold what is published against its tensors."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hubplugin import api, interrupt
from hubplugin.verbs.application import AsJson, Manifest, Variants, app


@app.command("publish")
def _publish(
    manifest: Manifest,
    out: Variants = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite what others have changed in the repos since our last commit.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent, and change nothing on the Hub.")
    ] = False,
) -> None:
    """One commit per variant that passed its gate, and a collection.

    What others changed in a repo since our last commit is shown, and stays. Prints the URL of each; of a dry run one
    line per file: repo, what becomes of it, bytes to send, path. The Hub's token is taken from HF_TOKEN, or as `hf auth
    login` left it.

    Example: hubplugin publish manifests/demo.yaml
    """
    if not dry:
        for pushed in api.publish(manifest, out=out, force=force):
            print(pushed.url)
        return
    with interrupt.held():
        from hubplugin.hub.publishing import publish

    # line by line: what stands in the way of publishing is raised after the last one
    for line in publish.dry_run(api.document(manifest), api.folder(manifest, out), force):
        print(line)


@app.command("verify")
def _verify(
    target: Annotated[str, typer.Argument(metavar="REPO|FOLDER", help="A published model, anybody's.")],
    base: Annotated[str | None, typer.Option(help="Repo or folder of its base, in place of what it names.")] = None,
    quality: Annotated[bool, typer.Option("--quality", help="Measure perplexity, KL and the rest again.")] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Time base and variant in vLLM again.")] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A text that its manifest evaluates, in its order; for --quality."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The publisher's public key (PEM), which the signature must be by."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what card, report and configuration claim against the tensors; ends with 1 where a claim is false.

    Example: hubplugin verify out/demo/GPTQ-Int8
    """
    found = api.verify(target, base=base, quality=quality, speed=speed, texts=text or (), public_key=public_key)
    print(found.json_text() if as_json else found.text())
    raise typer.Exit(int(not found.holds))


@app.command("report")
def _report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of variants, or variants' own folders.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page's file.", show_default="report.html in the first folder")
    ] = None,
) -> None:
    """All variants of one or several runs on one HTML page, which needs nothing beside it.

    Where two folders hold a variant of the same name, the page lists every figure that differs. A variant whose report
    cannot be read is named on the page and on stderr, and the others are shown. Prints the page's path.

    Example: hubplugin report out/demo
    """
    with interrupt.held():
        from hubplugin.evaluation.pages import files

    for damaged in files.write(folders, path := files.place(folders, out)):
        print(f"not on the page: {damaged.error}", file=sys.stderr)
    print(path)
