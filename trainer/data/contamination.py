"""Whether a conversation holds a question of the evaluation: a model must not be tested on what it has read.

Two texts share a question where they share a run of SHINGLE words (GPT-3 used 13, PaLM 8; 10 here, between
them), letters and digits only, case ignored. A question shorter than that must be there whole, as a turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.conversation import Conversation
from trainer.errors import DataError

SHINGLE = 10
_WORD = re.compile(r"\w+")
_KEYS = ("turns", "text", "question", "prompt", "instruction")


@dataclass(frozen=True, slots=True)
class Questions:
    """Runs of words, and whole short questions, each with the question it is from."""

    runs: dict[tuple[str, ...], str]
    short: dict[tuple[str, ...], str]
    digest: str
    count: int

    def found_in(self, conversation: Conversation) -> str:
        """The id of a question that is in some turn, in words; "" if none is."""
        for turn in conversation.turns:
            words = _words(turn.text)
            if name := self.short.get(tuple(words[: SHINGLE + 1])):
                return f"question {name} is a turn"
            for run in _runs(words):
                if name := self.runs.get(run):
                    return f"shares {SHINGLE} words with question {name}: {' '.join(run)}"
        return ""

    def as_dict(self) -> dict[str, Any]:
        return {"questions": self.count, "words": SHINGLE, "sha256": self.digest}

    def __hash__(self) -> int:
        return hash(self.digest)


def read_questions(paths: Iterable[Path]) -> Questions:
    """Questions of files in MT-bench's form ({question_id, turns: [...]}) or {id, text}, or one per line of text."""
    runs: dict[tuple[str, ...], str] = {}
    short: dict[tuple[str, ...], str] = {}
    count = 0
    digest = hashlib.sha256()
    for path in paths:
        try:
            data = path.read_bytes()
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} cannot be read: {error}", hint="give a file of evaluation questions"
            ) from error
        digest.update(data)
        for name, question in _questions(path, text):
            count += 1
            words = _words(question)
            if len(words) >= SHINGLE:
                runs.update(dict.fromkeys(_runs(words), name))
            elif words:
                short[tuple(words)] = name
    if not count:
        raise DataError(
            "the evaluation files hold no question", hint=f"a line is JSON with one of: {', '.join(_KEYS)}"
        )
    return Questions(runs, short, digest.hexdigest(), count)


def _questions(path: Path, text: str) -> Iterator[tuple[str, str]]:
    try:
        whole = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError:
        whole = None
    items: Iterable[Any] = whole if isinstance(whole, list) else filter(str.strip, text.split("\n"))
    for number, item in enumerate(items, start=1):
        value: Any = item
        if isinstance(item, str) and item.lstrip().startswith("{"):
            try:
                value = json.loads(item)
            except ValueError as error:
                raise DataError(
                    f"{path}: line {number}: broken JSON: {error}", hint="one question per line"
                ) from error
        name = f"{path.name}:{number}"
        if isinstance(value, dict):
            name = str(value.get("question_id", value.get("id", name)))
            value = next((value[key] for key in _KEYS if value.get(key)), "")
        for question in value if isinstance(value, list) else [value]:
            if isinstance(question, str):
                yield name, question


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(SHINGLE)), strict=False)
