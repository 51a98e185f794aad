"""Watching a run from its store: live progress while it trains, then what came of it.

The same view works for a run that another machine looks after: nothing but the store is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import click

from launcher.clouds.base import Cloud, is_live
from launcher.errors import (
    LimitReached,
    NotReady,
    RemoteJobFailed,
    StoreError,
    StoreRefused,
    UsageError,
    VlaunchError,
)
from launcher.launch import cloud_of_run
from launcher.output import animated, console, emit, say
from launcher.render import run_uri
from launcher.runs.runview import RunRecord, RunView, State, read_run, state_of, view
from trainer.artifacts.journal import RunEvent

if TYPE_CHECKING:
    from rich.live import Live

# Reading a run costs a listing and some reads: no more than a tenth of the time is spent on it, where the store is
# not very slow or away.
_LOOK_S, _SHARE, _LONGEST_PAUSE_S = 0.5, 0.1, 10.0
_LINE_EVERY_S = 5.0  # between two progress lines where nothing can be redrawn


def refuse_if_live(store: str, name: str) -> None:
    """Before anything is written for a second attempt beside a live one."""
    cloud = cloud_of_run(store, name)
    if cloud.alive(run_uri(store, name)):
        raise is_live(run_uri(store, name))


def start_and_follow(ctx: click.Context, store: str, name: str, *, detach: bool) -> None:
    """Have a created run looked after, and watch it to its end unless `detach`; a finished one is only told of."""
    uri = run_uri(store, name)
    if state_of(read_run(store, name).events) is State.FINISHED:
        say(f"{name} is finished already")
    else:
        known = {event.key for event in read_run(store, name).events}
        cloud_of_run(store, name).launch(uri)
        say(f"run {name} in {uri}")
        if detach:
            emit(ctx, {"run": name, "uri": uri}, f"vlaunch logs -f {name} follows it")
            return
        follow(store, name, known)
    conclude(ctx, store, name)


def follow(store: str, name: str, known: Collection[str] = ()) -> None:
    """Show progress until nobody looks after the run any more. Ctrl-C leaves the run alone.

    `known` are keys of events from before, which are not told again.
    """
    uri = run_uri(store, name)
    told = set(known)
    try:
        with _screen() as screen:
            for record, seen in _looks(store, name, uri, screen.blind):
                for event in record.events:
                    if event.key not in told:
                        told.add(event.key)
                        screen.say(_turning_point(event))
                screen.show(seen)
    except KeyboardInterrupt:
        say(f"\nthe run goes on; vlaunch logs -f {name} follows it, vlaunch stop {name} ends it")
        raise


def wait_until_left(cloud: Cloud, uri: str) -> None:
    """Return when nobody looks after the run."""
    while cloud.alive(uri):
        time.sleep(_LOOK_S)


def conclude(ctx: click.Context, store: str, name: str) -> None:
    """Print what came of a run; raises where it failed or met a limit."""
    from launcher.report.tables import as_dict
    from launcher.report.terminal import bill_text, held_out_text, loss_curve

    now = datetime.now(UTC)
    record = read_run(store, name)
    seen, bill = view(record, now), record.costs(now)
    if seen.state is State.FAILED:
        raise _failure(record, seen)
    if seen.state.live:
        raise cloud_of_run(store, name).verdict(seen.uri) or VlaunchError(
            f"{name} is {seen.state.value}, but nobody looks after it any more",
            hint=f"vlaunch resume {name} goes on",
        )
    limit = _last(record, "limit", "requested")
    if limit is not None and limit.kind == "limit" and seen.state is not State.FINISHED:
        raise LimitReached(
            f"{name} stopped: {limit.data['what']}",
            hint=f"vlaunch resume {name} with a higher --max-cost or --deadline goes on",
        )
    reply = _last(record, "sampled")
    answer = {**seen.as_dict(), "cost": as_dict(bill), "reply": reply.data if reply else None}

    def text() -> str:
        parts = []
        if record.steps:
            parts.append("\n".join(loss_curve(record.steps, min(get_terminal_size().columns, 100))))
        if record.evals:
            parts.append(f"held-out loss {held_out_text(record.evals)}")
        if reply:
            parts.append(f"you    {reply.data['prompt']}\nmodel  {reply.data['reply']}")
        goes_on = (
            f"its model is {seen.uri}/export"
            if seen.state is State.FINISHED
            else f"vlaunch resume {name} goes on"
        )
        parts.append(f"{name} is {seen.state.value}; {goes_on}")
        parts.append(bill_text(bill))
        return "\n\n".join(part.rstrip() for part in parts) + "\n"

    emit(ctx, answer, text)


def _failure(record: RunRecord, seen: RunView) -> RemoteJobFailed:
    """The box's own words. Where it could not use its input, its exit code too: that is not the machine's fault."""
    told = _last(record, "failed")
    newest = max((event.attempt for event in record.events), default=0)
    data = told.data if told and told.attempt == newest else {}
    error = RemoteJobFailed(
        f"{record.run_id} failed: {seen.problem or 'see its log'}",
        hint=data.get("hint") or f"vlaunch logs {record.run_id}",
    )
    if data.get("exit_code") in (UsageError.exit_code, NotReady.exit_code):
        error.exit_code = data["exit_code"]
    return error


def _looks(
    store: str, name: str, uri: str, blind: Callable[[StoreError], None]
) -> Iterator[tuple[RunRecord, RunView]]:
    """Again and again. A store that is away ends nothing while somebody looks after the run: `blind` hears of it."""
    cloud = cloud_of_run(store, name)
    while True:
        live = cloud.alive(uri)  # before reading: what is written before the end is still seen
        began = time.monotonic()
        try:
            record = read_run(store, name)
        except StoreError as error:
            if not live:
                raise
            if isinstance(error, StoreRefused):
                hint = f"{error.hint}; the run goes on, and vlaunch logs -f {name} follows it"
                raise StoreRefused(error.message, hint=hint) from None
            blind(error)
        else:
            yield record, view(record, datetime.now(UTC))
        if not live:
            return
        time.sleep(min(_LONGEST_PAUSE_S, max(_LOOK_S, (time.monotonic() - began) / _SHARE)))


@contextmanager
def _screen() -> Iterator[_Screen]:
    if not animated():
        yield _Screen(None)
        return
    from rich.live import Live

    with Live(console=console(), refresh_per_second=4, transient=True) as live:
        yield _Screen(live)


class _Screen:
    """One progress line: redrawn on a terminal, now and then a new one elsewhere."""

    def __init__(self, live: Live | None) -> None:
        self._live = live
        self._said = float("-inf")
        self._blind = False

    def say(self, line: str | None) -> None:
        """A line that stays, above the one that moves."""
        if line is None:
            return
        if self._live is None:
            say(line)
        else:
            self._live.console.print(line, markup=False, soft_wrap=True)

    def blind(self, why: StoreError) -> None:
        """The run cannot be seen; told once, until it can be."""
        if not self._blind:
            self.say(f"the run goes on, but cannot be seen: {why.message}")
        self._blind = True

    def show(self, seen: RunView) -> None:
        if self._blind:
            self.say("the store answers again")
        self._blind = False
        if self._live is not None:
            from rich.text import Text

            self._live.update(
                Text(_bar(seen, get_terminal_size().columns), no_wrap=True, overflow="ellipsis")
            )
        elif seen.state is State.RUNNING and time.monotonic() - self._said >= _LINE_EVERY_S:
            self._said = time.monotonic()
            say(_progress(seen))


def _bar(seen: RunView, columns: int) -> str:
    text = _progress(seen)
    width = max(0, min(30, columns - len(text) - 4))
    if not seen.max_steps or width < 8:
        return text
    filled = round(width * seen.step / seen.max_steps)
    return f"{'━' * filled}{'╌' * (width - filled)}  {text}"


def _progress(seen: RunView) -> str:
    of = f"/{seen.max_steps}" if seen.max_steps else ""
    parts = [f"step {seen.step}{of}"]
    if seen.loss is not None:
        parts.append(f"loss {seen.loss:.3f}")
    if seen.tokens_per_s:
        parts.append(f"{seen.tokens_per_s:,.0f} tok/s")
    if seen.durable_step is not None and seen.durable_age is not None:
        parts.append(f"durable at {seen.durable_step}, {seen.durable_age.total_seconds():.0f} s ago")
    if (now := seen.saves.saving) is not None:
        parts.append(f"saving {now.step}, {100 * now.sent_bytes / max(now.total_bytes, 1):.0f} %")
    elif seen.saves.until_next is not None:
        parts.append(f"next save in {seen.saves.until_next.total_seconds():.0f} s")
    return "  ".join([*parts, f"attempt {seen.attempt} in {seen.region}", seen.state.value])


def _turning_point(event: RunEvent) -> str | None:
    """A turning point of a run as one line; None for events that are none."""
    data = event.data
    at = event.time.astimezone().strftime("%H:%M:%S")
    line = {
        "requested": lambda: f"attempt {event.attempt}: asking for a machine in {data['region']}",
        "no_capacity": lambda: f"no machine to be had in {', '.join(data['regions'])}: waiting",
        "started": lambda: (
            f"attempt {event.attempt}: "
            + (
                f"continues after step {data['resumed_from']}"
                if data["resumed_from"]
                else "starts at the beginning"
            )
        ),
        "warning": lambda: f"attempt {event.attempt}: {data['source']}, {data['step']} steps done",
        "notice": lambda: (
            f"attempt {event.attempt}: told to leave, {data['step']} steps done{_by_whom(data.get('source', ''))}"
        ),
        "fallback": lambda: (
            f"attempt {event.attempt}: a checkpoint is damaged, using the one before: {data['problem']}"
        ),
        "save_failed": lambda: (
            f"attempt {event.attempt}: step {data['step']} could not be saved: {data['error']}"
        ),
        "ended": lambda: f"attempt {event.attempt}: machine gone ({data['reason']})",
        "limit": lambda: f"stopping: {data['what']}",
        "exported": lambda: f"model exported, {data['bytes'] / 1e6:.1f} MB",
        "failed": lambda: f"attempt {event.attempt} failed: {data['error']}",
    }.get(event.kind)
    return f"{at}  {line()}" if line is not None else None


def _by_whom(source: str) -> str:
    """What a cloud said, `aws: terminate at ...`; the name of a signal says nothing to people."""
    return f" ({source})" if ": " in source else ""


def _last(record: RunRecord, *kinds: str) -> RunEvent | None:
    return next((event for event in reversed(record.events) if event.kind in kinds), None)
