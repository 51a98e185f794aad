"""How verbs speak: the answer on stdout, the conversation on stderr.

    emit(ctx, {"runs": [...]}, text)   the answer: versioned JSON with --json, else the text
    say("uploading 3 files")           the conversation: silent with --quiet
    table(["RUN", "STEP"], rows)       text of a table; colour only on a terminal and without NO_COLOR

JSON is one object with "version" first: indented on a terminal, one line otherwise (so `metrics --json`
and errors can be read line by line). NaN and infinities become null, as JSON has none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

JSON_VERSION = 1


class Session:
    """The global flags of this one invocation; every context's `obj`."""

    def __init__(self, *, json: bool = False, debug: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.debug = debug
        self.quiet = quiet


def session() -> Session:
    """The running command's flags; the defaults outside of any command (a thread, a test)."""
    ctx = click.get_current_context(silent=True)
    found = ctx.find_object(Session) if ctx is not None else None
    return found or Session()


def emit(ctx: click.Context, data: Mapping[str, Any], text: str | Callable[[], str]) -> None:
    """Prints the answer. `text` may be a function, called only when it is printed; colour codes are fine."""
    flags = ctx.find_object(Session) or Session()
    if flags.json:
        click.echo(to_json(data, indent=2 if sys.stdout.isatty() else None))
        return
    answer = text if isinstance(text, str) else text()
    click.echo(answer, color=colour(sys.stdout), nl=not answer.endswith("\n"))


def emit_line(data: Mapping[str, Any]) -> None:
    """Prints one line of an answer that is a JSON object per line (`metrics RUN --json`)."""
    click.echo(to_json(data))


def say(message: str) -> None:
    """One line of conversation."""
    if not session().quiet:
        click.echo(message, err=True, color=colour(sys.stderr))


def confirm(question: str, *, yes: bool) -> None:
    """Returns when the user agrees, or has agreed with --yes; raises Interrupted when not."""
    from launcher.errors import Interrupted, UsageError

    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"cannot ask without a terminal: {question}", hint="--yes agrees beforehand")
    if not click.confirm(question, err=True):
        raise Interrupted("nothing was done")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Collection[str] = ()) -> str:
    """The text of a table without borders; the columns named in `right` hold numbers.

    On a narrow terminal the widest cells are folded; off one none is, so scripts that cut columns get lines.
    """
    from io import StringIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(Text(column), justify=justify, no_wrap=not terminal, overflow="fold")
    for row in rows:
        made.add_row(*(Text(_cell(value)) for value in row))  # Text: a "[x]" in a value is no markup
    out = StringIO()
    width = None if terminal else 10_000
    Console(file=out, force_terminal=colour(sys.stdout), width=width, highlight=False).print(made)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def console() -> Console:
    """A rich console on stderr for live views. Check `animated()` before moving anything."""
    from rich.console import Console

    return Console(stderr=True, quiet=session().quiet, no_color=not colour(sys.stderr), highlight=False)


def write_whole(path: Path, data: bytes) -> None:
    """A file for the user, whole or not at all; raises VlaunchError where it cannot be written."""
    from launcher.errors import VlaunchError

    arriving = path.with_name(path.name + ".part")
    try:
        arriving.write_bytes(data)
        arriving.replace(path)
    except OSError as error:
        arriving.unlink(missing_ok=True)
        raise VlaunchError(f"cannot write {path}: {error.strerror}", hint="name another place") from None


def animated() -> bool:
    """Whether lines on stderr may be redrawn: a terminal that can, and a user who did not say --quiet."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not session().quiet


def colour(stream: IO[str]) -> bool:
    """https://no-color.org: NO_COLOR, when not empty, switches colour off."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def to_json(data: Mapping[str, Any], *, indent: int | None = None) -> str:
    """`data` with a version; dataclasses, pydantic models, paths and times are written as plain values."""
    import json

    document = {"version": JSON_VERSION, **data}
    try:
        return json.dumps(document, indent=indent, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        loose = json.loads(json.dumps(document, default=_plain), parse_constant=lambda name: None)
        return json.dumps(loose, indent=indent, ensure_ascii=False)


def _plain(value: Any) -> Any:
    import dataclasses
    from datetime import datetime
    from pathlib import PurePath

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
