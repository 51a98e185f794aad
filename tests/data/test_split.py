"""Splitting: no round is lost, no part is too long, and the lengths are what training counts."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from trainer.conversation import TEMPLATES, Conversation, Segment, Turn, get_template
from trainer.data.split import SplitSettings, Splitter, origin, shorten
from trainer.data.token_count import Piece, open_counter
from trainer.data.tokeniser_file import Cuts
from trainer.data.word_counts import WordCounts
from trainer.errors import ConfigError

# What tokenisers stumble over: runs of blanks, line ends, marks that look special, other blanks, other scripts.
BITS = ["\n", "\n\n", "  ", "</s>", " ", "\t", "a", "Hello", "\u2581", "!", "中文。", "\u3000", "\xa0", "don't",
        "12345", "<|im_end|>", "\r\n", "é", "e\u0301", "\x1c", " word", "\n    return x", "…", "🙂",
        "\xa8"]  # fmt: skip
TEXT = st.lists(st.sampled_from(BITS), max_size=12).map("".join)
CORPUS = [
    "The quick brown fox doesn't jump over 12345 lazy dogs.\n\nIt returns   x, and\n    y.",
    "我们可以使用这个方法来解决问题。 Hello world! éclair",
] * 40


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str] = TEXT) -> Conversation:
    turns = [Turn("system", draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 6))):
        turns += [Turn("user", draw(text)), Turn("assistant", draw(text))]
    return Conversation(draw(st.sampled_from(["x", "x-part3", "7"])), tuple(turns))


def rounds(conversation: Conversation) -> list[tuple[str, str]]:
    turns = [turn for turn in conversation.turns if turn.role != "system"]
    return [(turns[i].text, turns[i + 1].text) for i in range(0, len(turns), 2)]


@settings(deadline=None, max_examples=300)
@given(
    conversations(),
    st.integers(16, 200),
    st.sampled_from(list(TEMPLATES)),
    st.sampled_from(["keep", "shorten", "drop"]),
)
def test_every_round_is_in_exactly_one_part_or_dropped_by_name(
    conversation: Conversation, limit: int, template: str, overlong: str
) -> None:
    splitter = Splitter(SplitSettings(limit, template, None, overlong))
    done = splitter.split(conversation)
    kept = [pair for part in done.parts for pair in rounds(part)]
    dropped = [pair for part in done.dropped for pair in rounds(part)]
    assert done.rounds == len(rounds(conversation)) == len(kept) + len(dropped)
    if overlong != "shorten":
        assert sorted(kept + dropped) == sorted(rounds(conversation))
        left = iter(rounds(conversation))  # in order, too
        assert all(pair in left for pair in kept)
    assert bool(dropped) <= (overlong == "drop")


@settings(deadline=None, max_examples=300)
@given(conversations(), st.integers(16, 200), st.sampled_from(list(TEMPLATES)))
def test_a_part_is_within_the_limit_or_one_round_that_is_not(
    conversation: Conversation, limit: int, template: str
) -> None:
    splitter = Splitter(SplitSettings(limit, template))
    done = splitter.split(conversation)
    too_long = 0
    for part, tokens in zip(done.parts, done.tokens, strict=True):
        assert tokens == splitter.count(part)
        if tokens > limit:
            too_long += 1
            assert len(rounds(part)) == 1
        assert [turn for turn in part.turns if turn.role == "system"] == [
            turn for turn in conversation.turns if turn.role == "system"
        ]
    assert too_long == done.overlong
    assert {origin(part.id) for part in done.parts} == {origin(conversation.id)}


def test_fewest_parts_greedily_and_numbered() -> None:
    pair = (Turn("user", "q" * 30), Turn("assistant", "a" * 60))
    done = Splitter(SplitSettings(max_length=130)).split(Conversation("c", pair * 5))
    assert [part.id for part in done.parts] == ["c-part1", "c-part2", "c-part3"]
    assert [len(rounds(part)) for part in done.parts] == [2, 2, 1]


def test_a_conversation_that_fits_is_the_same_object() -> None:
    conversation = Conversation("c", (Turn("user", "q"), Turn("assistant", "a")))
    done = Splitter(SplitSettings()).split(conversation)
    assert done.parts == [conversation] and done.parts[0] is conversation


# --- shortening ------------------------------------------------------------------------------------------

CODE = "Look:\n\n```python\nprint('a. b')\n\n\nprint(2)\n```\n\nThen this. And that! Done"


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (len(CODE) - 1, CODE[: CODE.index(" Done")]),
        (CODE.index(" And"), CODE[: CODE.index(" And")]),
        (CODE.index("Then") + 3, CODE[: CODE.index("\n\nThen")]),
        (CODE.index("print(2)"), "Look:"),
        (3, ""),
    ],
)
def test_an_answer_is_shortened_after_a_sentence_or_around_a_code_block(limit: int, left: str) -> None:
    assert shorten(CODE, lambda text: len(text) <= limit) == left


def test_a_code_block_that_never_ends_is_left_out_whole() -> None:
    assert shorten("First. Second.\n```\nx. y. z.\n", lambda text: len(text) < 25) == "First. Second."


def test_chinese_sentences_end_without_a_blank() -> None:
    assert shorten("我们可以。这个方法。结果", lambda text: len(text) <= 10) == "我们可以。这个方法。"


@settings(deadline=None)
@given(st.text(alphabet="ab.!? \n`~", max_size=80), st.integers(0, 80))
def test_what_is_left_is_a_beginning_that_fits(text: str, limit: int) -> None:
    left = shorten(text, lambda part: len(part) <= limit)
    assert text.startswith(left) and len(left) <= limit


def test_a_shortened_round_fits_and_is_counted() -> None:
    turns = (Turn("user", "q"), Turn("assistant", "One sentence here. " * 200))
    splitter = Splitter(SplitSettings(max_length=300, overlong="shorten"))
    done = splitter.split(Conversation("c", turns))
    assert (done.shortened, done.overlong, len(done.parts)) == (1, 0, 1)
    assert 250 < done.tokens[0] <= 300 and done.parts[0].turns[1].text.endswith("here.")


def test_a_question_too_long_to_shorten_is_kept_and_counted() -> None:
    turns = (Turn("user", "q " * 2000), Turn("assistant", "One. Two."))
    done = Splitter(SplitSettings(max_length=300, overlong="shorten")).split(Conversation("c", turns))
    assert (done.shortened, done.overlong) == (0, 1) and done.parts[0].turns == turns


# --- exact lengths ------------------------------------------------------------------------------------------


def sentencepiece(prefix: Any) -> Tokenizer:
    """As LLaMA's: no pre-tokeniser, blanks as U+2581, unknown characters as bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    # As SentencePiece is trained: a line at a time, so no token holds a line end.
    made.train_from_iterator((text.replace("\n", " ") for text in CORPUS), trainer)
    tree = json.loads(made.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in special]
    tree["pre_tokenizer"] = prefix.get("pre_tokenizer")
    tree["normalizer"] = prefix.get("normalizer", tree["normalizer"])
    made = Tokenizer.from_str(json.dumps(tree))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def bytes_level(pattern: str | None) -> Tokenizer:
    """As GPT-2's (None), or with another pattern as LLaMA-3's and Qwen's."""
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
NFKC = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, REPLACE]}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
KINDS = {
    "llama": lambda: sentencepiece({"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}}),
    "llama without prefix": lambda: sentencepiece({}),
    "llama by metaspace": lambda: sentencepiece({"normalizer": None, "pre_tokenizer": METASPACE}),
    "llama with NFKC": lambda: sentencepiece({"normalizer": NFKC}),
    "gpt2": lambda: bytes_level(None),
    "llama3": lambda: bytes_level(LLAMA3),
    "unknown pattern": lambda: bytes_level(r"\w+|\W"),
}
WALLS = {"llama": " \n", "llama without prefix": " \n", "llama by metaspace": " \n", "llama with NFKC": " \n",
         "gpt2": " \n", "llama3": " ", "unknown pattern": None}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["vicuna_v1.1", "llama-2-chat", "llama-3-chat", "chatml"])
def test_lengths_are_those_that_training_counts(tmp_path: Path, kind: str, name: str) -> None:
    """Against trainer/tokenize.py's own Encoder, on texts made to trip tokenisers."""
    from transformers import PreTrainedTokenizerFast

    from trainer.encode import Encoder

    template = get_template(name)
    made = KINDS[kind]()
    made.add_special_tokens(list(template.special_tokens))
    made.save(str(tmp_path / "tokenizer.json"))
    counter: Any = open_counter(str(tmp_path), name)
    assert counter._cuts.wall == WALLS[kind]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token=template.end_token)
    dice = random.Random(3)
    texts = ["".join(dice.choices(BITS, k=dice.randint(0, 12))) for _ in range(900)]
    said = [Conversation("c", (Turn("system", a),) * (len(a) % 2)
                         + (Turn("user", a), Turn("assistant", b), Turn("user", c), Turn("assistant", a)))
            for a, b, c in zip(texts[::3], texts[1::3], texts[2::3], strict=True)]  # fmt: skip
    real = [len(ids) for ids, _ in Encoder(fast, template).encode(said)]
    ours = counter.measure(Piece(template.render(each), True) for each in said)
    assert ours == real
    splitter = Splitter(SplitSettings(40, name, str(tmp_path)))
    for conversation in said[:150]:
        done = splitter.split(conversation)
        assert done.tokens == [len(ids) for ids, _ in Encoder(fast, template).encode(done.parts)]


BLANKS = st.text(" \n\t\r\x0b\x1c\xa0\u2003\u3000", max_size=4)
VISIBLE = st.sampled_from(["a", "word,", "don't", "中文。", "é", "1"])
SPACED = st.lists(st.one_of(BLANKS, VISIBLE), max_size=24).map("".join)


@settings(deadline=None, max_examples=500)
@given(st.lists(st.one_of(SPACED, TEXT, st.text(max_size=20)), max_size=6), st.sampled_from([" ", " \n"]))
def test_texts_are_cut_where_the_pattern_cuts_them(texts: list[str], wall: str) -> None:
    cuts = Cuts("", wall, ())
    # Control characters are visible to the pattern; bytes are not cut behind them, which is as right.
    texts = [re.sub(r"[\x00-\x08\x0e-\x1b]", "", text) for text in texts]
    assert words_of(WordCounts(None, cuts, {}), texts) == [
        word for text in texts for word in cuts.words(text)
    ]


def words_of(counts: WordCounts, texts: list[str]) -> list[str]:
    import numpy as np

    sizes = [len(text.encode()) for text in texts if text]
    blob = "".join(texts).encode()
    starts = counts._starts(blob, np.cumsum([0, *sizes])).tolist()
    return [blob[start:end].decode() for start, end in itertools.pairwise([*starts, len(blob)])]


@pytest.fixture(scope="module", params=KINDS)
def counter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokeniser")
    made = KINDS[request.param]()
    made.add_tokens([AddedToken("a word,", normalized=False)])  # a text that has it does not divide
    made.save(str(folder / "tokenizer.json"))
    return open_counter(str(folder), "vicuna_v1.1")


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(st.one_of(SPACED, TEXT, st.text(max_size=20)), max_size=20))
def test_words_count_as_the_whole_text_does_known_or_not(counter: Any, texts: list[str]) -> None:
    pieces = [Piece([Segment(text, trained=False)], first=False) for text in texts]
    whole = [counter._cuts.prefixed(text, False) for text in texts]
    tokens = [len(counter._tokeniser.encode(text, add_special_tokens=False)) for text in whole]
    assert counter.measure(pieces) == tokens
    assert counter.measure(pieces) == tokens


def test_texts_longer_than_are_looked_at_at_once_count_as_the_whole(counter: Any) -> None:
    dice = random.Random(5)
    text = " ".join(
        f"word{dice.randrange(3000)}" + dice.choice(["", ",", ".\n", "\n  ", "。"]) for _ in range(20_000)
    )
    texts = [text, "", "short", text[::-1]]
    pieces = [Piece([Segment(each, trained=False)], first=False) for each in texts]
    whole = [counter._cuts.prefixed(each, False) for each in texts]
    tokens = [len(counter._tokeniser.encode(each, add_special_tokens=False)) for each in whole]
    assert counter.measure(pieces) == tokens
    assert counter.measure(pieces[::-1]) == tokens[::-1]


def test_a_file_that_is_no_tokeniser_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no tokeniser") as caught:
        open_counter(str(tmp_path), "vicuna_v1.1")
    assert caught.value.hint
    with pytest.raises(ConfigError, match="cannot be read"):
        open_counter(str(tmp_path / "nowhere"), "vicuna_v1.1")


def test_a_template_whose_end_mark_the_tokeniser_lacks_is_refused(tmp_path: Path) -> None:
    bytes_level(None).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="has no <.im_start.>, <.im_end.>"):
        open_counter(str(tmp_path), "chatml")
