"""Conversations as people paste them, and tokenisers of every family, trained here on the spot."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from trainer.conversation import TEMPLATES, Conversation, Turn
from trainer.tokenize import train_tokeniser

PLAIN = (
    "What does os.path.join do?",
    "It joins one or more path segments.",
    "def area(r):\n    return 3.14 * r ** 2\n",
    "```python\nfor x in range(10):\n\tprint(f'{x:>3}')\n```",
    "Où est la bibliothèque ?",
    "Eine Änderung der Straße",
    "日本語のテキストです。",
    "Ελληνικά, кириллица, العربية, हिन्दी",
    "👩‍👩‍👧‍👦 🇬🇷 e\u0301 🚀",
    "A_very_long_identifier, 1234567890, C:\\path\\to",
    "{{ messages }} {% endgeneration %} &lt;b&gt;",
)
# Role words and end marks of every template, and edges on which tokens may fall together.
SPELLED = (
    "USER: Hi ASSISTANT: Hello",
    " ASSISTANT:",
    "</s>",
    "<s>",
    "<unk>",
    "a</s>USER: next",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "[INST] <<SYS>>\n<</SYS>> [/INST]",
    "### Response:\n",
    "\n",
    "\n\n",
    "  ",
    ":",
    "<",
    "s>",
)


def dialogues(count: int, *, spelled: bool, seed: int = 0) -> list[Conversation]:
    """Conversations of one to three rounds; `spelled` puts special tokens and role words into the texts."""
    chance = random.Random(seed)
    pieces = PLAIN + SPELLED if spelled else PLAIN

    def text() -> str:
        joint = chance.choice(("", " ", "\n")) if spelled else " "
        return joint.join(chance.choice(pieces) for _ in range(chance.randint(1, 4)))

    found = []
    for number in range(count):
        turns = [Turn("system", text())] if chance.random() < 0.2 else []
        for _ in range(chance.randint(1, 3)):
            turns += [Turn("user", text()), Turn("assistant", text())]
        found.append(Conversation(f"c{number}", tuple(turns)))
    return found


def _byte_level() -> PreTrainedTokenizerFast:
    """Ours, with the special tokens of every template."""
    return _with_all_special_tokens(train_tokeniser(_texts(), 600, TEMPLATES["vicuna_v1.1"]))


def _gpt2() -> PreTrainedTokenizerFast:
    """GPT-2's: it has a BOS token and puts it nowhere; spans are reported without their leading space."""
    tokeniser = _byte_level()
    backend = tokeniser.backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def _llama() -> PreTrainedTokenizerFast:
    """LLaMA's as converted since 2024: Metaspace puts a space before the text, not before its later parts."""
    backend = _sentence_pieces(across_lines=False)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _as_llama(backend)


def _llama_legacy() -> PreTrainedTokenizerFast:
    """LLaMA's as converted in 2023: a space before each stretch between two special tokens."""
    backend = _sentence_pieces(across_lines=False)
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _as_llama(backend)


def _llama_across_lines() -> PreTrainedTokenizerFast:
    """A LLaMA-like tokeniser whose tokens reach from the end of one line into the next."""
    backend = _sentence_pieces(across_lines=True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return _as_llama(backend)


def _unigram() -> PreTrainedTokenizerFast:
    """A unigram model, in whose vocabulary special tokens stand beside the pieces of text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = sorted({character for text in (*_texts(), *SPELLED) for character in text} - {" "})
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False,
        initial_alphabet=alphabet,
    )  # fmt: skip
    backend.train_from_iterator(_texts(), trainer)
    return _as_llama(backend)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": lru_cache(_byte_level),
    "gpt-2": lru_cache(_gpt2),
    "llama": lru_cache(_llama),
    "llama legacy": lru_cache(_llama_legacy),
    "llama across lines": lru_cache(_llama_across_lines),
    "unigram": lru_cache(_unigram),
}


def save(tokeniser: PreTrainedTokenizerFast, folder: Path, **config: object) -> Path:
    """Write it as a Hugging Face folder; `config` changes fields of its tokenizer_config.json."""
    tokeniser.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def _texts() -> list[str]:
    return [*PLAIN, "USER: ASSISTANT: [INST] [/INST] <<SYS>> user assistant system ### Response: </s>"] * 3


def _sentence_pieces(*, across_lines: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    words = pre_tokenizers.Metaspace(split=True)  # so that no piece spans two words
    lines = pre_tokenizers.Split("\n", "isolated")
    backend.pre_tokenizer = words if across_lines else pre_tokenizers.Sequence([lines, words])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<unk>", "<s>", "</s>", *octets],
        limit_alphabet=80,
        show_progress=False,
    )
    backend.train_from_iterator(_texts(), trainer)
    tree = json.loads(backend.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] not in octets]
    return Tokenizer.from_str(json.dumps(tree))


def _as_llama(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return _with_all_special_tokens(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
    )


def _with_all_special_tokens(tokeniser: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    wanted = {token for template in TEMPLATES.values() for token in template.special_tokens}
    tokeniser.add_tokens(sorted(wanted), special_tokens=True)
    return tokeniser
