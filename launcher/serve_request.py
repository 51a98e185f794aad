"""Options of `serve` to the description of a service."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import NotReady, UsageError, require_extra
from launcher.serve_model import Model
from launcher.services import new_name
from serving.protocol import API_PORT, CONTROLLER_PORT
from serving.service import Service
from serving.signing import read_secret


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
    for infra in given["infra"]:
        if str(infra) != "local":
            raise NotReady(f"serving on {infra} comes later", hint="--infra local, on a machine there")
    host = _address(given["host"])
    join = _controller(given["controller_ip"])
    if join is None and given["secret_file"]:
        raise UsageError("--secret-file is for --controller-ip", hint="a new service makes its own secret")
    away = join is not None and not _is_loopback(join.rpartition("//")[2].rpartition(":")[0].strip("[]"))
    keys = given["api_key_file"]
    if keys:
        _check_keys(Path(keys))
    service = Service(
        name=given["name"] or new_name(model.name),
        model=given["model_name"] or model.name,
        worker=tuple(_worker_words(model, given)),
        workers=given["workers"],
        num_gpus=given["num_gpus"],
        host="0.0.0.0" if away and _is_loopback(host) else host,
        port=_port(host, given["port"], API_PORT),
        controller_port=_port(host, given["controller_port"], CONTROLLER_PORT),
        api=tuple(_api_words(given, keys)),
        join=join,
    )
    secret = (
        read_secret(Path(given["secret_file"]) if given["secret_file"] else None).decode() if join else None
    )
    return ServeRequest(
        service, keys_needed=join is None and not keys and not _is_loopback(host), secret=secret
    )


def _check_keys(file: Path) -> None:
    """Raises UsageError for what the API would not take, before anything is started."""
    from serving.api.keys import Keys

    Keys.read(file)


def _worker_words(model: Model, given: Mapping[str, Any]) -> Sequence[str]:
    words = [
        "--model",
        model.source,
        "--name",
        given["model_name"] or model.name,
        "--engine",
        given["engine"],
    ]
    for name in ("device", "dtype", "num_gpus", "max_running"):
        if given[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(given[name])]
    for name in ("load_8bit", "load_4bit"):
        if given[name]:
            words.append(f"--{name.replace('_', '-')}")
    for adapter in given["adapter"]:
        name, equals, path = adapter.partition("=")
        if not (name and equals and Path(path).is_dir()):
            raise UsageError(f"--adapter {adapter}: no folder there", hint="--adapter NAME=PATH")
        words += ["--adapter", f"{name}={Path(path).absolute()}"]
    return words


def _api_words(given: Mapping[str, Any], keys: str | None) -> Sequence[str]:
    words = ["--policy", given["policy"]]
    for origin in given["allow_origin"]:
        words += ["--allow-origin", origin]
    if keys:
        words += ["--api-key-file", str(Path(keys).absolute())]
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


def _controller(given: str | None) -> str | None:
    """IP[:PORT] as an address."""
    if given is None:
        return None
    host, colon, port = given.rpartition(":")
    if not colon or given.endswith("]") or given.count(":") > 1 and not given.startswith("["):
        host, port = given.strip("[]"), str(CONTROLLER_PORT)
    if not port.isdigit() or not host:
        raise UsageError(f"--controller-ip {given} is no IP or IP:PORT")
    bare = host.strip("[]")
    return f"http://[{bare}]:{port}" if ":" in bare else f"http://{bare}:{port}"


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
