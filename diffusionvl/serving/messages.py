"""The messages of a chat."""

from typing import Annotated, Literal

from pydantic import Field

from .body import Body


class ImageUrl(Body):
    """Where a picture is.

    Attributes:
        url: A data URI, or a web address.
        detail: A hint that is not needed here.
    """

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Body):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImagePart(Body):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """One turn of a chat. Clients send an earlier answer back with all of its fields."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None

    harmless = {"refusal": [], "audio": [], "annotations": [[]], "function_call": [], "tool_calls": [[]]}
