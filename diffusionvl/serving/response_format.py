"""The form that a client asks of a chat's answer."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .body import Body, contradiction


class JsonSchema(Body):
    """A schema that an answer follows.

    Attributes:
        name: The client's name for it.
        schema_: The schema.
        description: What it is for; not read.
        strict: Not read: an answer always follows the schema.
    """

    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of an answer: text, a JSON object of any form, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise contradiction("json_schema", "goes with the type 'json_schema'")
        return self

    @property
    def constraint(self) -> dict[str, Any]:
        """The setting of `Engine.add_request`, if any."""
        if self.json_schema is not None:
            return {"json_schema": self.json_schema.schema_}
        return {"json_object": True} if self.type == "json_object" else {}
