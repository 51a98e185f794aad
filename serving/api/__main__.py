"""The API's program; serving/api/app.py says what it is."""

from __future__ import annotations

import argparse
import ipaddress
import logging
from pathlib import Path

from serving import program
from serving.api.app import Api, ApiOptions
from serving.api.keys import Keys
from serving.protocol import API_PORT, CONTROLLER_PORT
from serving.server import serve_until_told
from trainer.errors import UsageError

log = logging.getLogger("api")

# Of a stop: what open answers get.
_GRACE_S = 5.0


def parser() -> argparse.ArgumentParser:
    made = program.parser("serving.api", port=API_PORT)
    made.add_argument("--controller", default=f"http://127.0.0.1:{CONTROLLER_PORT}", metavar="URL")
    made.add_argument("--api-key-file", type=Path, help="one key per line, and perhaps its scopes")
    made.add_argument("--policy", choices=("shortest-queue", "lottery"), default="shortest-queue")
    made.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN")
    made.add_argument("--max-requests", type=int, default=ApiOptions.most_open)
    made.add_argument("--max-body-bytes", type=int, default=ApiOptions.most_bytes)
    made.add_argument("--timeout-s", type=float, default=ApiOptions.deadline_s)
    made.add_argument("--votes", type=Path, metavar="FILE")
    return made


async def serve(common: program.Common) -> None:
    options = common.options
    keys = Keys.read(options.api_key_file) if options.api_key_file else Keys.none()
    if not keys.needed and not ipaddress.ip_address(common.host).is_loopback:
        raise UsageError(
            f"an API on {common.host} needs keys", hint="--api-key-file FILE, or --host 127.0.0.1"
        )
    api = Api(
        ApiOptions(
            controller=options.controller,
            secret=common.secret,
            keys=keys,
            policy=options.policy,
            origins=tuple(options.allow_origin),
            most_open=options.max_requests,
            most_bytes=options.max_body_bytes,
            deadline_s=options.timeout_s,
            votes=options.votes,
        )
    )
    log.info("the API answers on %s", common.address)
    await serve_until_told(api.app(), common.listening, grace_s=_GRACE_S)


if __name__ == "__main__":
    raise SystemExit(program.run(parser().parse_args(), serve))
