"""A conversation in the terminal: lines in, streamed answers out, and a few words that begin with a slash.

/reset            forget the conversation        /system TEXT   begin anew with this instruction
/regen            answer the last question again /undo          take back the last question and its answer
/save FILE        as ShareGPT JSON               /load FILE     go on with a saved one
/model NAME       another model                  /help  /exit
\"\"\"              begins and ends several lines
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.client import Api
from trainer.errors import UsageError, VlaunchError, nearest

_BLOCK = '"""'
_FROM = {"system": "system", "user": "human", "assistant": "gpt"}
_ROLES = {name: role for role, name in _FROM.items()} | {"user": "user", "assistant": "assistant"}
HELP = (__doc__ or "").partition("\n\n")[2]


@dataclass
class Talk:
    """What was said so far, and with whom."""

    model: str
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns]

    def undo(self) -> str | None:
        """Take back the last question with its answer; the question."""
        while self.turns:
            turn = self.turns.pop()
            if turn["role"] == "user":
                return turn["content"]
        return None

    def save(self, file: Path) -> None:
        """As ShareGPT JSON, which `vlaunch data` reads."""
        said = [{"from": _FROM[turn["role"]], "value": turn["content"]} for turn in self.messages()]
        text = json.dumps([{"id": file.stem, "conversations": said}], ensure_ascii=False, indent=1)
        try:
            file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise VlaunchError(f"{file}: {error.strerror}") from None

    def load(self, file: Path) -> None:
        """Raises UsageError for what is no saved conversation; the talk is then as before."""
        try:
            said = json.loads(file.read_text(encoding="utf-8"))[0]["conversations"]
            turns = [{"role": _ROLES[turn["from"]], "content": str(turn["value"])} for turn in said]
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
        except (ValueError, LookupError, TypeError):
            raise UsageError(f"{file} is no saved conversation", hint="/save FILE writes one") from None
        self.system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else ""
        self.turns = turns


class Chat:
    """The loop. `read(prompt)` gives a line or raises EOFError; `write` shows text at once."""

    def __init__(
        self, api: Api, talk: Talk, read: Callable[[str], str], write: Callable[[str], None], **sampling: Any
    ) -> None:
        self._api, self._talk, self._read, self._write, self._sampling = api, talk, read, write, sampling

    def run(self) -> None:
        """Until /exit or the end of input. Ctrl-C ends an answer; at the prompt it ends the chat."""
        while True:
            try:
                said = self._ask()
            except EOFError:
                return
            try:
                if said.startswith("/"):
                    if self._command(said) == "exit":
                        return
                elif said.strip():
                    self._answer(said)
            except VlaunchError as error:
                self._write(f"Error: {error.message}\n" + (f"Hint: {error.hint}\n" if error.hint else ""))

    def _ask(self) -> str:
        line = self._read("> ")
        if not line.startswith(_BLOCK):
            return line
        lines = [line[len(_BLOCK) :]]
        while not lines[-1].endswith(_BLOCK):
            lines.append(self._read("… "))
        return "\n".join(lines)[: -len(_BLOCK)].strip("\n")

    def _answer(self, question: str) -> None:
        """What fails or is stopped before its first word leaves no trace; what was said until then stays."""
        self._talk.turns.append({"role": "user", "content": question})
        answer = ""
        pieces = self._api.stream(self._talk.model, self._talk.messages(), **self._sampling)
        try:
            for piece in pieces:
                answer += piece
                self._write(piece)
        except KeyboardInterrupt:
            self._write(" [stopped]")
        finally:
            _close(pieces)
            if answer:
                self._talk.turns.append({"role": "assistant", "content": answer})
                self._write("\n")
            else:
                self._talk.undo()

    def _command(self, line: str) -> str | None:
        word, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        known = ("reset", "regen", "undo", "save", "load", "system", "model", "help", "exit")
        if word == "reset":
            self._talk.turns.clear()
        elif word == "system":
            self._talk.system = rest
            self._talk.turns.clear()
        elif word in ("regen", "undo"):
            question = self._talk.undo()
            if question is None:
                raise UsageError("nothing was asked yet")
            if word == "regen":
                self._answer(question)
        elif word in ("save", "load"):
            if not rest:
                raise UsageError(f"/{word} needs a file")
            (self._talk.save if word == "save" else self._talk.load)(Path(rest).expanduser())
        elif word == "model":
            self._choose(rest)
        elif word == "help":
            self._write(HELP)
        elif word != "exit":
            close = nearest(word, known)
            raise UsageError(
                f"there is no /{word}", hint=f"did you mean /{close}?" if close else "/help lists them"
            )
        return word

    def _choose(self, name: str) -> None:
        models = self._api.models()
        if name not in models:
            raise UsageError(f"there is no model {name!r}", hint=f"there is {', '.join(models)}")
        self._talk.model = name


def pick_model(api: Api, wanted: str | None) -> str:
    """The wanted model, or the only or first one there is. Raises VlaunchError where there is none."""
    if wanted:
        return wanted
    models = api.models()
    if not models:
        raise VlaunchError("no model is served there now", hint="vlaunch status NAME says why")
    return models[0]


def _close(pieces: Iterator[str]) -> None:
    """Hang up at once; a generator does so when it is closed."""
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
