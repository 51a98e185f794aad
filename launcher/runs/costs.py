"""What a run cost, from its journal: attempts x prices -> charges -> report.

SkyPilot's own cost report prices the whole past at today's price and the last placement, and cannot join
the recoveries of one job. Here every attempt keeps the price that was in force when its machine was asked
for, and every microsecond between machine up and machine gone lands in exactly one of four parts:

    up ......... training ............... taken_at ......... last word ....... end
    |  restart   |        useful          |      lost        |      idle        |

    restart  machine up -> end of the first new step (set-up, claim, restore, first batch)
    useful   steps that the run kept: up to the last checkpoint that the run went on from, or to its end
    lost     work after that checkpoint: the next attempt does it again
    idle     the box had said its last word (finished, failed, preempted) and the machine was still there
    waiting  no machine at all: hours, no dollars

Bytes that left a region (egress.py) are counted beside: they are no time of a machine, and not in its dollars.

An example: attempt 1 is up at 0:00, trains from 0:10, takes a checkpoint of step 40 at 1:00 and is killed
at 1:20; attempt 2 starts with resumed_from 40. Attempt 1 is 10 s restart, 50 s useful and 20 s lost. Had
attempt 2 resumed from step 20 instead (a damaged checkpoint), attempt 1 would be useful only up to the
moment it took step 20.

Pure: no clock, no store. Durations are whole microseconds and dollars are fractions, so the parts add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from launcher.runs.attempts import Attempt, Mark, attempts_of, region_name
from launcher.runs.egress import Egress, egress_of
from trainer.artifacts.journal import RunEvent

PARTS = ("restart", "useful", "lost", "idle")
ZERO = timedelta(0)
_HOUR = timedelta(hours=1)

# After these the run is not looking for a machine, so the hours until the next request are nobody's wait.
_PAUSES = ("finished", "failed", "stopped", "orphaned")


@dataclass(frozen=True, slots=True)
class Charge:
    """An attempt x its price, split into the four parts."""

    attempt: Attempt
    restart: timedelta
    useful: timedelta
    lost: timedelta
    idle: timedelta
    running: bool
    egress: Egress = Egress()

    @property
    def billed(self) -> timedelta:
        return self.restart + self.useful + self.lost + self.idle

    @property
    def usd(self) -> Fraction:
        return self.dollars(self.billed)

    def time_of(self, part: str) -> timedelta:
        value: timedelta = getattr(self, part)
        return value

    def usd_of(self, part: str) -> Fraction:
        return self.dollars(self.time_of(part))

    def dollars(self, time: timedelta) -> Fraction:
        return hours(time) * (self.attempt.price.usd_per_hour or Fraction(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """Several charges and their sums."""

    charges: tuple[Charge, ...]

    @property
    def billed(self) -> timedelta:
        return sum((c.billed for c in self.charges), ZERO)

    @property
    def usd(self) -> Fraction:
        return sum((c.usd for c in self.charges), Fraction(0))

    @property
    def egress(self) -> Egress:
        return sum((c.egress for c in self.charges), Egress())

    def time_of(self, part: str) -> timedelta:
        return sum((c.time_of(part) for c in self.charges), ZERO)

    def usd_of(self, part: str) -> Fraction:
        return sum((c.usd_of(part) for c in self.charges), Fraction(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport(Charges):
    """The bill of one run (or of several, see `combine`)."""

    run_id: str
    waiting: timedelta
    on_demand_usd: (
        Fraction | None
    )  # the same useful work, never preempted; None: no work kept yet, or no price known
    notes: tuple[str, ...] = ()

    @property
    def paid_usd(self) -> Fraction:
        """`usd` without the machines that nobody rented."""
        return sum((c.usd for c in self.charges if not c.attempt.price.notional), Fraction(0))

    @property
    def notional(self) -> bool:
        """Every price is a comparison only: nothing was paid."""
        return bool(self.charges) and all(c.attempt.price.notional for c in self.charges)

    @property
    def saved(self) -> Fraction | None:
        """Share of the on-demand bill that was saved; negative where spot was dearer.

        None where there is nothing to compare with, or nothing that was not on demand itself.
        """
        if not self.on_demand_usd or "spot" not in self.markets:
            return None
        return 1 - self.usd / self.on_demand_usd

    @property
    def price_sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.attempt.price.source for c in self.charges if c.attempt.price.source))

    @property
    def markets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.attempt.market for c in self.charges))

    def by_region(self) -> dict[str, Charges]:
        """Charges per `cloud/region`, in the order in which the run first went there."""
        regions: dict[str, list[Charge]] = {}
        for charge in self.charges:
            regions.setdefault(region_name(charge.attempt), []).append(charge)
        return {name: Charges(charges=tuple(charges)) for name, charges in regions.items()}


def cost_report(
    run_id: str,
    events: Iterable[RunEvent],
    now: datetime,
    durable: Mapping[int, Sequence[Mark]] | None = None,
) -> CostReport:
    """The bill of a run from its journal, with running attempts billed until `now`.

    durable: marks per epoch from the store itself. They fill in checkpoints whose box died between the commit
    and the journal entry about it.
    """
    events = sorted(events, key=lambda event: event.time)
    attempts = attempts_of(events, durable)
    charges = tuple(
        _charge(attempt, attempts, now, egress_of(attempt, events))
        for attempt in attempts
        if attempt.up is not None and attempt.up <= now
    )
    on_demand, why = _on_demand(charges)
    notes = [*_notes(charges, now, events), *([why] if why else [])]
    return CostReport(
        run_id=run_id,
        charges=charges,
        waiting=_waiting(events, attempts, now),
        on_demand_usd=on_demand,
        notes=tuple(notes),
    )


def combine(reports: Sequence[CostReport], name: str) -> CostReport:
    """One bill over several runs; without a comparison where one of them has none."""
    return CostReport(
        run_id=name,
        charges=tuple(charge for report in reports for charge in report.charges),
        waiting=sum((report.waiting for report in reports), ZERO),
        on_demand_usd=_sum_known([report.on_demand_usd for report in reports if report.charges]),
        notes=tuple(f"{report.run_id}: {note}" for report in reports for note in report.notes),
    )


def hours(time: timedelta) -> Fraction:
    """Exact: a timedelta is a whole number of microseconds."""
    microsecond = timedelta(microseconds=1)
    return Fraction(time // microsecond, _HOUR // microsecond)


def _charge(attempt: Attempt, attempts: Sequence[Attempt], now: datetime, egress: Egress) -> Charge:
    up = attempt.up
    assert up is not None  # the caller leaves out attempts without a machine
    end = max(up, min(attempt.end or now, now))
    worked_until = _between(up, attempt.last_word or end, end)
    if attempt.trained is not None:
        trained = _between(up, attempt.trained, worked_until)
    elif attempt.finished:  # nothing was left to train: this attempt exported
        trained = _between(up, attempt.started or worked_until, worked_until)
    else:
        trained = worked_until
    kept_until = _between(trained, _kept_until(attempt, attempts) or trained, worked_until)
    return Charge(
        attempt=attempt,
        restart=trained - up,
        useful=kept_until - trained,
        lost=worked_until - kept_until,
        idle=end - worked_until,
        running=attempt.end is None,
        egress=egress,
    )


def _kept_until(attempt: Attempt, attempts: Sequence[Attempt]) -> datetime | None:
    """The moment up to which the run kept this attempt's work; None: it kept nothing.

    Work counts only if every later attempt resumed at or after it (the same rule as for manifests). Work that
    is not durable yet counts while its machine lives, and no longer.
    """
    floors = [a.resumed_from for a in attempts if a.ordinal > attempt.ordinal and a.resumed_from is not None]
    if not floors and attempt.end is None:
        return datetime.max.replace(tzinfo=UTC)
    kept = [mark.taken_at for mark in attempt.marks if not floors or mark.step <= min(floors)]
    return kept[-1] if kept else None


def _waiting(events: Sequence[RunEvent], attempts: Sequence[Attempt], now: datetime) -> timedelta:
    """Time without a machine while the run wanted one."""
    total = ZERO
    since: datetime | None = None  # the machine was taken at this time and the run wants another
    after = datetime.min.replace(tzinfo=UTC)
    for attempt in attempts:
        begin = since or _wanted_after(events, after) or attempt.asked
        until = attempt.up or attempt.end or now
        total += max(ZERO, _given_up(events, begin, until) - begin)
        end = attempt.end or now
        paused = attempt.reason in _PAUSES or (attempt.reason is None and attempt.finished)
        since, after = (None, end) if paused or attempt.end is None else (end, end)
    if not attempts or attempts[-1].end is not None:
        begin = since or _wanted_after(events, after) or now
        total += max(ZERO, _given_up(events, begin, now) - begin)
    return total


def _wanted_after(events: Sequence[RunEvent], after: datetime) -> datetime | None:
    wanted = (
        event.time for event in events if event.kind in ("requested", "no_capacity") and event.time > after
    )
    return next(wanted, None)


def _given_up(events: Sequence[RunEvent], begin: datetime, until: datetime) -> datetime:
    """When the run stopped wanting a machine, if it did so before it got one."""
    stops = (event.time for event in events if begin <= event.time < until and _gives_up(event))
    return next(stops, until)


def _gives_up(event: RunEvent) -> bool:
    return event.kind in ("stopping", "limit") or (
        event.kind == "ended" and event.data.get("reason") in _PAUSES
    )


def _on_demand(charges: Sequence[Charge]) -> tuple[Fraction | None, str | None]:
    """Dollars for the same useful work and one restart on machines that nobody takes, and why there are none.

    Priced at the lowest on-demand price seen for the same machine: without preemptions the run would have had
    no reason to move to a dearer region, so a failover must not make the saving look larger.
    """
    lowest: dict[tuple[str, str], Fraction] = {}
    for charge in charges:
        price = charge.attempt.price.on_demand_usd_per_hour
        if price is not None:
            lowest[_machine(charge)] = min(price, lowest.get(_machine(charge), price))
    worked = [charge for charge in charges if charge.useful > ZERO]
    if not worked:
        return None, None
    first = next((charge for charge in charges if charge.attempt.trained is not None), worked[0])
    unpriced = [c.attempt.ordinal for c in [first, *worked] if _machine(c) not in lowest]
    if unpriced:
        return None, f"no on-demand price is known for attempt {unpriced[0]}, so there is no comparison"
    useful = sum((hours(charge.useful) * lowest[_machine(charge)] for charge in worked), Fraction(0))
    return useful + hours(first.restart) * lowest[_machine(first)], None


def _machine(charge: Charge) -> tuple[str, str]:
    return charge.attempt.cloud, charge.attempt.instance


def _notes(charges: Sequence[Charge], now: datetime, events: Sequence[RunEvent]) -> list[str]:
    """What a reader of the bill must know about how sure it is."""
    notes = []
    for charge in charges:
        attempt = charge.attempt
        if attempt.price.usd_per_hour is None:
            notes.append(f"no price is known for attempt {attempt.ordinal}: its dollars are missing here")
        if attempt.end_assumed:
            notes.append(
                f"the end of attempt {attempt.ordinal} was not recorded: taken as {attempt.end:%F %T} UTC"
            )
        if attempt.reason == "orphaned" and not attempt.end_assumed:
            notes.append(
                f"attempt {attempt.ordinal} was found dead and is billed until then: it may have ended before"
            )
        last = max(event.time for event in events if event.attempt == attempt.ordinal)
        if charge.running and now - last > _HOUR:
            silent = (now - last) // _HOUR
            notes.append(f"attempt {attempt.ordinal} has been silent for {silent} h and is billed until now")
    return notes


def _sum_known(amounts: Sequence[Fraction | None]) -> Fraction | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Fraction(0)) if known and len(known) == len(amounts) else None


def _between(low: datetime, value: datetime, high: datetime) -> datetime:
    return max(low, min(value, high))
