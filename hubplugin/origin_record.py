"""The parts of a report about where a variant comes from: models, and token sequences."""

from hubplugin.record import Record


class Base(Record):
    """The model a variant was made from."""

    repo: str  # Hub id, or the local folder's name
    revision: str | None  # commit sha; None for a local folder
    on_hub: bool
    architecture: str
    model_type: str
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    languages: tuple[str, ...] = ()
    gated: bool = False
    private: bool | None = None  # its repo on the Hub; None: not known
    root: str | None = None  # repo of the model that it was itself made from, all the way, as its own report says


class Tokens(Record):
    """A set of token sequences, described so that anyone can make it again."""

    source: str
    sequences: int
    tokens_per_sequence: int
    seed: int
    sha256: str  # of the int32 token ids, row by row
    dataset: str | None = None  # Hub id, for the card's metadata
    revision: str | None = None  # commit of the dataset
    skipped: int = 0  # rows that could not be used and were left out
