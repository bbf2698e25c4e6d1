"""What a visitor chose on the page, and the manifest that says the same.

Knows what may be named: a model of the Hub, and no path, host or dataset. Knows no page, no disk and no network.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from hubplugin.errors import ManifestError
from hubplugin.manifest.publish import is_ref

QUANTIZE, PRUNE, BOTH = "GPTQ", "Pruning", "Pruning, then GPTQ"
METHODS = (QUANTIZE, PRUNE, BOTH)
BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128, -1)
OWN, TEXT = "The model's own samples", "A text file"
CALIBRATIONS = (OWN, TEXT)
MOST_SAMPLES, LONGEST = 512, 4096  # what one visitor may take of a machine that many share
EVALUATED = 32  # sequences, at most
TEXT_NAME = "calibration.txt"  # of the visitor's text beside the manifest, whatever it was called

NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?"
REPO = re.compile(rf"{NAME}/{NAME}", re.ASCII)
OWNER = re.compile(NAME, re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The page's options, as a visitor left them."""

    model: str = ""
    method: str = QUANTIZE
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    ratio: float = 0.2
    calibration: str = OWN
    samples: int = 64
    sequence_length: int = 512
    owner: str = ""  # of the repo to publish to; empty: nothing is published
    private: bool = True
    accept_license: bool = False

    @property
    def wants_text(self) -> bool:
        """Whether a text file decides what is kept exact."""
        return self.calibration == TEXT

    @property
    def variant(self) -> str:
        """The variant's name, such as Pruned-20-GPTQ-Int4."""
        pruned = [f"Pruned-{round(100 * self.ratio)}"] if self.method in (PRUNE, BOTH) else []
        quantized = [f"GPTQ-Int{self.bits}"] if self.method in (QUANTIZE, BOTH) else []
        return "-".join(pruned + quantized)

    def manifest(self) -> dict[str, Any]:
        """The manifest as a mapping. Raises ManifestError for what no visitor may ask for."""
        self._check()
        tokens = {"samples": self.samples, "sequence_length": self.sequence_length}
        evaluated = {"self": True, "seed": 1, **tokens, "samples": min(self.samples, EVALUATED)}
        asked: dict[str, Any] = {
            "model": self.model.strip(),
            "calibrate": {**({"files": [TEXT_NAME]} if self.wants_text else {"self": True}), **tokens},
            "variants": {self.variant: self._steps()},
            "evaluate": {"perplexity": evaluated},
        }
        if self.owner.strip():
            accepted = {"accept_license": True} if self.accept_license else {}
            repo = f"{self.owner.strip()}/{{model}}-{{variant}}"
            asked["publish"] = {"repo": repo, "private": self.private, **accepted}
        return asked

    def text(self) -> str:
        """The manifest as YAML. Raises ManifestError like `manifest`."""
        return yaml.safe_dump(self.manifest(), sort_keys=False, default_flow_style=None, width=100)

    def _steps(self) -> list[Mapping[str, Any]]:
        grid = {"bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric}
        pruned = [{"method": "prune", "ratio": round(self.ratio, 2)}] if self.method in (PRUNE, BOTH) else []
        quantized = [{"method": "gptq", **grid}] if self.method in (QUANTIZE, BOTH) else []
        return [*pruned, *quantized]

    def _check(self) -> None:
        repo, at, revision = self.model.strip().partition("@")
        if not REPO.fullmatch(repo) or ".." in repo or "--" in repo or (at and not _is_revision(revision)):
            shown = "".join(letter for letter in self.model[:120] if letter.isprintable())
            what = f"{shown!r} is no model of the Hub" if shown.strip() else "no model is named"
            raise ManifestError("model", what, "write owner/name or owner/name@revision, as on the model's page")
        if self.owner.strip() and (not OWNER.fullmatch(self.owner.strip()) or ".." in self.owner):
            raise ManifestError("publish to", "is no name of a user or an organization", "write it as on your page")
        for name, value, known in (
            ("method", self.method, METHODS),
            ("bits", self.bits, BITS),
            ("group size", self.group_size, GROUP_SIZES),
            ("calibration", self.calibration, CALIBRATIONS),
        ):
            if value not in known:
                raise ManifestError(name, f"{value!r} is none of the choices", "choose one of the page")
        for name, number, least, most in (
            ("ratio to remove", self.ratio, 0.05, 0.6),
            ("sequences", self.samples, 1, MOST_SAMPLES),
            ("tokens per sequence", self.sequence_length, 16, LONGEST),
        ):
            if not isinstance(number, int | float) or not least <= number <= most:
                raise ManifestError(name, f"{number!r} is not from {least} to {most}", "choose another number")


def _is_revision(name: str) -> bool:
    """Whether a base's revision is a branch, a tag or a commit."""
    return bool(re.fullmatch(r"[0-9a-f]{7,40}", name)) or is_ref(name)
