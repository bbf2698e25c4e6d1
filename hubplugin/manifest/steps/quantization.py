"""What the steps that store codes in place of weights share: their size, which linears, the corrections of the target.

Part of the manifest schema; knows no values that codes stand for (a grid's, a codebook's), no model and no torch.
"""

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, StrictBool, model_serializer

from hubplugin.manifest.base import Damp, Ignore, Qep, QepTokens, StepSettings, Whole

ROW = -1  # a group size: all inputs of an output


class Quantization(StepSettings):
    """Codes in place of weights, chosen column by column with error feedback."""

    bits: Whole = Field(description="Bits of a code.", examples=[4])
    group_size: Whole = Field(
        description="Inputs that share what their codes stand for; -1: all inputs of an output.", examples=[128]
    )
    ignore: Ignore = ()
    act_order: StrictBool = Field(
        default=True,
        description="Quantize columns in the order of their second moments, inside and across groups (GAR). "
        "g_idx stays trivial.",
        examples=[False],
    )
    qep: Qep = True
    qep_tokens: QepTokens = 2**15
    damp: Damp = 0.01

    def group(self, inputs: int) -> int:
        """How many of so many inputs are in a group."""
        return inputs if self.group_size == ROW else self.group_size

    @model_serializer(mode="wrap")
    def _as_it_acts(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The settings in effect, for reports and cards."""
        return without_unused(write(self))


def without_unused(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are written, without what another setting leaves without effect."""
    return settings if settings.get("qep") else {key: value for key, value in settings.items() if key != "qep_tokens"}
