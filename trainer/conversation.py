"""Conversations, and the one description of a chat format that everything else is derived from.

A chat format is needed in four places: as training text with a loss mask, as a prompt to
generate from, as a Hugging Face `chat_template` shipped with the weights, and as the strings
that end an answer. FastChat keeps these apart and re-derives the mask by splitting rendered
text, so a user who writes " ASSISTANT:" silently loses the sample.
Here a `ChatTemplate` is data, and `render`, `prompt`, `jinja` and `stop_strings` all read it.

The text of a dialogue is laid out as

    opening [system_before SYSTEM system_after]
    user_before USER user_after  answer_prefix  answer_before ANSWER answer_end
    next_turn
    user_before USER user_after  answer_prefix  answer_before ANSWER answer_end   ...

and the loss counts on `answer_before ANSWER answer_end` only: what the model has to write itself.

The leading BOS token is not part of any template here: the tokeniser's own rule adds it (LLaMA
does, GPT-2 does not). The one exception is llama-2-chat, whose *later* rounds each begin with a
literal "<s>"; that one is template text (in `next_turn`), the very first "<s>" is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from trainer.errors import ConfigError, DataError, nearest

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)
_ORDER = "the turns must be: at most one system turn first, then user and assistant in turn"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: `role` is "system", "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue: at most one system turn, first, then user and assistant in turn."""

    id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of rendered text.

    trained: the loss counts on it.
    special: `text` is exactly one special token; any other segment is ordinary text, even where
        it contains the characters of one, and must be tokenised with special splitting off.
    """

    text: str
    trained: bool
    special: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """One chat format as data; the module docstring shows where each field stands in the text."""

    name: str
    user_before: str
    user_after: str
    answer_prefix: str  # asks for an answer; a prompt ends here
    answer_before: str  # trained: what the model writes before the answer, such as one space
    answer_end: str  # trained: the end mark, with exactly one special token in it
    special_tokens: tuple[str, ...]  # must be single tokens of the tokeniser
    opening: str = ""
    system_before: str = ""
    system_after: str = ""
    default_system: str = ""  # used when a conversation has no system turn; "" writes none
    next_turn: str = ""  # between an answer's end mark and the next user turn
    other_stops: tuple[str, ...] = ()  # ends of text that models of this family write, beside the end mark

    def render(self, conversation: Conversation) -> list[Segment]:
        """The training text. Raises DataError if the turns are out of order or unanswered."""
        turns = conversation.turns
        if not turns or turns[-1].role != ASSISTANT:
            raise DataError(
                f"conversation {conversation.id!r} does not end with an answer",
                hint="training needs an assistant turn last",
            )
        return self._segments(turns)

    def prompt_segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """What `prompt` says, as segments to tokenise exactly as in training. The last turn is the user's."""
        if not turns or turns[-1].role != USER:
            raise DataError(
                "a prompt must end with a user turn",
                hint="add the user's message after the last answer, or leave that answer out",
            )
        return self._segments(turns)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The text to generate from: it ends where the trained part of the next answer begins."""
        return "".join(segment.text for segment in self.prompt_segments(turns))

    @property
    def end_token(self) -> str:
        """The special token that ends an answer: the tokeniser's and the engine's EOS."""
        return self.answer_end.strip()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings after which an engine must stop, the end mark first."""
        return (self.end_token, *self.other_stops)

    def jinja(self) -> str:
        """A Hugging Face `chat_template` that writes the same text, with the trained parts marked.

        `{% generation %}` needs transformers >= 4.42 (or vLLM, which uses it).
        One line without spaces between tags, so that trim_blocks and lstrip_blocks change nothing.
        """
        q = _jinja_string
        order = q(_ORDER)
        return "".join(
            (
                "{% if messages and messages[0]['role'] == 'system' %}",
                "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}",
                "{% else %}",
                f"{{% set system = {q(self.default_system)} %}}{{% set turns = messages %}}",
                "{% endif %}",
                f"{{{{ {q(self.opening)} }}}}",
                "{% if system %}",
                f"{{{{ {q(self.system_before)} + system + {q(self.system_after)} }}}}",
                "{% endif %}",
                "{% for turn in turns %}",
                "{% if turn['role'] != ('assistant' if loop.index0 % 2 else 'user') %}",
                f"{{{{ raise_exception({order}) }}}}",
                "{% elif turn['role'] == 'user' %}",
                f"{{% if not loop.first %}}{{{{ {q(self.next_turn)} }}}}{{% endif %}}",
                f"{{{{ {q(self.user_before)} + turn['content'] + {q(self.user_after)} }}}}",
                "{% else %}",
                f"{{{{ {q(self.answer_prefix)} }}}}",
                "{% generation %}",
                f"{{{{ {q(self.answer_before)} + turn['content'] + {q(self.answer_end)} }}}}",
                "{% endgeneration %}",
                "{% endif %}",
                "{% endfor %}",
                "{% if add_generation_prompt and turns and turns[-1]['role'] == 'user' %}",
                f"{{{{ {q(self.answer_prefix)} }}}}",
                "{% endif %}",
            )
        )

    @cached_property
    def _joints(self) -> dict[tuple[str | None, str | None], _Joint]:
        """What stands between two quoted texts, by their roles; None is the beginning and the end."""
        start, question = (self.opening, False), (self.user_before, False)
        asked, answered = ((self.user_after, False), (self.answer_prefix, False)), (self.answer_end, True)
        texts: dict[tuple[str | None, str | None], tuple[tuple[str, bool], ...]] = {
            (None, SYSTEM): (start, (self.system_before, False)),
            (None, USER): (start, question),
            (SYSTEM, USER): ((self.system_after, False), question),
            (USER, ASSISTANT): (*asked, (self.answer_before, True)),
            (ASSISTANT, USER): (answered, (self.next_turn, False), question),
            (USER, None): asked,
            (ASSISTANT, None): (answered,),
        }
        return {roles: _joint(*roles, own, self.special_tokens) for roles, own in texts.items()}

    def _segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """Neighbouring ordinary text is one segment, so a prompt and its training text tokenise alike."""
        with_system = turns[0].role == SYSTEM
        system = turns[0].text if with_system else self.default_system
        said: list[tuple[str | None, str]] = [(SYSTEM, system)] if system else []
        for index, turn in enumerate(turns[1:] if with_system else turns):
            if turn.role != (ASSISTANT if index % 2 else USER):
                raise DataError(
                    f"turn {index + 1 + with_system} is {turn.role!r}, which cannot stand there", hint=_ORDER
                )
            said.append((turn.role, turn.text))
        said.append((None, ""))
        segments: list[Segment] = []
        text = ""  # of the segment that is being written
        last = None
        for role, quoted in said:
            before, closed, after = self._joints[last, role]
            text += before
            if closed is not None:
                if text:
                    segments.append(Segment(text, last == ASSISTANT))
                segments += closed
                text = after
            text += quoted
            last = role
        return segments


class _Joint(NamedTuple):
    """A template's own text between two quoted ones: it ends the segment of one and begins that of the other.

    closed: the segments between those two; None where the two are one.
    """

    before: str
    closed: tuple[Segment, ...] | None
    after: str


def _joint(
    left: str | None, right: str | None, texts: Iterable[tuple[str, bool]], special_tokens: Sequence[str]
) -> _Joint:
    """left, right: roles. texts: the template's, and whether each is trained."""
    between: list[Segment] = []
    for text, trained in texts:
        for part in re.split("(" + "|".join(map(re.escape, special_tokens)) + ")", text):
            if not part:
                continue
            special = part in special_tokens
            if between and not special and not between[-1].special and between[-1].trained == trained:
                between[-1] = Segment(between[-1].text + part, trained)
            else:
                between.append(Segment(part, trained, special))

    def of(role: str | None, segment: Segment) -> bool:
        return role is not None and not segment.special and segment.trained == (role == ASSISTANT)

    one = left is not None and right is not None and (left == ASSISTANT) == (right == ASSISTANT)
    if one and all(of(left, segment) for segment in between):
        return _Joint("".join(segment.text for segment in between), None, "")
    before = between.pop(0).text if between and of(left, between[0]) else ""
    after = between.pop().text if between and of(right, between[-1]) else ""
    return _Joint(before, tuple(between), after)


def get_template(name: str) -> ChatTemplate:
    """The template of that name. Raises ConfigError with the nearest name if there is none."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    close = nearest(name.lower(), TEMPLATES)
    known = "known templates: " + ", ".join(TEMPLATES)
    raise ConfigError(
        f"there is no chat template {name!r}",
        hint=f"did you mean {close}? {known}" if close else known,
    )


def _jinja_string(text: str) -> str:
    # A JSON string is a Jinja string for ASCII text, and keeps the template on one line.
    return json.dumps(text)


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)

_ALL = (
    # FastChat "vicuna_v1.1": SeparatorStyle.ADD_COLON_TWO, sep=" ", sep2="</s>".
    ChatTemplate(
        name="vicuna_v1.1",
        default_system=_VICUNA_SYSTEM,
        system_after=" ",
        user_before="USER: ",
        user_after=" ",
        answer_prefix="ASSISTANT:",
        answer_before=" ",
        answer_end="</s>",
        special_tokens=("</s>",),
    ),
    # Meta's llama-2 reference code (llama/generation.py): [INST] and <<SYS>> are ordinary text there.
    ChatTemplate(
        name="llama-2-chat",
        opening="[INST] ",
        system_before="<<SYS>>\n",
        system_after="\n<</SYS>>\n\n",
        user_before="",
        user_after=" [/INST]",
        answer_prefix="",
        answer_before=" ",
        answer_end=" </s>",
        next_turn="<s>[INST] ",
        special_tokens=("<s>", "</s>"),
    ),
    # Meta's llama-3 ChatFormat; <|begin_of_text|> is the BOS token, which the tokeniser adds.
    ChatTemplate(
        name="llama-3-chat",
        system_before="<|start_header_id|>system<|end_header_id|>\n\n",
        system_after="<|eot_id|>",
        user_before="<|start_header_id|>user<|end_header_id|>\n\n",
        user_after="<|eot_id|>",
        answer_prefix="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer_before="",
        answer_end="<|eot_id|>",
        special_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        other_stops=("<|end_of_text|>",),
    ),
    # OpenAI's ChatML as Qwen and others use it; the newline after an answer belongs to the next turn.
    ChatTemplate(
        name="chatml",
        system_before="<|im_start|>system\n",
        system_after="<|im_end|>\n",
        user_before="<|im_start|>user\n",
        user_after="<|im_end|>\n",
        answer_prefix="<|im_start|>assistant\n",
        answer_before="",
        answer_end="<|im_end|>",
        next_turn="\n",
        special_tokens=("<|im_start|>", "<|im_end|>"),
        other_stops=("<|endoftext|>",),
    ),
    # Stanford Alpaca's instruction form, with the end mark that FastChat gives it for further rounds.
    ChatTemplate(
        name="alpaca",
        default_system=_ALPACA_SYSTEM,
        system_after="\n\n",
        user_before="### Instruction:\n",
        user_after="\n\n",
        answer_prefix="### Response:\n",
        answer_before="",
        answer_end="</s>",
        next_turn="\n\n",
        special_tokens=("</s>",),
    ),
)

TEMPLATES: dict[str, ChatTemplate] = {template.name: template for template in _ALL}
