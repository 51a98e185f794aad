"""What the API and the controller cost beside FastChat 0.2.36's, with workers that cost nothing.

    FASTCHAT_PYTHON=/venv/bin/python python tests/benchmarks/serving.py [--json FILE]

FASTCHAT_PYTHON names a python that has fschat==0.2.36, fastapi, uvicorn, aiohttp, httpx, requests, shortuuid and
tiktoken (torch is not needed); without it only our side runs.

Both sides have a fake worker of their own protocol that writes one frame per token, made beforehand, and yields to
its loop after each; "paced" are 16 streams whose tokens come 5 ms apart, so that few share a packet. One client
process with plain sockets asks both in turn. Counted are CPU seconds, user and system, of the API and controller
processes over the requests. Fixed cost and cost per token are the line through the
cheapest of the repeats at 64 and 1024 tokens; requests per second are those of the fastest repeat, streamed, 64 at a
time, with client, worker and servers on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

# Aims: at most so much of ours; at least so many times as many requests a second.
FIXED_MS, TOKEN_US, TIMES = 3.0, 20.0, 5.0

_FASTCHAT_WORKER = """
import asyncio, dataclasses, json, sys, threading, time
import requests
from aiohttp import web
from fastchat.conversation import get_conv_template
port, controller = int(sys.argv[1]), sys.argv[2]
conv = dataclasses.asdict(get_conv_template("vicuna_v1.1"))
conv["sep_style"] = int(conv["sep_style"])
made = {}
def frames(count):
    if count not in made:
        text, found = "", []
        for number in range(count):
            text += " tok%d" % (number % 97)
            usage = {"prompt_tokens": 40, "completion_tokens": number + 1, "total_tokens": 41 + number}
            found.append(json.dumps({"text": text, "error_code": 0, "usage": usage, "finish_reason": None}).encode() + b"\\0")
        found.append(json.dumps({"text": text, "error_code": 0, "usage": usage, "finish_reason": "length"}).encode() + b"\\0")
        made[count] = found
    return made[count]
async def stream(request):
    asked = await request.json()
    reply = web.StreamResponse()
    await reply.prepare(request)
    for frame in frames(int(asked["max_new_tokens"])):
        await reply.write(frame)
        await asyncio.sleep(0.005 if asked["temperature"] > 0 else 0)
    await reply.write_eof()
    return reply
async def status(request): return web.json_response({"model_names": ["fake"], "speed": 1, "queue_length": 0})
async def count(request): return web.json_response({"count": 40, "error_code": 0})
async def details(request): return web.json_response({"context_length": 4096})
async def template(request): return web.json_response({"conv": conv})
app = web.Application()
app.add_routes([web.post("/worker_generate_stream", stream), web.post("/worker_get_status", status),
    web.post("/count_token", count), web.post("/model_details", details), web.post("/worker_get_conv_template", template)])
def register():
    time.sleep(1)
    said = {"model_names": ["fake"], "speed": 1, "queue_length": 0}
    requests.post(controller + "/register_worker", json={"worker_name": f"http://127.0.0.1:{port}", "check_heart_beat": False, "worker_status": said})
threading.Thread(target=register, daemon=True).start()
web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)
"""  # noqa: E501

# The wheel of 0.2.36 was written for pydantic 1; this is how its own later version writes a chunk.
_FASTCHAT_API = """
import json, runpy, pydantic
pydantic.BaseModel.json = lambda self, ensure_ascii=False, **how: json.dumps(
    self.model_dump(**how), ensure_ascii=ensure_ascii)
runpy.run_module("fastchat.serve.openai_api_server", run_name="__main__")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- our fake worker


async def our_worker(controller: str, secret: bytes) -> None:
    """Announces itself as a worker does, and answers with frames that were made beforehand."""
    import aiohttp

    from serving.engine import Delta
    from serving.listening import listen
    from serving.openai.replies import DONE, Choice, Reply
    from serving.protocol import ANNOUNCE_PATH, Announcement
    from serving.server import make_server, read_body
    from serving.signing import HEADER, sign

    made: dict[int, list[bytes]] = {}

    def frames(count: int) -> list[bytes]:
        if count not in made:
            reply = Reply(id="x" * 32, created=0, model="fake", chat=True, logprobs=False, with_usage=False)
            deltas = [Delta(f" tok{n % 97}", 1) for n in range(count)] + [Delta("", 0, finish="length")]
            events = [reply.event(0, d, d.text, Choice(), first=not n) for n, d in enumerate(deltas)]
            made[count] = [*events, DONE]
        return made[count]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                await send({"type": f"{(await receive())['type']}.complete"})
        asked = json.loads(await read_body(receive, 1 << 20, 10))
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for frame in frames(asked["max_tokens"]):
            await send({"type": "http.response.body", "body": frame, "more_body": True})
            await asyncio.sleep(0.005 if asked["temperature"] > 0 else 0)
        await send({"type": "http.response.body", "body": b""})

    door = listen("127.0.0.1", 0)
    said = Announcement(
        url=f"http://127.0.0.1:{door.getsockname()[1]}", life="0" * 16, born=1, models=("fake",), context=4096
    )

    async def announce() -> None:
        body = said.model_dump_json().encode()
        async with aiohttp.ClientSession() as session:
            while True:
                headers = {HEADER: sign(secret, "POST", ANNOUNCE_PATH, body, time.time())}
                try:
                    async with session.post(controller + ANNOUNCE_PATH, data=body, headers=headers):
                        pass
                except OSError:
                    pass
                await asyncio.sleep(1)

    announcing = asyncio.create_task(announce())
    await make_server(app, grace_s=1).serve(sockets=[door])
    announcing.cancel()


# ---- the client


async def ask(port: int, tokens: int, count: int, at_a_time: int, temperature: int) -> float:
    """Seconds for `count` streamed requests. Fails where an answer is not whole."""
    body = json.dumps(
        {
            "model": "fake",
            "stream": True,
            "max_tokens": tokens,
            "temperature": temperature,
            "messages": [{"role": "user", "content": "Write an item: the model and data of this example."}],
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    )
    request = head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
    left = iter(range(count))

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        for _ in left:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in answer[-40:], answer[:300]
            assert answer.count(b"tok") >= tokens
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(at_a_time)))
    return time.perf_counter() - began


class Side:
    """The processes of one side."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.counted: list[psutil.Process] = []

    def start(self, *command: str, counted: bool = False, **environment: str) -> None:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
        )
        self.processes.append(process)
        if counted:
            self.counted.append(psutil.Process(process.pid))

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5) as reply:
                    if b'"fake"' in reply.read():
                        return
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"{self.name} did not come up")

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.counted)

    def measure(self, *what: int) -> dict[str, float]:
        """`what`: tokens, requests, at a time, temperature."""
        before, count = self.cpu_s(), what[1]
        client = [sys.executable, __file__, "--client", *map(str, (self.port, *what))]
        seconds = float(subprocess.run(client, check=True, stdout=subprocess.PIPE, text=True).stdout)
        return {"cpu_ms": 1000 * (self.cpu_s() - before) / count, "per_s": count / seconds}

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


def start_ours() -> Side:
    side, controller = Side("vlaunch"), free_port()
    secret = {"VLAUNCH_SERVE_SECRET": secrets.token_hex(32), "PYTHONPATH": str(REPOSITORY)}
    url = f"http://127.0.0.1:{controller}"
    python = (sys.executable, "-m")
    side.start(*python, "serving.controller", "--port", str(controller), counted=True, **secret)
    side.start(*python, "serving.api", "--port", str(side.port), "--controller", url, counted=True, **secret)
    side.start(sys.executable, __file__, "--worker", url, **secret)
    side.wait()
    return side


def start_fastchat(python: str, folder: str) -> Side:
    side, controller, worker = Side("FastChat"), free_port(), free_port()
    url = f"http://127.0.0.1:{controller}"
    quiet = {"LOGDIR": folder, "HOME": folder}
    module = (python, "-m")
    side.start(
        *module,
        "fastchat.serve.controller",
        "--host",
        "127.0.0.1",
        "--port",
        str(controller),
        counted=True,
        **quiet,
    )
    time.sleep(5)
    script = Path(folder) / "worker.py"
    script.write_text(_FASTCHAT_WORKER)
    side.start(python, str(script), str(worker), url, **quiet)
    time.sleep(5)
    where = ("--host", "127.0.0.1", "--port", str(side.port), "--controller-address", url)
    side.start(python, "-c", _FASTCHAT_API, *where, counted=True, **quiet)
    side.wait()
    return side


def compare(sides: list[Side], repeat: int) -> dict[str, Any]:
    """Both sides in turn, so that what else the machine does meets both."""
    found: dict[str, Any] = {}
    plan = {
        "short": (64, 200, 4, 0),
        "long": (1024, 40, 4, 0),
        "many": (64, 640, 64, 0),
        "paced": (256, 32, 16, 1),
    }
    for _ in range(repeat):
        for side in sides:
            for name, (tokens, count, at_a_time, temperature) in plan.items():
                smaller = 4 if name == "many" and side.name == "FastChat" else 1  # its requests take longer
                made = side.measure(tokens, count // smaller, at_a_time, temperature)
                best = found.setdefault(side.name, {}).setdefault(name, dict(made))
                best["cpu_ms"] = min(best["cpu_ms"], made["cpu_ms"])
                best["per_s"] = max(best["per_s"], made["per_s"])
    for one in found.values():
        per_token = (one["long"]["cpu_ms"] - one["short"]["cpu_ms"]) / (1024 - 64)
        one["token_us"] = 1000 * per_token
        one["fixed_ms"] = one["short"]["cpu_ms"] - 64 * per_token
        one["cpu_ms_at_64"] = one["many"]["cpu_ms"]
        one["paced_us"] = 1000 * (one["paced"]["cpu_ms"] - one["fixed_ms"]) / 256
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", nargs=5, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(asyncio.run(ask(*options.client)))
        return
    if options.worker:
        import uvloop

        uvloop.run(our_worker(options.worker, os.environ["VLAUNCH_SERVE_SECRET"].encode()))
        return
    sides: list[Side] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            sides.append(start_ours())
            if python := os.environ.get("FASTCHAT_PYTHON"):
                sides.append(start_fastchat(python, folder))
            found = compare(sides, options.repeat)
        finally:
            for side in sides:
                side.stop()
    print(
        f"{'':10} {'fixed ms':>9} {'us/token':>9} {'paced':>7} {'CPU ms at 64':>13} {'requests/s at 64':>17}"
    )
    for name, one in found.items():
        costs = f"{one['fixed_ms']:9.2f} {one['token_us']:9.1f} {one['paced_us']:7.1f} {one['cpu_ms_at_64']:13.2f}"
        print(f"{name:10} {costs} {one['many']['per_s']:17.1f}")
    ours = found["vlaunch"]
    print(f"aims: fixed <= {FIXED_MS} ms, <= {TOKEN_US} us a token, {TIMES} times the requests of FastChat")
    if "FastChat" in found:
        print(f"requests/s: {ours['many']['per_s'] / found['FastChat']['many']['per_s']:.1f} times")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
