"""What all records of a report are: frozen, and written exactly as declared. Knows no record."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen, and written exactly as declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")
