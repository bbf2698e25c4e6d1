"""What all settings classes share: frozen, strict, and their own texts for wrong values. Knows no setting.

Each setting is a `Field` with a description and examples. The first sentence of a description names the value, so that
it reads on after "write": error messages (hints.py), README's tables and manifests/schema.json are generated from them
(docs/generate.py).
"""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool
from pydantic_core import PydanticCustomError

# one line of text; and numbers that YAML did not write as text, nor as the true that Python takes for 1; then settings
# that methods of several kinds have
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True)]
Damp = Annotated[
    Real,
    Field(
        gt=0,
        le=1,
        description="A ratio of the mean diagonal of the second moments, added to the diagonal.",
        examples=[0.01],
    ),
]
Ignore = Annotated[
    tuple[Text, ...],
    Field(
        description="A list of linears that stay as they are. A pattern matches a module path, or its end after a dot.",
        examples=[["down_proj", "layers.0.*"]],
    ),
]
Qep = Annotated[
    StrictBool,
    Field(
        description="Correct the target towards the base's outputs (QEP), so that later layers compensate for the "
        "errors of earlier ones. false is faster.",
        examples=[False],
    ),
]
QepTokens = Annotated[
    Whole,
    Field(
        ge=1,
        description="The most calibration tokens that also pass through the base, for qep. More take longer.",
        examples=[131072],
    ),
]


def fault(what: str, fix: str, place: str = "") -> PydanticCustomError:
    """A validation error with our cause and remedy; `place` is appended to pydantic's location."""
    # pydantic fills {names} of its template; `what` may hold braces of the user's, so it travels as a value
    return PydanticCustomError("fault", "{what}", {"what": what, "fix": fix, "place": place})


class Settings(BaseModel):
    """Frozen, and a typo is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class StepSettings(Settings):
    """The settings of one step of a variant; `method` names its row in METHODS.

    The first line of a subclass's docstring describes the method in README and in the JSON Schema.
    """

    paper: ClassVar[str]  # address of the paper that the method is from

    method: str
