"""What is checked before a request's body is read, the key and the body's size; and the count of what is answered."""

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .metrics import Metrics
from .settings import ServingSettings

CLIENT_LEFT = 499  # as other servers count a client that goes away before its answer
API = "/v1/"


class Gate:
    """ASGI middleware before all that is under `/v1/`."""

    def __init__(self, app: ASGIApp, settings: ServingSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it with 401 or 413."""
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self.app(scope, receive, send)
            return
        status = CLIENT_LEFT

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._pass_on(scope, receive, watched)
        finally:
            self.metrics.responses.labels(status=status).inc()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, most, read = Headers(scope=scope), self.settings.max_body_bytes, 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:  # a body that came without its length
                raise HTTPException(413, too_large(most))
            return message

        if not self._has_key(headers):
            error = ApiError(401, "no valid API key; send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
            await error.response(scope, receive, send)
        elif _length(headers) > most:
            await ApiError(413, too_large(most)).response(scope, receive, send)
        else:
            await self.app(scope, counted, send)

    def _has_key(self, headers: Headers) -> bool:
        key = self.settings.api_key
        if key is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())


def _length(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


def too_large(most: int) -> str:
    """The message for a body that is too large."""
    return f"the request's body exceeds {most} bytes; scale its pictures"
