"""Text to tokens, once: the tokeniser of a run and its corpus as memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainer.conversation import ChatTemplate, Conversation, Turn
from trainer.dataset import ENDS, TOKENS, TRAINED, token_type
from trainer.encode import Encoder, begins_with_bos
from trainer.errors import ConfigError

# Conversations encoded at once: enough to keep the tokeniser's threads busy, a few MB of text.
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
    if not begins_with_bos(tokeniser):
        return ""
    text = template.prompt((Turn("user", "a"),))
    spaced = tokeniser(f"{tokeniser.bos_token} {text}", add_special_tokens=False)["input_ids"]
    return "{{ bos_token + ' ' }}" if spaced == tokeniser(text)["input_ids"] else "{{ bos_token }}"


def write_corpus(
    conversations: Iterable[Conversation], encoder: Encoder, max_length: int, directory: Path
) -> TokenCounts:
    """Tokenise into `directory`: tokens.bin (uint16 or uint32), trained.bin (uint8), ends.bin (int64).

    dataset.py says what they hold. Memory does not grow with the corpus. A conversation longer than `max_length`
    is cut there; one with no trained token left is refused and counted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kept = total = trained = cut = untrained = 0
    source = iter(conversations)
    stored = token_type(encoder.vocabulary)
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
                ends = np.array([total, trained], dtype=np.int64)
                for out, data in zip(
                    outs, (ids.astype(stored).tobytes(), flags.tobytes(), ends.tobytes()), strict=True
                ):
                    out.write(data)
    return TokenCounts(kept, total, trained, cut, untrained)
