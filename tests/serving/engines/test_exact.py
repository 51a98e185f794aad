"""What the engine writes greedily is what transformers' generate writes, whatever shares the batch."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from serving.engine import Sampling
from serving.engines.hf import HfEngine
from serving.engines.scheduler import Limits
from serving.engines.text import Vocabulary
from tests.serving.engines.tiny import (
    Made,
    collect,
    continued,
    load_reference,
    prompts,
    with_engine,
    write_adapter,
    write_llama,
)

COUNT, NEW = 200, 24
# Logprobs show which tokens were made, not only which text.
GREEDY = Sampling(temperature=0.0, max_tokens=NEW, logprobs=0)


@dataclass(frozen=True)
class Reference:
    """A model, and what transformers' generate makes of the prompts, each alone."""

    folder: Path
    model: Any
    tokeniser: PreTrainedTokenizerFast
    prompts: list[list[int]]
    made: list[list[int]]

    def said(self, made: list[int]) -> list[bytes]:
        vocabulary = Vocabulary(self.tokeniser.backend_tokenizer)
        return [vocabulary.bytes(token) for token in made]

    def text(self, prompt: list[int], made: list[int]) -> str:
        """What follows the prompt's text; a prompt that ends in half a character is left alone."""
        before = self.tokeniser.decode(prompt, skip_special_tokens=True)
        if before.endswith("\ufffd"):
            return self.tokeniser.decode(made, skip_special_tokens=True)
        return self.tokeniser.decode(prompt + made, skip_special_tokens=True)[len(before) :]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = write_llama(tmp_path_factory.mktemp("llama"))
    model, tokeniser = load_reference(folder)
    asked = prompts(COUNT, len(tokeniser))
    return Reference(folder, model, tokeniser, asked, [continued(model, prompt, NEW) for prompt in asked])


def all_at_once(engine: HfEngine, asked: list[list[int]], sampling: Sampling) -> Any:
    return asyncio.gather(*(collect(engine, prompt, sampling) for prompt in asked))


async def one_by_one(engine: HfEngine, asked: list[list[int]], sampling: Sampling) -> list[Made]:
    return [await collect(engine, prompt, sampling) for prompt in asked]


@pytest.mark.parametrize("way", [all_at_once, one_by_one])
def test_greedy_answers_equal_generate_token_for_token(reference: Reference, way: Any) -> None:
    """200 prompts in batches of up to 64, then each alone: the claim that everything else stands on."""
    answers = with_engine(reference.folder, lambda engine: way(engine, reference.prompts, GREEDY))
    for expected, made in zip(reference.made, answers, strict=True):
        assert made.said == reference.said(expected) and made.tokens == len(expected)
        assert made.finish == ("length" if len(expected) == NEW and expected[-1] != 2 else "stop")
    assert {made.finish for made in answers} == {"stop", "length"}


def test_greedy_answers_are_the_same_when_memory_is_so_short_that_requests_are_preempted(
    reference: Reference,
) -> None:
    asked, expected = reference.prompts[:60], reference.made[:60]
    short = Limits(running=16, kv_tokens=768, step_tokens=24)
    answers = with_engine(reference.folder, lambda engine: all_at_once(engine, asked, GREEDY), limits=short)
    assert [made.said for made in answers] == [reference.said(made) for made in expected]


def test_a_stop_string_ends_an_answer_where_generate_ends_it(reference: Reference) -> None:
    asked = []
    for prompt, made in zip(reference.prompts, reference.made, strict=True):
        text = reference.text(prompt, made)
        # Letters that came in several tokens, not at the very beginning.
        for found in re.finditer("[ -~]{2,6}", text[2:]):
            spanned = [found[0] in reference.tokeniser.decode([token]) for token in made]
            if not any(spanned):
                asked.append((prompt, found[0], text))
                break

    async def work(engine: HfEngine) -> list[Made]:
        return await asyncio.gather(
            *(
                collect(engine, prompt, replace(GREEDY, stop=(stop, "no such text")))
                for prompt, stop, _ in asked
            )
        )

    assert len(asked) > 20
    for (prompt, stop, text), made in zip(asked, with_engine(reference.folder, work), strict=True):
        expected = continued(reference.model, prompt, NEW, stop_strings=[stop], tokenizer=reference.tokeniser)
        assert made.text == text[: text.index(stop)] and made.finish == "stop"
        assert made.tokens == len(expected)


def test_adapters_mixed_in_one_batch_write_what_each_writes_alone(
    reference: Reference, tmp_path: Path
) -> None:
    """Two adapters of different rank on different layers, and the bare model, in the same steps."""
    folders = {
        "wide": write_adapter(tmp_path / "wide", reference.folder, seed=1, rank=8),
        "narrow": write_adapter(
            tmp_path / "narrow", reference.folder, seed=2, rank=2, targets=["q_proj", "v_proj"]
        ),
    }
    names = [None, "wide", "narrow"]

    async def work(engine: HfEngine) -> list[Made]:
        return await asyncio.gather(
            *(
                collect(engine, prompt, GREEDY, names[number % 3])
                for number, prompt in enumerate(reference.prompts)
            )
        )

    answers = with_engine(reference.folder, work, adapters=folders)
    expected = {None: reference.made}
    for name, folder in folders.items():
        adapted = PeftModel.from_pretrained(load_reference(reference.folder)[0], folder)
        expected[name] = [
            continued(adapted, prompt, NEW) if names[number % 3] == name else []
            for number, prompt in enumerate(reference.prompts)
        ]
    changed = 0
    for number, made in enumerate(answers):
        name = names[number % 3]
        assert made.said == reference.said(expected[name][number])
        changed += made.said != reference.said(reference.made[number])
    assert changed > 100
