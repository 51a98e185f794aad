"""From a request to a run that somebody looks after, in steps that can each be repeated.

Order: files by hash, config.json (write-once: it decides whose the name is), task.yaml, the `created` event, then
the cloud. Killed anywhere, the same command goes on where it was; a different config under the same name is
refused with the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import launch as launching
from launcher.errors import ConfigError, DataError, UsageError
from launcher.launch import Launch, from_events, to_event
from launcher.output import say
from launcher.planning.plan import Plan, TrainRequest
from launcher.render import render_train, run_uri
from launcher.settings import cache_dir
from launcher.shipment import Shipment
from launcher.wheel import write_wheel
from trainer.artifacts.journal import Journal, read_journal
from trainer.artifacts.layout import CONFIG, TASK, valid_run_id
from trainer.artifacts.manifest import hash_file, put_blob
from trainer.artifacts.store import Store, open_store
from trainer.config import DataSection, ModelSection, StoredFile, TrainConfig, decode_config, difference
from trainer.data.read import FileReport, read_corpus
from trainer.errors import MissingKey

# Characters of English text per token of a byte-pair tokeniser, for estimates only.
_CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True)
class CorpusCount:
    """What the launcher found in the user's files."""

    files: tuple[FileReport, ...]
    conversations: int
    tokens: int
    """Estimated from characters."""


def corpus_files(
    size: str | None, data: Sequence[str], held_out: Sequence[str]
) -> tuple[list[Path], list[Path]]:
    """The user's files, or for `tiny` the example corpus, written once to the cache."""
    if data:
        return [Path(path) for path in data], [Path(path) for path in held_out]
    if held_out:
        raise UsageError("held-out data without a corpus", hint="give --data FILE as well")
    if size != "tiny":
        raise UsageError(
            "no corpus: a model of this size needs --data FILE", hint="vlaunch data stats FILE looks at one"
        )
    from trainer.data.example import write_example

    train, rest = write_example(cache_dir() / "example")
    return [train], [rest]


def count_corpus(paths: Sequence[Path]) -> CorpusCount:
    """Read every sample once, so that a broken file costs seconds here and not dollars later.

    Raises:
        DataError: a file cannot be read, or nothing in it can be used.
    """
    corpus = read_corpus(paths)
    conversations = characters = 0
    for conversation in corpus:
        conversations += 1
        characters += sum(len(turn.text) for turn in conversation.turns)
    for report in corpus.files:
        if not report.conversations:
            reasons = (
                ", ".join(f"{count} x {reason}" for reason, count in report.refused.items()) or "it is empty"
            )
            raise DataError(
                f"{report.path} has no usable conversation: {reasons}",
                hint=f"vlaunch data stats {report.path}",
            )
    return CorpusCount(tuple(corpus.files), conversations, int(characters / _CHARACTERS_PER_TOKEN))


def say_counts(count: CorpusCount) -> None:
    for report in count.files:
        refused = sum(report.refused.values())
        lost = f", {refused} refused" if refused else ""
        say(f"{report.path.name}: {report.conversations:,} conversations ({report.format}){lost}")
        for reason, number in sorted(report.refused.items()):
            say(f"  {number} x {reason}, first at {report.first_refusal[reason]}")


def refuse_unsupported(request: TrainRequest) -> None:
    """What this version cannot start, said before anything is written."""
    if not valid_run_id(request.name):
        raise UsageError(
            f"{request.name!r} cannot be the name of a run", hint="at most 40 of a-z, 0-9 and inner dashes"
        )


def create(
    request: TrainRequest,
    plan: Plan,
    launch: Launch,
    shipment: Shipment,
    train: Sequence[Path],
    held_out: Sequence[Path],
) -> str:
    """Write the run into its store. Returns its URI.

    Raises:
        ConfigError: the name is taken by a run with another config.
    """
    uri = run_uri(request.store, request.name)
    store = open_store(uri)
    base = _base_files(request.config.model)
    config = _with_files(request.config, train, held_out, base)
    if config.follows_held_out_loss and not held_out:
        raise UsageError("early stopping and keep_best need held-out data", hint="give --eval-data FILE")
    _write_config(store, config, request.name)
    for path in (*train, *held_out, *base):
        put_blob(store, path)
    if shipment.wheel is not None:
        write_wheel()  # the task names it
    store.put_new(TASK, render_train(plan, replace(request, config=config), shipment).encode())
    events = read_journal(store)
    if not any(event.kind == "created" for event in events):
        Journal(store, 0, "launcher").record("created", **to_event(plan, launch))
    else:
        _refuse_another_launch(from_events(events), launch, request.name)
        change_limits(store, launch.max_cost_usd, launch.deadline_s)
    return uri


def change_limits(store: Store, max_cost_usd: float | None, deadline_s: float | None) -> None:
    """New limits for a run that exists; None leaves one as it is."""
    given = {"max_cost_usd": max_cost_usd, "deadline_s": deadline_s}
    changed = {name: value for name, value in given.items() if value is not None}
    if changed:
        Journal(store, 0, "launcher").record("limits", **changed)


def _refuse_another_launch(there: Launch, asked: Launch, name: str) -> None:
    changed = launching.difference(there, asked)
    if changed:
        raise UsageError(
            f"run {name} was created to run elsewhere or otherwise: {'; '.join(changed)}",
            hint=f"vlaunch resume {name} goes on as it was; another --name starts afresh",
        )


def _base_files(model: ModelSection) -> list[Path]:
    """The files of a base model in a folder here: they travel through the store by hash, as the corpus does."""
    if model.base is None or not Path(model.base).is_dir():
        return []
    wanted = ("*.json", "*.safetensors", "*.model", "*.jinja")
    paths = sorted(path for pattern in wanted for path in Path(model.base).glob(pattern))
    if not any(path.suffix == ".safetensors" for path in paths):
        raise UsageError(
            f"{model.base} holds no .safetensors file", hint="convert pickled .bin weights first"
        )
    return paths


def _with_files(
    config: TrainConfig, train: Sequence[Path], held_out: Sequence[Path], base: Sequence[Path]
) -> TrainConfig:
    """The config that names the user's files by their hashes."""
    data = config.data.model_dump() | {"train": _named(train), "eval": _named(held_out)}
    update: dict[str, object] = {"data": DataSection.model_validate(data)}
    if base:
        origin = str(Path(config.model.base or "").resolve())
        model = config.model.model_dump() | {"base": None, "files": _named(base), "origin": origin}
        update["model"] = ModelSection.model_validate(model)
    return config.model_copy(update=update)


def _named(paths: Sequence[Path]) -> tuple[StoredFile, ...]:
    return tuple(StoredFile(name=path.name, blob=hash_file(path), size=path.stat().st_size) for path in paths)


def _write_config(store: Store, config: TrainConfig, name: str) -> None:
    if store.put_new(CONFIG, config.encode()):
        return
    try:
        there = decode_config(store.get(CONFIG), f"{store.uri}/{CONFIG}")
    except MissingKey:  # deleted in between: the next try creates it
        return _write_config(store, config, name)
    changed = difference(there, config)
    if changed:
        raise ConfigError(
            f"run {name} exists with another configuration: {'; '.join(changed)}",
            hint=f"vlaunch resume {name} goes on with the one it has; another --name starts afresh",
        )
