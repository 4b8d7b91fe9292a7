"""The response to a question: its whole life, from its admission to its last byte."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError
from .gate import CLIENT_LEFT
from .protocol import AnswerBody
from .responses import Writer
from .service import Service

log = logging.getLogger(__name__)


class AnswerResponse(Response):
    """Answers a request, streaming or not, and stops when the client goes away.

    All of an answer's life is inside one call, so that whatever ends it frees what it holds.
    """

    def __init__(self, service: Service, body: AnswerBody) -> None:
        super().__init__()
        self.service, self.body_of_request = service, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, unless the client goes away first."""
        await _unless_gone(self._answer(scope, receive, send), receive)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, body = self.service, self.body_of_request
        started, since = False, time.monotonic()
        status, writer, chunk = 200, None, b""
        try:
            async with service.ask(body) as answers:
                writer = Writer(body, service, len(answers.jobs), answers.prompt_tokens)
                if body.stream:
                    started = True
                    await _start_stream(send)
                    await _send(send, writer.opening())
                async for event in answers:
                    if not body.stream:
                        writer.take(event)
                    elif (chunk := writer.part(event)) and not writer.ended:
                        await _send(send, chunk)
            if body.stream:  # the last chunks go together, once the row is free
                await _send(send, chunk + writer.closing(), more=False)
            else:
                await JSONResponse(writer.whole())(scope, receive, send)
        except ApiError as error:
            status = error.status
            if writer is not None and started:
                await _send(send, writer.error(error.body), more=False)
            else:
                await error.response(scope, receive, send)
        except asyncio.CancelledError:
            status = CLIENT_LEFT
            raise
        finally:
            self._log(status, time.monotonic() - since, writer)

    def _log(self, status: int, seconds: float, writer: Writer | None) -> None:
        usage = None if writer is None else writer.usage
        log.info("%s %s in %.3f s: %s", writer.id if writer else "-", status, seconds, usage)
        if self.service.settings.log_prompts:
            answers = [] if writer is None else [choice.text for choice in writer.choices]
            log.info("asked %s, answered %s", self.body_of_request.model_dump_json(exclude_unset=True), answers)


async def _unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Does some work; cancels it, and waits for its end, when the client goes away."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        results = await asyncio.gather(task, gone, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _start_stream(send: Send) -> None:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would hold the chunks back
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send(send: Send, chunk: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": more})
