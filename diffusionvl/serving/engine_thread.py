"""The one thread that touches the engine: requests come in by a queue, what they write goes out by asyncio's queues."""

import asyncio
import copy
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..modeling.engine import Engine
from ..modeling.families import unwritable_ids
from ..modeling.grammar import compile_constraint
from ..modeling.logprobs import TokenLogprob
from ..modeling.request import FinishReason, Request
from .errors import ApiError
from .metrics import Metrics

log = logging.getLogger(__name__)


class Event(NamedTuple):
    """What has happened to an answer in one step of the engine.

    Attributes:
        choice: Number of the answer in its request.
        tokens: Tokens that follow those of earlier events.
        logprobs: What the model thought of each of them; empty unless it was asked for.
        finish_reason: Why the answer has ended; None while it goes on.
        forwards: Forwards that the answer has taken part in so far.
        reused: Number of prompt tokens that were not read again.
        draft: Tokens that may still change, None where masked, with the confidence in each; if drafts are wanted.
        error: What went wrong, with the finish reason `error`.
    """

    choice: int
    tokens: list[int]
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: FinishReason | None = None
    forwards: int = 0
    reused: int = 0
    draft: list[tuple[int | None, float]] | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Job:
    """One answer that is asked for.

    Attributes:
        index: Number of the answer in its request.
        inputs: The prompt [1, P] and its media, as a processor gives them.
        settings: Settings of `Engine.add_request`.
        seed: Of the draws.
        drafts: Whether events are wanted after every denoising step.
        events: Where its events go.
        request: The engine's handle, once the engine has it.
        sent: Number of tokens in its events so far.
        closed: Whether nobody waits for it any more.
        since: When it was asked for, or when its last block came.
    """

    index: int
    inputs: Mapping[str, Tensor]
    settings: dict[str, Any]
    seed: int | None
    drafts: bool
    events: "asyncio.Queue[Event]"
    request: Request | None = None
    sent: int = 0
    closed: bool = False
    since: float = 0.0


class EngineThread:
    """Runs an engine. Its public methods belong to the event loop's thread, and none of them waits for a step.

    Args:
        build_engine: Builds the engine, and another one should a step fail.
        metrics: Counts what happens.
    """

    def __init__(self, build_engine: Callable[[], Engine], metrics: Metrics) -> None:
        self._build, self._metrics = build_engine, metrics
        self._engine = build_engine()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live: dict[Request, Job] = {}
        self._outbox: list[tuple[Job, Event]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._ended

    def start(self) -> None:
        """Starts the thread, whose events go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after the step that it is in."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    async def submit(self, jobs: Sequence[Job]) -> None:
        """Hands jobs to the engine, all or none.

        Raises:
            ApiError: The thread is dead.
            UserError: The engine refuses one of them.
        """
        if not self.alive:
            raise ApiError(503, "the engine has stopped; restart the server")
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.put(lambda: self._add(jobs, accepted))
        await accepted

    def compile(self, constraint: dict[str, Any]) -> None:
        """Compiles a constraint, so that the engine finds it compiled. For any thread, since it takes time.

        Raises:
            UserError: It cannot be used.
        """
        engine = self._engine
        settings = copy.deepcopy(engine.model.generation_config)
        settings.update(**constraint)
        settings.validate()
        compile_constraint(settings, engine.tokenizer, unwritable_ids(engine.model))

    def abort(self, jobs: Sequence[Job]) -> None:
        """Frees what jobs hold; those that have ended hold nothing. Never waits and never fails."""
        self._inbox.put(lambda: self._drop(jobs))

    def _run(self) -> None:
        try:
            while self._take():
                if self._engine.busy:
                    self._step()
                self._deliver()
        except Exception:
            log.exception("the engine's thread has ended")
        finally:
            self._ended = True
            with suppress(Exception):  # whoever has asked meanwhile is to hear of it, too
                self._take()
            self._fail_all(ApiError(503, "the engine has stopped"))
            self._deliver()

    def _take(self) -> bool:
        """Does what has come in; waits for something if the engine is idle. Returns whether to go on."""
        wait = not (self._engine.busy or self._ended)
        while True:
            try:
                order = self._inbox.get(wait)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            wait = False

    def _add(self, jobs: Sequence[Job], accepted: "asyncio.Future[None]") -> None:
        try:
            for job in jobs:
                self._add_one(job)
        except Exception as error:  # of this request alone; whoever waits for it decides what it means
            self._drop(jobs)
            self._resolve(accepted, error)
        else:
            self._resolve(accepted, None)

    def _add_one(self, job: Job) -> None:
        model = self._engine.model
        inputs: dict[str, Any] = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in job.inputs.items()
        }
        generator = None if job.seed is None else torch.Generator(model.device).manual_seed(job.seed)
        settings = {**job.settings, "output_history": job.drafts}
        job.request = self._engine.add_request(**inputs, **settings, generator=generator)
        job.since = time.monotonic()
        self._live[job.request] = job

    def _drop(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.closed = True
            if job.request is not None and self._live.pop(job.request, None) is not None:
                self._engine.abort(job.request)
                self._metrics.ended(job.request)
        self._count()

    def _step(self) -> None:
        try:
            changed = set(self._engine.step())
        except Exception as error:
            log.exception("a step of the engine has failed; its requests end, and a new engine takes over")
            self._fail_all(error)
            self._engine = self._build()
            return
        for request, job in list(self._live.items()):
            if request in changed or job.drafts:
                self._publish(job, request)
        self._count()

    def _publish(self, job: Job, request: Request) -> None:
        """Sends what a step has written for a job."""
        tokens, logprobs = request.tokens[job.sent :], request.logprobs[job.sent :]
        draft = None if request.finished or not request.history else self._draft(request)
        request.history.clear()
        if not tokens and not request.finished and draft is None:
            return
        if tokens:
            now = time.monotonic()
            self._metrics.block(now - job.since, first=job.sent == 0)
            job.sent, job.since = job.sent + len(tokens), now
        if request.finished:
            del self._live[request]
            self._metrics.ended(request)
        ended = request.finish_reason, request.forwards, request.reused
        self._outbox.append((job, Event(job.index, tokens, logprobs, *ended, draft, request.error)))

    def _draft(self, request: Request) -> list[tuple[int | None, float]]:
        """What the last step has left open."""
        step, mask = request.history[-1], self._engine.model.config.mask_token_id
        first = request.prompt_length + len(request.tokens)
        places = zip(step.columns[0].tolist(), step.tokens[0].tolist(), step.confidence[0].tolist(), strict=True)
        found = [(None if token == mask else token, sure) for column, token, sure in places if column >= first]
        return found[: len(request.draft)]

    def _fail_all(self, error: Exception) -> None:
        for request, job in self._live.items():
            request.finish_reason = request.finish_reason or "error"
            self._metrics.ended(request)
            self._outbox.append((job, Event(job.index, [], (), "error", request.forwards, error=error)))
        self._live.clear()
        self._count()

    def _count(self) -> None:
        running = len(self._engine.running)
        self._metrics.running.set(running)
        self._metrics.waiting.set(max(len(self._live) - running, 0))

    def _resolve(self, future: "asyncio.Future[None]", error: Exception | None) -> None:
        def set_result() -> None:
            if future.done():  # whoever asked has gone
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(set_result)

    def _deliver(self) -> None:
        """Hands all events of a step to the event loop at once."""
        outbox, self._outbox = self._outbox, []

        def put() -> None:
            for job, event in outbox:
                job.events.put_nowait(event)

        assert self._loop is not None
        if outbox and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(put)
