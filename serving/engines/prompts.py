"""Texts and dialogues to token ids, as the model was trained on them.

The template is the one that lies with the model. What users write is theirs: a special token that is spelled in a
message stays text. To that end the template writes special tokens under names that nobody can guess, and spellings
inside messages are broken up while it does.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from serving.engine import Refused
from trainer.encode import under_secret_names

# In no text, and in no token: breaks up the spelling of a special token while a template is filled in.
_MARK = f"\ufdd0{secrets.token_hex(8)}\ufdd0"


class Prompts:
    """One model's way from texts and dialogues to token ids. Making one costs about a second for 128,000 tokens."""

    def __init__(self, tokeniser: PreTrainedTokenizerFast) -> None:
        self._tokeniser = tokeniser
        _, self._secret, self._plain = under_secret_names(tokeniser.backend_tokenizer)
        spelled = sorted(self._secret, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, spelled)) if spelled else r"(?!)")
        bare = tokeniser("a", add_special_tokens=False)["input_ids"]
        whole = tokeniser("a")["input_ids"]
        begin = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        self._before, self._after = whole[:begin], whole[begin + len(bare) :]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text, with what the tokeniser puts around every text, such as a BOS token."""
        if special:
            ids: list[int] = self._tokeniser(text)["input_ids"]
            return ids
        inside: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return [*self._before, *inside, *self._after]

    def encode_chat(
        self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] | None
    ) -> list[int]:
        """Ids of a dialogue, open for the assistant's answer.

        Raises:
            Refused: the model has no template, or its template refuses this dialogue.
        """
        if not self._tokeniser.chat_template:
            raise Refused(
                "this model has no chat template: ask for a completion, or serve it with --template NAME"
            )
        if tools and not takes_tools(self._tokeniser):
            raise Refused("tools: the chat template of this model has no place for them")
        try:
            text = self._tokeniser.apply_chat_template(
                _each_text(messages, self._broken_up),
                tools=_each_text(tools, self._broken_up) if tools else None,
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise Refused(f"messages: the chat template of this model refuses them: {error}") from None
        secretly = self._specials.sub(lambda found: self._secret[found[0]], str(text))
        ids: list[int] = self._plain.encode(secretly.replace(_MARK, ""), add_special_tokens=False).ids
        return ids

    def _broken_up(self, text: str) -> str:
        """Special tokens spelled in it are broken up after their first character."""
        return self._specials.sub(lambda found: f"{found[0][0]}{_MARK}{found[0][1:]}", text)


def takes_tools(tokeniser: PreTrainedTokenizerFast) -> bool:
    """Whether the model's chat template has a place for tools."""
    template = tokeniser.chat_template
    return bool(template) and re.search(r"\btools\b", str(template)) is not None


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): _each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_each_text(inner, change) for inner in value]
    return value
