"""Pictures that have been prepared, by their content: a chat's next turn sends its pictures again."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from ..data.image_text import IMAGE_GRID

CONTENT = "diffusionvl content"  # under which Pillow's `info` holds a `Content`, through copies and conversions


@dataclass(frozen=True)
class Content:
    """What a picture is, and what an image processor made of it.

    Attributes:
        key: A digest of the picture as the client has sent it.
        size: Its width and height.
        features: What the image processor made of it alone; None until it has.
    """

    key: bytes
    size: tuple[int, int]
    features: dict[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        """Number of bytes of the features."""
        return sum(np.asarray(value).nbytes for value in (self.features or {}).values())

    def mark(self, picture: Image.Image) -> Image.Image:
        """Notes on a picture what it is."""
        picture.info[CONTENT] = self
        return picture

    @property
    def stand_in(self) -> Image.Image:
        """An empty picture of its size, which an image processor that remembers takes for it."""
        return self.mark(Image.new("RGB", self.size))


class PictureCache:
    """Prepared pictures, the least recently used first. Threads may share it.

    Args:
        most_bytes: Largest number of bytes that are kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes, self._lock = most_bytes, 0, threading.Lock()
        self._known: dict[bytes, Content] = {}

    def find(self, key: bytes) -> Content | None:
        """What is known of a picture."""
        with self._lock:
            content = self._known.pop(key, None)
            if content is not None:
                self._known[key] = content
            return content

    def keep(self, content: Content) -> None:
        """Keeps what is known of a picture."""
        with self._lock:
            if (old := self._known.pop(content.key, None)) is not None:
                self._bytes -= old.nbytes
            self._known[content.key] = content
            self._bytes += content.nbytes
            while self._bytes > self._most_bytes:
                self._bytes -= self._known.pop(next(iter(self._known))).nbytes

    def attach(self, image_processor: Any) -> None:
        """Makes an image processor remember what it has made of pictures that are marked."""
        stock = type(image_processor)

        def call(processor: Any, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
            pictures = [picture for row in images for picture in row] if isinstance(images[0], list) else images
            contents = [picture.info.get(CONTENT) for picture in pictures]
            if not all(isinstance(content, Content) for content in contents):
                return stock.__call__(processor, images, *args, **kwargs)
            parts = []
            for picture, content in zip(pictures, contents, strict=True):
                features = content.features
                if features is None:
                    features = dict(stock.__call__(processor, [[picture]], *args, **kwargs))
                    self.keep(Content(content.key, content.size, features))
                parts.append(features)
            return _join(parts)

        image_processor.__class__ = type(stock.__name__, (stock,), {"__call__": call})


def digest(source: str | bytes) -> bytes:
    """A digest of a picture as it was sent."""
    return blake2b(source.encode() if isinstance(source, str) else source, digest_size=32).digest()


def apart(processor: Any, pictures: int) -> bool:
    """Whether a processor reads pictures, and makes of those of a prompt what it makes of each alone."""
    images = getattr(processor, "image_processor", None)  # a text model's processor is its tokenizer
    return images is not None and (pictures == 1 or IMAGE_GRID in images.model_input_names)


def _join(parts: Sequence[dict[str, Any]]) -> BatchFeature:
    """What an image processor makes of several pictures, of what it makes of each."""
    if len(parts) == 1:
        return BatchFeature(parts[0].copy())
    names = parts[0].keys()
    return BatchFeature({name: torch.cat([torch.as_tensor(part[name]) for part in parts]) for name in names})
