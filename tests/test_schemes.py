from typing import Any

import pytest

from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.plan import schemes

NAMES = [
    f"model.layers.{layer}.{name}"
    for layer in (0, 1, 11)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]


def gptq(**settings: Any) -> Gptq:
    return Gptq.model_validate({"method": "gptq", **settings})


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("down_proj", [3, 7, 11]),
        ("mlp.down_proj", [3, 7, 11]),
        ("layers.1.*", [4, 5, 6, 7]),
        ("layers.1*", [4, 5, 6, 7, 8, 9, 10, 11]),
        ("self_attn.?_proj", [0, 1, 4, 5, 8, 9]),
        ("model.layers.11.mlp.up_proj", [10]),
        ("layers.[01].mlp.*", [2, 3, 6, 7]),
        ("proj", []),
        ("own_proj", []),
        ("layers.1", []),
    ],
)
def test_a_pattern_matches_whole_paths_or_ends_that_begin_after_a_dot(pattern: str, named: list[int]) -> None:
    assert [index for index, name in enumerate(NAMES) if schemes.matches(pattern, name)] == named


def test_the_first_pattern_counts_and_ignore_counts_before_all() -> None:
    step = gptq(
        ignore=["layers.11.*"],
        overrides={
            "layers.0.mlp.*": {"bits": 8},
            "down_proj": {"group_size": 32, "symmetric": False},
            "*": {"bits": 3},
        },
    )
    found = schemes.resolve(step, NAMES, 64)
    told = [str(found[name]) for name in NAMES]
    assert told == [
        *("int3 g128", "int3 g128", "int8 g128", "int8 g128"),
        *("int3 g128", "int3 g128", "int3 g128", "int4 g32 zeros"),
        *("None",) * 4,
    ]


@pytest.mark.parametrize(
    ("settings", "vocabulary", "layouts"),
    [
        ({}, 64, {"gptq"}),
        ({"bits": 8}, 64, {"gptq"}),
        ({"overrides": {"down_proj": {"bits": 8}}}, 64, {"pack-quantized"}),
        ({"overrides": {"down_proj": {"bits": 8}}, "format": "gptq"}, 64, {"gptq"}),
        ({"overrides": {"down_proj": {"bits": 4}}}, 64, {"gptq"}),
        ({"overrides": {"*": {"bits": 8}}}, 64, {"gptq"}),
        ({"overrides": {"layers.0.*": {"group_size": 32}}}, 64, {"pack-quantized"}),
        ({"ignore": ["o_proj"]}, 64, {"pack-quantized"}),
        ({"ignore": ["layers.11.mlp.up_proj"], "format": "gptq"}, 64, {"gptq"}),
        ({"budget": {"bits_per_weight": 4.5}}, 64, {"pack-quantized"}),
        ({"budget": {"bits_per_weight": 4.5}, "format": "gptq"}, 64, {"gptq"}),
        ({"format": "compressed-tensors"}, 64, {"pack-quantized"}),
        ({"bits": 3}, 64, {"pack-quantized"}),
        ({"bits": 3, "format": "gptq"}, 64, {"gptq"}),
        ({"symmetric": False}, 64, {"pack-quantized"}),
        ({"overrides": {"down_proj": {"symmetric": False}}}, 64, {"pack-quantized"}),
        ({"overrides": {"down_proj": {"symmetric": False}}, "ignore": ["down_proj"]}, 64, {"pack-quantized"}),
        ({"bits": 8, "group_size": -1, "activation_bits": 8}, 64, {"int-quantized"}),
        (
            {"overrides": {"down_proj": {"bits": 8, "group_size": -1, "activation_bits": 8}}},
            64,
            {"pack-quantized", "int-quantized"},
        ),
        ({"lm_head": True}, 640, {"pack-quantized"}),
        ({"lm_head": True, "format": "gptq"}, 640, {"gptq"}),
        ({"lm_head": True}, 630, {"pack-quantized"}),
        ({"lm_head": False}, 630, {"gptq"}),
    ],
)
def test_the_format_is_autogptqs_where_all_that_loads_it_reads_it(
    settings: dict[str, Any], vocabulary: int, layouts: set[str]
) -> None:
    found = schemes.resolve(gptq(**settings), NAMES, vocabulary)
    assert {scheme.layout for scheme in found.values() if scheme} == layouts
    assert schemes.format_of(found.values()) == ("gptq" if layouts == {"gptq"} else "compressed-tensors")


def test_distinct_schemes_come_by_how_common_they_are() -> None:
    found = schemes.resolve(gptq(overrides={"q_proj": {"bits": 8}, "layers.0.*": {"bits": 3}}), NAMES, 64)
    assert [str(scheme) for scheme in schemes.distinct(found.values())] == ["int4 g128", "int8 g128", "int3 g128"]


def test_experts_are_stored_in_the_format_that_transformers_reads_them_in() -> None:
    names = [*NAMES, "model.layers.0.mlp.experts.0.down_proj"]
    for settings, layout in (({}, "pack-quantized"), ({"bits": 8}, "pack-quantized"), ({"format": "gptq"}, "gptq")):
        assert {scheme.layout for scheme in schemes.resolve(gptq(**settings), names, 64).values() if scheme} == {layout}
