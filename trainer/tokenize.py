"""Text to tokens, once: the tokeniser of a run and its corpus as memory-mapped arrays.

A conversation is encoded as the one string that the model will be prompted with, so training and serving
tokenise alike; which tokens count is read off the character spans of the rendered segments.
"""

from __future__ import annotations

import json
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainer.conversation import ChatTemplate, Conversation, Segment, Turn
from trainer.dataset import ENDS, TOKENS, TRAINED
from trainer.errors import ConfigError

# Conversations handed to the tokeniser's threads at once: enough to keep them busy, a few MB of text.
_BATCH = 512
# Never assigned a character, so no text has it and no tokeniser has learnt to join it to its neighbours.
_NONCHARACTER = "\ufdd0"


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What became of a corpus. `cut` conversations lost tokens beyond max_length; `untrained` ones had no
    token left to learn from and were refused."""

    conversations: int
    tokens: int
    trained: int
    cut: int
    untrained: int


def train_tokeniser(texts: Iterable[str], vocab_size: int, template: ChatTemplate) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` tokens: any text round-trips, unknown characters included."""
    tokeniser = Tokenizer(models.BPE())
    tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser.decoder = decoders.ByteLevel()
    specials = list(dict.fromkeys(["<pad>", "<s>", "</s>", *template.special_tokens]))
    tokeniser.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # trim_offsets=False: a token's span includes its leading space, as the segments' spans do.
    start = tokeniser.token_to_id("<s>")
    tokeniser.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokeniser,
        bos_token="<s>",
        eos_token=template.end_token,
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def load_tokeniser(path: str, template: ChatTemplate) -> PreTrainedTokenizerFast:
    """The fast tokeniser of a base model.

    Raises:
        ConfigError: there is none, it has no fast form, or it lacks a token that the template ends turns with.
    """
    try:
        tokeniser: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the tokeniser of {path} cannot be loaded: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(tokeniser, PreTrainedTokenizerFast):
        raise ConfigError(f"the tokeniser of {path} has no fast form", hint="save it with tokenizer.json")
    unknown = [token for token in template.special_tokens if token not in tokeniser.get_vocab()]
    if unknown:
        raise ConfigError(
            f"the tokeniser of {path} has no {', '.join(unknown)}, with which template {template.name} ends turns",
            hint="choose the template that the base model was made for: --set data.template=NAME",
        )
    known = tokeniser.backend_tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in known if token.special}
    # In the vocabulary as mere pieces of text, these would never be written as one token.
    tokeniser.add_tokens([t for t in template.special_tokens if t not in special], special_tokens=True)
    tokeniser.eos_token = template.end_token
    return tokeniser


def carry_template(tokeniser: PreTrainedTokenizerFast, template: ChatTemplate, max_length: int) -> None:
    """Store the template with the tokeniser, so that whoever loads the export prompts as it was trained."""
    tokeniser.chat_template = _before_text(tokeniser, template) + template.jinja()
    tokeniser.model_max_length = max_length


def _before_text(tokeniser: PreTrainedTokenizerFast, template: ChatTemplate) -> str:
    """What a chat_template, which spells out the BOS token, begins with to give the tokens of training.

    LLaMA's tokenisers put a space before a text, but not before one that follows a spelled BOS token.
    """
    if not _begins_with_bos(tokeniser):
        return ""
    text = template.prompt((Turn("user", "a"),))
    spaced = tokeniser(f"{tokeniser.bos_token} {text}", add_special_tokens=False)["input_ids"]
    return "{{ bos_token + ' ' }}" if spaced == tokeniser(text)["input_ids"] else "{{ bos_token }}"


class Encoder:
    """Conversations to (token ids, trained flags).

    Special tokens bear secret names here, and only the template writes those: text that spells a special
    token stays text, tokenised as its neighbours would have it. Where an answer begins in the middle of a
    token, the conversation is encoded anew in pieces that begin with each answer.
    """

    def __init__(self, tokeniser: PreTrainedTokenizerFast, template: ChatTemplate) -> None:
        self._secret, self._fast = under_secret_names(tokeniser.backend_tokenizer)
        self._template = template
        self._bos = [tokeniser.bos_token_id] if _begins_with_bos(tokeniser) else []
        # LLaMA's tokenisers put a space before what they are given; within a text it must not be there.
        adds_space = "".join(self._fast.encode("a", add_special_tokens=False).tokens) != "a"
        self._before = _NONCHARACTER if adds_space else ""

    def encode(
        self, conversations: list[Conversation]
    ) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint8]]]:
        """Yields, per conversation, ids (L,) and flags (L,), 1 where the loss counts; the first is never 1."""
        rendered = [self._secretly(self._template.render(conversation)) for conversation in conversations]
        texts = ["".join(segment.text for segment in segments) for segments in rendered]
        encodings = self._fast.encode_batch(texts, add_special_tokens=False)
        for segments, text, encoding in zip(rendered, texts, encodings, strict=True):
            borders = _borders(segments)
            ids = np.array(encoding.ids, dtype=np.uint32)
            flags = _flags(borders, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
            if flags is None:
                ids, flags = self._answer_by_answer(text, borders)
            ids = np.concatenate([np.array(self._bos, dtype=np.uint32), ids])
            flags = np.concatenate([np.zeros(len(self._bos), dtype=np.uint8), flags])
            flags[:1] = 0  # nothing comes before the first token that could predict it
            yield ids, flags

    def _secretly(self, segments: list[Segment]) -> list[Segment]:
        return [
            Segment(self._secret[segment.text], segment.trained) if segment.special else segment
            for segment in segments
        ]

    def _answer_by_answer(
        self, text: str, borders: list[int]
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """The text encoded in pieces, each from one answer's begin to the next's."""
        ids: list[int] = []
        flags: list[int] = []
        cuts = [0, *borders[::2], len(text)]
        for number, (start, end) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            before = self._before if number else ""
            piece = self._fast.encode(before + text[start:end], add_special_tokens=False)
            for token, (first, _) in zip(piece.ids, piece.offsets, strict=True):
                if first >= len(before):
                    ids.append(token)
                    flags.append(bisect_right(borders, start + first - len(before)) % 2)
        return np.array(ids, dtype=np.uint32), np.array(flags, dtype=np.uint8)


def _begins_with_bos(tokeniser: PreTrainedTokenizerFast) -> bool:
    """Whether the tokeniser puts its BOS token before a text by itself: LLaMA's does, GPT-2's only has one."""
    return tokeniser.bos_token_id is not None and tokeniser("a")["input_ids"][0] == tokeniser.bos_token_id


def under_secret_names(tokeniser: Tokenizer) -> tuple[dict[str, str], Tokenizer]:
    """A copy whose special tokens nobody can spell, and their names there. About 1 s for 128,000 tokens."""
    tree = json.loads(tokeniser.to_str())
    secret = {
        token["content"]: f"{_NONCHARACTER}{secrets.token_hex(8)}{_NONCHARACTER}"
        for token in tree["added_tokens"]
        if token["special"]
    }
    for token in tree["added_tokens"]:
        token["content"] = secret.get(token["content"], token["content"])
    model = tree["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {secret.get(name, name): number for name, number in model["vocab"].items()}
    else:
        model["vocab"] = [[secret.get(name, name), score] for name, score in model["vocab"]]
    if model.get("unk_token") in secret:
        model["unk_token"] = secret[model["unk_token"]]
    # A merge that would spell a special token has lost its meaning.
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]
    if pairs:
        model["merges"] = [pair for pair in pairs if not secret.keys() & {*pair, "".join(pair)}]
    # Without truncation and padding; without a post-processor no span loses its leading space.
    copy = Tokenizer.from_str(
        json.dumps({**tree, "truncation": None, "padding": None, "post_processor": None})
    )
    wrong = [name for name, new in secret.items() if copy.token_to_id(new) != tokeniser.token_to_id(name)]
    if wrong:
        raise ConfigError(f"the tokeniser gives {wrong[0]} a number out of order, which is not supported")
    return secret, copy


def _borders(segments: list[Segment]) -> list[int]:
    """Characters at which trained text begins, ends, begins, ..."""
    borders: list[int] = []
    at = 0
    for segment in segments:
        if segment.trained != (len(borders) % 2 == 1):
            borders.append(at)
        at += len(segment.text)
    return borders


def _flags(borders: list[int], spans: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Which tokens begin in trained text; None where a token reaches across the border of an answer."""
    edges = np.array(borders, dtype=np.int64)
    starts, ends = spans[:, 0], spans[:, 1]
    begun = np.searchsorted(edges, starts, "right")
    if np.any((begun != np.searchsorted(edges, ends, "left")) & (starts < ends)):
        return None
    return (begun % 2).astype(np.uint8)


def write_corpus(
    conversations: Iterable[Conversation], encoder: Encoder, max_length: int, directory: Path
) -> TokenCounts:
    """Tokenise into `directory`: tokens.bin (uint32), trained.bin (uint8), ends.bin (int64).

    Memory does not grow with the corpus. A conversation longer than `max_length` is cut there; one with no
    trained token left is refused and counted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kept = total = trained = cut = untrained = 0
    source = iter(conversations)
    with ExitStack() as stack:
        outs: list[BinaryIO] = [
            stack.enter_context((directory / name).open("wb")) for name in (TOKENS, TRAINED, ENDS)
        ]
        while chunk := list(islice(source, _BATCH)):
            for ids, flags in encoder.encode(chunk):
                cut += len(ids) > max_length
                ids, flags = ids[:max_length], flags[:max_length]
                if not flags.any():
                    untrained += 1
                    continue
                kept += 1
                total += len(ids)
                trained += int(flags.sum())
                ends = np.array([total], dtype=np.int64)
                for out, data in zip(outs, (ids.tobytes(), flags.tobytes(), ends.tobytes()), strict=True):
                    out.write(data)
    return TokenCounts(kept, total, trained, cut, untrained)
