"""The engine: requests come and go, and each step denoises all rows that are there.

Legend: B prompts that arrive together, P padded prompt, D block size.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batch import DecodingBatch
from .canvas import Canvas, lay_out
from .errors import UserError
from .generation_configuration_diffusionvl import DiffusionVLGenerationConfig, resolve_settings
from .inputs import check_prompts, join_media, joinable
from .request import Chunk, FinishReason, Request
from .sampling import Generators


class QueueFullError(RuntimeError):
    """More requests wait than an engine lets wait; come back later."""


@dataclass(eq=False)
class _Arrival:
    """Requests that arrived together, with the image and video inputs of all of them in one piece."""

    requests: list[Request]
    canvases: list[Canvas]
    media: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether nobody waits for any of them any more."""
        return all(request.finished for request in self.requests)

    @property
    def prompt_tokens(self) -> int:
        """Of the longest one."""
        return max(request.prompt_length for request in self.requests)


_Prefill = tuple[list[_Arrival], dict[str, Any], bool]  # arrivals, their media, whether the cache keeps what is read


class Engine:
    """Continuous batching: each row has its own length, block, step, settings and end.

    A request waits until there is a slot for it, is read together with those that came with it, and leaves when its
    answer ends. It gets the tokens that it would get alone. One thread drives an engine; a server hands requests to
    that thread through a queue.

    Args:
        model: A `DiffusionVLForConditionalGeneration`.
        max_batch_size: Most rows that are decoded together.
        max_length: Most tokens of a row, prompt and answer, the last block filled up. The cache never holds more than
            `max_batch_size` rows of `max_length + 2 D` tokens.
        max_waiting: Most requests that wait for a slot.
        prefill_tokens: Prompts are read together up to so many tokens with padding; one prompt may be longer.
        tokenizer: Needed for stop strings.
        fused_commit: Write a finished block's clean keys and values in the forward of the next block's first step;
            off, each commit (and the prefill) is a forward of its own.
        static_shapes: Behind a prompt's first step, run all `max_batch_size` slots over all columns, so that two shapes
            are all there are: for a decoder that is compiled. The cache is allocated at once.
        clock: Tells the time in seconds, for `max_time`.
    """

    def __init__(
        self,
        model: Any,
        max_batch_size: int = 16,
        max_length: int = 4096,
        max_waiting: int = 1024,
        prefill_tokens: int = 8192,
        tokenizer: Any = None,
        fused_commit: bool = True,
        static_shapes: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if model.training and model.is_gradient_checkpointing:
            raise UserError("a model in training mode with gradient checkpointing writes no cache; call model.eval()")
        sizes = {"max_batch_size": max_batch_size, "max_length": max_length}
        for name, value in {**sizes, "max_waiting": max_waiting, "prefill_tokens": prefill_tokens}.items():
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        self.model, self.tokenizer, self.clock = model, tokenizer, clock
        self.max_batch_size, self.max_length = max_batch_size, max_length
        self.max_waiting, self.prefill_tokens = max_waiting, prefill_tokens
        self._batch = DecodingBatch(model, max_batch_size, max_length, tokenizer, fused_commit, static_shapes)
        self._waiting: deque[_Arrival] = deque()
        self._reading: list[_Arrival] = []  # they have rows, but their prompts are not in the cache yet

    @property
    def running(self) -> list[Request]:
        """Requests that have a row now."""
        return list(self._batch.requests)

    @property
    def waiting(self) -> list[Request]:
        """Requests that wait for a row."""
        return [request for arrival in self._waiting for request in arrival.requests if not request.finished]

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._batch.requests or self._waiting)

    @property
    def cache(self) -> Any:
        """The KV cache."""
        return self._batch.cache

    def add_request(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: DiffusionVLGenerationConfig | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Request:
        """Takes in one prompt.

        Args:
            input_ids: The prompt [1, P], as a processor gives it.
            attention_mask: 1 for tokens, 0 for padding on the left [1, P].
            generation_config: Settings; the model's own if left out.
            generator: Source of randomness where temperature > 0, this request's own, on the model's device.
            **kwargs: Settings that differ for this request, and the inputs for images and videos.

        Returns:
            The request, whose answer `step` writes.

        Raises:
            ValueError: The prompt cannot be read as it is meant, a setting is unknown or out of its range, or the
                request would not fit in `max_length`.
            QueueFullError: `max_waiting` requests wait.
        """
        if input_ids.shape[0] != 1:
            raise UserError(f"add_request() takes one prompt [1, P], got {[*input_ids.shape]}; add each on its own")
        generators = None if generator is None else [generator]
        return self.add_batch(input_ids, attention_mask, generation_config, generators, **kwargs)[0]

    def add_batch(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: DiffusionVLGenerationConfig | None = None,
        generator: Generators = None,
        **kwargs: Any,
    ) -> list[Request]:
        """Takes in prompts [B, P] whose image and video inputs are in one piece; they are read together.

        Arguments and errors are those of `add_request`. `generator` is one for all, or one a prompt.
        """
        model = self.model
        settings, media = resolve_settings(model, generation_config, kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        check_prompts(model, input_ids, attention_mask, media, generator)
        input_ids = input_ids.long()  # some processors give ids of 32 bits
        if settings.stop_strings and self.tokenizer is None:
            raise UserError("stop_strings need a tokenizer; give one to the engine, or to generate()")
        positions = model.position_ids(input_ids, attention_mask, media).cpu()
        blocks = model.block_ids(input_ids, attention_mask).cpu()
        ids, real = input_ids.cpu(), attention_mask.bool().cpu()
        generators = generator if isinstance(generator, Sequence) else [generator] * len(ids)
        deadline = float("inf") if settings.max_time is None else self.clock() + settings.max_time
        requests, canvases, block_size = [], [], model.config.block_size
        for row, own in enumerate(generators):
            chosen = real[row]
            requests.append(Request(settings, int(chosen.sum()), own, deadline))
            self._check_room(requests[-1])
            canvases.append(
                Canvas.build(
                    ids[row, chosen],
                    positions[:, row, chosen],
                    blocks[row, chosen],
                    own_blocks=model.config.block_origin == "response",
                    block_size=block_size,
                    mask_token_id=model.config.mask_token_id,
                    max_new_tokens=settings.max_new_tokens,
                    denoising_steps=settings.denoising_steps or block_size,
                    sub_block_size=settings.sub_block_size or block_size,
                )
            )
        if len(requests) > self.max_batch_size:
            raise UserError(f"{len(requests)} prompts at once exceed max_batch_size={self.max_batch_size}; add fewer")
        if len(self.waiting) + len(requests) > self.max_waiting:
            raise QueueFullError(f"{len(self.waiting)} requests wait already (max_waiting={self.max_waiting})")
        self._waiting.append(_Arrival(requests, canvases, media))
        return requests

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Reads prompts that have come to their turn, and takes one denoising step with every row.

        Returns:
            Requests whose answer has grown or ended, each end once; not those that `abort` ended.
        """
        changed = self._expire()
        started = set(self._row_numbers(self._reading))
        running = [row for row in range(len(self._batch.requests)) if row not in started]
        self._admit()
        going = [(request, len(request.tokens)) for request in self._batch.requests if not request.finished]
        if running:
            self._batch.denoise(running)
        for arrivals, media, keep in self._prefills():
            self._read(arrivals, media, keep)
        self._sweep()
        return changed + [one for one, length in going if one.finished or len(one.tokens) > length]

    def stream(self, request: Request, drafts: bool = False) -> Iterator[Chunk]:
        """Drives the engine until a request has ended, and yields its tokens, each once and in order, block by block.

        Other requests go on meanwhile. A stream that is closed before its end aborts its request.

        Args:
            request: What `add_request` returned.
            drafts: Yield the block after every denoising step, too.

        Raises:
            ValueError: The request was added to another engine.
            Exception: What the model raised when it read this request's prompt.
        """
        if not request.finished and request not in [*self.running, *self.waiting]:
            raise UserError("this request was added to another engine; stream it from there")
        sent = shown = 0
        try:
            while True:
                if len(request.tokens) > sent:
                    new = request.tokens[sent:]
                    sent += len(new)
                    yield Chunk(new)
                if request.error is not None:
                    raise request.error
                if request.finished:
                    return
                if drafts and request.step > 0 and request.forwards > shown:
                    shown = request.forwards
                    yield Chunk(self.draft(request), draft=True)
                    continue
                self.step()
        finally:
            self.abort(request)

    def draft(self, request: Request) -> list[int]:
        """The block of a request as it is now, with mask tokens; without the prompt's. Nothing, if it has no row."""
        return self._batch.draft(request) if request in self._batch.requests else []

    def abort(self, request: Request) -> None:
        """Ends a request and frees its slot; it keeps the blocks it has. Nothing happens if it has ended."""
        self._end(request, "abort")
        self._sweep()

    def _end(self, request: Request, reason: FinishReason) -> None:
        if not request.finished:
            request.finish_reason = reason

    def _expire(self) -> list[Request]:
        """Ends the requests whose time is up, and returns them."""
        now = self.clock()
        there = [request for request in [*self._batch.requests, *self.waiting] if not request.finished]
        late = [request for request in there if now >= request.deadline]
        for request in late:
            self._end(request, "time")
        self._sweep()
        return late

    def _sweep(self) -> None:
        """Frees the rows of requests that have ended, and forgets those that wait for nothing.

        A row whose images are in one piece with those of others stays until these are in the cache.
        """
        self._waiting = deque(arrival for arrival in self._waiting if not arrival.finished)
        self._reading = [arrival for arrival in self._reading if not arrival.finished]
        needed = {id(request) for arrival in self._reading for request in arrival.requests}
        for row in reversed(range(len(self._batch.requests))):
            request = self._batch.requests[row]
            if request.finished and id(request) not in needed:
                self._batch.remove(row)

    def _admit(self) -> None:
        """Gives rows to the requests that wait, in the order in which they came, as far as there is room."""
        longest = rows = 0
        while self._waiting:
            arrival = self._waiting[0]
            longest, rows = max(longest, arrival.prompt_tokens), rows + len(arrival.requests)
            if len(self._batch.requests) + len(arrival.requests) > self.max_batch_size:
                return
            if rows > len(arrival.requests) and longest * rows > self.prefill_tokens:
                return
            self._waiting.popleft()
            self._reading.append(arrival)
            for request, canvas in zip(arrival.requests, arrival.canvases, strict=True):
                self._batch.add(request, canvas)

    def _row_numbers(self, arrivals: list[_Arrival]) -> list[int]:
        """Rows of these arrivals' requests, in their order."""
        rows = {id(request): row for row, request in enumerate(self._batch.requests)}
        return [rows[id(request)] for arrival in arrivals for request in arrival.requests]

    def _prefills(self) -> list[_Prefill]:
        """Arrivals that one forward can read together, their media joined, and whether the cache keeps what is read.

        Image features cannot be fed without their whole image. While a window holds placeholders (a prompt that ends
        in an image, or one block for everything), its arrival runs with all that comes before it in every step.
        """
        alone: list[_Prefill] = []
        together: list[_Prefill] = []
        for arrival in self._reading:
            if arrival.media and self._batch.placeholders_in_windows(self._row_numbers([arrival])):
                alone.append(([arrival], arrival.media, False))
                continue
            for place, (arrivals, media, _) in enumerate(together):
                if joinable(media, arrival.media):
                    together[place] = ([*arrivals, arrival], join_media(media, arrival.media), True)
                    break
            else:
                together.append(([arrival], arrival.media, True))
        return alone + together

    def _read(self, arrivals: list[_Arrival], media: dict[str, Any], keep: bool) -> None:
        """Runs one of `_prefills`, with its rows' first step; an arrival that cannot be read ends with the error."""
        try:
            self._batch.denoise(self._row_numbers(arrivals), media, keep)
        except Exception as error:
            if len(arrivals) > 1:  # one of them must not spoil the others
                for arrival in arrivals:
                    self._read([arrival], arrival.media, keep)
                return
            for request in arrivals[0].requests:
                self._end(request, "error")
                request.error = error
        if keep:
            self._reading = [arrival for arrival in self._reading if arrival not in arrivals]

    def _check_room(self, request: Request) -> None:
        """Refuses a request that would never fit."""
        config, new = self.model.config, request.settings.max_new_tokens
        _, needed = lay_out(request.prompt_length, config.block_origin == "response", new, config.block_size)
        if needed > self.max_length:
            raise UserError(
                f"a prompt of {request.prompt_length} tokens and an answer of up to {new} need {needed} tokens in "
                f"blocks of {config.block_size}, but this engine's rows hold {self.max_length}; shorten the prompt, "
                "lower max_new_tokens, or build the engine with a larger max_length"
            )
