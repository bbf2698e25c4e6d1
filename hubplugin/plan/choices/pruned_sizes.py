"""How many channels and heads may stay: what a target chooses among, and what a ratio of one kind comes to.

Arithmetic on sizes.
"""

from hubplugin.errors import PlanError
from hubplugin.manifest.steps.prune import Prune
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.plan import sizes

LEVELS = 16  # steps into which a width is cut at least, where its tiles are not larger


def widths(before: int, group: int | None, per_layer: bool) -> tuple[int, ...]:
    """FFN widths that a target may choose among, the base's own last: multiples of a tile and of the group size.

    The tile is 128 where the width has LEVELS of them (twice as many where blocks may differ), else 64 or 32: kernels
    and tensor parallelism like large ones.
    """
    levels = LEVELS * 2 if per_layer else LEVELS
    tile = next((size for size in (sizes.WIDTH_TILE, 64) if before >= levels * size), sizes.SMALL_TILE)
    unit = sizes.width_unit(tile, group)
    return (*range(unit, before, unit), before)


def heads(base: Dimensions, group: int | None) -> tuple[tuple[int, int], ...]:
    """(query heads, KV heads) that a target may choose among, the base's own last.

    Fewer KV groups with all of their query heads, or equally fewer query heads in all groups, such that the inputs of
    o_proj are multiples of the group size.
    """
    per_group = base.heads // base.kv_heads
    choices = [(per_group * kept, kept) for kept in range(1, base.kv_heads)]
    choices += [(base.kv_heads * kept, base.kv_heads) for kept in range(1, per_group)]
    whole_groups = [choice for choice in choices if not group or choice[0] * base.head_dim % group == 0]
    return (*whole_groups, (base.heads, base.kv_heads))


def kept_heads(prune: Prune, dims: Dimensions, group: int, where: str) -> tuple[int, int]:
    """(query heads, KV heads) that stay. Raises PlanError where no count is near the ratio."""
    per_group, kv_heads = dims.heads // dims.kv_heads, dims.kv_heads
    if prune.kv_heads is not None:
        kv_heads = _kept(prune.kv_heads, kv_heads, per_group * dims.head_dim, group, f"{where}.kv_heads", "KV groups")
    if prune.heads is not None:
        inside = "query heads of a KV group"
        per_group = _kept(prune.heads, per_group, kv_heads * dims.head_dim, group, f"{where}.heads", inside)
    return kv_heads * per_group, kv_heads


def _kept(ratio: float, count: int, columns: int, group: int, where: str, what: str) -> int:
    """How many of `count` stay, the nearest to the ratio such that o_proj's inputs are whole groups."""
    fits = [kept for kept in range(1, count) if kept * columns % group == 0]
    if not fits:
        raise PlanError(
            where, f"there are {count} {what}, and none can go", "prune ffn or layers, or another group_size"
        )
    return min(fits, key=lambda kept: (abs(kept - count * (1 - ratio)), -kept))


def kept_ffn(ratio: float, group: int | None, before: int, where: str) -> int:
    """The pruned FFN width. Raises PlanError where no allowed width is near the ratio."""
    kept = sizes.kept_width(before, ratio, group)
    if kept is not None:
        return kept
    unit = sizes.width_unit(sizes.SMALL_TILE, group)
    fits = [near for near in sizes.RATIOS if sizes.kept_width(before, near, group)]
    if not fits:
        raise PlanError(
            where,
            f"no multiple of {unit} below {before} FFN channels is left to keep",
            "prune a wider model, or quantize alone",
        )
    count = "none" if ratio < fits[0] else "all"
    raise PlanError(
        where,
        f"{ratio:g} of {before} FFN channels rounds to {count} of them: widths are multiples of {unit}",
        f"use a ratio from {fits[0]:g} to {fits[-1]:g}",
    )
