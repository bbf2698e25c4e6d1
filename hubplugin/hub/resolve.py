"""Resolves what `serve` is given (a folder, a repo id, a manifest with or without a variant) to a folder.

Knows manifests, reports and the Hub. Knows no engine.
"""

from pathlib import Path

from hubplugin import report
from hubplugin.errors import ServeError
from hubplugin.hub import snapshots
from hubplugin.manifest.model_name import cached_snapshot
from hubplugin.manifest.reading import loading


def find(target: str, variant: str | None, out: Path | None) -> tuple[Path, str]:
    """The folder and the model name to serve it under. Raises ServeError or HubError where there is none."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return _of_manifest(path, variant, out or Path("out") / path.stem)
    if variant:
        raise ServeError(f"--variant {variant}", f"{target} is no manifest", "give a manifest, or leave --variant out")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ServeError(target, "holds no config.json", "give the folder of a model")
        cached = cached_snapshot(path.resolve())
        return path, cached[0] if cached else path.resolve().name
    return snapshots.pull(target, Path.cwd()).path, target.split("@")[0]


def _of_manifest(path: Path, variant: str | None, out: Path) -> tuple[Path, str]:
    document = loading.load(path)
    if variant is None:
        model = document.manifest.model
        base = snapshots.pull(model, document.folder)
        return base.path, base.repo if base.on_hub else model
    if variant not in document.manifest.variants:
        known = ", ".join(document.manifest.variants)
        raise ServeError(f"{path}: --variant {variant}", "no such variant", f"use one of {known}")
    folder = out / variant
    return folder, report.read(folder).model_name
