"""Model families as rows of data: which linears read the same input, and which widths are coupled.

Data only: no tensors, no modules, no forward pass (those are transformers' own).
"""

from dataclasses import dataclass, replace
from typing import Any

from hubplugin.errors import FamilyError


@dataclass(frozen=True)
class InputGroup:
    """Linears of a block that read the same input, and so share one matrix of second moments."""

    name: str
    linears: tuple[str, ...]  # module paths inside the block
    expert: int | None = None  # whose linears these are, where only the tokens that a router sends pass them
    token_ratio: float = 1.0  # of all tokens, that pass if the router is even


@dataclass(frozen=True)
class Sublayer:
    """A submodule of a block that ends in one linear: what goes into that linear is all that must be kept of it."""

    name: str
    output_projection: str  # its last linear, whose output is its own; empty: it ends in a sum over experts
    norm: str  # the norm whose output only this sublayer reads
    pair: bool = False  # returns (output, something nobody reads)

    @property
    def input_key(self) -> str:
        """The name under which the last linear's input is kept."""
        return f"into.{self.output_projection}"

    @property
    def output_key(self) -> str:
        """The name under which its output is kept."""
        return f"out.{self.name}"


@dataclass(frozen=True)
class Producer:
    """A linear that loses the rows whose outputs nobody reads any more."""

    name: str
    rows: tuple[str, ...]  # what its rows are, stacked: CHANNELS, QUERIES, KEYS (as many as values)


CHANNELS, QUERIES, KEYS = "channels", "queries", "keys"


@dataclass(frozen=True)
class Width:
    """A dimension inside a block that can shrink: columns of the consumer, rows of the producers."""

    name: str
    consumer: str  # the linear that loses input columns
    producers: tuple[Producer, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the producers."""
        return tuple(producer.name for producer in self.producers)


@dataclass(frozen=True)
class Experts:
    """The experts that stand in for a block's MLP, by the names of checkpoints."""

    name: str  # their path inside the block; each one's number follows
    gate: str
    up: str
    down: str
    width: str  # the config.json key of an expert's channels
    counts: tuple[str, ...] = ("num_experts", "num_local_experts")  # config.json keys of how many there are
    chosen: str = "num_experts_per_tok"  # config.json key of how many a token goes to

    @property
    def router(self) -> str:
        """The matrix [experts, hidden] that sends tokens to experts. It is small, and it stays dense."""
        return f"{self.name.rpartition('.')[0]}.gate"


_ATTENTION_PART = Sublayer("self_attn", "self_attn.o_proj", "input_layernorm", pair=True)
_MLP_PART = Sublayer("mlp", "mlp.down_proj", "post_attention_layernorm")


@dataclass(frozen=True)
class Family:
    """One row. Input groups stand in the order in which the block runs them."""

    input_groups: tuple[InputGroup, ...]
    widths: tuple[Width, ...]
    native: str = ""  # transformers' own class; a repo whose auto_map names one of that name needs no code of its own
    sublayers: tuple[Sublayer, ...] = (_ATTENTION_PART, _MLP_PART)
    block: str = "model.layers.{i}"
    embed: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")  # weights of [hidden]
    residual: bool = True  # a sublayer's output is added to the stream as it is, with no norm in between
    head_norms: tuple[str, ...] = ()  # weights of [head_dim]
    biased: tuple[str, ...] = ()  # linears that always have a bias
    bias_keys: tuple[tuple[str, tuple[str, ...]], ...] = ()  # config.json key -> linears it gives a bias to
    head_dim: int | None = None  # where config.json names none; None: hidden_size / num_attention_heads
    tied: bool = False  # whether embeddings are tied where config.json does not say
    experts: Experts | None = None  # `match` gives the row their input groups
    whole_heads: bool = False  # transformers refuses a hidden_size that heads do not divide, head_dim or not
    computed_head_dim: bool = False  # vLLM's class takes it as hidden_size / heads and ignores config.json's
    alternating: bool = False  # every second layer looks through a window, the first does, where no layer_types say so
    # pruning: whether blocks are those of DeciLM but for their sizes, and the keys that no other class reads
    uneven: bool = False
    class_keys: tuple[str, ...] = ()
    gptqmodel: bool = False  # gptqmodel returns its linears as they were named (phi3's fused ones it would split)

    @property
    def every_bias(self) -> tuple[str, ...]:
        """Keys of config.json that together give every linear of a block a bias; empty where the class has no such."""
        named = {name for _, names in self.bias_keys for name in names}
        return tuple(key for key, _ in self.bias_keys) if named >= set(self.linears()) else ()

    def linears(self) -> tuple[str, ...]:
        """All linears of a block, in order."""
        return tuple(name for input_group in self.input_groups for name in input_group.linears)

    def input_group_of(self, linear: str) -> InputGroup:
        """The input group of a linear."""
        return next(input_group for input_group in self.input_groups if linear in input_group.linears)

    def width(self, name: str) -> Width:
        """A width by its name."""
        return next(width for width in self.widths if width.name == name)

    def sublayer_of(self, linear: str) -> Sublayer:
        """The sublayer of a linear."""
        return next(sublayer for sublayer in self.sublayers if linear.startswith(sublayer.name + "."))


_ATTENTION_OUT = InputGroup("attn_out", ("self_attn.o_proj",))
_MLP_OUT = InputGroup("mlp_out", ("mlp.down_proj",))

SEPARATE = Family(
    input_groups=(
        InputGroup("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        _ATTENTION_OUT,
        InputGroup("mlp_in", ("mlp.gate_proj", "mlp.up_proj")),
        _MLP_OUT,
    ),
    widths=(
        Width(
            "heads",
            "self_attn.o_proj",
            (
                Producer("self_attn.q_proj", (QUERIES,)),
                Producer("self_attn.k_proj", (KEYS,)),
                Producer("self_attn.v_proj", (KEYS,)),
            ),
        ),
        Width("ffn", "mlp.down_proj", (Producer("mlp.gate_proj", (CHANNELS,)), Producer("mlp.up_proj", (CHANNELS,)))),
    ),
)

FUSED = Family(
    input_groups=(
        InputGroup("attn_in", ("self_attn.qkv_proj",)),
        _ATTENTION_OUT,
        InputGroup("mlp_in", ("mlp.gate_up_proj",)),
        _MLP_OUT,
    ),
    widths=(
        Width("heads", "self_attn.o_proj", (Producer("self_attn.qkv_proj", (QUERIES, KEYS, KEYS)),)),
        Width("ffn", "mlp.down_proj", (Producer("mlp.gate_up_proj", (CHANNELS, CHANNELS)),)),
    ),
)

SPARSE = Family(
    input_groups=(InputGroup("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")), _ATTENTION_OUT),
    widths=(),
)

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

# by config.json's model_type
FAMILIES: dict[str, Family] = {
    "llama": replace(
        SEPARATE,
        native="LlamaForCausalLM",
        bias_keys=(("attention_bias", _ATTENTION), ("mlp_bias", _MLP)),
        whole_heads=True,
        uneven=True,
        class_keys=("pretraining_tp",),
        gptqmodel=True,
    ),
    "mistral": replace(SEPARATE, native="MistralForCausalLM", uneven=True, gptqmodel=True),
    "qwen2": replace(
        SEPARATE,
        native="Qwen2ForCausalLM",
        biased=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        computed_head_dim=True,
        uneven=True,
        class_keys=("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
        gptqmodel=True,
    ),
    "qwen3": replace(
        SEPARATE,
        native="Qwen3ForCausalLM",
        head_norms=("self_attn.q_norm", "self_attn.k_norm"),
        bias_keys=(("attention_bias", _ATTENTION),),
        head_dim=128,
        gptqmodel=True,
    ),
    "gemma2": replace(
        SEPARATE,
        native="Gemma2ForCausalLM",
        sublayers=(_ATTENTION_PART, replace(_MLP_PART, norm="pre_feedforward_layernorm")),
        residual=False,
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        bias_keys=(("attention_bias", _ATTENTION),),
        head_dim=256,
        tied=True,
        whole_heads=True,
        alternating=True,
        gptqmodel=True,
    ),
    "phi3": replace(FUSED, native="Phi3ForCausalLM"),
    # what our own pruning makes of a llama where blocks differ; pruned once more, from the base
    "nemotron-nas": replace(
        SEPARATE,
        native="DeciLMForCausalLM",
        widths=(),
        bias_keys=(("attention_bias", _ATTENTION), ("mlp_bias", _MLP)),
    ),
    "mixtral": replace(
        SPARSE,
        native="MixtralForCausalLM",
        sublayers=(_ATTENTION_PART, replace(_MLP_PART, name="block_sparse_moe", output_projection="")),
        experts=Experts("block_sparse_moe.experts", "w1", "w3", "w2", width="intermediate_size"),
    ),
    "qwen3_moe": replace(
        SPARSE,
        native="Qwen3MoeForCausalLM",
        sublayers=(_ATTENTION_PART, replace(_MLP_PART, output_projection="")),
        experts=Experts("mlp.experts", "gate_proj", "up_proj", "down_proj", width="moe_intermediate_size"),
        head_norms=("self_attn.q_norm", "self_attn.k_norm"),
        bias_keys=(("attention_bias", _ATTENTION),),
    ),
}
MOST_EXPERTS = 4096  # each one becomes names; a file from elsewhere must not ask for 10^9


def match(config: dict[str, Any], where: str) -> Family:
    """The row for a config.json, with the input groups of as many experts as it names.

    Raises FamilyError for an architecture that is not in the table.
    """
    model_type = config.get("model_type")
    row = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if row is None:
        raise FamilyError(
            f"{where}: model_type",
            f"{model_type!r} is not a family we know",
            f"use a model of type {', '.join(FAMILIES)}",
        )
    return _with_experts(row, row.experts, config, where) if row.experts else row


def _with_experts(row: Family, names: Experts, config: dict[str, Any], where: str) -> Family:
    """The row with two input groups per expert: gate and up, then down. Raises FamilyError where there are none."""
    key = next((key for key in names.counts if config.get(key) is not None), names.counts[0])
    count = _number(config, key, MOST_EXPERTS, where)
    share = _number(config, names.chosen, count, where) / count
    for key, usual in (("mlp_only_layers", []), ("decoder_sparse_step", 1)):
        if config.get(key) not in (None, usual):
            raise FamilyError(f"{where}: {key}", "some blocks have experts and some have none", "use another model")
    input_groups = list(row.input_groups)
    for expert in range(count):
        gate, up, down = (f"{names.name}.{expert}.{name}" for name in (names.gate, names.up, names.down))
        input_groups.append(InputGroup(f"expert_{expert}_in", (gate, up), expert, share))
        input_groups.append(InputGroup(f"expert_{expert}_out", (down,), expert, share))
    return replace(row, input_groups=tuple(input_groups))


def _number(config: dict[str, Any], key: str, most: int, where: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        fix = "give the config.json the model was saved with"
        raise FamilyError(f"{where}: {key}", f"{value!r} is not a number of experts", fix)
    return value


PER_LAYER = "nemotron-nas"  # the model_type of vLLM's DeciLMForCausalLM, whose blocks may differ
