"""Token ids to text, a piece at a time: whole characters only, and nothing that may still become a stop string.

What a token adds is the difference of two decodings of the last few tokens, since what a token says may depend on the
one before it: half a character, or a word that begins with a space. The tokeniser's own decoding is the truth here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer

# What decoders write for bytes that are no character, or not one yet.
_BROKEN = "\ufffd"
# Tokens of the prompt that the first token may lean on.
_CONTEXT = 5
# A character has at most four bytes. More tokens than this that end in a broken one are broken for good.
_PATIENCE = 32


class Vocabulary:
    """What the tokens of a fast tokeniser say.

    silent: ids of special tokens, which are no part of any text.
    """

    def __init__(self, tokeniser: Tokenizer) -> None:
        self._tokeniser = tokeniser
        added = tokeniser.get_added_tokens_decoder()
        self.silent = frozenset(number for number, token in added.items() if token.special)
        self._added = {number: token.content for number, token in added.items()}
        self._bytes = _BYTES if _byte_level(tokeniser) else None

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokeniser.decode(ids, skip_special_tokens=True)
        return text

    def bytes(self, token: int) -> bytes:
        """The bytes of one token, which need not be whole characters. An id beyond the vocabulary has none."""
        if token in self._added:
            return self._added[token].encode()
        name = self._tokeniser.id_to_token(token)
        if name is None:
            return b""
        if self._bytes is not None:
            return bytes(self._bytes[letter] for letter in name if letter in self._bytes)
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):  # SentencePiece's single bytes
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()  # its spaces


class Writer:
    """The text of one answer.

    Stop strings end it: `stopped` is set, and neither the string nor anything behind it is part of the text.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._stops = [stop for stop in stops if stop]
        self._ids = [token for token in prompt[-_CONTEXT:] if token not in vocabulary.silent]
        self._told = self._text()  # what of the window's text has been told already
        if self._told.endswith(_BROKEN):
            self._ids, self._told = [], ""
        self._new = len(self._ids)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now that this token has come."""
        if token in self._vocabulary.silent:
            return ""
        self._ids.append(token)
        text = self._text()
        whole = text.rstrip(_BROKEN) if len(self._ids) - self._new < _PATIENCE else text
        piece = whole[len(self._told) :]
        if len(whole) < len(text):  # the window stays: its last character may become whole
            self._told += piece
        elif piece:
            self._ids = self._ids[self._new :]
            self._new = len(self._ids)
            self._told = self._text()
        return self._release(piece) if piece else ""

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        if self.stopped:
            return ""
        text = self._text()
        piece = text[len(self._told) :]
        self._told = text
        certain = self._release(piece)
        held, self._held = self._held, ""
        return certain + held

    def _text(self) -> str:
        return self._vocabulary.decode(self._ids)

    def _release(self, piece: str) -> str:
        """All but the longest end that may be the beginning of a stop string; up to a stop string if there is one."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _byte_level(tokeniser: Tokenizer) -> bool:
    return '"ByteLevel"' in json.dumps(json.loads(tokeniser.to_str()).get("decoder"))


def _letters() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable letter (GPT-2's encoder.py): the way back."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _letters()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, but for all of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
