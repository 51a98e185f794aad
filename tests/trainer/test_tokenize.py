"""Which tokens are learnt is exactly what the model has to write, whatever a text spells and whatever tokeniser."""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.trainer.dialogues import FAMILIES, dialogues, save
from trainer.conversation import TEMPLATES, ChatTemplate, Conversation, Turn
from trainer.dataset import TokenisedCorpus, token_type
from trainer.encode import Encoder
from trainer.errors import ConfigError
from trainer.tokenize import carry_template, load_tokeniser, train_tokeniser, write_corpus

VICUNA = TEMPLATES["vicuna_v1.1"]

every_family = pytest.mark.parametrize("family", FAMILIES)
# An engine joins an earlier answer to the line before it; the model, asked for it, cannot have written it so.
every_family_of_lines = pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name != "llama across lines"]
)
every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)


def text_of(tokeniser: PreTrainedTokenizerFast, ids: NDArray[np.uint32]) -> str:
    return str(tokeniser.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def written(
    tokeniser: PreTrainedTokenizerFast, ids: NDArray[np.uint32], flags: NDArray[np.uint8]
) -> list[str]:
    """The text that each stretch of trained tokens adds to the text before it, as a client would see it."""
    edges = np.flatnonzero(np.diff(flags.astype(int), prepend=0, append=0))
    return [
        text_of(tokeniser, ids[:end]).removeprefix(text_of(tokeniser, ids[:start]))
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def answers(template: ChatTemplate, conversation: Conversation) -> list[str]:
    texts = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    return [template.answer_before + text + template.answer_end for text in texts]


def prompts(template: ChatTemplate, conversation: Conversation) -> Iterator[str]:
    """What an engine is given for each answer of the conversation."""
    for number, turn in enumerate(conversation.turns):
        if turn.role == "assistant":
            yield template.prompt(conversation.turns[:number])


@every_family
@every_template
def test_what_is_learnt_is_the_answers_and_their_end_marks(family: str, template: ChatTemplate) -> None:
    tokeniser = FAMILIES[family]()
    conversations = dialogues(300, spelled=True)
    for conversation, (ids, flags) in zip(
        conversations, Encoder(tokeniser, template).encode(conversations), strict=True
    ):
        assert written(tokeniser, ids, flags) == answers(template, conversation)


@every_family_of_lines
def test_words_looked_up_one_by_one_are_the_tokens_of_the_whole_text(family: str) -> None:
    tokeniser = copy.deepcopy(FAMILIES[family]())
    tokeniser.add_tokens([AddedToken("<tool>", normalized=False)])
    chance = random.Random(3)
    blanks = [" ", "  ", "\n", "\t", "\r\n", "\xa0", "\u3000", "\u2581"]
    bits = [*blanks, "a", "b c", "e\u0301", "中文", "don't", "12", "<tool>"]

    def text() -> str:
        return "".join(chance.choices(bits, k=chance.randint(1, 12)))

    conversations = [
        Conversation(str(n), (Turn("user", text()), Turn("assistant", text()))) for n in range(300)
    ]
    for conversation, (ids, _) in zip(
        conversations, Encoder(tokeniser, VICUNA).encode(conversations), strict=True
    ):
        whole = "".join(segment.text for segment in VICUNA.render(conversation))
        assert tokeniser(whole)["input_ids"] == ids.tolist()


@every_family
@every_template
def test_a_text_that_spells_a_special_token_never_becomes_one(family: str, template: ChatTemplate) -> None:
    tokeniser = FAMILIES[family]()
    special = set(tokeniser.all_special_ids) | set(tokeniser.added_tokens_decoder)
    conversations = dialogues(100, spelled=True, seed=1)
    encoded = Encoder(tokeniser, template).encode(conversations)
    for conversation, (ids, _) in zip(conversations, encoded, strict=True):
        segments = template.render(conversation)
        meant = [tokeniser.convert_tokens_to_ids(part.text) for part in segments if part.special]
        found = [int(number) for number in ids if number in special and number != tokeniser.unk_token_id]
        assert found[-len(meant) :] == meant and len(found) - len(meant) in (0, 1)  # 1: BOS


@every_family_of_lines
@every_template
def test_training_and_serving_see_the_same_tokens(family: str, template: ChatTemplate) -> None:
    tokeniser = FAMILIES[family]()
    conversations = dialogues(40, spelled=False)
    for conversation, (ids, flags) in zip(
        conversations, Encoder(tokeniser, template).encode(conversations), strict=True
    ):
        begins = np.flatnonzero(np.diff(flags.astype(int), prepend=0) == 1)
        for begin, prompt in zip(begins, prompts(template, conversation), strict=True):
            assert tokeniser(prompt)["input_ids"] == ids[:begin].tolist()


@every_family
@every_template
def test_the_first_prompt_is_the_same_also_where_an_answer_would_join_its_last_token(
    family: str, template: ChatTemplate
) -> None:
    tokeniser = FAMILIES[family]()
    texts = ("\n\nHi", " Hi", "\n", ":", "s>")
    conversations = [Conversation(text, (Turn("user", "Hi"), Turn("assistant", text))) for text in texts]
    for conversation, (ids, flags) in zip(
        conversations, Encoder(tokeniser, template).encode(conversations), strict=True
    ):
        prompt = tokeniser(template.prompt(conversation.turns[:1]))["input_ids"]
        assert ids[: int(np.argmax(flags))].tolist() == prompt
        assert written(tokeniser, ids, flags) == answers(template, conversation)


@every_family_of_lines
@every_template
def test_the_chat_template_that_travels_with_the_model_gives_the_tokens_of_training(
    family: str, template: ChatTemplate, tmp_path: Path
) -> None:
    tokeniser = load_tokeniser(str(save(FAMILIES[family](), tmp_path)), template)
    carry_template(tokeniser, template, 512)
    tokeniser.save_pretrained(tmp_path / "carried")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "carried")
    conversations = dialogues(30, spelled=False)
    encoded = Encoder(loaded, template).encode(conversations)
    for conversation, (ids, flags) in zip(conversations, encoded, strict=True):
        messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
        told = loaded.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert told["input_ids"] == ids.tolist()
        if family != "gpt-2":  # its spans are trimmed, and transformers then misses the first token
            assert told["assistant_masks"] == flags.tolist()
    assert loaded.model_max_length == 512


def test_a_folder_that_calls_itself_a_llama_tokeniser_is_one(tmp_path: Path) -> None:
    folder = save(FAMILIES["llama"](), tmp_path, tokenizer_class="LlamaTokenizer")
    tokeniser = load_tokeniser(str(folder), VICUNA)
    conversations = dialogues(200, spelled=True)
    for conversation, (ids, flags) in zip(
        conversations, Encoder(tokeniser, VICUNA).encode(conversations), strict=True
    ):
        assert written(tokeniser, ids, flags) == answers(VICUNA, conversation)


def test_a_tokeniser_without_the_end_mark_of_the_template_is_refused(tmp_path: Path) -> None:
    folder = save(train_tokeniser(["Hello"], 300, VICUNA), tmp_path)
    with pytest.raises(ConfigError, match=r"has no <\|im_start\|>, <\|im_end\|>") as caught:
        load_tokeniser(str(folder), TEMPLATES["chatml"])
    assert caught.value.hint and "data.template" in caught.value.hint


def test_a_folder_without_a_tokeniser_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=f"the tokeniser of {tmp_path} cannot be loaded"):
        load_tokeniser(str(tmp_path), VICUNA)


def test_an_end_mark_that_is_only_a_piece_of_text_becomes_a_token(tmp_path: Path) -> None:
    folder = save(train_tokeniser(["Hello"], 300, VICUNA), tmp_path)
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] != "</s>"]
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokeniser = load_tokeniser(str(folder), VICUNA)
    assert tokeniser("a</s>")["input_ids"][-1] == tokeniser.eos_token_id == 2
    (ids, _), *_ = Encoder(tokeniser, VICUNA).encode(dialogues(1, spelled=False))
    assert ids[-1] == 2


def test_a_trained_tokeniser_keeps_every_text_and_says_its_special_tokens() -> None:
    tokeniser = train_tokeniser(["Only English here."], 300, VICUNA)
    text = "naïve 日本 👩‍👧 \x00\t end"
    assert tokeniser.decode(tokeniser(text)["input_ids"][1:]) == text
    assert [tokeniser.pad_token_id, tokeniser.bos_token_id, tokeniser.eos_token_id] == [0, 1, 2]
    assert tokeniser.eos_token == VICUNA.end_token


# --- on disk ----------------------------------------------------------------------------------


def test_the_corpus_on_disk_is_what_was_encoded(tmp_path: Path) -> None:
    encoder = Encoder(FAMILIES["byte-level"](), VICUNA)
    conversations = dialogues(700, spelled=True)  # more than one chunk
    counts = write_corpus(conversations, encoder, 100_000, tmp_path)
    corpus = TokenisedCorpus(tmp_path)
    encoded = list(encoder.encode(conversations))
    assert len(corpus) == counts.conversations == 700
    for number, (ids, flags) in enumerate(encoded):
        there = corpus.tokens_of(number)
        assert np.array_equal(there[0], ids) and np.array_equal(there[1], flags)
    assert corpus.lengths.tolist() == [len(ids) for ids, _ in encoded]
    assert corpus.trained_counts.tolist() == [int(flags.sum()) for _, flags in encoded]
    assert (counts.tokens, counts.trained) == (corpus.lengths.sum(), corpus.trained_counts.sum())


def test_tokens_of_two_bytes_and_of_four_are_read_alike(tmp_path: Path) -> None:
    assert (token_type(1 << 16), token_type((1 << 16) + 1)) == (np.uint16, np.uint32)
    encoder = Encoder(FAMILIES["byte-level"](), VICUNA)
    counts = write_corpus(dialogues(20, spelled=False), encoder, 100_000, tmp_path)
    tokens = np.fromfile(tmp_path / "tokens.bin", dtype=np.uint16)
    assert len(tokens) == counts.tokens
    few = TokenisedCorpus(tmp_path).batch(np.arange(20))
    tokens.astype(np.uint32).tofile(tmp_path / "tokens.bin")
    many = TokenisedCorpus(tmp_path).batch(np.arange(20))
    assert few.input_ids.equal(many.input_ids) and few.targets.equal(many.targets)


def test_a_long_conversation_is_cut_and_counted(tmp_path: Path) -> None:
    encoder = Encoder(FAMILIES["byte-level"](), VICUNA)
    conversations = dialogues(100, spelled=False)
    whole = list(encoder.encode(conversations))
    limit = int(np.median([len(ids) for ids, _ in whole]))
    counts = write_corpus(conversations, encoder, limit, tmp_path)
    corpus = TokenisedCorpus(tmp_path)
    assert corpus.lengths.max() == limit
    assert counts.cut == sum(len(ids) > limit for ids, _ in whole) > 10
    assert np.array_equal(corpus.tokens_of(0)[0], whole[0][0][:limit])


def test_a_conversation_with_nothing_left_to_learn_is_refused_and_counted(tmp_path: Path) -> None:
    encoder = Encoder(FAMILIES["byte-level"](), VICUNA)
    short = Conversation("short", (Turn("user", "Hi"), Turn("assistant", "Hello")))
    long = Conversation("long", (Turn("user", "Hi " * 2000), Turn("assistant", "Hello")))
    counts = write_corpus([long, short, long], encoder, 1000, tmp_path)
    assert (counts.conversations, counts.untrained, counts.cut) == (1, 2, 2)
    assert len(TokenisedCorpus(tmp_path)) == 1


def test_an_empty_corpus_is_zero_conversations(tmp_path: Path) -> None:
    assert write_corpus([], Encoder(FAMILIES["byte-level"](), VICUNA), 64, tmp_path).conversations == 0
    assert len(TokenisedCorpus(tmp_path)) == 0


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    encoder = Encoder(FAMILIES["byte-level"](), VICUNA)

    def peak(count: int) -> int:
        turns = (Turn("user", "Hi"), Turn("assistant", "Hello"))
        tracemalloc.start()
        write_corpus((Conversation(str(n), turns) for n in range(count)), encoder, 512, tmp_path)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(4 * 512) < 1.2 * peak(2 * 512)
