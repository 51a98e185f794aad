"""Some conversations of a corpus, chosen by hashes: the same choice every time, whatever order it is made in.

sample: N of them at random, in corpus order. split: two sides by origin, so that the parts of one conversation
(and kept copies of one id) never land on both.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.forms import check_output, lines_of, writing
from trainer.data.read import Corpus, read_corpus
from trainer.data.split import origin
from trainer.errors import DataError, UsageError

_COPY = re.compile(r"#\d+\Z")  # pipeline's mark of a doubled id


@dataclass(frozen=True, slots=True)
class Sides:
    """What went where: samples, and conversations (origins) they are parts of."""

    train: int
    test: int


def sample(paths: Sequence[Path], output: Path, count: int, seed: int, form: str = "sharegpt") -> int:
    """Writes `count` conversations chosen at random, all if there are fewer. Two passes; memory is `count` numbers."""
    _check(paths, output)
    chosen: list[tuple[int, int]] = []  # the smallest hashes, as a heap with the largest of them first
    for number, _ in enumerate(read_corpus(paths)):
        entry = (-_hash(seed, str(number)), number)
        if len(chosen) < count:
            heapq.heappush(chosen, entry)
        elif entry > chosen[0]:
            heapq.heapreplace(chosen, entry)
    numbers = {number for _, number in chosen}
    picked = (conversation for number, conversation in enumerate(read_corpus(paths)) if number in numbers)
    with writing(output) as write:
        for line in lines_of(picked, form):
            write(line)
    return len(numbers)


def split_train_test(
    paths: Sequence[Path], train: Path, test: Path, share: float, seed: int, form: str = "sharegpt"
) -> Sides:
    """About `share` of the origins to `test`, the rest to `train`. One pass, constant memory."""
    _check(paths, train, test)
    if train.resolve() == test.resolve():
        raise UsageError(f"{train} cannot be both sides", hint="give two names")
    limit = int(share * 2**64)
    counts = [0, 0]
    corpus: Corpus = read_corpus(paths)
    with writing(train) as to_train, writing(test) as to_test:
        for conversation in corpus:
            side = _hash(seed, _COPY.sub("", origin(conversation.id))) < limit
            counts[side] += 1
            for line in lines_of([conversation], form):
                (to_test if side else to_train)(line)
        if not all(counts):
            empty = "test" if counts[0] else "training"
            raise DataError(
                f"{sum(counts)} samples and a share of {share:g} leave the {empty} side empty",
                hint="give another --share or another --seed",
            )
    return Sides(*counts)


def _check(paths: Sequence[Path], *outputs: Path) -> None:
    read_corpus(paths)
    for output in outputs:
        check_output(output)
        if output.resolve() in {path.resolve() for path in paths}:
            raise UsageError(f"{output} is an input as well", hint="write to another name")


def _hash(seed: int, text: str) -> int:
    data = f"{seed}\0{text}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
