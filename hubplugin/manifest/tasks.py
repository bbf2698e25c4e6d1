"""The settings of `evaluate.tasks:`: what lm-eval asks base and variant. Knows no task and imports no lm-eval."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from hubplugin.manifest.base import Settings, Text, Whole
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.reading.yaml_file import ENDINGS

EXTRA = "pip install 'hubplugin[tasks]'"  # what brings lm-eval


def is_file(name: str) -> bool:
    """Whether a task is named by a file of its own, from the manifest's folder."""
    return name.endswith(ENDINGS)


class Tasks(Settings):
    """Zero-shot and few-shot tasks of EleutherAI's lm-eval, asked of base and variant. A list stands for `names`."""

    names: tuple[Text, ...] = Field(
        max_length=100,
        description="The tasks, by lm-eval's names or as YAML files of tasks of your own, which need no network where "
        "their data is beside them.",
        examples=[["arc_easy", "./my_task.yaml"]],
    )
    fewshot: Whole | None = Field(
        default=None,
        ge=0,
        le=100,
        description="A number of answered examples in front of each question. Left out: as each task says.",
        examples=[5],
    )
    limit: Whole | None = Field(
        default=None,
        ge=1,
        description="The most questions of each task, the first ones. Left out: all.",
        examples=[200],
    )
    batch_size: Whole = Field(
        default=8, ge=1, le=1024, description="A number of sequences in a forward pass.", examples=[32]
    )

    @field_validator("names")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise _fault("names no task", "name one, such as arc_easy, or leave tasks out")
        for index, name in enumerate(value):
            if name in value[:index]:
                raise _fault(f"names {name} twice", "remove it")
        return value


def _written_out(value: Any) -> Any:
    """A list of names stands for the mapping that has only those."""
    return {"names": value} if isinstance(value, list | tuple) else value


def _or_list(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(1, {"type": "array", "items": {"type": "string"}})


Asked = Annotated[
    Tasks | None,
    BeforeValidator(_written_out),
    Field(
        default=None,
        description="A list of lm-eval's tasks, or a mapping with their settings. Needs `pip install "
        "'hubplugin[tasks]'`.",
        examples=[["arc_easy", "hellaswag"], {"names": ["arc_easy"], "limit": 200}],
        json_schema_extra=_or_list,
    ),
]
