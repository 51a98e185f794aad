"""What `vlaunch doctor` finds: this machine, the packages, the store, and where every setting comes from.

Looks without importing: torch's version is read from its metadata, a GPU is asked for through nvidia-smi.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher import settings
from launcher.command import ENV_PREFIX, CommandTree, Context, GlobalFlag, Option, is_verb
from launcher.errors import UsageError, VlaunchError, nearest
from launcher.values import Infra

if TYPE_CHECKING:
    from trainer.artifacts.store import Store

GIB = 1 << 30
# Margins of ours. A rank holds 335 MB once torch and transformers are imported (measured, torch 2.13.0+cpu).
LEAST_MEMORY = 2 * GIB
LEAST_DISK = GIB

# Distributions by the extra that brings them, "" is the base; a test holds this against pyproject.toml.
PACKAGES: dict[str, tuple[str, ...]] = {
    "": ("click", "pydantic", "pyyaml", "rich", "boto3", "awscrt", "google-cloud-storage"),
    "train": (
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "jinja2",
        "peft",
        "accelerate",
        "bitsandbytes",
    ),
    "deepspeed": ("deepspeed", "ninja"),
    "data": (
        "pyarrow",
        "zstandard",
        "matplotlib",
        "orjson",
        "msgspec",
        "selectolax",
        "markdown-it-py",
        "py3langid",
        "rensa",
        "tokenizers",
    ),
    "serve": (
        "starlette",
        "uvicorn",
        "uvloop",
        "httptools",
        "aiohttp",
        "orjson",
        "prometheus-client",
        "llguidance",
    ),
    "sky": ("skypilot",),
    "wandb": ("wandb", "wandb-workspaces"),
    "tensorboard": ("tensorboard",),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. With a problem: what to do, and whether nothing goes without it."""

    section: str
    name: str
    value: str
    problem: str | None = None
    fix: str | None = None
    required: bool = False


@dataclass(frozen=True)
class SettingRow:
    """An option's value for some verbs, and its source."""

    setting: str
    value: str
    source: str
    verbs: tuple[str, ...]


def machine(store: str) -> Iterator[Check]:
    """Python, cores, memory, disk, GPUs."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("machine", "python", f"{version} ({sys.executable})")
    yield Check("machine", "cores", str(_cores()))
    total, free = _memory()
    short = f"only {_gib(total)} of memory" if total < LEAST_MEMORY else None
    yield Check("machine", "memory", f"{_gib(total)}, {_gib(free)} free", short, "train on a larger machine")
    folders = {"state": settings.state_dir(), "cache": settings.cache_dir()}
    if store.startswith("file://"):
        folders["store"] = _store_folder(store)
    for name, folder in folders.items():
        left = shutil.disk_usage(_existing(folder)).free
        short = f"only {_gib(left)} free at {folder}" if left < LEAST_DISK else None
        yield Check("machine", f"disk for {name}", f"{_gib(left)} free at {folder}", short, "free some space")
    yield gpus()


def gpus() -> Check:
    """What nvidia-smi says; no GPU is no problem, a driver that does not answer is."""
    import subprocess

    program = shutil.which("nvidia-smi")
    if program is None:
        return Check("machine", "gpus", "none (no nvidia-smi here)")
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        said, failed = str(error), True
    else:
        said, failed = asked.stdout.strip() or asked.stderr.strip(), asked.returncode != 0
    if failed:
        return Check(
            "machine", "gpus", "unknown", f"nvidia-smi failed: {said}", "reinstall the NVIDIA driver"
        )
    return Check("machine", "gpus", "; ".join(said.splitlines()) or "none")


def packages(infra: Sequence[Infra]) -> Iterator[Check]:
    """Versions by extra; what `infra` needs is required."""
    from importlib.metadata import PackageNotFoundError, version

    needed = {"", *("train" if place.cloud == "local" else "sky" for place in infra)}
    for extra, names in PACKAGES.items():
        for name in names:
            try:
                yield Check("packages", name, version(name))
            except PackageNotFoundError:
                fix = f"pip install 'vlaunch[{extra}]'" if extra else "pip install vlaunch"
                problem = f"{name} is not installed" if extra in needed else None
                yield Check("packages", name, f"missing ({fix})", problem, fix, required=extra in needed)


def store(uri: str) -> Iterator[Check]:
    """Who answers, whether it keeps what was created first, and how fast it is. Writes probes and deletes them."""
    from trainer.artifacts import probe
    from trainer.artifacts.store import SINGLE_WRITER, open_store

    try:
        opened = open_store(uri)
        if described := _described(opened):
            yield Check("store", "reached as", described)
        spent_ms = probe.answer_s(opened) * 1000
        yield Check("store", uri, f"writable, a small object in {spent_ms:.0f} ms")
        alone = uri.startswith(SINGLE_WRITER)
        yield Check("store", "create if absent", _NEVER_TWO if alone else "honoured")
        measured = probe.speed(opened)
    except VlaunchError as error:
        yield Check("store", uri, "unusable", error.message, error.hint, required=True)
        return
    rates = f"{measured.up / 1e6:.1f} MB/s up, {measured.down / 1e6:.1f} MB/s down"
    yield Check("store", "speed", f"{rates}, with {measured.size / probe.MIB:.0f} MiB")


_NEVER_TWO = "not relied on: never let two machines write to one run at once"


def _described(opened: Store) -> str | None:
    if opened.uri.startswith("file://"):
        return None
    from trainer.artifacts.bucket import BucketStore

    return opened.describe() if isinstance(opened, BucketStore) else None


def clouds(infra: Sequence[Infra]) -> Iterator[Check]:
    """Whether SkyPilot may use the clouds that were asked for, and whether its recovery is ours."""
    names = sorted({place.cloud for place in infra} - {"local"})
    if not names:
        return
    from launcher.clouds.sky_api import access_problems, loaded_plugin

    try:
        loaded = loaded_plugin()
        yield _recovery(loaded)
        if loaded is None:  # starting one takes half a minute, and it stays: not a doctor's choice
            what = "SkyPilot's server does not run, so its clouds were not looked at"
            yield Check("clouds", "server", "not running", what, "sky api start")
            return
        problems = access_problems(names)
    except VlaunchError as error:
        yield Check("clouds", "skypilot", "unusable", error.message, error.hint, required=True)
        return
    for name in names:
        problem, fix = problems.get(name) or (None, None)
        value = "not usable" if problem else "SkyPilot may use it"
        yield Check("clouds", name, value, problem, fix, required=True)


def _recovery(loaded: str | None) -> Check:
    """Which machine comes after one that was taken; `loaded` is the version of our plugin in the running server."""
    from launcher import __version__
    from launcher.spot.plugin import PluginState, plugin_state

    state = plugin_state()
    if loaded == __version__ or (loaded is None and state is PluginState.INSTALLED):
        return Check("clouds", "recovery", f"vlaunch {__version__}, which leaves the region that failed")
    if state is PluginState.INSTALLED:
        what = f"vlaunch {loaded}" if loaded else "a server without the plugin"
        return Check(
            "clouds", "recovery", what, f"SkyPilot's server still runs {what}", "sky api stop; sky api start"
        )
    fix = f"its administrator installs vlaunch {__version__} there"
    if state is PluginState.MISSING:
        fix = "vlaunch doctor --install-plugin"
    problem = "SkyPilot's own recovery goes back to the region that has just failed"
    return Check("clouds", "recovery", "SkyPilot's own", problem, fix)


def setting_rows(ctx: click.Context) -> tuple[list[SettingRow], list[Check]]:
    """Every option of every verb with its source; and what is wrong in the files and variables."""
    root = ctx.find_root()
    tree = CommandTree(root)
    files, problems = _read_files(tree)
    rows: dict[tuple[str, str, str], list[str]] = {}
    variables: set[str] = set()
    for path in _verbs(tree):
        inner = Context(tree.at(path) or root.command, info_name=path[-1], parent=root)
        inner.file_values = settings.resolve(files, path, tree)
        for param in inner.command.params:
            if not isinstance(param, Option):
                continue
            variables.add(str(param.envvar))
            try:
                value, source = _value(param, inner)
            except (UsageError, click.BadParameter) as error:
                message = error.message if isinstance(error, UsageError) else error.format_message()
                problems.append(_wrong(message, f"see vlaunch {' '.join(path)} --help"))
            else:
                rows.setdefault((param.setting, value, source), []).append(" ".join(path))
    problems += _unknown_variables(variables)
    listed = [SettingRow(*key, tuple(verbs)) for key, verbs in rows.items()]
    listed.sort(key=lambda row: (row.source == "default", row.setting))
    return listed, list(dict.fromkeys(problems))


def _read_files(tree: CommandTree) -> tuple[list[settings.SettingsFile], list[Check]]:
    files, problems = [], []
    for path, shown in settings.places():
        try:
            files.append(settings.read(path, shown))
        except UsageError as error:
            problems.append(_wrong(error.message, error.hint))
    for file in files:
        problems += [_wrong(error.message, error.hint) for error in settings.all_unknown(file, tree)]
    return files, problems


def _verbs(tree: CommandTree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for part in tree.parts(path):
        command = tree.at((*path, part))
        if command is not None and is_verb(command):
            yield (*path, part)
        yield from _verbs(tree, (*path, part))


def _value(param: Option, ctx: Context) -> tuple[str, str]:
    value, source = param.consume_value(ctx, {})
    ctx.set_parameter_source(str(param.name), source)
    if not isinstance(param, GlobalFlag):
        value = param.type_cast_value(ctx, value)
    return _shown(value), param.source(ctx, source)


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if type(value) in (tuple, list):
        return " ".join(map(str, value))
    return str(value)


def _unknown_variables(known: set[str]) -> Iterator[Check]:
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            close = nearest(name, known)
            fix = f"did you mean {close}?" if close else f"unset {name}"
            yield Check("settings", name, "unknown", f"{name} is set, but no verb has such an option", fix)


def _wrong(message: str, fix: str | None) -> Check:
    return Check("settings", "problem", message, message, fix, required=True)


def _cores() -> int:
    """Cores that this process may use; a container's quota counts."""
    cores = len(os.sched_getaffinity(0))
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def _memory() -> tuple[int, int]:
    """Bytes in all and free; a container's limit counts."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    known = {words[0]: int(words[1]) * 1024 for words in lines}
    total, free = known["MemTotal:"], known["MemAvailable:"]
    limit = _first_line("/sys/fs/cgroup/memory.max")
    used = _first_line("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        total, free = min(total, int(limit)), min(free, int(limit) - int(used))
    return total, free


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return ""


def _store_folder(uri: str) -> Path:
    from urllib.parse import unquote

    return Path(unquote(uri.removeprefix("file://")))


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
