"""The dashboard's web server: this computer only, GET only, three addresses, nothing of the disk.

A page from elsewhere that the same browser shows must not read it: the Host header has to be a name of this computer
(a name that a stranger's DNS points at 127.0.0.1 is none), and no answer may be framed or read across origins.
"""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from launcher.dashboard.page import one_run, overview
from launcher.dashboard.shelf import Shelf
from launcher.errors import VlaunchError

_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# A client that says nothing for this long is let go.
_SILENCE_S = 20.0


class Dashboard(ThreadingHTTPServer):
    """Bound when it is made; `serve_forever` answers."""

    daemon_threads = True

    def __init__(self, shelf: Shelf, port: int) -> None:
        """`port` 0 takes a free one. Raises VlaunchError where it is taken."""
        self.shelf = shelf
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            said = f"cannot listen on port {port} of this computer: {error.strerror}"
            raise VlaunchError(said, hint="--port 0 takes a free one") from None

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vlaunch", ""
    timeout = _SILENCE_S
    server: Dashboard

    def do_GET(self) -> None:
        if self.headers.get("Host") not in (f"127.0.0.1:{self.server.port}", f"localhost:{self.server.port}"):
            return self._answer(HTTPStatus.MISDIRECTED_REQUEST, "this is a page of another computer")
        parts = urlsplit(self.path).path.strip("/").split("/")
        shown = self.server.shelf.look()
        if parts == [""]:
            return self._answer(HTTPStatus.OK, overview(shown, self.server.shelf.store))
        found = [record for record in shown.runs if parts == ["runs", record.run_id]]
        if not found:
            return self._answer(HTTPStatus.NOT_FOUND, "no such page")
        self._answer(HTTPStatus.OK, one_run(shown, found[0]))

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: HTTPStatus, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
