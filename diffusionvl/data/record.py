"""What a record is: messages with their pictures and videos."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from ..modeling.errors import UserError

CONVERSATION = "conversation"  # the kind of error of turns that cannot be told apart


class DataError(UserError):
    """A record that cannot be used; the message names the place, the value and the remedy.

    Args:
        message: What is wrong.
        kind: What kind of problem it is, in a word or two, for counts.
    """

    def __init__(self, message: str, kind: str = "layout") -> None:
        super().__init__(message)
        self.kind = kind


Picture = str | bytes | Image.Image  # a path, a picture file's bytes, or a picture


@dataclass(frozen=True)
class Video:
    """A video that has not been read.

    Attributes:
        source: Path of a file, or paths of frames.
        settings: Which frames are taken and how large they are, by `FRAME_KEYS`; the rest is up to qwen-vl-utils.
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
        messages: Chat messages; every content is a list of parts, and an image part holds its picture in `image`, a
            video part its `Video` in `video`.
        name: Where it stands (file, line and id), for messages.
    """

    messages: list[dict[str, Any]]
    name: str

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


class Records(Protocol):
    """Records by index, read when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Record:
        """One of them."""
