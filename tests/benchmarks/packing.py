"""Useful tokens per CPU second: conversations packed, against padded to 2048 as FastChat pads them.

    python tests/benchmarks/packing.py [--rows 16] [--repeat 2] [--hidden 128] [--layers 4]
                                       [--conversations FILE...] [--json FILE]

All sides do forward and backward of a small LLaMA, float32, one thread, over the very same conversations; a useful
token is one that is not padding. Two sets of lengths: lognormal with median 600 and sigma 0.9, cut at 2048
(20,000 drawn, packed, then rows taken evenly from all); and a real file, which is a set of very short
conversations. Sides:

    padded to 2048     transformers with SDPA, attention_mask, labels of -100 on padding; 4 conversations a pass
    padded to longest  the same, but only to the longest of the 4
    packed, all logits ours, with the logits of every position (what packing alone gives)
    packed             ours: logits only where something is learnt; 4 rows a pass

At 128 hidden units and 2048 positions attention over the padding is most of the padded side's work; the larger
--hidden, the smaller its share, and the ratio falls towards that of the slots. CPU seconds of this process, the least
of the repeats: a loaded machine adds only noise upwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from trainer import attention  # noqa: E402
from trainer.conversation import get_template  # noqa: E402
from trainer.data.read import read_corpus  # noqa: E402
from trainer.dataset import Batch, TokenisedCorpus  # noqa: E402
from trainer.encode import Encoder  # noqa: E402
from trainer.packing import Ints, first_fit_decreasing  # noqa: E402
from trainer.tokenize import train_tokeniser, write_corpus  # noqa: E402

LENGTH, VOCABULARY, PER_PASS, TARGET = 2048, 4096, 4, 2.5
# Share of a conversation's tokens that are its answers: measured on 3,000 conversations of ShareGPT's shape.
TRAINED = 0.86
REAL = REPOSITORY.parent / "shared/data/conversations/dummy_conversation.json"


@dataclass(frozen=True)
class Sample:
    """Rows of packed conversations, and the same conversations one by one."""

    name: str
    corpus: TokenisedCorpus
    rows: list[Ints]
    slots_padded: int
    slots_packed: int

    @property
    def conversations(self) -> list[int]:
        # In random order, as a loader would bring them: the packed rows begin with the long ones.
        return np.random.default_rng(0).permutation(np.concatenate(self.rows)).tolist()

    @property
    def tokens(self) -> int:
        return int(sum(self.corpus.lengths[row].sum() for row in self.rows))


def drawn(count: int, folder: Path) -> TokenisedCorpus:
    """Conversations of random tokens with lognormal lengths, in the layout that training reads."""
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(np.log(600), 0.9, count), 8, LENGTH).astype(np.int64)
    ends = np.cumsum(lengths)
    learnt = np.ones(int(ends[-1]), dtype=np.uint8)
    for end, length in zip(ends, lengths, strict=True):
        learnt[end - length : end - int(length * TRAINED)] = 0
    chance.integers(0, VOCABULARY, len(learnt), dtype=np.uint32).tofile(folder / "tokens.bin")
    learnt.tofile(folder / "trained.bin")
    np.stack([ends, np.cumsum(learnt, dtype=np.int64)[ends - 1]], axis=1).tofile(folder / "ends.bin")
    return TokenisedCorpus(folder)


def read(path: Path, folder: Path) -> TokenisedCorpus:
    template = get_template("vicuna_v1.1")
    conversations = list(read_corpus([path]))
    texts = (turn.text for conversation in conversations for turn in conversation.turns)
    write_corpus(
        conversations, Encoder(train_tokeniser(texts, VOCABULARY, template), template), LENGTH, folder
    )
    return TokenisedCorpus(folder)


def sample(name: str, corpus: TokenisedCorpus, count: int, most: int) -> Sample:
    """`count` rows evenly out of all, but no more than `most` conversations."""
    packed = first_fit_decreasing(corpus.lengths, LENGTH)
    by_length = np.argsort(-corpus.lengths, kind="stable")
    rows = []
    for at in ((np.arange(count) + 0.5) / count * len(packed)).astype(int):
        row = by_length[packed.slots[packed.starts[at] : packed.starts[at + 1]]]
        if rows and sum(map(len, rows)) + len(row) > most:
            break
        rows.append(row)
    return Sample(name, corpus, rows, len(corpus) * LENGTH, len(packed) * LENGTH)


def network(implementation: str, hidden: int, layers: int) -> PreTrainedModel:
    attention.register()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 32, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, attn_implementation=implementation)
    return model.train()


def padded(model: PreTrainedModel, sample: Sample, width: int | None) -> None:
    numbers = sample.conversations
    for at in range(0, len(numbers), PER_PASS):
        pieces = [sample.corpus.tokens_of(number) for number in numbers[at : at + PER_PASS]]
        shape = (len(pieces), width or max(len(ids) for ids, _ in pieces))
        ids, seen = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, -100)
        for row, (tokens, flags) in enumerate(pieces):
            given = torch.from_numpy(tokens.astype(np.int64))
            ids[row, : len(given)] = given
            seen[row, : len(given)] = 1
            labels[row, : len(given)] = torch.where(torch.from_numpy(flags == 1), given, -100)
        model(input_ids=ids, attention_mask=seen, labels=labels, use_cache=False).loss.backward()


def packed(model: PreTrainedModel, sample: Sample, *, all_logits: bool) -> None:
    for at in range(0, len(sample.rows), PER_PASS):
        batch = sample.corpus.batch(np.concatenate(sample.rows[at : at + PER_PASS]))
        logits = _logits(model, batch, all_logits)
        cross_entropy(logits.float(), batch.targets, reduction="sum").backward()


def _logits(model: PreTrainedModel, batch: Batch, all_logits: bool) -> Tensor:
    kept = 0 if all_logits else batch.predictors
    out = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, boundaries=batch.boundaries,
        logits_to_keep=kept, use_cache=False,
    )  # fmt: skip
    logits: Tensor = out.logits[0]
    return logits[batch.predictors] if all_logits else logits


def cpu_s(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(sample: Sample, repeat: int, hidden: int, layers: int) -> dict[str, float]:
    """CPU seconds by side; the sides take turns, so that a disturbance meets all of them."""
    theirs, ours = (network(kind, hidden, layers) for kind in ("sdpa", attention.NAME))
    sides: dict[str, Callable[[], None]] = {
        f"padded to {LENGTH}": lambda: padded(theirs, sample, LENGTH),
        "padded to longest": lambda: padded(theirs, sample, None),
        "packed, all logits": lambda: packed(ours, sample, all_logits=True),
        "packed": lambda: packed(ours, sample, all_logits=False),
    }
    spent: dict[str, float] = {}
    for _ in range(repeat):
        for name, work in sides.items():
            spent[name] = min(spent.get(name, float("inf")), cpu_s(work))
    return spent


def report(sample: Sample, spent: dict[str, float]) -> None:
    most = spent[f"padded to {LENGTH}"]
    count = len(sample.conversations)
    print(
        f"\n{sample.name}: {len(sample.corpus)} conversations, mean {sample.corpus.lengths.mean():.0f} tokens"
    )
    print(
        f"slots, all of them: padded to {LENGTH} {sample.slots_padded / sample.slots_packed:.2f} times packed; "
        f"packed rows are {sample.corpus.lengths.sum() / sample.slots_packed:.2%} full"
    )
    print(
        f"measured: {count} of them, {sample.tokens} tokens, "
        f"slots {count / len(sample.rows):.2f} times packed"
    )
    print(f"{'':<20} {'CPU s':>8} {'tokens/CPU s':>13} {'ratio':>7}")
    for name, seconds in spent.items():
        print(f"{name:<20} {seconds:>8.2f} {sample.tokens / seconds:>13.0f} {most / seconds:>7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=16, help="packed rows to measure")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--conversations", type=Path, nargs="*", default=[REAL] if REAL.exists() else [])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        corpora = {"lognormal": drawn(20_000, _folder(scratch, "lognormal"))}
        for path in wanted.conversations:
            corpora[path.name] = read(path, _folder(scratch, path.stem))
        for name, corpus in corpora.items():
            chosen = sample(name, corpus, wanted.rows, most=PER_PASS * wanted.rows)
            spent = measure(chosen, wanted.repeat, wanted.hidden, wanted.layers)
            report(chosen, spent)
            figures[name] = {"cpu_s": spent, "tokens": chosen.tokens}
            figures[name]["ratio"] = spent[f"padded to {LENGTH}"] / spent["packed"]
    print(f"\nlognormal: packed is {figures['lognormal']['ratio']:.2f} times padded (wanted: {TARGET})")
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=2) + "\n")


def _folder(scratch: str, name: str) -> Path:
    folder = Path(scratch) / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
