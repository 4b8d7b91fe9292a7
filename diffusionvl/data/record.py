"""What a record is: messages with their pictures and videos."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from ..modeling.errors import UserError

SUPERVISIONS = ("assistant", "structural")  # which tokens carry loss; see `ConversationEncoder`
CONVERSATION = "conversation"  # the kind of error of a conversation that the model cannot read as it is meant


class DataError(UserError):
    """A record that cannot be used; the message names the place, the value and the remedy.

    Args:
        message: What is wrong.
        kind: What kind of problem it is, in a word or two, for counts.
        keys: Keys that are not understood, each with what it stands in, such as `'score' of a turn`.
    """

    def __init__(self, message: str, kind: str = "layout", keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.keys = keys


@dataclass(frozen=True)
class WebPicture:
    """A picture that may be fetched from the web when it is opened."""

    url: str

    def __repr__(self) -> str:
        return repr(self.url)


@dataclass(frozen=True)
class SizedPicture:
    """A picture whose part of a message says how large the model sees it.

    Attributes:
        source: The picture.
        settings: Pixels, by the names in `SIZE_KEYS`, which are those of qwen-vl-utils.
    """

    source: "str | bytes | Image.Image | WebPicture"
    settings: dict[str, float]


# A path, a picture file's bytes, or a picture; the last two only where a record asks for them.
Picture = str | bytes | Image.Image | WebPicture | SizedPicture


@dataclass(frozen=True)
class Video:
    """A video that has not been read.

    Attributes:
        source: Path of a file, or paths of frames.
        settings: Which frames are taken and how large they are (`data/parts.py`); qwen-vl-utils decides the rest.
    """

    source: str | tuple[str, ...]
    settings: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """As a message names it."""
        if isinstance(self.source, str):
            return f"video {self.source!r}"
        return f"video of {len(self.source)} frames from {self.source[0]!r} on"


@dataclass(frozen=True)
class Record:
    """One conversation.

    Attributes:
        messages: Chat messages. Every content is a list of parts; an image part holds its picture in `image`, a video
            part its `Video` in `video`. An assistant message with `supervised` false carries no loss. A message may
            have `tool_calls` and `reasoning_content`, which the chat template writes.
        name: Where it stands (file, line and id), for messages.
        tools: What the chat template is given as `tools`, if anything.
    """

    messages: list[dict[str, Any]]
    name: str
    tools: list[Any] | None = None

    @property
    def images(self) -> list[Picture]:
        """The pictures in the order of the conversation."""
        return self._shown("image")

    @property
    def videos(self) -> list[Video]:
        """The videos in the order of the conversation."""
        return self._shown("video")

    def _shown(self, kind: str) -> list[Any]:
        return [part[kind] for message in self.messages for part in message["content"] if part["type"] == kind]


def texts(message: dict[str, Any]) -> list[str]:
    """The text parts of a message."""
    return [part["text"] for part in message["content"] if part["type"] == "text"]


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, such as the tools of a record; of objects, the values alone."""
    rest = [value]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            rest += value.values() if isinstance(value, dict) else value


class Records(Protocol):
    """Records by index, read when they are asked for."""

    def __len__(self) -> int:
        """The number of records."""

    def __getitem__(self, index: int) -> Record:
        """The record of an index."""
