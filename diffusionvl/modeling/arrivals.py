"""Requests that arrive together, and which of them one forward can read.

Legend: B prompts of a call, P padded prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .block_canvas import BlockCanvas
from .canvas import Canvas, Prompt
from .constraint import Constraint
from .draft_canvas import DraftCanvas
from .inputs import Call
from .request import Request


@dataclass(eq=False)
class Arrival:
    """Requests that arrived together.

    Attributes:
        requests: The requests.
        media: Image and video inputs of all of them, in one piece.
        begun: Whether the answers hold what their constraints force at the beginning.
    """

    requests: list[Request]
    media: dict[str, Any]
    begun: bool = False

    @classmethod
    def build(cls, model: Any, call: Call, deadline: float, constraint: Constraint | None = None) -> "Arrival":
        """Lays out the B prompts of a call, each without its padding and with its own copy of the constraint."""
        config, settings = model.config, call.settings
        ids, real, positions = call.input_ids.cpu(), call.attention_mask.cpu(), call.positions.cpu()
        blocks = model.clean_blocks(call.input_ids, call.attention_mask, settings.block_size).cpu()
        requests = []
        for row, generator in enumerate(call.generators):
            prompt = Prompt.build(
                ids[row, real[row]],
                positions[:, row, real[row]],
                blocks[row, real[row]],
                own_blocks=config.block_origin == "response",
                causal=config.clean_attention == "causal",
                most_positions=call.most_positions,
            )
            longest = settings.max_new_tokens if prompt.room is None else min(settings.max_new_tokens, prompt.room)
            canvas: Canvas
            if settings.decoding == "denoise":
                steps = settings.denoising_steps, settings.sub_block_size
                canvas = BlockCanvas(prompt, config.mask_token_id, settings.block_size, *steps)
            else:
                auto = settings.draft_size == "auto"
                size, pace = (settings.block_size, model.draft_pace) if auto else (settings.draft_size, None)
                canvas = DraftCanvas(prompt, config.mask_token_id, size, longest, pace, settings.verify_margin > 0)
            own = None if constraint is None else constraint.copy(longest)
            hooks = call.logits_processor, call.stopping_criteria, own
            requests.append(Request(settings, canvas, longest, generator, deadline, *hooks))
        return cls(requests, call.media)

    def begin(self, tokenizer: Any) -> None:
        """Writes, once, what the constraints force before the first forward, which may be a whole answer."""
        for request in self.requests if not self.begun else []:
            try:
                request.begin(tokenizer)
            except Exception as error:  # noqa: PERF203
                request.end("error", error)
        self.begun = True

    @property
    def finished(self) -> bool:
        """Whether all of them have ended."""
        return all(request.finished for request in self.requests)

    @property
    def read(self) -> bool:
        """Whether the prompts of all that go on are in the cache."""
        return all(request.finished or request.canvas.read for request in self.requests)

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(request.prompt_length for request in self.requests)

    @property
    def cached(self) -> bool:
        """Whether keys and values are to be kept."""
        return all(request.settings.use_cache for request in self.requests)

    def apart(self) -> list["Arrival"]:
        """The smallest arrivals that can be read by themselves: without media, one for each request."""
        return [self] if self.media else [Arrival([request], {}) for request in self.requests]


def join_media(arrivals: list[Arrival]) -> dict[str, Any]:
    """Image and video inputs of arrivals that are `joinable`, as if they had been prepared together."""
    given = [arrival.media for arrival in arrivals if arrival.media]
    if len(given) < 2:
        return given[0] if given else {}
    return {name: torch.cat([media[name] for media in given]) for name in given[0]}


def joinable(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether image and video inputs that were prepared apart can go through one forward."""
    if not first or not second:
        return True
    return first.keys() == second.keys() and all(
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.dtype, one.device, one.shape[1:]) == (other.dtype, other.device, other.shape[1:])
        for one, other in ((first[name], second[name]) for name in first)
    )


def group(
    arrivals: list[Arrival], placeholders_in_windows: Callable[[list[Request]], bool]
) -> list[tuple[list[Arrival], bool]]:
    """Arrivals that one forward can read together, and whether the cache keeps what is read.

    Image features cannot be fed without their whole image. While a window holds placeholders (a prompt that ends in an
    image, or one block for everything), its arrival runs with all that comes before it in every step; so does one that
    is to be decoded without a cache.
    """
    alone: list[tuple[list[Arrival], bool]] = []
    together: list[tuple[list[Arrival], bool]] = []
    for arrival in arrivals:
        if not arrival.cached or (arrival.media and placeholders_in_windows(arrival.requests)):
            alone.append(([arrival], False))
            continue
        for others, _ in together:
            if all(joinable(other.media, arrival.media) for other in others):
                others.append(arrival)
                break
        else:
            together.append(([arrival], True))
    return alone + together
