"""Errors in OpenAI's shape, which its clients turn into exceptions by the status code.

{"error": {"message": "...", "type": "invalid_request_error", "param": "temperature", "code": null}}
"""

from __future__ import annotations

from typing import Any

import orjson

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """Ends a request with this status; `param` is the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def event(self) -> bytes:
        """The same inside of a stream that has begun; nothing comes after it."""
        return b"data: " + self.body() + b"\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(max(1, round(self.retry_after_s))).encode()))
        return found


async def send_error(
    send: Any, error: ApiError, more_headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """The whole response, as ASGI messages."""
    body = error.body()
    headers = [*error.headers(), (b"content-length", str(len(body)).encode()), *(more_headers or [])]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
