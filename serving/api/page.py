"""The page's files. They are few and small, so they are read once; nothing of a path is ever taken from a client."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Only our own files run, nothing is fetched from elsewhere, nobody may put the page into a frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def page_routes() -> list[Route]:
    """`/` and `/page/NAME` for each file of serving/web."""
    files = {
        file.name: file.read_bytes()
        for file in (resources.files("serving") / "web").iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }

    def show(name: str, body: bytes) -> Route:
        def answer(request: Request) -> Response:
            kind = _TYPES[name.rpartition(".")[2]]
            return Response(body, headers=_HEADERS, media_type=f"{kind}; charset=utf-8")

        return Route("/" if name == "index.html" else f"/page/{name}", answer)

    return [show(name, body) for name, body in sorted(files.items())]
