"""The settings of `evaluate.speed:`: what vLLM is asked while it is timed. Knows no engine and no machine."""

import difflib
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from hubplugin.manifest.base import Settings, Text, Whole
from hubplugin.manifest.base import fault as _fault

Concurrency = Annotated[Whole, Field(ge=1, le=1024)]
ENGINES_OWN = "auto"  # the data type of the KV cache that vLLM chooses itself: what the others are compared with
# Those of vLLM 0.32 (CacheDType in vllm/config/cache.py) that any model may have. Left out are fp8_inc (Intel Gaudi
# with its calibration), fp8_ds_mla and nvfp4_ds_mla (DeepSeek's attention), and turboquant_* and ultraquant_4bit, which
# read a prompt's own keys and values and not the cache: log-probabilities of a prompt say nothing of them.
KV_CACHES = (
    "float16",
    "bfloat16",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
    "int4_per_token_head",
    "int8_per_token_head",
    "fp8_per_token_head",
    "nvfp4",
    "nvfp4_4over6",
)


class Speed(Settings):
    """The speed of base and variant in vLLM, on the machine that runs this manifest. `true`: all as by default."""

    prompt_tokens: Whole = Field(
        default=128, ge=1, le=32768, description="A number of tokens of each prompt.", examples=[512]
    )
    output_tokens: Whole = Field(
        default=64, ge=2, le=32768, description="A number of tokens of each answer.", examples=[128]
    )
    concurrency: tuple[Concurrency, ...] = Field(
        default=(1, 8, 32),
        min_length=1,
        max_length=8,
        description="A list of how many requests are under way at a time.",
        examples=[[1, 4]],
    )
    rounds: Whole = Field(
        default=3,
        ge=1,
        le=20,
        description="A number of rounds. Each starts vLLM twice, for the base and for the variant, which on two CPU "
        "cores takes about a minute a start. Medians are reported, with the least and the greatest.",
        examples=[5],
    )

    kv_cache: tuple[Text, ...] = Field(
        default=(),
        max_length=len(KV_CACHES),
        description="A list of data types of vLLM's KV cache. The variant is started once more with each, and with "
        "`auto` before them: bytes per token, tokens per second, and how far predictions of the evaluation's main text "
        "move from those with `auto`. What vLLM does not have here is said in the report. Known are "
        f"{', '.join(f'`{name}`' for name in KV_CACHES)}.",
        examples=[["fp8"]],
    )

    @field_validator("concurrency")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise _fault("is not in rising order", f"write {sorted(set(value))}")
        return value

    @field_validator("kv_cache")
    @classmethod
    def _known_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for place, name in enumerate(value):
            if name == ENGINES_OWN:
                raise _fault(f"'{ENGINES_OWN}' is always measured", "leave it out")
            if name not in KV_CACHES:
                near = difflib.get_close_matches(name, KV_CACHES, n=1)
                fix = f"did you mean {near[0]}?" if near else f"write some of {', '.join(KV_CACHES)}"
                raise _fault(f"{name!r} is no data type of a KV cache that is measured", fix)
            if name in value[:place]:
                raise _fault(f"{name!r} stands there twice", "name it once")
        return value


def _written_out(value: Any) -> Any:
    """`true` stands for all defaults, `false` for no speed."""
    return Speed() if value is True else None if value is False else value


def _or_boolean(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(1, {"type": "boolean"})


Asked = Annotated[
    Speed | None,
    BeforeValidator(_written_out),
    Field(
        default=None,
        description="`true`, or a mapping of what vLLM is asked while base and variant are timed on this machine. "
        "`true`: the defaults below.",
        examples=[True, {"concurrency": [1, 4], "rounds": 2}],
        json_schema_extra=_or_boolean,
    ),
]
