"""This very vlaunch as a wheel, made from the files that are running: what a machine runs is what planned it.

A checkout and an installation give the same wheel, without a build backend and without the network. Its name holds
the hash of its content, so that a machine can tell two versions of one day apart.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from launcher import __version__
from launcher.errors import NotReady
from launcher.settings import cache_dir

_PACKAGES = ("launcher", "serving", "task_templates", "trainer")
# The versions that install together: at the root of a checkout, in the package where vlaunch is installed.
_CONSTRAINTS = "constraints.txt"
_LEFT_OUT = {".pyc", ".pyo"}
# The first date that a zip file can hold: the bytes depend on the content alone.
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_WHEEL = "Wheel-Version: 1.0\nGenerator: vlaunch\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_ENTRY_POINTS = "[console_scripts]\nvlaunch = launcher.cli:main\n"


def wheel_path() -> Path:
    """Where the wheel of the running code is or would be written. Reads every file once: 20 ms."""
    digest = hashlib.sha256()
    for name, data in _files():
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return cache_dir() / "wheels" / f"vlaunch-{__version__}+{digest.hexdigest()[:12]}-py3-none-any.whl"


def constraints() -> str:
    """The pins of constraints.txt. Raises NotReady where this installation lacks them."""
    for name, data in _files():
        if name == f"launcher/{_CONSTRAINTS}":
            return data.decode()
    raise NotReady(f"the {_CONSTRAINTS} of this vlaunch is missing", hint="install vlaunch again")


def write_wheel() -> Path:
    """The wheel of the running code; written if it is not there yet, whole or not at all.

    Raises:
        NotReady: the cache cannot be written, or the metadata of this installation is missing.
    """
    path = wheel_path()
    if path.is_file():
        return path
    arriving = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _pack(arriving, list(_content(path.name.split("-")[1])))
        arriving.replace(path)
    except OSError as error:
        raise NotReady(
            f"{path} cannot be written: {error.strerror}", hint="XDG_CACHE_HOME names another place"
        ) from None
    return path


def _pack(path: Path, content: list[tuple[str, bytes]]) -> None:
    """A zip file with its RECORD, the list of hashes that pip checks."""
    lines = [f"{name},sha256={_record_hash(data)},{len(data)}\n" for name, data in content]
    record = content[-1][0].partition("/")[0] + "/RECORD"
    content = [*content, (record, "".join([*lines, f"{record},,\n"]).encode())]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content:
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), data, zipfile.ZIP_DEFLATED)


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _content(version: str) -> Iterator[tuple[str, bytes]]:
    """The files of the wheel, those of its dist-info last."""
    yield from _files()
    folder = f"vlaunch-{version}.dist-info"
    yield f"{folder}/METADATA", _metadata(version).encode()
    yield f"{folder}/WHEEL", _WHEEL.encode()
    yield f"{folder}/entry_points.txt", _ENTRY_POINTS.encode()


def _metadata(version: str) -> str:
    """Name, version and requirements, as this installation declares them."""
    try:
        text = distribution("vlaunch").read_text("METADATA") or ""
    except PackageNotFoundError:
        raise NotReady(
            "this vlaunch was not installed, so what its machines need is not known",
            hint=f"{sys.executable} -m pip install --editable . in the checkout",
        ) from None
    header = text.partition("\n\n")[0]
    return (
        "\n".join(
            f"Version: {version}" if line.startswith("Version:") else line for line in header.splitlines()
        )
        + "\n"
    )


@cache
def _files() -> tuple[tuple[str, bytes], ...]:
    """Our packages' files in a fixed order: (name in the wheel, content)."""
    found = []
    for package in _PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise NotReady(f"the package {package} of this vlaunch is missing", hint="install vlaunch again")
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix not in _LEFT_OUT:
                found.append((f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()))
        pins = root.parent / _CONSTRAINTS
        if package == "launcher" and not (root / _CONSTRAINTS).exists() and pins.is_file():
            found.append((f"{package}/{_CONSTRAINTS}", pins.read_bytes()))
    return tuple(found)
