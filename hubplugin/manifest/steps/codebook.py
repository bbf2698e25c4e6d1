"""The settings of `method: codebook`: how many values a weight may have, how many weights share them, who chooses them.

Part of the manifest schema; knows no model and no torch.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from hubplugin.manifest.base import Whole, fault
from hubplugin.manifest.steps.quantization import Quantization, without_unused

E2M1_GROUP, E2M1_BITS = 16, 4  # of NVFP4, the one format with these values whose weights alone vLLM quantizes
FREE_FORMAT, E2M1_FORMAT = "hubplugin_codebook", "compressed-tensors"


class Codebook(Quantization):
    """Weights shared by codebooks: k-means centroids chosen row by row, or FP4's 16 values, with GPTQ's error feedback.

    A step has one scheme for all of its linears.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.07629"

    method: Literal["codebook"] = Field(description="The method of this step.", examples=["codebook"])
    bits: Literal[2, 3, 4] = Field(
        default=4, description="Bits of a code, which names one of 2^bits centroids.", examples=[3]
    )
    group_size: Literal[-1, 16, 64, 128, 256, 512, 1024] = Field(
        default=-1,
        description="Inputs that share one codebook, or one scale of e2m1 (16, always); -1: all inputs of an output.",
        examples=[512],
    )
    values: Literal["free", "e2m1"] = Field(
        default="free",
        description="The values of a codebook: free, chosen from the weights, saves storage alone; or e2m1, FP4's 16 "
        "values with a scale for 16 inputs (NVFP4), which stock vLLM computes with on a GPU.",
        examples=["e2m1"],
    )
    refits: Whole = Field(
        default=2,
        ge=0,
        le=8,
        description="A number of times that free centroids are refitted to their codes by least squares. Between two "
        "of them codes are chosen anew.",
        examples=[1],
    )

    @model_validator(mode="before")
    @classmethod
    def _as_nvfp4(cls, given: Any) -> Any:
        """e2m1 has one width and one group size."""
        if not isinstance(given, dict) or given.get("values") != "e2m1":
            return given
        if "refits" in given and given["refits"] != 0:
            raise fault("e2m1's values are fixed: nothing is refitted", "remove refits, or use values: free")
        for key, only in (("bits", E2M1_BITS), ("group_size", E2M1_GROUP)):
            if given.get(key, only) != only:
                raise fault(f"e2m1 has {key} {only} alone", f"remove {key}, or use values: free")
        return {**given, "bits": E2M1_BITS, "group_size": E2M1_GROUP, "refits": 0}

    @model_serializer(mode="wrap")
    def _as_it_acts(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The settings in effect, for reports and cards, with the format that follows from `values`."""
        return {**without_unused(write(self)), "format": FREE_FORMAT if self.values == "free" else E2M1_FORMAT}
