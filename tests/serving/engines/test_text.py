"""What is streamed is, put together, what the tokeniser says of the whole answer; and stop strings are never seen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from serving.engines.text import Vocabulary, Writer
from tests.serving.engines.tiny import TEXTS
from trainer.conversation import get_template
from trainer.tokenize import train_tokeniser

BYTES = train_tokeniser(TEXTS * 4, 400, get_template("vicuna_v1.1")).backend_tokenizer
SPOKEN = st.lists(st.integers(0, BYTES.get_vocab_size() - 1), max_size=40)


def llama_style() -> Tokenizer:
    """SentencePiece as LLaMA has it: spaces as letters, bytes for what it has no piece for, one leading space cut."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "\u2581a", "\u2581Hello", "\u2581world", "a", "b", "!", "é", "\u2581\u2581"]
    tokeniser = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    tokeniser.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokeniser.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokeniser


def streamed(
    tokeniser: Tokenizer, ids: list[int], prompt: list[int], stops: tuple[str, ...] = ()
) -> list[str]:
    writer = Writer(Vocabulary(tokeniser), prompt, stops)
    pieces = []
    for token in ids:
        pieces.append(writer.push(token))
        if writer.stopped:
            return pieces
    return [*pieces, writer.end()]


@given(SPOKEN)
@settings(max_examples=300, deadline=None)
def test_any_tokens_streamed_one_by_one_give_the_text_of_them_all(ids: list[int]) -> None:
    assert "".join(streamed(BYTES, ids, [])) == BYTES.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_single_bytes_and_no_piece_ends_inside_a_character(text: str) -> None:
    tokeniser = llama_style()
    ids = [tokeniser.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    pieces = streamed(tokeniser, ids, [])
    assert "".join(pieces) == tokeniser.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_continued_prompt_keeps_the_space_that_joins_it() -> None:
    tokeniser = llama_style()
    hello, world = (tokeniser.token_to_id(f"\u2581{word}") for word in ("Hello", "world"))
    assert "".join(streamed(tokeniser, [world], [hello])) == " world"
    assert "".join(streamed(tokeniser, [hello, world], [])) == "Hello world"


@given(SPOKEN, st.lists(st.text(alphabet="abc odeijrgt.", min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_stop_string_across_any_tokens_ends_the_text_before_it(ids: list[int], stops: list[str]) -> None:
    whole = BYTES.decode(ids, skip_special_tokens=True)
    found = [whole.index(stop) for stop in stops if stop in whole]
    text = "".join(streamed(BYTES, ids, [], tuple(stops)))
    if not found:
        assert text == whole
    else:
        # The first that is complete ends it; one that began earlier but came to its end later is not waited for.
        assert whole.startswith(text) and any(whole[len(text) :].startswith(stop) for stop in stops)
        assert not any(stop in text for stop in stops)


@pytest.mark.parametrize(("text", "pieces"), [("ab", ["a", "b"]), ("a!b", ["a", "!", "b"])])
def test_text_that_may_become_a_stop_string_is_held_back_until_it_cannot(
    text: str, pieces: list[str]
) -> None:
    tokeniser = llama_style()
    ids = [tokeniser.token_to_id(piece) for piece in pieces]
    writer = Writer(Vocabulary(tokeniser), [], (text + "!",))
    assert [writer.push(token) for token in ids] == [""] * len(ids)
    assert writer.push(tokeniser.token_to_id("é")) == text + "é"


def test_the_bytes_of_tokens_are_those_of_their_text() -> None:
    text = "Zwölf 狐 jump 🦊"
    ids = BYTES.encode(text, add_special_tokens=False).ids
    vocabulary = Vocabulary(BYTES)
    assert b"".join(vocabulary.bytes(token) for token in ids) == text.encode()
    llama = Vocabulary(llama_style())
    assert llama.bytes(llama_style().token_to_id("\u2581Hello")) == b" Hello"
    assert llama.bytes(llama_style().token_to_id("<0xE7>")) == b"\xe7"
    assert llama.bytes(10**6) == b"" and llama.bytes(2) == b"</s>"
