"""Resolves what `serve` is given (folders, repo ids, manifests with or without variants) to models in folders.

Knows manifests, reports and the Hub. Knows no engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hubplugin import report
from hubplugin.errors import CheckpointError, ServeError
from hubplugin.evaluation import metrics
from hubplugin.hub import snapshots
from hubplugin.manifest.model_name import cached_snapshot
from hubplugin.manifest.reading import loading
from hubplugin.manifest.reading.yaml_file import ENDINGS
from hubplugin.manifest.serving import Serving
from hubplugin.progress import progress
from serve.endpoint.companions.adapters import CONFIG, Adapter


@dataclass(frozen=True)
class Found:
    """A model in a folder."""

    folder: Path
    name: str  # that requests carry
    facts: dict[str, Any] = field(default_factory=dict)  # of its report: base, sizes and quality by the metrics' keys
    variant: str | None = None  # of a manifest
    serving: Serving = field(default_factory=Serving)  # of a manifest
    adapters: tuple[Adapter, ...] = ()  # the manifest's that are for it


def find(target: str, variants: Sequence[str] = (), out: Path | None = None) -> list[Found]:
    """The models of a target: one of a folder or a repo, of a manifest the base and every variant that is made, or
    those that are named. Raises ServeError, CheckpointError or HubError where there is none."""
    path = Path(target)
    if path.suffix in ENDINGS:
        return _of_manifest(path, variants, out or Path("out") / path.stem)
    if variants:
        raise ServeError(f"--variant {variants[0]}", f"{target} is no manifest", "give a manifest, or leave it out")
    if path.is_dir():
        if not (path / "config.json").is_file() and (path / CONFIG).is_file():
            fix = f"serve the model that it stands beside, with --lora {target}"
            raise ServeError(target, "is a LoRA adapter, no model", fix)
        if not (path / "config.json").is_file():
            raise ServeError(target, "holds no config.json", "give the folder of a model")
        cached = cached_snapshot(path.resolve())
        return [Found(path, cached[0] if cached else path.resolve().name, facts(path))]
    folder = snapshots.pull(target, Path.cwd()).path
    return [Found(folder, target.split("@")[0], facts(folder))]


def facts(folder: Path) -> dict[str, Any]:
    """What the report in a folder says, for those who choose between models; nothing where there is no report."""
    try:
        own = report.read(folder)
    except CheckpointError:
        return {}
    sizes = {row.key: row.value(own.sizes, own.sizes_base) for row in metrics.SIZES}
    measured = own.evaluation
    quality = {row.key: row.value(measured.variant, measured.base) for row in metrics.QUALITY} if measured else {}
    known = {key: value for key, value in {**sizes, **quality}.items() if value is not None}
    return {"parent": own.base.repo, "bytes": own.sizes.safetensors_bytes, **known}


def _of_manifest(path: Path, variants: Sequence[str], out: Path) -> list[Found]:
    document = loading.load(path)
    declared, serving = document.manifest.variants, document.manifest.serve
    for name in variants:
        if name not in declared:
            raise ServeError(f"{path}: --variant {name}", "no such variant", f"use one of {', '.join(declared)}")
    if variants:
        made = {name: report.read(out / name) for name in variants}
        parents = {own.adapter.variant: report.read(out / own.adapter.variant) for own in made.values() if own.adapter}
        return _adapted(out, {**parents, **made}, serving)
    model = document.manifest.model
    base = snapshots.pull(model, document.folder)
    found, reports = [Found(base.path, base.repo if base.on_hub else model, serving=serving)], {}
    for name in declared:
        try:
            reports[name] = report.read(out / name)
        except CheckpointError:
            progress(f"{name} | not made yet, so not served; `hubplugin run` makes it")
            continue
    return [*found, *_adapted(out, reports, serving)]


def _adapted(out: Path, reports: Mapping[str, report.Report], serving: Serving) -> list[Found]:
    """The variants of these reports, each with the adapters among them that are for it."""
    beside: dict[str, list[Adapter]] = {}
    for name, own in reports.items():
        if own.adapter:
            beside.setdefault(own.adapter.variant, []).append(Adapter(own.model_name, out / name))
    return [
        replace(_variant(out, name, own, serving), adapters=tuple(beside.get(name, ())))
        for name, own in reports.items()
        if not own.adapter
    ]


def _variant(out: Path, name: str, own: report.Report, serving: Serving) -> Found:
    return Found(out / name, own.model_name, facts(out / name), name, serving)
