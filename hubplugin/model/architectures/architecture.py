"""What a config.json promises: every tensor by name and shape, checked against safetensors headers.

It knows names and shapes alone: no manifest, no method, no weights, no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hubplugin.checkpoint.headers import FLOATS, Header
from hubplugin.errors import PlanError
from hubplugin.model.architectures import configs
from hubplugin.model.architectures.families import Family, Sublayer

ROTARY = "rotary_emb.inv_freq"  # how names of tables end that old checkpoints store and every engine computes
LARGEST = {"num_hidden_layers": 4096}  # every layer becomes names; a file from elsewhere must not ask for 10^9


@dataclass(frozen=True)
class BlockShape:
    """What may differ from block to block. 0 heads: it has no attention; 0 channels: no FFN."""

    heads: int
    kv_heads: int
    ffn: int


@dataclass(frozen=True)
class Dimensions:
    """The sizes a config.json names, under one name each in all families."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int | None  # the longest sequence the positions allow; None where nothing says
    tied: bool  # the output head is the embedding
    experts: int = 0  # in each block, each of `ffn` channels; 0: one MLP
    blocks: tuple[BlockShape, ...] = ()  # where blocks differ: each one's

    def at(self, index: int) -> "Dimensions":
        """The sizes as they are in one block."""
        if not self.blocks:
            return self
        own = self.blocks[index]
        return replace(self, heads=own.heads, kv_heads=own.kv_heads, ffn=own.ffn)

    def shapes(self) -> tuple[BlockShape, ...]:
        """Every block's, whether they differ or not."""
        return self.blocks or (BlockShape(self.heads, self.kv_heads, self.ffn),) * self.layers


def dimensions(config: Mapping[str, Any], family: Family, where: str) -> Dimensions:
    """Read and check the sizes. Raises PlanError where one is missing or no such model can be built."""
    config = configs.with_defaults(config)
    heads = _size(config, "num_attention_heads", where)
    hidden = _size(config, "hidden_size", where)
    kv_heads = _size(config, "num_key_value_heads", where, heads)
    head_dim = _size(config, "head_dim", where, family.head_dim or hidden // heads or None)
    if heads % kv_heads:
        raise PlanError(
            f"{where}: num_key_value_heads",
            f"{heads} attention heads do not share {kv_heads} key/value heads evenly",
            "use a model whose num_attention_heads is a multiple of num_key_value_heads",
        )
    if family.whole_heads and hidden % heads:
        raise PlanError(
            f"{where}: num_attention_heads",
            f"transformers refuses a hidden_size of {hidden} with {heads} heads in this family",
            "use a model whose hidden_size is a multiple of its heads",
        )
    tied = config.get("tie_word_embeddings")
    layers = _size(config, "num_hidden_layers", where)
    return Dimensions(
        layers=layers,
        hidden=hidden,
        ffn=_size(config, family.experts.width if family.experts else "intermediate_size", where),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=_size(config, "vocab_size", where),
        context=_size(config, "max_position_embeddings", where) if "max_position_embeddings" in config else None,
        tied=family.tied if tied is None else bool(tied),
        experts=len({input_group.expert for input_group in family.input_groups} - {None}),
        blocks=_blocks(config["block_configs"], layers, heads, where) if config.get("block_configs") else (),
    )


def _blocks(configs: Any, layers: int, heads: int, where: str) -> tuple[BlockShape, ...]:
    """Every block's shape, as DeciLM's `block_configs` names it."""
    found = []
    try:
        for one in configs:
            attention, ffn = one["attention"], one["ffn"]
            own = 0 if attention.get("no_op") else int(attention.get("num_attention_heads") or heads)
            channels = 0 if ffn.get("no_op") else int(ffn["intermediate_size"])
            found.append(BlockShape(own, own // int(attention["n_heads_in_group"]) if own else 0, channels))
    except (TypeError, KeyError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise PlanError(f"{where}: block_configs", f"cannot be understood: {error!r}", _WRITTEN_BY_US) from error
    if len(found) != layers:
        raise PlanError(f"{where}: block_configs", f"names {len(found)} blocks of {layers}", _WRITTEN_BY_US)
    return tuple(found)


_WRITTEN_BY_US = "use a model whose block_configs give n_heads_in_group and intermediate_size, as hubplugin writes them"


def block_configs(sizes: Dimensions) -> list[dict[str, Any]]:
    """Blocks as DeciLM's config.json names them; what `dimensions` reads."""
    return [
        {
            "attention": {
                "no_op": not one.heads,
                "n_heads_in_group": one.heads // one.kv_heads if one.heads else None,
                **({"num_attention_heads": one.heads} if 0 < one.heads < sizes.heads else {}),
            },
            "ffn": {"no_op": not one.ffn, "intermediate_size": one.ffn or None},
        }
        for one in sizes.shapes()
    ]


def _size(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST.get(key, value):
        raise PlanError(f"{where}: {key}", f"{value!r} is not a size", "give the config.json the model was saved with")
    return value


def linear_shapes(family: Family, sizes: Dimensions) -> dict[str, tuple[int, int]]:
    """[outputs, inputs] of every linear of one block, by its path inside the block; of a part it lacks, none."""
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    known = {
        "self_attn.q_proj": (query, sizes.hidden),
        "self_attn.k_proj": (key, sizes.hidden),
        "self_attn.v_proj": (key, sizes.hidden),
        "self_attn.qkv_proj": (query + 2 * key, sizes.hidden),
        "self_attn.o_proj": (sizes.hidden, query),
        "mlp.gate_proj": (sizes.ffn, sizes.hidden),
        "mlp.up_proj": (sizes.ffn, sizes.hidden),
        "mlp.gate_up_proj": (2 * sizes.ffn, sizes.hidden),
        "mlp.down_proj": (sizes.hidden, sizes.ffn),
    }
    if family.experts:
        wide, narrow = (sizes.ffn, sizes.hidden), (sizes.hidden, sizes.ffn)
        inside = {family.experts.gate: wide, family.experts.up: wide, family.experts.down: narrow}
        owned = (
            name
            for input_group in family.input_groups
            if input_group.expert is not None
            for name in input_group.linears
        )
        known |= {name: inside[name.rpartition(".")[2]] for name in owned}
    return {name: known[name] for name in family.linears() if all(known[name])}


def absent(family: Family, sizes: Dimensions) -> tuple[Sublayer, ...]:
    """The parts that a block of these sizes lacks."""
    there = linear_shapes(family, sizes)
    return tuple(part for part in family.sublayers if part.output_projection and part.output_projection not in there)


def biased_linears(config: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """Paths inside the block of the linears that have a bias."""
    keyed = (name for key, names in family.bias_keys if config.get(key) for name in names)
    return (*family.biased, *keyed)


def expected(config: Mapping[str, Any], family: Family, sizes: Dimensions) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, block by block. A tied head is not stored, so not listed."""
    shapes: dict[str, tuple[int, ...]] = {f"{family.embed}.weight": (sizes.vocab, sizes.hidden)}
    biased = biased_linears(config, family)
    for layer in range(sizes.layers):
        block, own = family.block.format(i=layer), sizes.at(layer)
        skipped = {part.norm for part in absent(family, own)}
        for name, shape in linear_shapes(family, own).items():
            shapes[f"{block}.{name}.weight"] = shape
            if name in biased:
                shapes[f"{block}.{name}.bias"] = shape[:1]
        if family.experts:
            shapes[f"{block}.{family.experts.router}.weight"] = (sizes.experts, sizes.hidden)
        shapes.update({f"{block}.{name}.weight": (sizes.hidden,) for name in family.norms if name not in skipped})
        shapes.update({f"{block}.{name}.weight": (sizes.head_dim,) for name in family.head_norms if own.heads})
    shapes[f"{family.norm}.weight"] = (sizes.hidden,)
    if not sizes.tied:
        shapes[f"{family.head}.weight"] = (sizes.vocab, sizes.hidden)
    return shapes


def check(
    tensors: Mapping[str, Header], shapes: Mapping[str, tuple[int, ...]], family: Family, where: str
) -> dict[str, Header]:
    """The headers of exactly the tensors that `shapes` names, in its order.

    Two kinds of leftovers may be stored and are dropped: a tied head that was written all the same, with the
    embedding's values (`tied_head` has looked), and the rotary tables of old checkpoints, which engines compute.
    Raises PlanError for a tensor that is missing, unexpected, of another shape, or not a 16- or 32-bit float.
    """
    stacked = [name for name in tensors if family.experts and name.endswith("experts.gate_up_proj")]
    if stacked:
        raise PlanError(
            f"{where}: {stacked[0]}",
            "all experts of a block stand in one tensor; methods and vLLM's formats know them one by one",
            "load and save the model with transformers, which writes each one apart unless told otherwise",
        )
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise PlanError(
            f"{where}: {missing[0]}",
            f"config.json implies this tensor, the files do not hold it{_more(missing)}",
            "use a complete checkpoint that was saved by the model's ...ForCausalLM class",
        )
    head = f"{family.head}.weight"
    unexpected = [name for name in tensors if name not in shapes and name != head and not name.endswith(ROTARY)]
    if unexpected:
        raise PlanError(
            f"{where}: {unexpected[0]}",
            f"the files hold this tensor, config.json does not imply it{_more(unexpected)}",
            "use a plain text model of this family; adapters and multimodal parts are not handled",
        )
    embed = shapes[f"{family.embed}.weight"]
    for name, header in tensors.items():
        want = shapes.get(name, embed if name == head else header.shape)
        if header.shape != want:
            raise PlanError(
                f"{where}: {name}",
                f"shape {list(header.shape)} is stored, config.json implies {list(want)}",
                "use the config.json the weights were saved with",
            )
        if header.dtype not in FLOATS:
            raise PlanError(
                f"{where}: {name}",
                f"stored as {header.dtype}; compression starts from float weights",
                f"use the original model, in {', '.join(FLOATS)}",
            )
    return {name: tensors[name] for name in shapes}


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
