"""A client of any API in OpenAI's shape, for the terminal. Light, and nothing but the standard library.

The key comes from a variable or a file, never from the command line, and goes to the given address alone: redirects
are not followed.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from trainer.errors import NotReady, UsageError, VlaunchError

KEY_VARIABLES = ("VLAUNCH_API_KEY", "OPENAI_API_KEY")
# One event of a stream; a line without end is no answer.
_LONGEST_LINE = 1 << 20
_CONNECT_S = 10.0


class ApiFailure(VlaunchError):
    """The API answered with an error, or broke off."""


class Api:
    """One API. `url` ends with /v1, or is the address before it."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url} is no address", hint="http://127.0.0.1:8000/v1")
        path = parts.path.rstrip("/")
        self._base = path if path.endswith("/v1") else f"{path}/v1"
        self._parts, self._key, self._timeout_s = parts, key, timeout_s

    def models(self) -> list[str]:
        with self._request("GET", "/models", None) as reply:
            return [str(model["id"]) for model in json.loads(reply.read())["data"]]

    def stream(self, model: str, messages: Sequence[Mapping[str, str]], **more: Any) -> Iterator[str]:
        """The answer piece by piece. Closing the iterator hangs up, which ends the work there too.

        Raises:
            ApiFailure: the API said no, or the answer broke off.
        """
        ask = {"model": model, "messages": list(messages), "stream": True, **more}
        with self._request("POST", "/chat/completions", ask) as reply:
            while line := reply.readline(_LONGEST_LINE):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ApiFailure(str(event["error"].get("message", event["error"])))
                for choice in event.get("choices", ()):
                    yield choice.get("delta", {}).get("content") or ""
            raise ApiFailure("the answer broke off", hint="ask again")

    @contextmanager
    def _request(self, method: str, path: str, body: object) -> Iterator[http.client.HTTPResponse]:
        secure = self._parts.scheme == "https"
        host, port = self._parts.hostname or "", self._parts.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=_CONNECT_S, context=ssl.create_default_context())
            if secure
            else http.client.HTTPConnection(host, port, timeout=_CONNECT_S)
        )
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        shown = f"{self._parts.scheme}://{self._parts.netloc}"
        try:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(self._timeout_s)
            connection.request(method, self._base + path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            if reply.status != 200:
                raise _failure(reply.status, reply.read(_LONGEST_LINE), shown)
            yield reply
        except TimeoutError:
            raise ApiFailure(
                f"{shown} was silent for {self._timeout_s:g} s", hint="--timeout gives it longer"
            ) from None
        except ValueError:
            raise ApiFailure(
                f"{shown} does not speak OpenAI's language", hint="is it the right --url?"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(
                f"{shown} cannot be reached: {error}", hint="vlaunch serve starts one; --url names another"
            ) from None
        finally:
            connection.close()


def key_from_environment() -> str | None:
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


def _failure(status: int, body: bytes, shown: str) -> ApiFailure:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace").strip() or "no reason given"
    hint = "the variable VLAUNCH_API_KEY, or --api-key-file FILE" if status in (401, 403) else None
    return ApiFailure(f"{shown} said {status}: {message}", hint=hint)
