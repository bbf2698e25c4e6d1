"""The settings of `evaluate.speed:`: what vLLM is asked while it is timed. Knows no engine and no machine."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from hubplugin.manifest.base import Settings, Whole
from hubplugin.manifest.base import fault as _fault

Concurrency = Annotated[Whole, Field(ge=1, le=1024)]


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

    @field_validator("concurrency")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise _fault("is not in rising order", f"write {sorted(set(value))}")
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
