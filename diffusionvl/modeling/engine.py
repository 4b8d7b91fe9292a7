"""The engine: requests come and go, and each step runs all rows that are there.

Legend: B prompts that arrive together, P padded prompt, D block size.
"""

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .arrivals import Arrival, group, join_media
from .batch import DecodingBatch
from .errors import QueueFullError, UserError
from .grammar import compile_constraint
from .inputs import Call, read_call
from .prefix import PrefixCache
from .request import Chunk, Request
from .sampling import Generators


class Engine:
    """Continuous batching: each row has its own length, block, step, settings and end.

    A request waits until there is a slot for it, is read together with those that came with it, and leaves when its
    answer ends. It gets the tokens that it would get alone. One thread at a time drives an engine; a server hands
    requests to that thread through a queue.

    Args:
        model: A `DiffusionVLForConditionalGeneration`.
        max_batch_size: Largest number of rows that are decoded together.
        max_length: Largest number of tokens of a row, prompt and answer, the last block filled up. The cache never
            holds more than `max_batch_size` rows of `max_length + 2 D` tokens.
        max_waiting: Largest number of requests that wait for a slot.
        prefill_tokens: Prompts are read together up to this number of tokens with padding; one prompt may be longer.
        tokenizer: Needed for stop strings and constraints.
        fused_commit: Write a finished block's clean keys and values in the forward of the next block's first step;
            otherwise each commit (and the prefill) is a forward of its own.
        static_shapes: After a prompt's first step, run all `max_batch_size` slots over all columns, so that there are
            only two shapes: for a decoder that is compiled. The cache is allocated at once.
        prefix_cache_tokens: Largest number of tokens of rows that have ended whose keys and values are kept, so that
            later prompts that begin in the same way do not read them again (`prefix.py`).
        clock: Returns the time in seconds, for `max_time`.
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
        prefix_cache_tokens: int = 0,
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
        self._prefixes = PrefixCache(self._batch, prefix_cache_tokens)
        self._waiting: deque[Arrival] = deque()
        self._reading: list[Arrival] = []  # they have rows, but their prompts are not in the cache yet
        self._lock, self._owner = threading.RLock(), threading.get_ident()

    @property
    def running(self) -> list[Request]:
        """Requests that have a row now."""
        return [*self._batch.requests]

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
        generation_config: Any = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Request:
        """Takes in one prompt.

        Args:
            input_ids: The prompt [1, P], as a processor gives it.
            attention_mask: 1 for tokens, 0 for padding on the left [1, P]; left out, padding ids are padding.
            generation_config: Settings; the model's own if left out.
            generator: Source of randomness where the temperature is above 0, this request's own, on the model's device.
            **kwargs: Settings that differ for this request, the inputs for images and videos, `logits_processor` and
                `stopping_criteria`.

        Returns:
            The request, whose answer `step` writes.

        Raises:
            UserError: The prompt cannot be read as it is meant, a setting is unknown or out of its range, or the
                request would not fit in `max_length`.
            QueueFullError: `max_waiting` requests wait.
        """
        if isinstance(input_ids, Tensor) and input_ids.ndim == 2 and input_ids.shape[0] != 1:
            raise UserError(f"add_request() takes one prompt [1, P], got {[*input_ids.shape]}; add each on its own")
        if kwargs.get("num_return_sequences", 1) != 1:
            raise UserError("add_request() takes one request for one answer; add the prompt several times")
        return self.add_batch(input_ids, attention_mask, generation_config, generator, **kwargs)[0]

    def add_batch(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        generator: Generators = None,
        **kwargs: Any,
    ) -> list[Request]:
        """Takes in prompts [B, P] whose image and video inputs are in one piece; they are read together.

        Arguments and errors are those of `add_request`. `generator` is one for all, or one a prompt.
        """
        return self.add_call(read_call(self.model, input_ids, attention_mask, generation_config, generator, kwargs))

    def add_call(self, call: Call) -> list[Request]:
        """Takes in the prompts of a call that has been read (`inputs.read_call`)."""
        with self._driven():
            if call.settings.stop_strings and self.tokenizer is None:
                raise UserError("stop_strings need a tokenizer; give one to the engine, or to generate()")
            deadline = float("inf") if call.settings.max_time is None else self.clock() + call.settings.max_time
            constraint = compile_constraint(call.settings, self.tokenizer, self._batch.unwritable)
            arrival = Arrival.build(self.model, call, deadline, constraint)
            for request in (requests := arrival.requests):
                self._check_room(request)
            if len(requests) > self.max_batch_size:
                raise UserError(
                    f"{len(requests)} prompts at once exceed max_batch_size={self.max_batch_size}; add fewer"
                )
            if len(self.waiting) + len(requests) > self.max_waiting:
                raise QueueFullError(f"{len(self.waiting)} requests wait already (max_waiting={self.max_waiting})")
            self._waiting.append(arrival)
            return requests

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Reads prompts that have come to their turn, and takes one step with every row.

        A forward that raises is tried again with each of its rows alone; a request that raises alone ends with
        `error`, and the others go on.

        Returns:
            Requests whose answer has grown or ended, each end once; not those that `abort` ended.
        """
        with self._driven():
            changed = self._expire()
            reading = {id(request) for arrival in self._reading for request in arrival.requests}
            running = [request for request in self._batch.requests if id(request) not in reading]
            self._admit()
            going = [(request, len(request.tokens)) for request in self._batch.requests if not request.finished]
            for arrival in self._reading:
                arrival.begin(self.tokenizer)
            self._sweep()  # what is forced may be the whole answer
            if running:
                self._run([Arrival([request], {}) for request in running], read=False)
            for arrival in self._reading:
                self._prefixes.begin(arrival)
            for arrivals, keep in group(self._reading, self._batch.placeholders_in_windows):
                self._run(arrivals, read=True, keep=keep)
            self._sweep()
            return changed + [one for one, length in going if one.finished or len(one.tokens) > length]

    def stream(self, request: Request, drafts: bool = False) -> Iterator[Chunk]:
        """Drives the engine until a request has ended, and yields its final tokens, each once and in order.

        Other requests go on meanwhile. A stream that is closed before its end aborts its request.

        Args:
            request: What `add_request` returned.
            drafts: Also yield, after every step, the tokens that may still change.

        Raises:
            UserError: The request was added to another engine.
            Exception: What was raised for this request.
        """
        if not request.finished and request not in [*self.running, *self.waiting]:
            raise UserError("this request was added to another engine; stream it from there")
        chunks = self._chunks(request, drafts)
        next(chunks)  # begun, so that closing it aborts the request
        return chunks

    def _chunks(self, request: Request, drafts: bool) -> Iterator[Chunk]:
        """The chunks of `stream`, after an empty one."""
        sent = shown = 0
        try:
            yield Chunk([])
            while True:  # others may drive the engine between two chunks
                if len(request.tokens) > sent:
                    new = request.tokens[sent:]
                    sent += len(new)
                    yield Chunk(new)
                elif request.error is not None:
                    raise request.error
                elif request.finished:
                    return
                elif drafts and request.step > 0 and request.forwards > shown:
                    shown = request.forwards
                    yield Chunk(request.draft, draft=True)
                else:
                    self.step()
        finally:
            self.abort(request)

    def draft(self, request: Request) -> list[int]:
        """Tokens after a request's answer that may still change, the mask id where still masked; none without a row."""
        return request.draft if request in self._batch.requests else []

    def abort(self, request: Request) -> None:
        """Ends a request and frees its slot; it keeps the blocks it has. Nothing happens if it has ended."""
        if not request.finished:
            with self._driven():
                request.end("abort")
                self._sweep()

    def check_integrity(self) -> None:
        """Checks that slots, rows and lengths belong together; for tests, and for a server that is idle.

        Raises:
            RuntimeError: They do not.
        """
        rows, waiting = self._batch.requests, self.waiting
        held = {id(request) for arrival in self._reading for request in arrival.requests}
        for good, what in (
            (len(rows) <= self.max_batch_size, "more rows than max_batch_size"),
            (len({*map(id, [*rows, *waiting])}) == len(rows) + len(waiting), "a request in two places"),
            (all(not row.finished or id(row) in held for row in rows), "a row of a request that has ended"),
            (held <= {*map(id, rows)}, "a prompt that is read without a row"),
            (all(row.canvas.kept <= row.canvas.window for row in rows), "a row that keeps more than it has"),
            (self.cache.static or self.cache.is_clean(len(rows)), "keys or values in a slot that is free"),
        ):
            if not good:
                raise RuntimeError(f"the engine holds {what}")

    @contextmanager
    def _driven(self) -> Iterator[None]:
        """Inside, this thread drives the engine.

        Raises:
            UserError: Another one does, or has requests in it.
        """
        mine = threading.get_ident()
        if not self._lock.acquire(blocking=False):
            raise UserError("another thread is driving this engine; hand requests to that thread through a queue")
        try:
            if self._owner != mine and self.busy:
                raise UserError(
                    "this engine has requests of another thread; hand requests to that thread through a queue"
                )
            self._owner = mine
            yield
        finally:
            self._lock.release()

    def _expire(self) -> list[Request]:
        """Ends the requests whose time is up, and returns them."""
        now = self.clock()
        there = [*self._batch.requests, *self.waiting]
        late = [request for request in there if now >= request.deadline and not request.finished]
        for request in late:
            request.end("time")
        self._sweep()
        return late

    def _sweep(self) -> None:
        """Frees the rows of requests that have ended, and forgets arrivals of which all have ended.

        A row whose images are in one piece with those of others stays until these are in the cache.
        """
        self._waiting = deque(arrival for arrival in self._waiting if not arrival.finished)
        self._reading = [arrival for arrival in self._reading if not arrival.read]
        needed = {id(request) for arrival in self._reading for request in arrival.requests}
        for row in reversed(range(len(self._batch.requests))):
            request = self._batch.requests[row]
            if request.finished and id(request) not in needed:
                self._prefixes.keep(row)
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
            self._reading.append(arrival)
            self._batch.requests += arrival.requests
            self._waiting.popleft()

    def _run(self, arrivals: list[Arrival], read: bool, keep: bool = True) -> None:
        """Takes one step with some requests; if it raises, with each alone, and what raises then ends with the error.

        Args:
            arrivals: The requests, with media if their prompts are not in the cache.
            read: Whether they are read now.
            keep: Whether the cache keeps what is run.
        """
        requests = [request for arrival in arrivals for request in arrival.requests]
        try:
            self._batch.step(requests, join_media(arrivals) if read else None, keep)
        except Exception as error:
            parts = [part for arrival in arrivals for part in arrival.apart()]
            for request in requests if len(parts) == 1 else []:
                request.end("error", error)
            if len(parts) > 1:
                warnings.warn(f"a forward of {len(requests)} rows raised {error!r}; each runs alone", stacklevel=2)
            for part in parts if len(parts) > 1 else []:
                self._run([part], read, keep)

    def _check_room(self, request: Request) -> None:
        """Refuses a request that would never fit."""
        new, needed = request.longest, request.canvas.columns_needed(request.longest)
        if needed > self.max_length:
            raise UserError(
                f"a prompt of {request.prompt_length} tokens and an answer of up to {new} need {needed} tokens in "
                f"blocks of {request.settings.block_size}, but this engine's rows hold {self.max_length}; shorten "
                "the prompt, lower max_new_tokens, or build the engine with a larger max_length"
            )
