"""What an operator sets for a server."""

import os
from dataclasses import dataclass

from ..modeling.errors import UserError


@dataclass(frozen=True)
class ServingSettings:
    """Settings of a server; the model's own are in its checkpoint.

    Attributes:
        name: The model's name in requests and answers.
        api_key: What clients send as `Authorization: Bearer KEY`; None lets everybody in.
        max_batch_size: Largest number of answers that are decoded together.
        max_length: Largest number of tokens of a prompt and its answer.
        max_waiting: Largest number of answers that wait for a row; further requests get 429.
        prefix_cache_tokens: Largest number of tokens of ended answers and their prompts whose keys and values are kept
            for prompts that begin in the same way; 0 keeps none.
        picture_cache_bytes: Largest number of bytes of prepared pictures that are kept; 0 keeps none.
        max_body_bytes: Largest size of a request's body.
        max_images: Largest number of pictures in a request.
        max_pixels: Largest number of pixels of a picture.
        web_hosts: Hosts that pictures are fetched from; none by default.
        workers: Threads that read pictures and write prompts.
        page: Whether there is a page for people at `/`.
        log_prompts: Whether the log holds prompts and answers.
    """

    name: str = "diffusionvl"
    api_key: str | None = None
    max_batch_size: int = 16
    max_length: int = 4096
    max_waiting: int = 256
    prefix_cache_tokens: int = 8192
    picture_cache_bytes: int = 256 * 2**20
    max_body_bytes: int = 32 * 2**20
    max_images: int = 16
    max_pixels: int = 32_000_000
    web_hosts: tuple[str, ...] = ()
    workers: int = min(4, os.cpu_count() or 1)
    page: bool = False
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for least, names in (
            (0, ("max_waiting", "max_images", "prefix_cache_tokens", "picture_cache_bytes")),
            (1, ("max_batch_size", "max_length", "max_body_bytes", "max_pixels", "workers")),
        ):
            for name in names:
                if getattr(self, name) < least:
                    raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.api_key == "":
            raise UserError("api_key is empty, which would keep nobody out; give a key or None")
