"""What the routes share: the model's prompts, the engine's thread, and how many answers are open."""

import asyncio
import copy
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..modeling.engine import Engine
from ..modeling.errors import UserError
from .engine_thread import EngineThread, Event, Job
from .errors import ApiError, bad_request
from .logprobs import Spelling
from .metrics import Metrics
from .picture_cache import PictureCache
from .prompts import encode_chat, encode_completion
from .protocol import AnswerBody, ChatBody, CompletionBody
from .settings import ServingSettings

log = logging.getLogger(__name__)
Inputs = dict[str, Tensor]


@dataclass
class Answers:
    """The answers to one request, which are being written.

    Attributes:
        jobs: One an answer.
        prompt_tokens: Number of tokens of the prompts.
        events: What happens to them, in order.
    """

    jobs: list[Job]
    prompt_tokens: int
    events: "asyncio.Queue[Event]"

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events until all answers have ended.

        Raises:
            ApiError: The model could not write one of them.
        """
        going = len(self.jobs)
        while going:
            event = await self.events.get()
            if event.finish_reason == "error" and isinstance(event.error, ApiError):
                raise event.error
            if isinstance(event.error, UserError):  # such as a grammar that has grown too large
                raise bad_request(str(event.error)) from event.error
            if event.finish_reason in ("error", "not_a_number"):
                log.error("an answer has ended with %s", event.finish_reason, exc_info=event.error)
                raise ApiError(500, "the model could not answer; the server's log has the reason") from event.error
            going -= event.finish_reason is not None
            yield event


class Service:
    """Answers requests by one engine.

    Args:
        model: A block-diffusion model in eval mode.
        processor: Its processor.
        settings: What the operator has set.

    Attributes:
        tokenizer: For the event loop's thread alone: a tokenizer is not safe between threads.
        spelling: Spells its tokens.
        draining: Whether new requests are refused because the server is about to end.
        open: Number of answers that are open.
    """

    def __init__(self, model: Any, processor: Any, settings: ServingSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.draining, self.open = False, 0
        self.tokenizer = copy.deepcopy(processor.tokenizer)
        self.spelling = Spelling(self.tokenizer)
        self.default_length: int = model.generation_config.max_new_tokens
        self._block_size: int = model.config.block_size
        self._capacity = settings.max_batch_size + settings.max_waiting
        self._pictures, self._own = PictureCache(settings.picture_cache_bytes), threading.local()
        self._pool = ThreadPoolExecutor(settings.workers, "prompts", self._set_up_worker, (processor,))
        engine_tokenizer = copy.deepcopy(processor.tokenizer)

        def build_engine() -> Engine:
            # `admit` counts what waits; the engine itself never has to refuse.
            return Engine(
                model,
                settings.max_batch_size,
                settings.max_length,
                self._capacity + 1,
                tokenizer=engine_tokenizer,
                prefix_cache_tokens=settings.prefix_cache_tokens,
            )

        self.thread = EngineThread(build_engine, self.metrics)

    async def stop(self) -> None:
        """Ends all threads."""
        await self.thread.stop()
        self._pool.shutdown(wait=False)

    @asynccontextmanager
    async def ask(self, body: AnswerBody) -> AsyncIterator[Answers]:
        """Starts the answers to a request, and frees whatever they hold at the end, whatever that is.

        Raises:
            ApiError: They cannot be started; the status says whose fault it is.
        """
        prompts = body.prompts if isinstance(body, CompletionBody) else [None]
        with self._admit(len(prompts) * body.count):
            try:
                inputs = [await self._encode(body, prompt) for prompt in prompts]
            except UserError as error:
                raise bad_request(str(error), "prompt" if isinstance(body, CompletionBody) else "messages") from error
            for field, constraint in body.constraints.items():
                await self._check(field, constraint)
            answers = self._answers(body, inputs)
            try:
                await self._submit(answers)
                yield answers
            finally:
                self.thread.abort(answers.jobs)

    @contextmanager
    def _admit(self, count: int) -> Iterator[None]:
        """Counts answers as open, or refuses them."""
        if self.draining:
            raise ApiError(503, "the server is about to end; ask another one", code="draining", retry_after=1)
        if count > self._capacity:
            raise bad_request(f"{count} answers are more than this server holds at once ({self._capacity})", "n")
        if self.open + count > self._capacity:
            raise ApiError(429, "too many requests wait; try again", code="rate_limit_exceeded", retry_after=1)
        self.open += count
        try:
            yield
        finally:
            self.open -= count

    async def _encode(self, body: AnswerBody, prompt: str | list[int] | None) -> Inputs:
        """Reads pictures and writes a prompt, beside the event loop and the engine."""

        def encode() -> Inputs:
            if isinstance(body, ChatBody):
                return encode_chat(self._own.processor, body.messages, self.settings, self._pictures)
            assert prompt is not None
            return encode_completion(self._own.processor, prompt)

        return await asyncio.get_running_loop().run_in_executor(self._pool, encode)

    async def _check(self, field: str, constraint: dict[str, Any]) -> None:
        """Compiles a constraint beside the engine, which finds it compiled.

        Raises:
            ApiError: It cannot be used; the field is named.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self.thread.compile, constraint)
        except UserError as error:
            raise bad_request(f"{field}: {error}", field) from error

    def _set_up_worker(self, processor: Any) -> None:
        self._own.processor = own = copy.deepcopy(processor)
        if getattr(own, "image_processor", None) is not None:  # a text model's processor is its tokenizer
            self._pictures.attach(own.image_processor)

    def _answers(self, body: AnswerBody, inputs: Sequence[Inputs]) -> Answers:
        """Jobs for all answers, with their settings.

        Raises:
            ApiError: One of them does not fit.
        """
        events: asyncio.Queue[Event] = asyncio.Queue()
        jobs: list[Job] = []
        lengths = [one["input_ids"].shape[1] for one in inputs]
        for one, length in zip(inputs, lengths, strict=True):
            settings = self._engine_settings(body, length)
            for choice in range(body.count):
                seed = None if body.seed is None else body.seed + choice
                jobs.append(Job(len(jobs), one, settings, seed, body.drafts, events))
        return Answers(jobs, sum(lengths), events)

    def _engine_settings(self, body: AnswerBody, prompt_length: int) -> dict[str, Any]:
        """Settings of an answer; one whose length was left open is as long as there is room for."""
        settings, most = body.engine_settings, self.settings.max_length
        room = most - prompt_length - self._block_size
        wanted = settings.setdefault("max_new_tokens", max(min(self.default_length, room), 1))
        if prompt_length + wanted > most:
            raise bad_request(
                f"a prompt of {prompt_length} tokens and an answer of up to {wanted} do not fit in {most} tokens",
                "max_tokens" if prompt_length < most else "messages",
                "context_length_exceeded",
            )
        return settings

    async def _submit(self, answers: Answers) -> None:
        try:
            await self.thread.submit(answers.jobs)
        except UserError as error:
            raise bad_request(str(error)) from error
