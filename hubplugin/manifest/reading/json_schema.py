"""The manifest's JSON Schema, for editors and for README's tables: settings of all METHODS rows, described.

Knows pydantic's schema generator and METHODS. Knows no file, no model and no torch.
"""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from hubplugin.manifest.methods import METHODS
from hubplugin.manifest.schema import Manifest


class InOrder(GenerateJsonSchema):
    """Pydantic's generator; keys keep the order of the fields and get no titles that only repeat them."""

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a manifest: all keys with descriptions, examples and defaults.

    Unknown keys are refused, steps are discriminated by `method`. Rules over several keys, such as exactly one of
    `sparsity` and `pattern`, are left to `hubplugin plan`.
    """
    schema = Manifest.model_json_schema(by_alias=True, mode="validation", schema_generator=InOrder)
    return {"$schema": InOrder.schema_dialect, **schema}


def definition_of(method: str) -> str:
    """The name of a method's settings among the schema's `$defs`."""
    return METHODS[method].settings.__name__
