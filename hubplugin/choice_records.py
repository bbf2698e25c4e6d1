"""The parts of a report about what measurements decided before anything was compressed: bits, ranks, and shapes."""

from hubplugin.record import Record


class AllocatedUnit(Record):
    """What a budget chose for linears that share one scheme."""

    name: str
    bits: int
    group_size: int
    symmetric: bool
    bytes: int  # of codes, scales and all
    loss: float  # as in LinearResult, on the base's own inputs
    kl: float  # nats per token, that this unit alone is predicted to cost


class Allocation(Record):
    """How a budget was spent, before anything was compressed."""

    predicted_kl: float  # nats per token, the sum over units
    tokens: int  # that every unit was tried alone on
    units: tuple[AllocatedUnit, ...]


class RankedGroup(Record):
    """What a rank search chose for linears that read one input."""

    name: str
    ranks: tuple[int | None, ...]  # by linear of the name; None: it stays dense
    shared: bool  # one A for all of them
    weights: int  # of all of them, as factors or dense
    loss: float  # what the ranks leave out of tr(W (H + damping) W^T), on the base's own inputs
    kl: float  # nats per token, that this group alone is predicted to cost


class Ranking(Record):
    """How the weights that a ratio leaves were spread, before anything was factored."""

    predicted_kl: float  # nats per token, the sum over groups
    tokens: int  # that every group was tried alone on
    groups: tuple[RankedGroup, ...]  # of those that some rank makes smaller


class Removal(Record):
    """A layer or sublayer that was removed, and the KL after it."""

    block: int  # of the base
    what: str  # "layer", or the sublayer's name
    kl: float  # nats per token, KL(base || model without it and without what was removed before)


class PrunedBlock(Record):
    """The shape of a block of the variant."""

    source: int  # the block of the base
    heads: int  # query heads; 0: no attention
    kv_heads: int
    ffn: int  # channels; 0: no FFN


class Shaping(Record):
    """What pruning removed, where the manifest left the choice to measurements, before anything was refitted."""

    predicted_kl: float  # nats per token
    tokens: int  # that changes were tried on
    removed: tuple[Removal, ...]  # in the order of removal
    blocks: tuple[PrunedBlock, ...]
