"""Paths -> Corpus: a stream of conversations that accounts for every sample it was given.

    corpus = read_corpus(["sharegpt.json", "more.jsonl.gz"])
    for conversation in corpus: ...
    corpus.files[0].refused            # {"unknown role": 3}

A sample that cannot be used is refused by itself, counted under a reason, and the first of each
reason is kept with its place. A file that cannot be read, or a corpus with nothing usable in
it, is a DataError. Cost: one pass, memory of one sample; each iteration reads the files again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.conversation import Conversation
from trainer.data.containers import inspect_file, read_samples
from trainer.data.samples import Refused, read_sample
from trainer.errors import DataError

_SUFFIXES = {".gz", ".zst", ".json", ".jsonl", ".ndjson", ".parquet"}
_TRY = "vlaunch data example --to DIR writes a corpus to try."
_FORMS = "{conversations: [{from, value}]}, {messages: [{role, content}]} or {instruction, output}"


@dataclass(slots=True)
class FileReport:
    """What one file held; counts are complete once the iteration has passed the file.

    samples == conversations + sum(refused.values())
    """

    path: Path
    container: str = ""  # json, jsonl, parquet, empty
    compression: str = ""  # "", gzip, zstd
    forms: dict[str, int] = field(default_factory=dict)  # sharegpt, openai, alpaca -> conversations
    samples: int = 0
    conversations: int = 0
    trimmed: int = 0  # conversations whose trailing user turn, which has no answer, was dropped
    refused: dict[str, int] = field(default_factory=dict)  # reason -> samples
    first_refusal: dict[str, str] = field(default_factory=dict)  # reason -> place and what was found there

    @property
    def format(self) -> str:
        """In words: "sharegpt json", "openai jsonl gzip"."""
        form = "+".join(sorted(self.forms)) or "unknown"
        return " ".join(part for part in (form, self.container, self.compression) if part)

    def refuse(self, refusal: Refused, where: str) -> None:
        self.refused[refusal.reason] = self.refused.get(refusal.reason, 0) + 1
        self.first_refusal.setdefault(refusal.reason, f"{where}: {refusal.detail}")

    def accept(self, form: str, trimmed: bool) -> None:
        self.forms[form] = self.forms.get(form, 0) + 1
        self.conversations += 1
        self.trimmed += trimmed


class Corpus:
    """Conversations of several files, in the order given. Iterating again starts again."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self.files: list[FileReport] = []

    def __iter__(self) -> Iterator[Conversation]:
        """Yields conversations and fills `files` on the way.

        Raises DataError where a file is broken, or at the end if nothing at all could be used.
        """
        for _, conversation in self.by_file():
            yield conversation

    def by_file(self) -> Iterator[tuple[FileReport, Conversation]]:
        """As iterating, with the report of the file that each conversation is from."""
        # A new list each time: the reports of an earlier pass stay what they were.
        files = self.files = [FileReport(path) for path in self._paths]
        for report in files:
            for conversation in _read_file(report):
                yield report, conversation
        if not any(report.conversations for report in files):
            raise _nothing_usable(files)


def read_corpus(paths: Iterable[str | os.PathLike[str]]) -> Corpus:
    """The corpus of these files. Raises DataError at once for a path that is no file."""
    checked = [Path(path) for path in paths]
    if not checked:
        raise DataError("no corpus file was given", hint=_TRY)
    for path in checked:
        if path.is_dir():
            hint = f"name its files: {path}/*.jsonl"
            raise DataError(f"{path} is a directory, not a file", hint=hint)
        if not path.exists():
            raise DataError(f"there is no file {path}", hint=_TRY)
        if not path.is_file():  # a pipe can be read once only, and training reads once per epoch
            raise DataError(f"{path} is not a regular file", hint="write its content to a file first")
    return Corpus(checked)


def canonical_line(conversation: Conversation) -> bytes:
    """One line of stable JSON with everything that training depends on, to hash a corpus by.

    The id is left out: a missing one is made from the file's name, and the same corpus under
    another name must keep its token cache. A file of such lines is itself a readable corpus.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    return json.dumps({"messages": messages}, separators=(",", ":")).encode("ascii") + b"\n"


def _read_file(report: FileReport) -> Iterator[Conversation]:
    container = inspect_file(report.path)
    report.container, report.compression = container.kind, container.compression
    stem = file_stem(report.path)
    for sample in read_samples(report.path, container):
        report.samples += 1
        try:
            conversation, form, trimmed = read_sample(sample.value, f"{stem}-{report.samples}")
        except Refused as refusal:
            report.refuse(refusal, sample.where)
            continue
        report.accept(form, trimmed)
        yield conversation


def file_stem(path: Path) -> str:
    """The name that ids are made from where a sample has none: the same for a.json and a.jsonl.zst."""
    while path.suffix.lower() in _SUFFIXES:
        path = path.with_suffix("")
    return path.name


def _nothing_usable(files: list[FileReport]) -> DataError:
    lines = []
    for report in files:
        if not report.samples:
            lines.append(f"  {report.path}: empty")
            continue
        lines.append(f"  {report.path}: {report.samples} sample(s), all refused")
        for reason, count in sorted(report.refused.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"    {count} x {reason}, first at {report.first_refusal[reason]}")
    return DataError(
        "\n".join(["the corpus has no usable conversation", *lines]),
        hint=f"a sample is {_FORMS}",
    )
