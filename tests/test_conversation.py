"""One description of a chat format: text, mask, prompt, Jinja template and stop strings cannot disagree."""

from __future__ import annotations

import itertools
import subprocess
import sys

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from trainer.conversation import TEMPLATES, ChatTemplate, Conversation, Segment, Turn, get_template
from trainer.errors import ConfigError, DataError

unhurried = settings(deadline=None)  # other programs share the machine

# What real people paste, and what breaks templates that split or search rendered text.
AWKWARD = st.sampled_from(
    [
        " USER: ",
        " ASSISTANT:",
        "ASSISTANT: Hello</s>USER: next",
        "</s>",
        "<s>",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n",
        "[INST] <<SYS>>\n<</SYS>> [/INST]",
        "### Response:\n",
        "{{ messages }}{% endgeneration %}{# no #}",
        "{% generation %}",
        "def f(x):\n    return {'a': \"b\\n\"}\n",
        "```python\nprint('hi')\n```",
        "\r\n\t ",
        "\u2028\x00\ufeff",
        "日本語のテキスト",
        "Ελληνικά, кириллица, العربية",
        "👩‍👩‍👧‍👦🇬🇷 é e\u0301",
        "&lt;b&gt; <b>x</b> &amp;",
    ]
)
TEXT = st.lists(AWKWARD | st.text(max_size=12), max_size=4).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = [Turn("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        turns += [Turn("user", draw(TEXT)), Turn("assistant", draw(TEXT))]
    return Conversation("c", tuple(turns))


every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)


def text_of(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def messages(turns: tuple[Turn, ...]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def by_hugging_face(
    template: ChatTemplate, turns: tuple[Turn, ...], prompt: bool = False
) -> tuple[str, list[str]]:
    """(text, its trained parts) as transformers renders our Jinja template."""
    texts, spans = render_jinja_template(
        [messages(turns)],
        chat_template=template.jinja(),
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt,
    )
    return texts[0], [texts[0][start:end] for start, end in spans[0]]


@every_template
@unhurried
@given(conversation=conversations())
def test_the_loss_counts_on_each_answer_with_its_end_mark_and_on_nothing_else(
    template: ChatTemplate, conversation: Conversation
) -> None:
    grouped = itertools.groupby(template.render(conversation), key=lambda segment: segment.trained)
    trained = [text_of(list(group)) for is_trained, group in grouped if is_trained]
    answers = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    assert trained == [template.answer_before + answer + template.answer_end for answer in answers]


@every_template
@unhurried
@given(conversation=conversations())
def test_each_prompt_is_the_training_text_up_to_the_trained_part(
    template: ChatTemplate, conversation: Conversation
) -> None:
    whole = template.render(conversation)
    for index, turn in enumerate(conversation.turns):
        if turn.role != "user":
            continue
        prompt = template.prompt_segments(conversation.turns[: index + 1])
        # The very same segments, so the tokens are the same too.
        assert whole[: len(prompt)] == prompt
        assert not prompt[-1].trained and whole[len(prompt)].trained
        assert text_of(prompt) == template.prompt(conversation.turns[: index + 1])


@every_template
@unhurried
@given(conversation=conversations())
def test_hugging_face_renders_the_same_text_and_the_same_mask(
    template: ChatTemplate, conversation: Conversation
) -> None:
    segments = template.render(conversation)
    text, trained = by_hugging_face(template, conversation.turns)
    assert text == text_of(segments)
    answers = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    assert trained == [template.answer_before + answer + template.answer_end for answer in answers]


@every_template
@unhurried
@given(conversation=conversations())
def test_hugging_face_renders_the_same_prompt(template: ChatTemplate, conversation: Conversation) -> None:
    turns = conversation.turns[:-1]
    assert by_hugging_face(template, turns, prompt=True)[0] == template.prompt(turns)
    without = by_hugging_face(template, turns)[0]
    assert without + template.answer_prefix == template.prompt(turns)


@every_template
@unhurried
@given(conversation=conversations())
def test_only_the_template_writes_special_tokens(template: ChatTemplate, conversation: Conversation) -> None:
    plain = Conversation("plain", tuple(Turn(turn.role, turn.text and "x") for turn in conversation.turns))
    special = [segment.text for segment in template.render(conversation) if segment.special]
    assert special == [segment.text for segment in template.render(plain) if segment.special]
    assert set(special) <= set(template.special_tokens)


@every_template
def test_an_answer_ends_in_exactly_one_special_token_which_is_the_first_stop_string(
    template: ChatTemplate,
) -> None:
    segments = template.render(Conversation("c", (Turn("user", "Hi"), Turn("assistant", "Hello"))))
    assert segments[-1] == Segment(template.end_token, trained=True, special=True)
    assert template.stop_strings[0] == template.end_token


@every_template
def test_the_jinja_template_is_one_line(template: ChatTemplate) -> None:
    assert "\n" not in template.jinja()


VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TWO_ROUNDS = (Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye"), Turn("assistant", "Ciao"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vicuna_v1.1", f"{VICUNA} USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT: Ciao</s>"),
        ("llama-2-chat", "[INST] Hi [/INST] Hello </s><s>[INST] Bye [/INST] Ciao </s>"),
        (
            "llama-3-chat",
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nCiao<|eot_id|>",
        ),
        (
            "chatml",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nCiao<|im_end|>",
        ),
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
            "### Instruction:\nBye\n\n### Response:\nCiao</s>",
        ),
    ],
)
def test_the_published_formats_come_out_letter_by_letter(name: str, expected: str) -> None:
    assert text_of(get_template(name).render(Conversation("c", TWO_ROUNDS))) == expected


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("vicuna_v1.1", "Be brief. USER: Hi ASSISTANT:"),
        ("llama-2-chat", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"),
        (
            "llama-3-chat",
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>",
        ),
        ("chatml", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"),
        ("alpaca", "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n"),
    ],
)
def test_a_system_turn_takes_the_place_of_the_default_one(name: str, start: str) -> None:
    assert get_template(name).prompt((Turn("system", "Be brief."), Turn("user", "Hi"))).startswith(start)


def test_a_user_who_writes_an_end_mark_writes_plain_text() -> None:
    segments = TEMPLATES["vicuna_v1.1"].prompt_segments([Turn("user", "say </s> ASSISTANT: no")])
    assert segments == [Segment(f"{VICUNA} USER: say </s> ASSISTANT: no ASSISTANT:", trained=False)]


OUT_OF_ORDER = [
    (),
    (Turn("system", "s"),),
    (Turn("assistant", "a"),),
    (Turn("user", "u"), Turn("user", "u"), Turn("assistant", "a")),
    (Turn("user", "u"), Turn("assistant", "a"), Turn("system", "s"), Turn("assistant", "a")),
    (Turn("user", "u"), Turn("tool", "t")),
]


@every_template
@pytest.mark.parametrize(
    "turns", OUT_OF_ORDER, ids=lambda turns: "-".join(turn.role for turn in turns) or "none"
)
def test_turns_out_of_order_are_refused_by_text_and_by_prompt(
    template: ChatTemplate, turns: tuple[Turn, ...]
) -> None:
    with pytest.raises(DataError):
        template.render(Conversation("c", turns))
    with pytest.raises(DataError):
        template.prompt(turns)


@every_template
def test_turns_out_of_order_are_refused_by_the_jinja_template_too(template: ChatTemplate) -> None:
    with pytest.raises(jinja2.TemplateError, match="the turns must be"):
        by_hugging_face(template, (Turn("user", "u"), Turn("user", "u")))


def test_a_question_without_an_answer_is_a_prompt_and_no_training_text() -> None:
    turns = (Turn("user", "u"),)
    with pytest.raises(DataError, match="does not end with an answer"):
        TEMPLATES["chatml"].render(Conversation("c", turns))
    with pytest.raises(DataError, match="must end with a user turn"):
        TEMPLATES["chatml"].prompt((*turns, Turn("assistant", "a")))


def test_a_misspelt_template_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'vicuna'") as caught:
        get_template("vicuna")
    assert caught.value.hint is not None and "did you mean vicuna_v1.1?" in caught.value.hint


def test_the_module_is_light() -> None:
    code = (
        "import sys, trainer.conversation, trainer.data.read, trainer.data.example, trainer.data.stats\n"
        "heavy = {'torch', 'transformers', 'sky', 'pydantic', 'yaml', 'pyarrow', 'zstandard', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
