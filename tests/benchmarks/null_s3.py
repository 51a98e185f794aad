"""An S3 endpoint over TLS that throws uploads away and sends zeros: what is left is the cost of the client.

    python tests/benchmarks/null_s3.py CERTIFICATE KEY

Prints its port. Objects have the size that their name ends in: `size("w-0-33554432")`. A listing is always empty.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
import threading
from urllib.parse import parse_qs, urlsplit

PIECE = 1 << 20
ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'
BEGUN = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
DONE = f"<CompleteMultipartUploadResult><ETag>{ETAG}</ETag></CompleteMultipartUploadResult>"
EMPTY = "<ListBucketResult><Name>b</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"


class Connection:
    """One client, request after request."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self._raw, self._context = raw, context
        self._piece = memoryview(bytearray(PIECE))
        self._early = b""

    def serve(self) -> None:
        try:
            with self._context.wrap_socket(self._raw, server_side=True) as self._socket:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while self._one():
                    pass
        except OSError:
            pass

    def _one(self) -> bool:
        while b"\r\n\r\n" not in self._early:
            data = self._socket.recv(1 << 16)
            if not data:
                return False
            self._early += data
        head, _, self._early = self._early.partition(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        if b"100-continue" in head:
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if b"transfer-encoding: chunked" in head.lower():
            self._discard_chunks()
        else:
            self._discard(int(found[1]) if found else 0)
        self._answer(method, target, head)
        return True

    def _discard(self, size: int) -> None:
        size -= len(self._early)
        self._early = b""
        while size > 0:
            size -= self._socket.recv_into(self._piece, min(size, PIECE))

    def _discard_chunks(self) -> None:
        """To the last chunk, which has no bytes; the client waits for its answer, so nothing comes after it."""
        tail, self._early = self._early, b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            size = self._socket.recv_into(self._piece)
            tail = (tail + bytes(self._piece[max(0, size - 16) : size]))[-16:]

    def _answer(self, method: str, target: str, head: bytes) -> None:
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        named = re.search(r"-(\d+)$", parts.path)
        if method in ("GET", "HEAD") and named:
            return self._object(method, int(named[1]), head)
        bodies = {"GET": EMPTY, "POST": BEGUN if "uploads" in query else DONE}
        self._say("200 OK", len(bodies.get(method, "")), bodies.get(method, "").encode())

    def _object(self, method: str, size: int, head: bytes) -> None:
        asked = re.search(rb"(?i)\r\nrange: *bytes=(\d+)-(\d*)", head)
        first, last = (int(asked[1]), int(asked[2] or size - 1)) if asked else (0, size - 1)
        self._say(
            "206 Partial Content" if asked else "200 OK",
            last - first + 1,
            b"",
            f"bytes {first}-{last}/{size}",
        )
        left = last - first + 1 if method == "GET" else 0
        while left:
            self._socket.sendall(ZEROS[: min(left, PIECE)])
            left -= min(left, PIECE)

    def _say(self, status: str, size: int, body: bytes, content_range: str = "") -> None:
        lines = [f"HTTP/1.1 {status}", f"ETag: {ETAG}", f"Content-Length: {size}"]
        lines += ["Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT", "Content-Type: application/xml"]
        lines += [f"Content-Range: {content_range}"] if content_range else []
        self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


ZEROS = memoryview(bytes(PIECE))


def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=Connection(client, context).serve, daemon=True).start()


if __name__ == "__main__":
    main()
