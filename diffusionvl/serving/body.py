"""What all bodies of requests have in common: what is unknown is refused by name, what is harmless passes."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


def contradiction(field: str, reason: str) -> PydanticCustomError:
    """What is wrong with a field beside the others; `app` reads the field's name."""
    return PydanticCustomError("contradiction", "{reason}", {"field": field, "reason": reason})


class Body(BaseModel):
    """Unknown fields are errors, and so are values of another type.

    Attributes:
        harmless: Fields that are not supported, with the values at which they change nothing and pass; so does null.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    harmless: ClassVar[dict[str, Sequence[Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_harmless(cls, data: Any) -> Any:
        """Drops what changes nothing; what is left is refused by its name."""
        if not isinstance(data, dict):
            return data
        passing = {name for name in cls.harmless if name in data and data[name] in (None, *cls.harmless[name])}
        return {name: value for name, value in data.items() if name not in passing}
