"""What checks look at: a published model's files, its report where it has one of ours, its card, and its base.

Each is read when a check first asks for it, so that what cannot be read fails the checks that need it and no others.
"""

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hubplugin import disk, report
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.adapters import composed
from hubplugin.checkpoint.model_folder import INDEX, SINGLE, allowed, read_json
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CheckpointError, FamilyError, HubError, PlanError
from hubplugin.hub import published, signatures, snapshots
from hubplugin.hub.published import BaseFiles, Published
from hubplugin.model.architectures import architecture, families
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.plan import sizes
from hubplugin.report import Report
from hubplugin.verification import claims, stored_linears
from hubplugin.verification.claims import Card
from hubplugin.verification.configured import Configured
from hubplugin.verification.stored_linears import StoredLinear

CONFIG, BESIDE = "config.json", "quantize_config.json"
NO_BASE = "name it with --base"


@dataclass(frozen=True)
class Subject:
    """One published model."""

    files: Published
    report: Report | None  # None: hubplugin did not make it
    base_name: str | None = None  # a repo or folder that was named in place of the one it says it is from
    texts: tuple[Path, ...] = ()  # files that were named in place of those that the manifest evaluates
    public_key: Path | None = None  # of the publisher
    _digests: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def folder(self) -> Path:
        """Where its files are on this disk."""
        return self.files.path

    def sha256(self, name: str) -> str:
        """The digest of one of its files, which is read once."""
        if name not in self._digests:
            self._digests[name] = disk.sha256(self.folder / name)
        return self._digests[name]

    @cached_property
    def card(self) -> Card:
        """README.md."""
        return claims.card(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Raises CheckpointError where it cannot be read."""
        return _json(self.folder / CONFIG)

    @cached_property
    def beside(self) -> Configured | None:
        """quantize_config.json, which AutoGPTQ's format may have; None where there is none."""
        path = self.folder / BESIDE
        return Configured(_json(path), BESIDE) if path.is_file() else None

    @cached_property
    def quantization(self) -> Configured | None:
        """What loaders obey; None: they take the model for a dense one."""
        entries = self.config.get("quantization_config") or self.config.get("compression_config")  # the former name
        return Configured(entries, CONFIG) if isinstance(entries, dict) else self.beside

    @cached_property
    def reader(self) -> Reader:
        """The weights. Raises CheckpointError where a file is missing or damaged."""
        names = [name for name in self.files.names if allowed(name, (published.SAFETENSORS,))]
        usual = SINGLE in names or INDEX in self.files.names
        return Reader(self.folder, None if usual else names)

    @cached_property
    def family(self) -> Family | None:
        """The row of its model_type; None where there is none, and its linears are known by their tensors alone."""
        try:
            return families.match(self.config, f"{self.files.name}: {CONFIG}")
        except FamilyError:
            return None

    @cached_property
    def dims(self) -> Dimensions | None:
        """The sizes that config.json states; None without a row of families, or where they are no sizes."""
        if self.family is None:
            return None
        try:
            return architecture.dimensions(self.config, self.family, f"{self.files.name}: {CONFIG}")
        except PlanError:
            return None

    @cached_property
    def block_linears(self) -> tuple[str, ...]:
        """Module paths of the linears of all blocks; without a row of families, of what is stored as codes."""
        if self.family and self.dims:
            return tuple(sizes.names(self.family, self.dims))
        return tuple(stored_linears.quantized(self.reader))

    @cached_property
    def linears(self) -> dict[str, StoredLinear]:
        """By module path: the linears of the blocks, and whatever else is stored as codes.

        Raises FormatError for a format that is not known here, CheckpointError for tensors that do not fit theirs.
        """
        names = dict.fromkeys((*self.block_linears, *stored_linears.quantized(self.reader)))
        return {name: stored_linears.read(self.reader, name) for name in names}

    @property
    def quantized(self) -> list[StoredLinear]:
        """The linears that are stored as codes."""
        return [linear for linear in self.linears.values() if linear.codes]

    @cached_property
    def base(self) -> BaseFiles:
        """What it was made from, by headers. Raises HubError where nobody says, or it cannot be read."""
        return published.base(self._base_name(), Path.cwd())

    @cached_property
    def base_folder(self) -> Path:
        """The same with its weights, on this disk. Raises HubError where nobody says where it is."""
        return snapshots.pull(self._base_name(), Path.cwd()).path

    @cached_property
    def parent_folder(self) -> Path:
        """Of an adapter: the folder of the variant that it is for, beside its own or pulled. Raises HubError where
        there is none."""
        assert self.report is not None and self.report.adapter is not None
        said = self.report.adapter
        if (beside := self.folder.parent / said.variant).is_dir():
            return beside
        if said.repo is None:
            what = f"is a folder that does not stand beside {self.files.name}"
            raise HubError(f"variant {said.variant}", what, "verify the adapter where `hubplugin run` has made it")
        return snapshots.pull(f"{said.repo}@{said.branch}" if said.branch else said.repo, Path.cwd()).path

    def together(self) -> AbstractContextManager[Path]:
        """A folder with all weights that its numbers are of: of an adapter, with the variant that it is for."""
        if self.report is None or self.report.adapter is None:
            return nullcontext(self.folder)
        return composed.composed(self.parent_folder, self.folder)

    def _base_name(self) -> str:
        if self.base_name:
            return self.base_name
        if self.report:
            base = self.report.base
            if base.on_hub:
                return f"{base.repo}@{base.revision}" if base.revision else base.repo
            raise HubError(f"base {base.repo}", "is a local folder, and the report does not say where", NO_BASE)
        named = self.card.texts("base_model")
        if len(named) != 1:
            what = "the card names none" if not named else f"the card names {len(named)}"
            raise HubError("base", what, NO_BASE)
        return named[0]


def open_subject(
    target: str, base: str | None = None, texts: Iterable[Path] = (), public_key: Path | None = None
) -> Subject:
    """A folder or repo, ready to be checked.

    Raises HubError where there is nothing to check, or `public_key` is no key, and CheckpointError for a report that
    this release does not read.
    """
    if public_key:
        signatures.check_public_key(public_key)
    files = published.fetch(target)
    ours = _made_by_hubplugin(files.path)
    subject = Subject(files, report.read(files.path) if ours else None, base, tuple(texts), public_key)
    if not ours:
        _check_model(subject, target)
    return subject


def _made_by_hubplugin(folder: Path) -> bool:
    """Whether report.json is one of ours, whatever its version; other tools may use the name too."""
    path = folder / report.FILE_NAME
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return True  # `report.read` says what is wrong with it
    return isinstance(found, dict) and "hubplugin" in found


def _check_model(subject: Subject, target: str) -> None:
    """Raise HubError where what hubplugin did not make is no model whose claims can be checked."""
    names = subject.files.names
    if CONFIG not in names:
        raise HubError(target, f"has no {CONFIG}", "name a repo or folder of a transformers model")
    if not any(allowed(name, (published.SAFETENSORS,)) for name in names):
        pickled = any(allowed(name, model_folder.PICKLES) for name in names)
        what = "its weights are pickles, which can run code" if pickled else "holds no safetensors"
        raise HubError(target, f"{what}; only safetensors are read", "use a repo converted to safetensors")
    read_json(subject.folder / CONFIG, target)
    for configured in (subject.quantization, subject.beside):
        if configured:
            configured.check_known()


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, str(path.parent))
    except HubError as error:
        raise CheckpointError(error.where, error.what, error.fix) from error
