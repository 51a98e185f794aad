"""What to change so that a run fits its machine, each proposal checked by the estimate; and how to say it.

Asked before any money is spent by the launcher, and on the box after memory has run out. Then the estimate was too
low: it is scaled by what was measured, and what it proposes has to fit even so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from trainer import methods
from trainer.choices import Choices, Installed, choose
from trainer.config import TrainConfig, override
from trainer.errors import ConfigError, NotReady
from trainer.hardware import CARDS, Hardware
from trainer.memory import Estimate, Load, estimate, gib
from trainer.shape import Shape

# Proposals made: enough to choose from, few enough to read. Share of the memory that they may take: where it has just
# run out, the next try should not come down to the last megabytes.
_PROPOSED, _ROOM = 3, 0.97
# The shortest rows proposed: below, most conversations lose their end (ShareGPT's median is some 600 tokens).
_SHORTEST = 512
_ROWS = "train.per_device_train_batch_size"

# (tokens, trained ones) of the fullest forward pass of a config.
Fullest = Callable[[TrainConfig], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Case:
    """A run on a machine, as far as memory goes."""

    config: TrainConfig
    hardware: Hardware
    shape: Shape
    processes: int
    fullest: Fullest | None = None
    """From the corpus; None: rows of max_length, trained throughout."""
    installed: Installed | None = None

    def choices(self) -> Choices:
        return choose(
            self.hardware, self.config, self.installed, self.shape.head_dim, self.config.model.dropout
        )

    def estimate(self) -> Estimate:
        """Raises what `choose` raises."""
        tokens, trained = self.fullest(self.config) if self.fullest else (None, None)
        on_gpu = self.hardware.kind == "cuda"
        load = Load.of(
            self.config,
            self.choices(),
            self.shape,
            self.processes,
            on_gpu=on_gpu,
            tokens=tokens,
            trained=trained,
        )
        return estimate(self.shape, load)


class Change(NamedTuple):
    """Something to write on the command line, and what it brings."""

    options: str
    bytes: int
    price: str

    def __str__(self) -> str:
        return f"{self.options}  ({gib(self.bytes)}; {self.price})"


def changes_that_fit(case: Case, scale: float = 1.0) -> list[Change]:
    """At most three, the least intrusive first; none if nothing helps.

    Args:
        scale: what the estimate is multiplied with; more than 1 where a measurement has shown it too low.
    """
    found: list[Change] = []
    for options, price, changed in _candidates(case, scale):
        if price in {change.price for change in found}:  # the same again, further than is needed
            continue
        if (peak := _fitting_peak(changed, scale)) is not None:
            found.append(Change(options, peak, price))
        if len(found) == _PROPOSED:
            break
    return found


def out_of_memory(case: Case, when: str, used_bytes: int, asked: str) -> NotReady:
    """The one message: what was measured, what was estimated, and what would fit.

    Args:
        when: e.g. "before the first step".
        used_bytes: the most that was in use on the card; on a CPU, by this process.
        asked: what could not be had, e.g. "606 MiB", or nothing where it is unknown.
    """
    expected = case.estimate()
    more = f" when {asked} more were asked for" if asked else ""
    where = case.hardware.name if case.hardware.kind == "cuda" else "this machine's share of a process"
    total = max(used_bytes, case.hardware.memory_bytes)  # a CPU's is what was free when it was looked at
    lines = [
        f"out of memory {when}: {gib(used_bytes)} of {gib(total)} of {where} were in use{more}",
        f"the estimate was {gib(expected.bytes)}, in {expected.moment}:",
        *(f"  {line}" for line in expected.lines()),
    ]
    changes = changes_that_fit(case, max(1.0, used_bytes / expected.bytes))
    return NotReady("\n".join(lines), hint=advice(changes, case))


def forecast(case: Callable[[], Case]) -> str:
    """What the log says before the first step: whether the fullest pass of the run is expected to fit."""
    try:
        run = case()
        expected = run.estimate()
    except ConfigError as error:
        return f"memory: {error.message}"
    told = f"memory: {gib(expected.bytes)} of {gib(run.hardware.memory_bytes)} expected, in {expected.moment}"
    if expected.fits(run.hardware):
        return told
    changes = changes_that_fit(run)
    return f"{told}; it may run out" + (f", and {changes[0].options} would fit" if changes else "")


def advice(changes: list[Change], case: Case) -> str:
    """The hint of a run that does not fit."""
    if not changes:
        return f"no change of one option makes it fit {case.hardware.name}: a smaller model, or larger cards"
    many = {1: "this would fit", 2: "each of these two would fit", 3: "each of these three would fit"}[
        len(changes)
    ]
    return "\n".join([f"{many}, by the same estimate:", *(f"  {change}" for change in changes)])


def _fitting_peak(case: Case, scale: float) -> int | None:
    """None where the run is refused or does not fit."""
    try:
        if methods.impossible(case.config):
            return None
        peak = int(case.estimate().bytes * scale)
    except (ConfigError, NotReady):
        return None
    return peak if peak <= _ROOM * case.hardware.memory_bytes else None


def _candidates(case: Case, scale: float) -> Iterator[tuple[str, str, Case]]:
    """(options, price, changed run), from what changes no number to what changes the machine."""
    train = case.config.train
    if not train.gradient_checkpointing:
        yield _set(case, {"train.gradient_checkpointing": "true"}, "a third more time, the same numbers")
    for rows in range(train.per_device_train_batch_size - 1, 0, -1):
        smaller = _set(case, {_ROWS: str(rows)}, "the same global batch in more passes")
        if _fitting_peak(smaller[2], scale) is not None:
            yield smaller
            break
    for settings, price in _settings(case):
        alone = _set(case, settings, price)
        fits = _fitting_peak(alone[2], scale) is not None
        yield alone if fits else _set(case, {**settings, **_smallest(case)}, price)
    yield from _machines(case, scale)


def _smallest(case: Case) -> dict[str, str]:
    """What saves memory and changes no number, added where a change alone is not enough."""
    small = {}
    if case.config.train.per_device_train_batch_size > 1:
        small[_ROWS] = "1"
    if not case.config.train.gradient_checkpointing:
        small["train.gradient_checkpointing"] = "true"
    return small


def _settings(case: Case) -> Iterator[tuple[dict[str, str], str]]:
    config, full = case.config, case.config.train.method == "full"
    fsdp = config.parallel.strategy == "fsdp"
    if not fsdp and config.parallel.zero_stage == 2:
        yield {"parallel.zero_stage": "3"}, "weights spread too, more communication"
    if case.hardware.kind == "cuda" and config.parallel.offload == "none":
        offload = {"parallel.offload": "all" if fsdp else "optimizer"}
        yield offload, f"slower, and {gib(_on_the_host(case, offload))} of host memory"
    if full and config.train.optim != "adamw_bnb_8bit":
        yield {"train.optim": "adamw_bnb_8bit"}, "moments in 8 bit, other numbers"
    length = config.data.max_length
    while (length := length // 2) >= _SHORTEST:
        yield {"data.max_length": str(length)}, "longer conversations are cut there"
    if full:
        yield {"train.method": "lora"}, "adapters instead of all weights"
    if config.train.method == "lora" and not config.lora.load_8bit:
        yield {"lora.load_8bit": "true"}, "the frozen base in 8 bit"
    if config.train.method != "qlora":
        whole = {"lora.load_8bit": "false"} if config.lora.load_8bit else {}
        yield {"train.method": "qlora", **whole}, "adapters on a base in 4 bit"


def _on_the_host(case: Case, settings: dict[str, str]) -> int:
    try:
        return _set(case, settings, "")[2].estimate().host_bytes * case.processes
    except (ConfigError, NotReady):
        return 0


def _machines(case: Case, scale: float) -> Iterator[tuple[str, str, Case]]:
    if case.hardware.kind == "cpu":
        return
    for factor in (2, 4, 8):
        count = case.hardware.count * factor
        if count > 8:  # the most that one machine of any cloud has
            break
        more = _on(case, case.hardware.of(count), case.processes * factor)
        if _fitting_peak(more, scale) is not None:
            yield f"--gpus {more.hardware.name}:{count}", "more cards", more
            break
    for card in sorted(CARDS.values(), key=lambda card: card.memory_bytes):
        larger = _on(case, card.of(case.hardware.count), case.processes)
        if card.memory_bytes > case.hardware.memory_bytes and _fitting_peak(larger, scale) is not None:
            yield f"--gpus {card.name}:{larger.hardware.count}", "a larger card", larger
            break


def _set(case: Case, settings: dict[str, str], price: str) -> tuple[str, str, Case]:
    config, _ = override(case.config, list(settings.items()))
    options = " ".join(f"--set {key}={value}" for key, value in settings.items())
    return options, price, _with(case, config)


def _with(case: Case, config: TrainConfig) -> Case:
    return Case(config, case.hardware, case.shape, case.processes, case.fullest, case.installed)


def _on(case: Case, hardware: Hardware, processes: int) -> Case:
    return Case(case.config, hardware, case.shape, processes, case.fullest, None)
