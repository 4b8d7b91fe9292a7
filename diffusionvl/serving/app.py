"""The server as an ASGI application: OpenAI's routes over one `Service`."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from .errors import ApiError, bad_request
from .gate import CLIENT_LEFT, Gate
from .protocol import AnswerBody, ChatBody, CompletionBody
from .responses import Writer
from .service import Service
from .settings import ServingSettings

log = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page.html")
# Nothing from elsewhere, and nobody else's frame.
PAGE_MAY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


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
        status, writer = 200, None
        try:
            async with service.ask(body) as answers:
                writer = Writer(
                    body, service.settings.name, service.tokenizer, len(answers.jobs), answers.prompt_tokens
                )
                if body.stream:
                    started = True
                    await _start_stream(send)
                    await _send(send, writer.opening())
                async for event in answers:
                    chunk = writer.part(event)
                    if body.stream and chunk:
                        await _send(send, chunk)
            if body.stream:
                await _send(send, writer.closing(), more=False)
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


def create_app(model: Any, processor: Any, settings: ServingSettings | None = None) -> FastAPI:
    """A server for one model, as an ASGI application.

    Args:
        model: A `DiffusionVLForConditionalGeneration` in eval mode, on its device.
        processor: Its processor.
        settings: What the operator sets; defaults if left out.

    Returns:
        The application; `app.state.service` is its `Service`.
    """
    settings = settings or ServingSettings()
    service, created = Service(model, processor, settings), int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.thread.start()
        yield
        await service.stop()

    app = FastAPI(title="diffusionvl", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Gate, settings=settings, metrics=service.metrics)
    _report_errors(app)
    card = {
        "id": settings.name,
        "object": "model",
        "created": created,
        "owned_by": "diffusionvl",
        "max_length": settings.max_length,
        "block_size": model.config.block_size,
        "one_token_a_forward": _one_token_a_forward(model.config),  # for those who compare
    }

    def answer(body: AnswerBody) -> Response:
        if body.model not in (None, settings.name):
            raise ApiError(
                404, f"there is no model {body.model!r} here, only {settings.name!r}", "model", "model_not_found"
            )
        return AnswerResponse(service, body)

    @app.post("/v1/chat/completions", response_class=JSONResponse)
    async def chat(body: ChatBody) -> Response:
        """Answers a chat, which may hold pictures."""
        return answer(body)

    @app.post("/v1/completions", response_class=JSONResponse)
    async def complete(body: CompletionBody) -> Response:
        """Continues a raw prompt."""
        return answer(body)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Lists the one model."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model_card(name: str) -> dict[str, Any]:
        """Describes the one model."""
        if name != settings.name:
            raise ApiError(404, f"there is no model {name!r} here, only {settings.name!r}", "model", "model_not_found")
        return card

    @app.post("/load_model")
    async def load_model() -> Response:
        """Says that the model is there; `transformers chat` asks before it begins."""
        return PlainTextResponse('data: {"status": "ready", "cached": true}\n\n', media_type="text/event-stream")

    @app.get("/health")
    async def health() -> Response:
        """Says whether requests are answered: 200, or 503 while draining and after the engine's end."""
        state = "ok" if service.healthy else "draining" if service.thread.alive else "dead"
        return JSONResponse({"status": state}, 200 if service.healthy else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus's metrics."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    if settings.page:

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            """A chat in which one sees the denoising; a client of the routes above."""
            return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": PAGE_MAY})

    return app


def _one_token_a_forward(config: Any) -> dict[str, Any]:
    """Settings of a request that is answered as slowly as by an AR model."""
    if config.clean_attention == "causal":
        return {"decoding": "autoregressive"}
    return {"denoising_steps": config.block_size, "remasking": "low_confidence_static"}


def _report_errors(app: FastAPI) -> None:
    """Gives every error OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _invalid_body(error).response

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        response = ApiError(error.status_code, str(error.detail)).response
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return ApiError(500, "the server has failed; its log has the reason").response


def _invalid_body(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, with its field's name."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part != "body"]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    if first["type"] == "json_invalid":
        return bad_request("the body is not JSON")
    if not param:
        return bad_request(first["msg"])
    unknown = first["type"] == "extra_forbidden"
    reason = "is not supported, or not with this value; leave it out" if unknown else first["msg"]
    return bad_request(f"{param}: {reason}", param)
