"""What a plan knows of a base model: its config.json, its family's row, its sizes and the headers of its tensors.

Also of a folder that an earlier pass writes, which is the base of the next. Knows no manifest and no method.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubplugin.checkpoint.headers import Header
from hubplugin.model.architectures import architecture, configs, families
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.plan import sizes


@dataclass(frozen=True)
class Base:
    """What all variants of a plan share."""

    family: Family
    config: dict[str, Any]  # config.json, completed
    dims: Dimensions
    tensors: dict[str, Header]  # of the forward pass; stored tensors that no forward pass reads are dropped
    bytes: int  # of all stored tensors, dropped ones too

    @property
    def model_type(self) -> str:
        """The word of config.json."""
        return str(self.config["model_type"])

    @property
    def parameters(self) -> int:
        """Logical weights, tied embeddings once."""
        return sum(header.count for header in self.tensors.values())

    @property
    def linear_parameters(self) -> int:
        """Weights of the linears inside the blocks."""
        return sizes.linear_parameters(self.family, self.dims)

    @property
    def outside_linears(self) -> int:
        """Parameters outside the linears that pruning works on."""
        return self.parameters - self.linear_parameters


@dataclass(frozen=True)
class Named:
    """A model that a step names beside the manifest's base, as it was found."""

    config: dict[str, Any]
    tensors: dict[str, Header]
    revision: str | None  # commit; None for a folder


def read(model: str, family: Family, config: Mapping[str, Any], tensors: Mapping[str, Header]) -> Base:
    """The facts of a model folder, checked against one another. Raises PlanError where config and headers differ."""
    dims = architecture.dimensions(config, family, f"{model}/config.json")
    used = architecture.check(tensors, architecture.expected(config, family, dims), family, model)
    whole = configs.completed(config, family, used[f"{family.embed}.weight"].dtype)
    return Base(family, whole, dims, used, sum(header.bytes for header in tensors.values()))


def family_of(base: Base, config: dict[str, Any], where: str) -> Family:
    """The row of a variant's config.json: the base's, unless pruning has left its class."""
    return base.family if config["model_type"] == base.model_type else families.match(config, where)
