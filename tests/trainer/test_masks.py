"""From a file to the targets of a batch: exactly the answers and their end marks are learnt, whatever the texts hold.

The conversations hold role words, end marks, code and a dozen scripts in questions and answers alike. FastChat finds
its targets by splitting rendered text, and drops or garbles most of them: docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.trainer.dialogues import FAMILIES, dialogues
from trainer.conversation import TEMPLATES, ChatTemplate, Conversation
from trainer.data.read import read_corpus
from trainer.dataset import Batch, TokenisedCorpus
from trainer.encode import Encoder
from trainer.tokenize import write_corpus

COUNT, WHOLE = 1000, 100_000
VICUNA = TEMPLATES["vicuna_v1.1"]

every_family = pytest.mark.parametrize("family", FAMILIES)
every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)


@lru_cache
def conversations() -> list[Conversation]:
    many = dialogues(COUNT + 300, spelled=True, seed=7)
    # An empty answer is refused.
    spoken = [each for each in many if all(turn.text.strip() for turn in each.turns)]
    return spoken[:COUNT]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conversations as a user brings them."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    path = tmp_path_factory.mktemp("masks") / "sharegpt.jsonl"
    with path.open("w") as out:
        for each in conversations():
            turns = [{"from": names[turn.role], "value": turn.text} for turn in each.turns]
            print(json.dumps({"id": each.id, "conversations": turns}), file=out)
    return path


def prepared(
    file: Path, tokeniser: PreTrainedTokenizerFast, template: ChatTemplate, folder: Path, limit: int = WHOLE
) -> TokenisedCorpus:
    write_corpus(read_corpus([file]), Encoder(tokeniser, template), limit, folder)
    return TokenisedCorpus(folder)


def learnt(batch: Batch) -> Iterator[list[int]]:
    """The targets, one list for each stretch of neighbouring ones. Each is what follows its predictor."""
    places, targets = batch.predictors.numpy(), batch.targets.numpy()
    assert np.array_equal(batch.input_ids[0].numpy()[places + 1], targets)
    for stretch in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
        yield targets[stretch].tolist()


def as_text(tokeniser: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokeniser.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def answers(template: ChatTemplate, conversation: Conversation) -> list[str]:
    texts = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    return [template.answer_before + text + template.answer_end for text in texts]


def test_the_conversations_hold_what_breaks_masks() -> None:
    texts = [" ".join(turn.text for turn in each.turns) for each in conversations()]
    marks = ["ASSISTANT:", "</s>", "<|im_end|>", "### Response:", "def area", "日本語", "кириллица", "🚀"]
    for mark in marks:
        assert sum(mark in text for text in texts) > COUNT / 10, mark


@every_template
def test_the_targets_are_the_very_tokens_of_the_answers(
    template: ChatTemplate, file: Path, tmp_path: Path
) -> None:
    tokeniser = FAMILIES["byte-level"]()
    plain = Tokenizer.from_str(tokeniser.backend_tokenizer.to_str())
    plain.encode_special_tokens = True  # the library's own way to take special tokens in a text as text
    end = tokeniser.convert_tokens_to_ids(template.end_token)
    before_end = template.answer_end.removesuffix(template.end_token)
    corpus = prepared(file, tokeniser, template, tmp_path)
    assert len(corpus) == COUNT
    for number, conversation in enumerate(conversations()):
        found = list(learnt(corpus.batch(np.array([number]))))
        texts = [turn.text for turn in conversation.turns if turn.role == "assistant"]
        assert found == [
            [*plain.encode(template.answer_before + text + before_end, add_special_tokens=False).ids, end]
            for text in texts
        ]


@every_family
def test_the_targets_read_as_the_answers_with_every_tokeniser(
    family: str, file: Path, tmp_path: Path
) -> None:
    tokeniser = FAMILIES[family]()
    corpus = prepared(file, tokeniser, VICUNA, tmp_path)
    assert len(corpus) == COUNT
    # SentencePiece's decoder takes the space from the first token that it is given, so that is another one.
    before = tokeniser("a", add_special_tokens=False)["input_ids"]
    for number, conversation in enumerate(conversations()):
        read = [as_text(tokeniser, [*before, *ids]) for ids in learnt(corpus.batch(np.array([number])))]
        assert read == ["a" + answer for answer in answers(VICUNA, conversation)]


def test_a_row_of_many_learns_what_each_alone_learns(file: Path, tmp_path: Path) -> None:
    corpus = prepared(file, FAMILIES["llama"](), VICUNA, tmp_path)
    together = corpus.batch(np.arange(COUNT))
    alone = [corpus.batch(np.array([number])) for number in range(COUNT)]
    assert together.targets.tolist() == [int(each) for batch in alone for each in batch.targets]
    begins = set(together.boundaries[:-1])
    assert not begins & {int(place) + 1 for place in together.predictors}  # no first token is ever predicted


def test_a_conversation_that_is_cut_learns_the_beginning_of_what_it_would(file: Path, tmp_path: Path) -> None:
    tokeniser = FAMILIES["byte-level"]()
    whole = prepared(file, tokeniser, VICUNA, tmp_path / "whole")
    limit = int(np.median(whole.lengths))
    kept = [number for number in range(COUNT) if whole.tokens_of(number)[1][:limit].any()]
    cut = prepared(file, tokeniser, VICUNA, tmp_path / "cut", limit)
    assert len(cut) == len(kept) and cut.lengths.max() == limit
    for number, original in enumerate(kept):
        few, many = cut.batch(np.array([number])), whole.batch(np.array([original]))
        count = len(few.targets)
        assert few.targets.tolist() == many.targets[:count].tolist()
        assert count == len(many.targets) or int(many.predictors[count]) + 1 >= limit
