"""The part of a report about an adapter: the variant that it is for, and what it alone weighs."""

from typing import Any

from hubplugin.record import Record


class AdapterOf(Record):
    """What an adapter stands beside: another variant of the same manifest, whose folder holds all other weights."""

    variant: str
    repo: str | None  # where the manifest publishes it
    branch: str | None  # of that repo; None: main
    rank: int
    parameters: int  # weights of the adapter alone
    bytes: int  # of its weights' file
    weights: dict[str, str]  # name -> sha256 of the weight files that it was made for and measured with
    steps: tuple[dict[str, Any], ...]  # of the other variant
