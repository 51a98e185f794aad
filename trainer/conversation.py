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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

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


@dataclass(frozen=True, slots=True)
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
        return self._segments(self._pieces(turns))

    def prompt_segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """What `prompt` says, as segments to tokenise exactly as in training. The last turn is the user's."""
        if not turns or turns[-1].role != USER:
            raise DataError(
                "a prompt must end with a user turn",
                hint="add the user's message after the last answer, or leave that answer out",
            )
        return self._segments([*self._pieces(turns), (self.answer_prefix, False, False)])

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

    def _pieces(self, turns: Sequence[Turn]) -> Iterator[tuple[str, bool, bool]]:
        """(text, trained, quoted) in order; quoted text is the dialogue's own, never a special token."""
        with_system = bool(turns) and turns[0].role == SYSTEM
        system = turns[0].text if with_system else self.default_system
        yield self.opening, False, False
        if system:
            yield self.system_before, False, False
            yield system, False, True
            yield self.system_after, False, False
        for index, turn in enumerate(turns[1:] if with_system else turns):
            if turn.role != (ASSISTANT if index % 2 else USER):
                raise DataError(
                    f"turn {index + 1 + with_system} is {turn.role!r}, which cannot stand there",
                    hint=_ORDER,
                )
            if turn.role == USER:
                yield self.next_turn if index else "", False, False
                yield self.user_before, False, False
                yield turn.text, False, True
                yield self.user_after, False, False
            else:
                yield self.answer_prefix, False, False
                yield self.answer_before, True, False
                yield turn.text, True, True
                yield self.answer_end, True, False

    def _segments(self, pieces: Iterable[tuple[str, bool, bool]]) -> list[Segment]:
        """Neighbouring ordinary text is one segment, so a prompt and its training text tokenise alike."""
        segments: list[Segment] = []
        for text, trained, quoted in pieces:
            if not text:
                continue
            for part, special in ((text, False),) if quoted else _marked(text, self.special_tokens):
                last = segments[-1] if segments else None
                if special or last is None or last.special or last.trained != trained:
                    segments.append(Segment(part, trained, special))
                else:
                    segments[-1] = Segment(last.text + part, trained)
        return segments


@lru_cache(maxsize=1024)
def _marked(text: str, special_tokens: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
    """A template's own text, cut at special tokens: (part, whether it is one). The few there are come back always."""
    parts = re.split("(" + "|".join(map(re.escape, special_tokens)) + ")", text)
    return tuple((part, part in special_tokens) for part in parts if part)


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
