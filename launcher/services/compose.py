"""A folder for docker compose: the files of serving/compose/, with values, secrets and this very vlaunch beside them.

The files are data that stand by themselves; all that differs from machine to machine is in .env. Given again, files
that nobody has edited become those of this version. An edited one stays and is told, as do lines of .env that no
option asks for; secrets are made once. docker-compose.yml is written last: where it is, everything is.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from launcher.errors import NotReady, UsageError
from launcher.output import write_whole
from launcher.services.model import Model
from launcher.wheel import constraints, write_wheel
from serving.signing import new_key, new_secret, read_private, write_private

# Of the image: a user that is not root, where compose is written by root.
_NOBODY_IN_PARTICULAR = 1000
_FOLDERS = ("model", "dataset", "output", "cache", "votes", "secrets")
_HEAD = "# Written by vlaunch compose, {digest}. Edited, it is kept as it is.\n"
_WRITTEN = re.compile(r"# Written by vlaunch compose, ([0-9a-f]{16})\.[^\n]*\n")
_PLAIN = re.compile(r"[\w./:@,+=-]*")
_STORE = "file://"

What = Literal["written", "updated", "as it was", "edited, so kept", "edited, written over"]


@dataclass(frozen=True, slots=True)
class Written:
    """A file of the deployment and what became of it."""

    path: Path
    what: What


def write_deployment(to: Path, values: Mapping[str, str], *, force: bool) -> list[Written]:
    """Make the folder, or bring it up to date. `values`: of .env, what was asked for by name.

    Raises:
        UsageError: a value that no .env can hold; a secret that others can read.
        NotReady: the folder cannot be written.
    """
    owner = os.getuid() or _NOBODY_IN_PARTICULAR, os.getgid() or _NOBODY_IN_PARTICULAR
    wheel = write_wheel()
    image = f"vlaunch:{wheel.name.split('-')[1].replace('+', '-')}"
    settings = {name: _quoted(name, value) for name, value in {**values, "VLAUNCH_IMAGE": image}.items()}
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name in _FOLDERS:
            (to / name).mkdir(mode=0o700 if name == "secrets" else 0o755, exist_ok=True)
            _give(to / name, owner)
        done = [
            _secret(to / "secrets/service", new_secret() + "\n", owner),
            _secret(to / "secrets/api-keys", f"{new_key()} inference,admin\n", owner),
            _wheel(to, wheel),
            _file(to / "constraints.txt", constraints(), force=force),
            _file(to / ".dockerignore", _template("dockerignore"), force=force),
            _file(to / "Dockerfile", _template("Dockerfile"), force=force),
        ]
        if not (to / ".env").exists():
            settings["VLAUNCH_USER"] = f"{owner[0]}:{owner[1]}"
        done.append(_settings(to / ".env", settings))
        done.append(_file(to / "docker-compose.yml", _template("docker-compose.yml"), force=force))
    except OSError as error:
        raise NotReady(
            f"{error.filename or to} cannot be written: {error.strerror}", hint="--to names another folder"
        ) from None
    return done


def served(model: Model) -> dict[str, str]:
    """The values of .env that say where the containers find a model: a folder here is mounted, all else is fetched.

    Raises:
        UsageError: the folder is the root of the file system.
    """
    values = {"MODEL_PATH": model.source, "MODEL_NAMES": model.name}
    here = model.source.startswith(_STORE)
    path = Path(unquote(model.source.removeprefix(_STORE)) if here else model.source)
    if not path.is_absolute():
        return values
    if not path.name:
        raise UsageError(f"{path} cannot be mounted", hint="a folder below it")
    return values | {"MODEL_DIR": str(path.parent), "MODEL_PATH": f"/model/{path.name}"}


def read_settings(file: Path) -> dict[str, str]:
    """The values of a .env as it stands, without what shells add to them."""
    lines = (re.match(r"([A-Z_]+)=(.*)", line) for line in file.read_text().splitlines())
    return {found[1]: found[2].strip().strip("'\"") for found in lines if found}


def _template(name: str) -> str:
    return (files("serving") / "compose" / name).read_text(encoding="utf-8")


def _file(path: Path, body: str, *, force: bool) -> Written:
    """One of our files: rewritten as long as it is as we wrote it."""
    there = path.read_text(encoding="utf-8") if path.exists() else None
    head = _WRITTEN.match(there) if there is not None else None
    old = None if there is None else there[head.end() :] if head else there
    if old == body:
        return Written(path, "as it was")
    edited = old is not None and (head is None or head[1] != _digest(old))
    if edited and not force:
        return Written(path, "edited, so kept")
    write_whole(path, (_HEAD.format(digest=_digest(body)) + body).encode())
    return Written(path, "edited, written over" if edited else "written" if there is None else "updated")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _settings(path: Path, values: Mapping[str, str]) -> Written:
    """.env: its lines stay, but for those that an option asks for; what a newer version adds comes at the end.

    `values`: as they are written.
    """
    template = _template("env")
    there = path.read_text(encoding="utf-8") if path.exists() else None
    text = template if there is None else there
    known = {name for line in text.splitlines() if (name := _name(line))}
    missing = [line for line in template.splitlines() if (name := _name(line)) and name not in known]
    text = "\n".join([text.rstrip("\n"), *missing]) + "\n"
    for name, value in values.items():
        line = f"{name}={value}"
        # No value has a backslash (_quoted), so the line stands for itself in a pattern's replacement.
        text, found = re.subn(rf"(?m)^{name}=.*$", line, text, count=1)
        text += "" if found else f"{line}\n"
    if text == there:
        return Written(path, "as it was")
    write_private(path, text)
    return Written(path, "written" if there is None else "updated")


def _name(line: str) -> str | None:
    """What a line of .env sets, or would set if it were no comment."""
    found = re.match(r"#?([A-Z_]+)=", line)
    return found[1] if found else None


def _quoted(name: str, value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if any(sign in value for sign in "'\"\\\n\r"):
        raise UsageError(f"{name}: no quotes, backslashes or line ends, please: {value!r}")
    return f"'{value}'"


def _secret(path: Path, text: str, owner: tuple[int, int]) -> Written:
    there = path.exists()
    if there:
        read_private(path)
    else:
        write_private(path, text)
    _give(path, owner)
    return Written(path, "as it was" if there else "written")


def _wheel(to: Path, wheel: Path) -> Written:
    """This vlaunch, and no older one beside it."""
    path = to / wheel.name
    old = [other for other in to.glob("vlaunch-*.whl") if other != path]
    if path.exists() and not old:
        return Written(path, "as it was")
    write_whole(path, wheel.read_bytes())
    for other in old:
        other.unlink()
    return Written(path, "updated" if old else "written")


def _give(path: Path, owner: tuple[int, int]) -> None:
    """What is root's becomes the containers' user's; what belongs to somebody else stays."""
    if path.stat().st_uid == 0:
        os.chown(path, *owner)
