"""The server as an ASGI application: OpenAI's routes over one `Service`."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from .answer import AnswerResponse
from .errors import ApiError, bad_request
from .gate import Gate
from .protocol import AnswerBody, ChatBody, CompletionBody
from .service import Service
from .settings import ServingSettings

PAGE = Path(__file__).with_name("page.html")
# Nothing from elsewhere, and in no other page's frame.
PAGE_MAY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


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
    service = Service(model, processor, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.thread.start()
        yield
        await service.stop()

    app = FastAPI(title="diffusionvl", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Gate, settings=settings, metrics=service.metrics)
    _report_errors(app)
    _answer_questions(app, service)
    _describe_model(app, settings.name, model.config, settings.max_length)
    _report_state(app, service)
    if settings.page:

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            """A chat in which one sees the denoising; a client of the other routes."""
            return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": PAGE_MAY})

    return app


def _answer_questions(app: FastAPI, service: Service) -> None:
    def answer(body: AnswerBody) -> Response:
        if body.model not in (None, service.settings.name):
            raise _no_model(body.model, service.settings.name)
        return AnswerResponse(service, body)

    @app.post("/v1/chat/completions", response_class=JSONResponse)
    async def chat(body: ChatBody) -> Response:
        """Answers a chat, which may hold pictures."""
        return answer(body)

    @app.post("/v1/completions", response_class=JSONResponse)
    async def complete(body: CompletionBody) -> Response:
        """Continues a raw prompt."""
        return answer(body)


def _describe_model(app: FastAPI, name: str, config: Any, max_length: int) -> None:
    card = {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "diffusionvl",
        "max_length": max_length,
        "block_size": config.block_size,
        "one_token_a_forward": _one_token_a_forward(config),  # for those who compare
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Lists the one model."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{asked:path}")
    async def model_card(asked: str) -> dict[str, Any]:
        """Describes the one model."""
        if asked != name:
            raise _no_model(asked, name)
        return card

    @app.post("/load_model")
    async def load_model() -> Response:
        """Says that the model is there; `transformers chat` asks before it begins."""
        return PlainTextResponse('data: {"status": "ready", "cached": true}\n\n', media_type="text/event-stream")


def _report_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Says whether requests are answered: 200, or 503 while draining and after the engine's end."""
        state = "dead" if not service.thread.alive else "draining" if service.draining else "ok"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus's metrics."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _no_model(asked: str | None, name: str) -> ApiError:
    return ApiError(404, f"there is no model {asked!r} here, only {name!r}", "model", "model_not_found")


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
    if first["type"] == "contradiction":
        place.append(first["ctx"]["field"])
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    if first["type"] == "json_invalid":
        return bad_request("the body is not JSON")
    if not param:
        return bad_request(first["msg"])
    unknown = first["type"] == "extra_forbidden"
    reason = "is not supported, or not with this value; leave it out" if unknown else first["msg"]
    return bad_request(f"{param}: {reason}", param)
