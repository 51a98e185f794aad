"""Text to tokens, once: the tokeniser of a run and its corpus as memory-mapped arrays.

A conversation is encoded as the one string that the model will be prompted with, so training and serving
tokenise alike; which tokens count is read off the character spans of the rendered segments.
"""

from __future__ import annotations

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

from trainer.conversation import ChatTemplate, Conversation, Segment
from trainer.dataset import ENDS, TOKENS, TRAINED
from trainer.errors import ConfigError

# Conversations handed to the tokeniser's threads at once: enough to keep them busy, a few MB of text.
_BATCH = 512


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
        ConfigError: the tokeniser has no fast form, or lacks a token that the template ends turns with.
    """
    tokeniser: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    if not isinstance(tokeniser, PreTrainedTokenizerFast):
        raise ConfigError(f"the tokeniser of {path} has no fast form", hint="save it with tokenizer.json")
    unknown = [token for token in template.special_tokens if token not in tokeniser.get_vocab()]
    if unknown:
        raise ConfigError(
            f"the tokeniser of {path} has no {', '.join(unknown)}, with which template {template.name} ends turns",
            hint="choose the template that the base model was made for: --set data.template=NAME",
        )
    tokeniser.eos_token = template.end_token
    return tokeniser


def carry_template(tokeniser: PreTrainedTokenizerFast, template: ChatTemplate, max_length: int) -> None:
    """Store the template with the tokeniser, so that whoever loads the export prompts as it was trained."""
    prefix = "{{ bos_token }}" if tokeniser.bos_token else ""
    tokeniser.chat_template = prefix + template.jinja()
    tokeniser.model_max_length = max_length


class Encoder:
    """Conversations to (token ids, trained flags).

    Text of a user that spells a special token stays text: such a conversation is encoded piece by piece with
    special tokens switched off. So is one whose answer begins in the middle of a token.
    """

    def __init__(self, tokeniser: PreTrainedTokenizerFast, template: ChatTemplate) -> None:
        self._fast = Tokenizer.from_str(tokeniser.backend_tokenizer.to_str())
        self._fast.no_truncation()
        self._fast.no_padding()
        self._plain = Tokenizer.from_str(self._fast.to_str())
        self._plain.encode_special_tokens = True
        self._specials = tuple(token.content for token in self._fast.get_added_tokens_decoder().values())
        self._template = template
        self._bos = [] if tokeniser.bos_token_id is None else [tokeniser.bos_token_id]

    def encode(
        self, conversations: list[Conversation]
    ) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint8]]]:
        """Yields, per conversation, ids (L,) and flags (L,), 1 where the loss counts; the first is never 1."""
        rendered = [self._template.render(conversation) for conversation in conversations]
        texts = ["".join(segment.text for segment in segments) for segments in rendered]
        encodings = self._fast.encode_batch(texts, add_special_tokens=False)
        for segments, encoding in zip(rendered, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            flags = None if self._has_foreign_special(segments) else _flags(segments, spans)
            if flags is None:
                ids, flags = self._piecewise(segments)
            ids = np.concatenate([np.array(self._bos, dtype=np.uint32), ids])
            flags = np.concatenate([np.zeros(len(self._bos), dtype=np.uint8), flags])
            flags[:1] = 0  # nothing comes before the first token that could predict it
            yield ids, flags

    def _has_foreign_special(self, segments: list[Segment]) -> bool:
        return any(
            special in segment.text
            for segment in segments
            if not segment.special
            for special in self._specials
        )

    def _piecewise(self, segments: list[Segment]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        ids: list[int] = []
        flags: list[int] = []
        for segment in segments:
            tokeniser = self._fast if segment.special else self._plain
            piece = tokeniser.encode(segment.text, add_special_tokens=False).ids
            ids += piece
            flags += [int(segment.trained)] * len(piece)
        return np.array(ids, dtype=np.uint32), np.array(flags, dtype=np.uint8)


def _flags(segments: list[Segment], spans: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Which tokens begin in trained text; None where a token reaches across the border of an answer."""
    borders: list[int] = []
    at = 0
    for segment in segments:
        if segment.trained != (len(borders) % 2 == 1):
            borders.append(at)
        at += len(segment.text)
    edges = np.array(borders, dtype=np.int64)
    starts, ends = spans[:, 0], spans[:, 1]
    if np.any(np.searchsorted(edges, starts, "right") != np.searchsorted(edges, ends, "left")):
        return None
    return (np.searchsorted(edges, starts, "right") % 2).astype(np.uint8)


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
