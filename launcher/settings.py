"""Where a setting comes from: flag > VLAUNCH_<OPTION> > ./vlaunch.toml > user's config.toml > default.

In a file, a key is an option's long name without the dashes. Keys at the top apply to every verb that has
the option; a `[verb]` table (`[data.stats]` for a part of a verb) to one, and wins over the top:

    store = "s3://bucket/vlaunch"
    [train]
    preempt-every = "40s,5s"
    set = { learning_rate = 1e-5 }

command.py asks `resolve` where click looks for its default map, so click knows the source of every value.
Files are read on the first option that needs one, never for --help; tomllib only when a file exists.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.errors import UsageError, nearest

PROJECT_FILE = "vlaunch.toml"

Table = dict[str, object]


@dataclass(frozen=True)
class SettingsFile:
    """One file that was there, and what it says."""

    shown: str  # as messages name it
    values: Table


@dataclass(frozen=True)
class Found:
    """A value, and the file that set it."""

    value: object
    file: str


class Tree(Protocol):
    """The commands, as far as settings need to know them. A path names a group or a command."""

    def parts(self, path: tuple[str, ...]) -> Collection[str]:
        """The sub-commands of a group; cheap."""

    def options(self, path: tuple[str, ...]) -> Collection[str]:
        """All options at and below a path; for a group this loads every module below it."""


def config_file() -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config") / "config.toml"


def state_dir() -> Path:
    """The laptop's own notes: supervisors' process ids and logs. Losing it loses no run."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path:
    return _xdg("XDG_CACHE_HOME", ".cache")


def default_store() -> str:
    return (_xdg("XDG_DATA_HOME", ".local/share") / "store").as_uri()


def _xdg(variable: str, below_home: str) -> Path:
    value = os.environ.get(variable, "")
    # The XDG specification says that a relative path is to be ignored.
    base = Path(value) if os.path.isabs(value) else Path.home() / below_home
    return base / "vlaunch"


def load() -> list[SettingsFile]:
    """The files that exist, strongest first. Raises UsageError for one that is no TOML."""
    return [read(path, shown) for path, shown in places()]


def places() -> list[tuple[Path, str]]:
    """The files that exist, strongest first, each with its name in messages."""
    both = [(Path(PROJECT_FILE), f"./{PROJECT_FILE}"), (config_file(), str(config_file()))]
    return [(path, shown) for path, shown in both if path.is_file()]


def read(path: Path, shown: str) -> SettingsFile:
    import tomllib

    try:
        return SettingsFile(shown, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{shown} is not valid TOML: {error}", hint=f"correct it: {path.absolute()}"
        ) from None
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror}", hint=f"see {path.absolute()}") from None


def resolve(files: list[SettingsFile], path: tuple[str, ...], tree: Tree) -> dict[str, Found]:
    """What the files say for the command at `path` ("data", "stats"), by option name.

    A file's more special table wins over its top; the stronger file wins over both.
    """
    found: dict[str, Found] = {}
    options = tree.options(path)
    for file in files:
        for depth, level in reversed(list(enumerate(_levels(file, path)))):
            for key, value in level.items():
                if key in options and not _is_table(path[:depth], key, value, tree):
                    found.setdefault(key, Found(value, file.shown))
    return found


def refuse_unknown(files: list[SettingsFile], path: tuple[str, ...], tree: Tree) -> None:
    """Raises UsageError for the first key, in what concerns the command at `path`, that no command has."""
    own = tree.options(path)
    for file in files:
        for depth, level in enumerate(_levels(file, path)):
            for key, value in level.items():
                # Only a key that is not the command's own costs a look at the other commands.
                if key not in own and not _is_known(path[:depth], key, value, tree):
                    raise unknown(file, path[:depth], key, tree)


def all_unknown(file: SettingsFile, tree: Tree, here: tuple[str, ...] = ()) -> Iterator[UsageError]:
    """One error for every key of a file that no command has; for `vlaunch doctor`."""
    for key, value in _levels(file, here)[-1].items():
        if _is_table(here, key, value, tree):
            yield from all_unknown(file, tree, (*here, key))
        elif not _is_known(here, key, value, tree):
            yield unknown(file, here, key, tree)


def unknown(file: SettingsFile, here: tuple[str, ...], key: str, tree: Tree) -> UsageError:
    """The error for a key that neither a command at `here` nor one below it has."""
    place = f"[{'.'.join(here)}] of {file.shown}" if here else file.shown
    close = nearest(key, {*tree.parts(here), *tree.options(here)})
    if key in tree.parts(here):
        hint = f"it is a table: [{'.'.join([*here, key])}]"
    elif close:
        hint = f"did you mean {close}?"
    else:
        hint = f"{' '.join(['vlaunch', *here, '--help'])} lists what there is"
    return UsageError(f"unknown setting {key!r} in {place}", hint=hint)


def _is_known(here: tuple[str, ...], key: str, value: object, tree: Tree) -> bool:
    return _is_table(here, key, value, tree) or key in tree.options(here)


def _is_table(here: tuple[str, ...], key: str, value: object, tree: Tree) -> bool:
    """--data is an option of train, [data] the table of a verb: a table of a verb's name is the verb's."""
    return isinstance(value, dict) and key in tree.parts(here)


def _levels(file: SettingsFile, path: tuple[str, ...]) -> list[Table]:
    """The file's top, then the tables on the way down `path`, as far as they exist."""
    levels = [file.values]
    for name in path:
        table = levels[-1].get(name)
        if not isinstance(table, dict):
            break
        levels.append(table)
    return levels
