"""Options of `serve` to the description of a service."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import UsageError, require_extra
from launcher.services.here import new_name
from launcher.services.model import Model
from serving.protocol import API_PORT, CONTROLLER_PORT
from serving.service import Service
from serving.signing import read_secret
from trainer.conversation import get_template


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """A service to start; `secret` is that of the service to join."""

    service: Service
    keys_needed: bool
    secret: str | None


def make_service(model: Model, given: Mapping[str, Any]) -> ServeRequest:
    """Raises UsageError, NotReady."""
    require_extra(
        "serve", "uvicorn", "starlette", "aiohttp", "orjson", "prometheus_client", needed_for="vlaunch serve"
    )
    host = _address(given["host"])
    join = controller_address(given["controller_ip"])
    join = join and f"http://{join}"
    if join is None and given["secret_file"]:
        raise UsageError("--secret-file is for --controller-ip", hint="a new service makes its own secret")
    away = join is not None and not _is_loopback(join.rpartition("//")[2].rpartition(":")[0].strip("[]"))
    own_keys(given)
    keys = given["api_key_file"]
    client_name = given["model_name"] or model.name
    service = Service(
        name=given["name"] or new_name(model.name),
        model=client_name,
        worker=("--model", model.source, "--name", client_name, *engine_words(given), *_adapters(given)),
        workers=given["workers"],
        num_gpus=given["num_gpus"],
        host="0.0.0.0" if away and _is_loopback(host) else host,
        port=_port(host, given["port"], API_PORT),
        controller_port=_port(host, given["controller_port"], CONTROLLER_PORT),
        api=(*api_words(given), *(("--api-key-file", str(Path(keys).absolute())) if keys else ())),
        join=join,
    )
    secret = (
        read_secret(Path(given["secret_file"]) if given["secret_file"] else None).decode() if join else None
    )
    return ServeRequest(
        service, keys_needed=join is None and not keys and not _is_loopback(host), secret=secret
    )


def own_keys(given: Mapping[str, Any]) -> str | None:
    """The text of --api-key-file. Raises UsageError for what the API would not take, before anything is started."""
    from serving.api.keys import Keys
    from serving.signing import read_private

    if not given["api_key_file"]:
        return None
    Keys.read(Path(given["api_key_file"]))
    return read_private(Path(given["api_key_file"]))


def engine_words(given: Mapping[str, Any]) -> list[str]:
    """Options of a worker, but for what is served."""
    if given["template"]:
        get_template(given["template"])
    words = ["--engine", given["engine"]]
    for name in ("device", "dtype", "num_gpus", "max_running", "template"):
        if given[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(given[name])]
    return words + [f"--load-{bits}bit" for bits in (8, 4) if given[f"load_{bits}bit"]]


def api_words(given: Mapping[str, Any]) -> list[str]:
    """Options of an API, but for keys."""
    words = ["--policy", given["policy"]]
    for origin in given["allow_origin"]:
        words += ["--allow-origin", origin]
    return words


def _adapters(given: Mapping[str, Any]) -> list[str]:
    words = []
    for adapter in given["adapter"]:
        name, equals, path = adapter.partition("=")
        if not (name and equals and Path(path).is_dir()):
            raise UsageError(f"--adapter {adapter}: no folder there", hint="--adapter NAME=PATH")
        words += ["--adapter", f"{name}={Path(path).absolute()}"]
    return words


def _address(host: str) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
    except ValueError:
        raise UsageError(
            f"--host {host} is no address", hint="127.0.0.1, or 0.0.0.0 for all of them"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def controller_address(given: str | None) -> str | None:
    """IP[:PORT] as HOST:PORT, with brackets where they belong. Raises UsageError."""
    if given is None:
        return None
    host, colon, port = given.rpartition(":")
    if not colon or given.endswith("]") or given.count(":") > 1 and not given.startswith("["):
        host, port = given.strip("[]"), str(CONTROLLER_PORT)
    if not port.isdigit() or not host:
        raise UsageError(f"--controller-ip {given} is no IP or IP:PORT")
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def _port(host: str, wanted: int | None, usual: int) -> int:
    """The wanted port; else the usual one where it is free, else 0: any."""
    if wanted is not None:
        return wanted
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, usual))
        except OSError:
            return 0
    return usual
