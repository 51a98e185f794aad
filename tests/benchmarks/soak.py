"""5,000 requests, 64 at a time, while workers, controller and API are killed: what is lost, and what leaks.

    python tests/benchmarks/soak.py [--requests 5000] [--at-a-time 64] [--kills 12]

Requests are streamed or whole, some absurd, and of some the client hangs up in the middle. A service with three
workers that cost nothing is killed into all the while: a worker, the controller, a worker, the API, in turn.
Told are the answers by kind, requests that hang (none may), places still taken at the end (none may), and each
process's memory after a tenth of the requests and after all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.serving.stack import Stack, stack, wait_until  # noqa: E402

# An answer that takes longer than this hangs.
PATIENCE_S = 60.0
ABSURD: tuple[Any, ...] = (
    {"temperature": "hot"}, {"n": 10**9}, {"messages": [None]}, {"stop": [[]]}, {"max_tokens": -1}, {"model": None},
    {"temperature": 1e308}, {"logit_bias": {"a": 1}}, {"response_format": 7}, {"unknown": {}},
    {"messages": "x" * 10**6},
)  # fmt: skip


async def one(session: aiohttp.ClientSession, url: str, draw: random.Random) -> str:
    """One request; what became of it."""
    kind = draw.choice(("stream", "whole", "stream", "whole", "absurd", "hang up"))
    ask: dict[str, Any] = {
        "model": "scripted",
        "messages": [{"role": "user", "content": f"count to {draw.randint(1, 200)}"}],
        "stream": kind in ("stream", "hang up"),
    }
    if kind == "absurd":
        ask |= draw.choice(ABSURD)
    try:
        async with asyncio.timeout(PATIENCE_S):
            async with session.post(f"{url}/v1/chat/completions", json=ask) as reply:
                if kind == "hang up":
                    await reply.content.read(draw.randint(1, 2000))
                    return "hung up"
                body = await reply.read()
                if reply.status != 200:
                    assert json.loads(body)["error"]["message"]
                    return f"{kind}: {reply.status}"
                if kind != "stream" or body.endswith(b"data: [DONE]\n\n"):
                    return f"{kind}: whole"
                return (
                    f"{kind}: told that it broke off" if b'"error"' in body else f"{kind}: CUT WITHOUT A WORD"
                )
    except TimeoutError:
        return f"{kind}: HANGS"
    except aiohttp.ClientError:
        return f"{kind}: connection lost"  # of an API that was killed


def memory(service: Stack) -> dict[str, float]:
    """MB by role, of those that live; the largest where there are several."""
    found: dict[str, float] = {}
    for process in service.started:
        if process.poll() is None:
            words = psutil.Process(process.pid).cmdline()
            role = words[words.index("-m") + 1].rpartition(".")[2]
            found[role] = max(found.get(role, 0), psutil.Process(process.pid).memory_info().rss / 1e6)
    return {role: round(size, 1) for role, size in found.items()}


async def soak(service: Stack, requests: int, at_a_time: int, kills: int) -> dict[str, Any]:
    draw, found = random.Random(0), collections.Counter[str]()
    left = iter(range(requests))
    marks: list[dict[str, float]] = []
    loop = asyncio.get_running_loop()
    done = 0

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal done
        for _ in left:
            found[await one(session, service.url, draw)] += 1
            done += 1

    async def killer() -> None:
        for number in range(kills):
            while done < requests * (number + 1) // (kills + 2):
                await asyncio.sleep(0.05)
            if number == 1:
                marks.append(memory(service))
            role = ("worker", "controller", "worker", "api")[number % 4]
            alive = [p for p in service.started if p.poll() is None and f"serving.{role}" in p.args]
            victim = draw.choice(alive)
            victim.kill()
            victim.wait()
            await loop.run_in_executor(None, getattr(service, role))

    began = time.monotonic()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        killing = asyncio.create_task(killer())
        await asyncio.gather(*(client(session) for _ in range(at_a_time)))
        await killing
    await loop.run_in_executor(None, wait_until, service.idle)
    marks.append(memory(service))
    return {
        "answers": dict(sorted(found.items())),
        "seconds": round(time.monotonic() - began, 1),
        "MB": marks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--at-a-time", type=int, default=64)
    parser.add_argument("--kills", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stack(Path(folder), workers=3) as service:
        found = asyncio.run(soak(service, options.requests, options.at_a_time, options.kills))
    print(json.dumps(found, indent=1))
    print("nothing is left open")
    bad = [kind for kind in found["answers"] if "HANGS" in kind or "CUT" in kind]
    raise SystemExit(f"not so good: {bad}" if bad else 0)


if __name__ == "__main__":
    main()
